"""surprisal: of the words, tokens or texts of a file or table."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json as json_module
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from gpt2kit.bulk.options import Reading, Running
from gpt2kit.cli import bulk, options, output, process, word_vectors
from gpt2kit.cli.fields import takes
from gpt2kit.cli.files import check_not_input, output_format
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
from gpt2kit.evaluation.word_options import TableOptions, WordOptions, check_together

if TYPE_CHECKING:
    from gpt2kit.data.tables import Format, Table
    from gpt2kit.evaluation.scored_tables import Tally


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command("surprisal")(surprisal)


Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE|-",
        help="A text on each line, or a table: .csv, .tsv, .jsonl, each also as .gz or .zst, or "
        ".parquet. - is standard input. With --out DIR several, also folders and globs.",
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
        help="Write a .csv, .tsv, .jsonl or .parquet file, and a receipt beside it: "
        "FILE.receipt.json.",
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


Bom = Annotated[
    bool,
    typer.Option(
        "--bom",
        help="Begin CSV and TSV with a byte order mark, from which Excel knows that it is UTF-8.",
        rich_help_panel=OUTPUT_GROUP,
    ),
]


@takes(how=TableOptions, measured=WordOptions, reading=Reading, running=Running)
def surprisal(
    typed: typer.Context,
    files: Files,
    *,
    how: TableOptions,
    measured: WordOptions,
    model: Models = ["124M"],  # noqa: B006
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    no_cache: NoCache = False,
    encoding: Encoding = "utf-8",
    batch_size: BatchSize = 8,
    out: Out = None,
    bom: Bom = False,
    json: Json = False,
    hidden: word_vectors.Hidden = None,
    pool: word_vectors.PoolOption = "mean",
    reading: Reading,
    running: Running,
) -> None:
    """Show how surprising each word is: minus the logarithm of its probability after what precedes.

    The input is a text on each line, or a table with a text, a word, or a context and a target in
    each row. A table keeps its rows, their order and all its columns, and gets new ones: surprisal
    is the sum over a word's tokens; surprisal_corrected counts the word's end in place of the space
    before it.

    With --out DIR, any number of files is measured in parts, by as many processes and machines as
    give the same command; see docs/score-at-scale.md.
    """
    wants_hidden = word_vectors.check(hidden, out, model, how, json=json)
    if bulk.is_folder(files, out):
        load = bulk.Loader(_only(model), device, dtype, quantize, not no_cache)
        _by_parts(typed, files, out, load, how, measured, batch_size, reading, running)
        return
    bulk.refuse_without_folder(typed)
    file = files[0]
    check_not_input(out, file)
    source = _Source(file, _input_format(how, file), encoding, how)
    format = "csv" if wants_hidden else _format(out, source.format, json)
    if bom and format not in ("csv", "tsv"):
        raise typer.BadParameter("--bom is for CSV and TSV")
    check_together(how, measured)
    process.import_torch()
    from gpt2kit.evaluation import receipt
    from gpt2kit.evaluation.scored_tables import Tally, scored
    from gpt2kit.evaluation.words import Meter

    for name in model[1:]:
        options.locate(name)  # finds a mistyped name before the first model is loaded
    meters = {}
    for name, short in zip(model, _names(model), strict=True):
        gpt2, tokenizer = options.load(name, device, dtype, quantize, write_cache=not no_cache)
        meters[short] = Meter(gpt2, tokenizer, measured, batch_size=batch_size)
    if out is not None and hidden is not None:
        (meter,) = meters.values()
        word_vectors.write(source.opened(), meter, hidden, pool, how, measured, out)
        return
    tally = Tally()
    with source.opened() as read:
        tables = _counted(scored(read, meters, how, measured, tally=tally), tally)
        if out is None:
            _print(tables, format, bom=bom)
        else:
            _write(tables, format, out, bom=bom)
    if tally.errors:
        rows = output.count(tally.errors, "row")
        output.warn(f"{rows} with an error (see the column error); the first: {tally.first_error}")
    if out is None:
        return
    made = receipt.receipt(
        [
            receipt.described(short, meter.model, meter.tokenizer, measured)
            for short, meter in meters.items()
        ],
        measured,
        unit=how.unit,
        texts=tally.texts,
        units=tally.units,
        source={"name": file, "sha256": source.sha256()},
    )
    _write_receipt(made, out)


def _only(models: Sequence[str]) -> str:
    if len(models) > 1:
        raise typer.BadParameter("with --out DIR there is one --model; give a folder to each")
    return models[0]


def _by_parts(
    typed: typer.Context,
    files: Sequence[str],
    out: Path | None,
    load: bulk.Loader,
    how: TableOptions,
    measured: WordOptions,
    batch_size: int,
    reading: Reading,
    running: Running,
) -> None:
    """Measure many files; see `gpt2kit.bulk`."""
    options.refuse(typed, ("encoding", "format"), bulk.BY_NAME)
    options.refuse(typed, ("bom", "json"), "--out DIR writes rows of JSON")
    check_together(how, measured)
    process.import_torch()
    from gpt2kit.bulk.words import Surprisal

    # What happens to a bad row is the run's matter, and may change when it goes on.
    work = Surprisal(
        how=dataclasses.replace(how, on_error="cell"), options=measured, batch_size=batch_size
    )
    bulk.run(files, out, work, load, reading, running, how.on_error)


def _input_format(how: TableOptions, file: str) -> Format:
    """Return the format of the input: as the option says, else its name, else by its columns."""
    from gpt2kit.data.tables import format_of

    found = how.format or format_of(Path(file)) or ("csv" if how.is_table else "txt")
    if not how.is_table and found != "txt":
        raise ConfigError(
            f"{file} is a table ({found}); name its column: --text COLUMN, --words COLUMN or "
            "--context COLUMN --target COLUMN"
        )
    if how.is_table and found == "txt":
        raise ConfigError(
            f"{file} is plain text, which has no columns; add --format csv if it is a table"
        )
    return found


def _format(out: Path | None, input: Format, json: bool) -> Format:
    """Return the format of the output: as its name says, else the input's, else CSV."""
    if out is not None:
        if json:
            raise typer.BadParameter("--json is for standard output; --out FILE.jsonl writes it")
        return output_format(out)
    if json:
        return "jsonl"
    return input if input in ("tsv", "jsonl") else "csv"


class _Source:
    """The input, which can be read twice if a table has a word in each row."""

    def __init__(self, file: str, format: Format, encoding: str, how: TableOptions) -> None:
        self.format: Format = format
        self._path = Path("standard input" if file == "-" else file)
        self._file: Any = None if file != "-" else _Hashed(sys.stdin.buffer)
        self._encoding, self._how = encoding, how

    @contextlib.contextmanager
    def opened(self) -> Iterator[Callable[[], Iterator[Table]]]:
        """Give a function that reads the input from its beginning."""
        if self._file is None or self._how.words is None:
            yield self._read
            return
        with tempfile.TemporaryFile() as copy:  # standard input gives everything only once
            shutil.copyfileobj(self._file, copy)
            self._file, hashed = copy, self._file
            yield self._read
            self._file = hashed

    def _read(self) -> Iterator[Table]:
        from gpt2kit.data.streams import read_batches

        if self._file is not None and self._file.seekable():
            self._file.seek(0)
        return read_batches(
            self._path,
            file=self._file,
            format=self.format,
            encoding=self._encoding,
            strict=self._how.on_error == "stop",
        )

    def sha256(self) -> str:
        """Return the digest of the input, which has been read."""
        if self._file is not None:
            return str(self._file.digest.hexdigest())
        with self._path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


class _Hashed:
    """A stream that computes a digest of what is read from it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def read(self, n: int = -1) -> bytes:
        data = self._file.read(n)
        self.digest.update(data)
        return data

    def seekable(self) -> bool:
        return False


def _names(models: Sequence[str]) -> list[str]:
    """Return a name for the columns of each model: letters, digits, dots and underscores."""
    short = [re.sub(r"[^\w.]+", "_", Path(model).name) for model in models]
    if len(set(short)) == len(short):
        return short
    return [re.sub(r"[^\w.]+", "_", model) + f"_{index}" for index, model in enumerate(models, 1)]


def _counted(tables: Iterator[Table], tally: Tally) -> Iterator[Table]:
    """Yield the tables, and show how many rows are done."""
    from gpt2kit.cli.progress import counting

    with counting("rows") as progress:
        for table in tables:
            progress(tally.rows, None)
            yield table


# --- output ---------------------------------------------------------------------------------------


def _print(tables: Iterator[Table], format: Format, *, bom: bool) -> None:
    from gpt2kit.data.tables import written

    first = next(tables)  # before anything is written: most mistakes show here
    lines = written(itertools.chain([first], tables), format)
    if bom:
        output.result("\ufeff", end="")
    for line in lines:
        if format == "jsonl":
            output.print_json(json_module.loads(line))
        else:
            output.result(line, end="")


def _write(tables: Iterator[Table], format: Format, out: Path, *, bom: bool) -> None:
    from gpt2kit.data.streams import write_batches

    write_batches(out, tables, format=format, bom=bom)


def _write_receipt(made: dict[str, Any], out: Path) -> None:
    from gpt2kit.files import write_whole

    path = out.with_name(f"{out.name}.receipt.json")
    # In ASCII: the name of a file may have bytes that are not UTF-8.
    write_whole(path, json_module.dumps(made, indent=2) + "\n")
    output.note(Path(out), ": ", output.count(made["units"], made["options"]["unit"]))
    output.note("for the Methods section: ", made["methods"])
