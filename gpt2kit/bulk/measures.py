"""The commands that measure texts by the pile: score, filter, detect, embed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from gpt2kit.bulk.sources import SourceRow
from gpt2kit.bulk.work import Cells, Gives, Models, Work
from gpt2kit.data.window import Overflow
from gpt2kit.errors import CorpusError
from gpt2kit.evaluation import criteria
from gpt2kit.evaluation.conditions import BUCKET, Buckets, Conditions, parse_percentiles
from gpt2kit.evaluation.criteria_options import CriteriaOptions
from gpt2kit.evaluation.detection import Detector, made_with
from gpt2kit.evaluation.perplexity import score
from gpt2kit.evaluation.rewritings import parse_rewritings
from gpt2kit.evaluation.surprisal import BATCH_SIZE
from gpt2kit.evaluation.vector_options import VectorOptions
from gpt2kit.evaluation.vectors import layer_of, vector_cells


def texts_in(rows: Sequence[SourceRow], name: str) -> list[str]:
    """Return the cells of a column, which are texts."""
    return [row.cells[name] for row in rows]


@dataclass(frozen=True, kw_only=True)
class Score(Work):
    """The log probability of each text: `evaluation.perplexity.score`."""

    text_field: str = "text"
    overflow: Overflow = "slide"
    special: bool = False
    unknown: str = "error"
    batch_size: int = BATCH_SIZE

    command: ClassVar[str] = "score"

    def needs(self) -> tuple[str, ...]:
        """Return the columns whose texts are read."""
        return (self.text_field,)

    def columns(self) -> tuple[str, ...]:
        """Return the names of the new columns."""
        return ("tokens", "logprob", "logprob_per_token", "bits_per_byte", "truncated")

    def measure(self, models: Models, rows: Sequence[SourceRow]) -> Iterator[Sequence[Cells]]:
        """Return the figures of each text."""
        model, tokenizer = models.model, models.tokenizer
        lines = score(
            model,
            tokenizer,
            texts_in(rows, self.text_field),
            overflow=self.overflow,
            special=self.special,
            batch_size=self.batch_size,
        )
        for line in lines:
            n_bytes = len(line.text.encode())
            yield [
                {
                    "tokens": line.tokens,
                    "logprob": line.logprob,
                    "logprob_per_token": line.logprob_per_token,
                    "bits_per_byte": -line.logprob / math.log(2) / n_bytes,
                    "truncated": line.tokens == model.config.n_ctx
                    and self.overflow == "stop"
                    and len(tokenizer.encode(line.text, special=self.special)) > line.tokens,
                }
            ]


@dataclass(frozen=True, kw_only=True)
class Filter(Work):
    """The criteria of each text, or of those alone that fulfill conditions."""

    text: str = "text"
    keep: str | None = None
    percentiles: str | None = None
    observed: bool = False  # whether there is an observer
    options: CriteriaOptions = field(default_factory=CriteriaOptions)
    batch_size: int = BATCH_SIZE

    command: ClassVar[str] = "filter"

    @cached_property
    def conditions(self) -> Conditions | None:
        """The parsed conditions."""
        return None if self.keep is None else Conditions.parse(self.keep)

    @property
    def gives(self) -> Gives:
        """A row for each text, or with conditions one or none; with percentiles --merge chooses."""
        return "one" if self.conditions is None or self.buckets else "some"

    @property
    def buckets(self) -> Buckets | None:
        """How the texts are divided by percentiles of all of them, if they are."""
        if self.percentiles is None:
            return None
        return Buckets(parse_percentiles(self.percentiles), self.keep)

    def needs(self) -> tuple[str, ...]:
        """Return the columns whose texts are read."""
        return (self.text,)

    def reads(self) -> tuple[str, ...]:
        """Return the columns of the text and its rewritings, and those that conditions name."""
        named = () if self.conditions is None else self.conditions.columns
        own = (*self.columns(), "error", *([BUCKET] if self.percentiles else []))
        lists = [self.options.rewritings] if self.options.rewritings else []
        return (self.text, *lists, *(name for name in named if name not in own))

    def columns(self) -> tuple[str, ...]:
        """Return the names of the new columns."""
        return tuple(self.options.names(observed=self.observed))

    def problem(self, row: SourceRow) -> str | None:
        """Return why a row cannot be measured, if it cannot."""
        found = super().problem(row)
        if found is None and self.options.rewritings is not None:
            try:
                parse_rewritings(row.cells.get(self.options.rewritings))
            except CorpusError as error:
                return str(error)
        return found

    def measure(self, models: Models, rows: Sequence[SourceRow]) -> Iterator[Sequence[Cells]]:
        """Return the criteria of each text."""
        column = self.options.rewritings
        lists = [parse_rewritings(row.cells[column]) for row in rows] if column else ()
        for found in criteria.measure(
            models.model,
            models.tokenizer,
            texts_in(rows, self.text),
            self.options,
            observer=models.observer,
            rewritings=lists,
            batch_size=self.batch_size,
        ):
            yield [found]

    def keeps(self, row: SourceRow, found: Cells) -> bool:
        """Whether a row fulfills the conditions, which may name columns of the input."""
        if self.conditions is None or self.buckets:
            return True
        return self.conditions.holds({**row.cells, **found})


@dataclass(frozen=True, kw_only=True)
class Detect(Filter):
    """The criteria of each text, and with a detector a verdict by one of them."""

    detector: Detector | None = None
    by_criterion: str = "curvature"

    command: ClassVar[str] = "detect"

    def columns(self) -> tuple[str, ...]:
        """Return the names of the new columns."""
        return (*super().columns(), *(("human_share", "verdict") if self.detector else ()))

    def check(self, models: Models) -> None:
        """Raise ConfigError for a detector that was made with other models or options."""
        if self.detector is not None:
            self.detector.calibration(self.by_criterion)
            made = made_with(models.model, models.tokenizer, self.options, models.observer)
            self.detector.check(made, Path("the calibration"))

    def measure(self, models: Models, rows: Sequence[SourceRow]) -> Iterator[Sequence[Cells]]:
        """Return the criteria of each text and its verdict."""
        for (found,) in super().measure(models, rows):
            verdict = self.detector.verdict(found, self.by_criterion) if self.detector else {}
            yield [{**found, **verdict}]


@dataclass(frozen=True, kw_only=True)
class Embed(Work):
    """A vector of each text: `evaluation.vectors.text_vectors`."""

    text: str = "text"
    options: VectorOptions = field(default_factory=VectorOptions)
    batch_size: int = BATCH_SIZE

    command: ClassVar[str] = "embed"

    def needs(self) -> tuple[str, ...]:
        """Return the columns whose texts are read."""
        return (self.text,)

    def columns(self) -> tuple[str, ...]:
        """Return the names of the new columns."""
        return ("vector",)

    def check(self, models: Models) -> None:
        """Raise ConfigError for a layer that the model lacks, and for several."""
        layer_of(self.options, models.model)

    def measure(self, models: Models, rows: Sequence[SourceRow]) -> Iterator[Sequence[Cells]]:
        """Return the vector of each text."""
        for found in vector_cells(
            models.model,
            models.tokenizer,
            texts_in(rows, self.text),
            self.options,
            batch_size=self.batch_size,
        ):
            yield [found]
