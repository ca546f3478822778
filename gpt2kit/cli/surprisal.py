"""surprisal: of the words, tokens or texts of a file or table."""

from __future__ import annotations

import hashlib
import json as json_module
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gpt2kit.cli import options, output, process
from gpt2kit.cli.fields import takes
from gpt2kit.cli.options import (
    MODEL_GROUP,
    OUTPUT_GROUP,
    TEXT_GROUP,
    BatchSize,
    Device,
    Dtype,
    Json,
    NoCache,
    Quantize,
)
from gpt2kit.errors import ConfigError
from gpt2kit.evaluation.word_options import WordOptions
from gpt2kit.fields import check, option

if TYPE_CHECKING:
    from gpt2kit.data.tables import Format, Table
    from gpt2kit.evaluation.word_tables import Plan
    from gpt2kit.evaluation.words import Word

_TABLE_GROUP = "Table"


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Which columns hold what, and in which format the table comes and goes."""

    text: str | None = option(
        None, "The column with a text in each row.", group=_TABLE_GROUP, metavar="COLUMN"
    )
    words: str | None = option(
        None,
        "The column with a word in each row. Rows that agree in the columns of --by are one text.",
        group=_TABLE_GROUP,
        metavar="COLUMN",
    )
    by: str | None = option(
        None,
        "The columns that tell one text of --words from another, with commas between them.",
        group=_TABLE_GROUP,
        metavar="COLUMNS",
    )
    order: str | None = option(
        None,
        "The column with the number of each word in its text. Default: the order of the rows.",
        group=_TABLE_GROUP,
        metavar="COLUMN",
    )
    context: str | None = option(
        None,
        "The column with what stands before the --target.",
        group=_TABLE_GROUP,
        metavar="COLUMN",
    )
    target: str | None = option(
        None,
        "The column with the word or words that are measured after the --context.",
        group=_TABLE_GROUP,
        metavar="COLUMN",
    )
    sep: str = option(
        " ",
        "What is put between words, and between context and target.",
        group=_TABLE_GROUP,
        metavar="TEXT",
    )
    format: Literal["csv", "tsv", "jsonl"] | None = option(
        None,
        "The format of a table whose name does not tell it, such as standard input. Default: csv.",
        group=_TABLE_GROUP,
    )
    unit: Literal["token", "word", "text"] = option(
        "word", "What gets a row of its own.", group=OUTPUT_GROUP
    )

    def __post_init__(self) -> None:
        check(self)
        if (self.context is None) != (self.target is None):
            raise ConfigError("--context and --target go together; give both columns")
        given = [self.text, self.words, self.target]
        if sum(column is not None for column in given) > 1:
            raise ConfigError("give one of --text, --words and --context with --target")
        if self.words is None and (self.by or self.order):
            raise ConfigError(
                "--by and --order are for --words, the column with a word in each row"
            )
        if self.words is not None and self.by is None:
            raise ConfigError(
                "--words needs --by: the columns that tell one text from another, such as "
                "--by item,condition"
            )
        if self.unit == "text" and (self.words or self.target):
            raise ConfigError("--unit text is for --text and for plain lines")

    @property
    def is_table(self) -> bool:
        """Whether the input has columns; else it is plain text with a text on each line."""
        return any(column is not None for column in (self.text, self.words, self.target))


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command("surprisal")(surprisal)


File = Annotated[
    str,
    typer.Argument(
        metavar="FILE|-",
        help="A text on each line, or a table: .csv, .tsv or .jsonl. - is standard input.",
    ),
]
Models = Annotated[
    list[str],
    typer.Option(
        "--model",
        metavar="MODEL",
        help=f"{options.MODEL_HELP} Several give columns for each.",
        rich_help_panel=MODEL_GROUP,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE",
        help="Write a .csv, .tsv or .jsonl file, and a receipt beside it: FILE.receipt.json.",
        show_default=False,
        rich_help_panel=OUTPUT_GROUP,
    ),
]
Encoding = Annotated[
    str,
    typer.Option(
        "--encoding",
        metavar="NAME",
        help="The encoding of the input, such as utf-8, cp1252 or utf-16.",
        rich_help_panel=TEXT_GROUP,
    ),
]


@takes(how=TableOptions, measured=WordOptions)
def surprisal(
    file: File,
    model: Models = ["124M"],  # noqa: B006
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    no_cache: NoCache = False,
    encoding: Encoding = "utf-8",
    batch_size: BatchSize = 8,
    out: Out = None,
    json: Json = False,
    *,
    how: TableOptions,
    measured: WordOptions,
) -> None:
    """Show how surprising each word is: minus the logarithm of its probability after what precedes.

    The input is a text on each line, or a table with a text, a word, or a context and a target in
    each row. A table keeps its rows, their order and all its columns, and gets new ones: surprisal
    is the sum over a word's tokens; surprisal_corrected counts the word's end in place of the space
    before it.
    """
    format = _format(out, how, file, json)
    if how.unit == "text" or how.target:
        _refuse_punctuation(measured)
    process.import_torch()
    from gpt2kit.evaluation import receipt, word_tables

    for name in model[1:]:
        options.locate(name)  # finds a mistyped name before the first model is measured
    data = sys.stdin.buffer.read() if file == "-" else _read(Path(file))
    plan = _plan(data, Path("standard input" if file == "-" else file), encoding, how, measured)
    names = _names(model)
    found: dict[str, list[list[Word]]] = {}
    models: list[dict[str, Any]] = []
    for name, short in zip(model, names, strict=True):
        gpt2, tokenizer = options.load(name, device, dtype, quantize, write_cache=not no_cache)
        found[short] = _measured(short, gpt2, tokenizer, plan, measured, batch_size)
        if out is not None:
            models.append(receipt.described(short, gpt2, tokenizer, measured))
    if how.unit == "token":
        _check_same_tokens(found)
    table = word_tables.filled(plan, found, how.unit, measured)
    if out is None:
        _print(table, format)
        return
    _write(table, format, out)
    source = {"name": file, "sha256": hashlib.sha256(data).hexdigest()}
    made = receipt.receipt(
        models,
        measured,
        unit=how.unit,
        texts=len(plan.passages),
        units=len(table.rows) if how.unit == "token" else sum(map(len, plan.owners)),
        source=source,
    )
    _write_receipt(made, out)


def _format(out: Path | None, how: TableOptions, file: str, json: bool) -> Format:
    """Return the format of the output: as its name says, else the input's, else CSV."""
    from gpt2kit.data.tables import format_of

    if out is not None:
        if json:
            raise typer.BadParameter("--json is for standard output; --out FILE.jsonl writes it")
        if (found := format_of(out)) is None:
            raise typer.BadParameter(f"--out is {out}, expected a name in .csv, .tsv or .jsonl")
        return found
    if json:
        return "jsonl"
    return (_input_format(how, file) or "csv") if how.is_table else "csv"


def _input_format(how: TableOptions, file: str) -> Format | None:
    from gpt2kit.data.tables import format_of

    return how.format or format_of(Path(file))


def _refuse_punctuation(measured: WordOptions) -> None:
    if measured.punctuation != "keep":
        raise typer.BadParameter(
            "--punctuation is for words; a target and a whole text are measured as they are"
        )


def _read(path: Path) -> bytes:
    from gpt2kit.errors import CorpusError
    from gpt2kit.files import read_bytes

    return read_bytes(path, error=CorpusError)


def _plan(data: bytes, path: Path, encoding: str, how: TableOptions, measured: WordOptions) -> Plan:
    """Return what is read for the input."""
    from gpt2kit.data.encodings import decode
    from gpt2kit.data.streams import read_table
    from gpt2kit.data.tables import format_of
    from gpt2kit.evaluation import word_tables

    if not how.is_table:
        if (found := how.format or format_of(path)) not in (None, "txt"):
            raise ConfigError(
                f"{path} is a table ({found}); name its column: --text COLUMN, --words COLUMN or "
                "--context COLUMN --target COLUMN"
            )
        table, texts = word_tables.lines_table(decode(data, path, encoding), path, how.unit)
        return word_tables.texts_plan(table, texts, how.unit, measured, numbered=False)
    table = read_table(data, path, how.format or format_of(path) or "csv", encoding=encoding)
    if how.text is not None:
        return word_tables.texts_plan(table, table.texts(how.text), how.unit, measured)
    if how.words is not None:
        by = [name.strip() for name in (how.by or "").split(",")]
        return word_tables.words_plan(table, how.words, by, how.order, how.sep, measured)
    assert how.context is not None
    assert how.target is not None
    return word_tables.targets_plan(table, how.context, how.target, how.sep)


def _names(models: Sequence[str]) -> list[str]:
    """Return a name for the columns of each model: letters, digits, dots and underscores."""
    short = [re.sub(r"[^\w.]+", "_", Path(model).name) for model in models]
    if len(set(short)) == len(short):
        return short
    return [re.sub(r"[^\w.]+", "_", model) + f"_{index}" for index, model in enumerate(models, 1)]


def _measured(
    name: str,
    model: Any,
    tokenizer: Any,
    plan: Plan,
    measured: WordOptions,
    batch_size: int,
) -> list[list[Word]]:
    from gpt2kit.cli.progress import counting
    from gpt2kit.evaluation.words import measure

    with counting(name) as progress:
        return list(
            measure(
                model, tokenizer, plan.passages, measured, batch_size=batch_size, progress=progress
            )
        )


def _check_same_tokens(found: dict[str, list[list[Word]]]) -> None:
    """Refuse models that cut a text into different tokens: they have no common rows."""
    ids = [
        [[token.id for token in word.tokens] for passage in words for word in passage]
        for words in found.values()
    ]
    if any(each != ids[0] for each in ids[1:]):
        raise ConfigError(
            "--unit token gives a row for each token, but these models split the text into "
            "different ones; run them one after another"
        )


# --- output ---------------------------------------------------------------------------------------


def _print(table: Table, format: Format) -> None:
    from gpt2kit.data.tables import written

    if format == "jsonl":
        for line in written(table, format):
            output.print_json(json_module.loads(line))
        return
    for line in written(table, format):
        output.result(line, end="")


def _write(table: Table, format: Format, out: Path) -> None:
    from gpt2kit.data.tables import written
    from gpt2kit.files import new_file

    with new_file(out) as file:
        file.writelines(line.encode() for line in written(table, format))


def _write_receipt(made: dict[str, Any], out: Path) -> None:
    from gpt2kit.files import write_whole

    path = out.with_name(f"{out.name}.receipt.json")
    # In ASCII: the name of a file may have bytes that are not UTF-8.
    write_whole(path, json_module.dumps(made, indent=2) + "\n")
    output.note(Path(out), ": ", output.count(made["units"], made["options"]["unit"]))
    output.note(made["methods"])
