"""What filter and detect share: their models, their texts, and the criteria as columns."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gpt2kit.cli import output
from gpt2kit.cli.bulk import Loader
from gpt2kit.cli.options import MODEL_GROUP, TEXT_GROUP, CorpusOptions, ModelOptions
from gpt2kit.errors import ConfigError
from gpt2kit.evaluation.criteria_options import CRITERIA, CriteriaOptions, contexts
from gpt2kit.fields import check, option, same_option

if TYPE_CHECKING:
    from gpt2kit.bulk.work import Models
    from gpt2kit.data.tables import Table
    from gpt2kit.evaluation.criteria_tables import Figures

_READ = {"bos": "after <|endoftext|>", "none": "without a token before the text"}


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Where the texts are in the input."""

    text: str = option(
        "text", "The column with a text in each row.", group=TEXT_GROUP, metavar="COLUMN"
    )
    format: Literal["csv", "tsv", "jsonl", "parquet", "txt"] | None = option(
        None, "The format of an input whose name does not tell it.", group=TEXT_GROUP
    )
    encoding: str = option(
        "utf-8",
        "The encoding of the input, such as utf-8, cp1252 or utf-16.",
        group=TEXT_GROUP,
        metavar="NAME",
    )

    def __post_init__(self) -> None:
        check(self)

    def batches(self, file: str) -> Iterator[Table]:
        """Yield the rows of a file, or for - of standard input; bad rows have an error."""
        from gpt2kit.data.streams import read_batches

        if file == "-":
            if self.format is None:
                raise ConfigError("standard input has no name; add --format csv, tsv, jsonl or txt")
            source, path = sys.stdin.buffer, Path("standard input")
        else:
            source, path = None, Path(file)
        yield from read_batches(
            path, file=source, format=self.format, encoding=self.encoding, strict=False
        )


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Which models read the texts, and how they are loaded."""

    model: str = same_option(ModelOptions, "model")
    observer: str | None = option(
        None,
        "A second model of the same vocabulary, for binoculars and cross_curvature.",
        group=MODEL_GROUP,
        metavar="MODEL",
    )
    device: str = same_option(ModelOptions, "device")
    dtype: str = same_option(ModelOptions, "dtype")
    quantize: str | None = same_option(ModelOptions, "quantize")
    no_cache: bool = same_option(ModelOptions, "no_cache")
    batch_size: int = same_option(CorpusOptions, "batch_size")

    def __post_init__(self) -> None:
        check(self)

    @property
    def loader(self) -> Loader:
        """What loads them, in this process or another."""
        return Loader(
            self.model,
            self.device,
            self.dtype,
            self.quantize,
            not self.no_cache,
            observer=self.observer,
        )


@dataclass(frozen=True)
class Meter:
    """Measures criteria of texts with a model, and an observer if there is one."""

    models: Models
    options: CriteriaOptions
    batch_size: int
    made_with: Mapping[str, Any]  # what identifies the models and the options

    @classmethod
    def load(cls, choice: ModelChoice, wanted: CriteriaOptions) -> Meter:
        """Load the models; raises ConfigError for criteria that lack their observer."""
        wanted.names(observed=choice.observer is not None)
        models = choice.loader()
        from gpt2kit.evaluation.detection import made_with

        made = made_with(
            models.model,
            models.tokenizer,
            wanted,
            models.observer,
            names=(choice.model, choice.observer or ""),
        )
        return cls(models, wanted, choice.batch_size, made)

    @property
    def names(self) -> list[str]:
        """The criteria that are measured."""
        return self.options.names(observed=self.models.observer is not None)

    @property
    def types(self) -> dict[str, type]:
        """The columns of the criteria, and what they hold."""
        return {name: int if name == "tokens" else float for name in self.names}

    def figures(
        self, texts: Sequence[str], rewritings: Sequence[Sequence[str]] = ()
    ) -> Iterator[Figures]:
        """Yield the criteria of each text, and its error."""
        from gpt2kit.evaluation.criteria import measure

        return measure(
            self.models.model,
            self.models.tokenizer,
            texts,
            self.options,
            observer=self.models.observer,
            rewritings=rewritings,
            batch_size=self.batch_size,
        )

    def figures_of(self, table: Table, column: str) -> list[Figures]:
        """Return the criteria of the text in each row of a table, and its error."""
        from gpt2kit.evaluation.criteria_tables import figures_of

        return figures_of(table, column, self.figures, self.options.rewritings)

    def reading(self) -> dict[str, list[str]]:
        """Return the criteria by how the text was read for them."""
        from gpt2kit.tokenizers.listed import start_of_text

        marked = start_of_text(self.models.tokenizer)
        found: dict[str, list[str]] = {}
        for first, names in contexts(self.options, self.names).items():
            found.setdefault(_READ[first if marked else "none"], []).extend(names)
        return found

    def note(self) -> None:
        """Say on stderr how the texts were read."""
        for how, names in self.reading().items():
            output.note(f"{', '.join(names)}: measured {how}", dim=True)


def counted(tables: Iterator[Table]) -> Iterator[Table]:
    """Pass tables on, and show on a terminal how many rows there were."""
    rows = 0
    for table in tables:
        yield table
        rows += len(table.rows)
        output.status(f"{rows:,} rows")
    output.status()


def write_receipt(meter: Meter, file: str, out: Path, **figures: Any) -> None:
    """Write beside a table what it was computed with: FILE.receipt.json."""
    import json
    import platform

    import torch

    from gpt2kit import __version__
    from gpt2kit.files import write_whole

    made = {
        "gpt2kit": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "input": file,
        "options": asdict(meter.options),
        **meter.made_with,
        "criteria": {name: CRITERIA[name].about for name in meter.names},
        "read": meter.reading(),
        **figures,
    }
    # In ASCII: the name of a file may have bytes that are not UTF-8.
    write_whole(out.with_name(f"{out.name}.receipt.json"), json.dumps(made, indent=2) + "\n")
