"""The commands that measure texts by the pile: score, surprisal, filter, detect, embed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from gpt2kit.bulk.work import Cells, Gives
from gpt2kit.data.window import Overflow
from gpt2kit.errors import ConfigError
from gpt2kit.evaluation import criteria
from gpt2kit.evaluation.conditions import Conditions
from gpt2kit.evaluation.criteria_options import CriteriaOptions
from gpt2kit.evaluation.detection import Detector
from gpt2kit.evaluation.passages import Passage, split, target, whole
from gpt2kit.evaluation.perplexity import score
from gpt2kit.evaluation.receipt import described
from gpt2kit.evaluation.surprisal import BATCH_SIZE
from gpt2kit.evaluation.vectors import text_vectors
from gpt2kit.evaluation.word_options import UnitName, WordOptions
from gpt2kit.evaluation.words import Word, measure
from gpt2kit.inspection.hidden import Pool, parse_layers
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import Tokenizer, require_tokenizer


@dataclass(frozen=True, kw_only=True)
class Score:
    """The log probability of each text: `evaluation.perplexity.score`."""

    text_field: str = "text"
    overflow: Overflow = "slide"
    special: bool = False
    unknown: str = "error"
    batch_size: int = BATCH_SIZE

    command: ClassVar[str] = "score"
    gives: ClassVar[Gives] = "one"

    def needs(self) -> tuple[str, ...]:
        """Return the columns whose texts are read."""
        return (self.text_field,)

    def columns(self) -> tuple[str, ...]:
        """Return the names of the new columns."""
        return ("tokens", "logprob", "logprob_per_token", "bits_per_byte", "truncated")

    def check(self, model: GPT2, tokenizer: Tokenizer | None) -> None:
        """Raise TokenizerError for a model without a vocabulary."""
        require_tokenizer(tokenizer, "the model")

    def measure(
        self, model: GPT2, tokenizer: Tokenizer | None, rows: Sequence[tuple[str, ...]]
    ) -> Iterable[Sequence[Cells]]:
        """Return the figures of each text."""
        tokenizer = require_tokenizer(tokenizer, "the model")
        lines = score(
            model,
            tokenizer,
            [text for (text,) in rows],
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


_OF_TEXTS = ("surprisal", "surprisal_corrected", "n_tokens", "n_context", "flag")
_OF_WORDS = (
    "word_n",
    "word",
    "start",
    "end",
    "surprisal",
    "surprisal_corrected",
    "entropy",
    "entropy_word",
    "renyi",
    "rank",
    "n_tokens",
    "n_context",
    "flag",
)


@dataclass(frozen=True, kw_only=True)
class Surprisal:
    """The surprisal of each word, of a target after its context, or of each text."""

    text_field: str = "text"
    context: str | None = None
    target: str | None = None
    sep: str = " "
    unit: UnitName = "word"
    options: WordOptions = field(default_factory=WordOptions)
    batch_size: int = BATCH_SIZE

    command: ClassVar[str] = "surprisal"

    @property
    def gives(self) -> Gives:
        """A row for each word of a text, or one for a target and for a whole text."""
        return "one" if self.target or self.unit == "text" else "many"

    def needs(self) -> tuple[str, ...]:
        """Return the columns whose texts are read."""
        if self.context is not None and self.target is not None:
            return (self.context, self.target)
        return (self.text_field,)

    def columns(self) -> tuple[str, ...]:
        """Return the names of the new columns."""
        names: tuple[str, ...] = _OF_TEXTS if self.unit == "text" else _OF_WORDS
        if self.target:
            names = names[4:]
        return tuple(name for name in names if name != "renyi" or self.options.renyi is not None)

    def check(self, model: GPT2, tokenizer: Tokenizer | None) -> None:
        """Raise TokenizerError for a model without a vocabulary."""
        require_tokenizer(tokenizer, "the model")

    def measure(
        self, model: GPT2, tokenizer: Tokenizer | None, rows: Sequence[tuple[str, ...]]
    ) -> Iterable[Sequence[Cells]]:
        """Return the figures of each unit of each row."""
        passages = [self._passage(row) for row in rows]
        for words in measure(model, tokenizer, passages, self.options, batch_size=self.batch_size):
            # A text of punctuation alone may have no word that is wanted.
            yield list(self._cells(words)) or [{"flag": "empty"}]

    def _passage(self, row: tuple[str, ...]) -> Passage:
        if self.target is not None:
            before, after = row
            return target(before, after, self.sep)
        if self.unit == "text":
            return whole(row[0])
        return split(row[0], self.options.punctuation)

    def _cells(self, words: Sequence[Word]) -> Iterator[dict[str, Any]]:
        for number, word in enumerate(words, 1):
            yield {
                **{name: getattr(word, name, None) for name in self.columns()},
                "word_n": number,
                "word": word.text,
                "n_tokens": len(word.tokens),
                "flag": " ".join(word.flags) or None,
            }


@dataclass(frozen=True, kw_only=True)
class Filter:
    """The criteria of each text, or of those alone that fulfill conditions."""

    text_field: str = "text"
    keep: str | None = None
    options: CriteriaOptions = field(default_factory=CriteriaOptions)
    batch_size: int = BATCH_SIZE

    command: ClassVar[str] = "filter"

    def __post_init__(self) -> None:
        if self.keep is not None:
            Conditions.parse(self.keep).check(self.columns())

    @property
    def gives(self) -> Gives:
        """A row for each text, or with conditions one or none."""
        return "one" if self.keep is None else "some"

    def needs(self) -> tuple[str, ...]:
        """Return the columns whose texts are read."""
        return (self.text_field,)

    def columns(self) -> tuple[str, ...]:
        """Return the names of the new columns."""
        return tuple(self.options.names(observed=False))

    def check(self, model: GPT2, tokenizer: Tokenizer | None) -> None:
        """Raise TokenizerError for a model without a vocabulary."""
        require_tokenizer(tokenizer, "the model")

    def measure(
        self, model: GPT2, tokenizer: Tokenizer | None, rows: Sequence[tuple[str, ...]]
    ) -> Iterable[Sequence[Cells]]:
        """Return the criteria of each text; none for one that does not fulfill the conditions."""
        kept = None if self.keep is None else Conditions.parse(self.keep)
        texts = [text for (text,) in rows]
        for found in criteria.measure(
            model, tokenizer, texts, self.options, batch_size=self.batch_size
        ):
            yield [found] if kept is None or kept.holds(found) else []


@dataclass(frozen=True, kw_only=True)
class Detect(Filter):
    """The criteria of each text, and with a detector a verdict by one of them."""

    detector: Detector | None = None
    by: str = "curvature"

    command: ClassVar[str] = "detect"

    def columns(self) -> tuple[str, ...]:
        """Return the names of the new columns."""
        return (*super().columns(), *(("human_share", "verdict") if self.detector else ()))

    def check(self, model: GPT2, tokenizer: Tokenizer | None) -> None:
        """Raise ConfigError for a detector that was made with another model or other options."""
        super().check(model, tokenizer)
        if self.detector is not None:
            self.detector.calibration(self.by)
            made_with = {
                "model": described("the model", model, tokenizer, self.options),
                "observer": None,
                "binoculars": self.options.binoculars,
            }
            self.detector.check(made_with, Path("the calibration"))

    def measure(
        self, model: GPT2, tokenizer: Tokenizer | None, rows: Sequence[tuple[str, ...]]
    ) -> Iterable[Sequence[Cells]]:
        """Return the criteria of each text and its verdict."""
        for found in super().measure(model, tokenizer, rows):
            verdict = self.detector.verdict(found[0], self.by) if self.detector else {}
            yield [{**found[0], **verdict}]


@dataclass(frozen=True, kw_only=True)
class Embed:
    """A vector of each text: `evaluation.vectors.text_vectors`."""

    text_field: str = "text"
    layer: str = "ln_f"
    pool: Pool = "mean"
    normalize: bool = False
    first: str = "bos"
    stride: int | None = None
    batch_size: int = BATCH_SIZE

    command: ClassVar[str] = "embed"
    gives: ClassVar[Gives] = "one"

    def needs(self) -> tuple[str, ...]:
        """Return the columns whose texts are read."""
        return (self.text_field,)

    def columns(self) -> tuple[str, ...]:
        """Return the names of the new columns."""
        return ("vector",)

    def check(self, model: GPT2, tokenizer: Tokenizer | None) -> None:
        """Raise ConfigError for a layer that the model lacks, and for several."""
        require_tokenizer(tokenizer, "the model")
        if len(parse_layers(self.layer, model.config.n_layer)) > 1:
            raise ConfigError("--layer is one layer; give the command once for each")

    def measure(
        self, model: GPT2, tokenizer: Tokenizer | None, rows: Sequence[tuple[str, ...]]
    ) -> Iterable[Sequence[Cells]]:
        """Return the vector of each text."""
        found = text_vectors(
            model,
            tokenizer,
            [text for (text,) in rows],
            parse_layers(self.layer, model.config.n_layer),
            pool=self.pool,
            normalize=self.normalize,
            first=self.first,
            stride=self.stride,
            batch_size=self.batch_size,
        )
        for vector, error in found:
            numbers = [float(f"{number:.9g}") for number in vector[0].tolist()]
            yield [{"vector": None if error else numbers, "error": error}]
