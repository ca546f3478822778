"""What filter and detect share: their models, their texts, and the criteria as columns."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gpt2kit.cli import options, output
from gpt2kit.cli.options import MODEL_GROUP, TEXT_GROUP
from gpt2kit.errors import ConfigError
from gpt2kit.evaluation.criteria_options import CRITERIA, CriteriaOptions, contexts
from gpt2kit.fields import check, option

if TYPE_CHECKING:
    from gpt2kit.data.tables import Table
    from gpt2kit.evaluation.criteria_tables import Figures
    from gpt2kit.model import GPT2
    from gpt2kit.tokenizers import Tokenizer

Observer = Annotated[
    str | None,
    typer.Option(
        "--observer",
        metavar="MODEL",
        help="A second model of the same vocabulary, for binoculars and cross_curvature.",
        show_default=False,
        rich_help_panel=MODEL_GROUP,
    ),
]
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

    model: str
    observer: str | None
    device: str
    dtype: str
    quantize: str | None
    no_cache: bool
    batch_size: int


@dataclass(frozen=True)
class Meter:
    """Measures criteria of texts with a model, and an observer if there is one."""

    model: GPT2
    tokenizer: Tokenizer | None
    observer: GPT2 | None
    options: CriteriaOptions
    batch_size: int
    made_with: Mapping[str, Any]  # what identifies the models and the options

    @classmethod
    def load(cls, choice: ModelChoice, wanted: CriteriaOptions) -> Meter:
        """Load the models; raises ConfigError for criteria that lack their observer."""
        from gpt2kit.evaluation.criteria import check_observer
        from gpt2kit.evaluation.receipt import described

        wanted.names(observed=choice.observer is not None)
        how = (choice.device, choice.dtype, choice.quantize)
        model, tokenizer = options.load(choice.model, *how, write_cache=not choice.no_cache)
        made_with: dict[str, Any] = {
            "model": described(choice.model, model, tokenizer, wanted),
            "observer": None,
            "binoculars": wanted.binoculars,
        }
        observer = None
        if choice.observer is not None:
            observer, theirs = options.load(choice.observer, *how, write_cache=not choice.no_cache)
            check_observer(model, tokenizer, observer, theirs)
            made_with["observer"] = described(choice.observer, observer, theirs, wanted)
        return cls(model, tokenizer, observer, wanted, choice.batch_size, made_with)

    @property
    def names(self) -> list[str]:
        """The criteria that are measured."""
        return self.options.names(observed=self.observer is not None)

    @property
    def types(self) -> dict[str, type]:
        """The columns of the criteria, and what they hold."""
        return {name: int if name == "tokens" else float for name in self.names}

    def figures(self, texts: Sequence[str]) -> Iterator[Figures]:
        """Yield the criteria of each text, and its error."""
        from gpt2kit.evaluation.criteria import measure

        return measure(
            self.model,
            self.tokenizer,
            texts,
            self.options,
            observer=self.observer,
            batch_size=self.batch_size,
        )

    def reading(self) -> dict[str, list[str]]:
        """Return the criteria by how the text was read for them."""
        from gpt2kit.tokenizers.listed import start_of_text

        marked = self.tokenizer is not None and start_of_text(self.tokenizer)
        found: dict[str, list[str]] = {}
        for first, names in contexts(self.options, self.names).items():
            found.setdefault(_READ[first if marked else "none"], []).extend(names)
        return found

    def note(self) -> None:
        """Say on stderr how the texts were read."""
        for how, names in self.reading().items():
            output.note(f"read {how}: {', '.join(names)}", dim=True)


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
