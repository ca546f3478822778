"""The files of several commands: tables of texts that they read, tables and pictures they write."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2kit.cli import output
from gpt2kit.cli.options import OUTPUT_GROUP

if TYPE_CHECKING:
    from gpt2kit.data.tables import Format

FORMATS_HELP = ".csv, .tsv, .jsonl (each also .gz or .zst) or .parquet"
_TEXTS_HELP = (
    f"A table: {FORMATS_HELP}; or .txt, with a text on each line. - is standard input. With --out "
    "DIR several, also folders and globs."
)
Texts = Annotated[list[str], typer.Argument(metavar="FILE|-", help=_TEXTS_HELP)]
OptionalTexts = Annotated[
    list[str] | None, typer.Argument(metavar="[FILE|-]", help=_TEXTS_HELP, show_default=False)
]


def out_option(what: str) -> Any:
    """Return the option --out of a command that can write `what`, which is a table."""
    return typer.Option(
        "--out",
        metavar="FILE",
        help=f"Write {what} to a .csv, .tsv, .jsonl or .parquet file, too.",
        show_default=False,
        rich_help_panel=OUTPUT_GROUP,
    )


def picture_option(what: str) -> Any:
    """Return the option --picture of a command that can draw `what`."""
    return typer.Option(
        "--picture",
        metavar="FILE",
        help=f"Draw {what}, too: a .png, .svg or .pdf file.",
        show_default=False,
        rich_help_panel=OUTPUT_GROUP,
    )


def check_written(out: Path | None, picture: Path | None = None) -> None:
    """Refuse a table or picture whose name does not say its format, before anything is computed."""
    if out is not None:
        output_format(out)
    if picture is not None:
        from gpt2kit.plots import check_picture

        check_picture(picture)


def check_not_input(out: Path | None, *inputs: str | Path | None) -> None:
    """Raise a usage error if the output would replace one of the files that are read."""
    for each in inputs:
        with contextlib.suppress(OSError, ValueError):  # a file that is not there, such as -
            if out is not None and each is not None and os.path.samefile(out, each):
                raise typer.BadParameter(
                    f"--out is {out}, which is an input and would be replaced; give another name"
                )


def output_format(out: Path) -> Format:
    """Return the format of a table; raises a usage error if its name tells none."""
    from gpt2kit.data.tables import format_of

    found = format_of(out)
    if found is None or found == "txt":
        raise typer.BadParameter(f"--out is {out}, expected a name in {FORMATS_HELP}")
    return found


def write_rows(out: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str] = ()) -> None:
    """Write a table with a line for each row, in the format that the file's name says.

    `columns` are needed only if there may be no rows.
    """
    from gpt2kit.data.streams import write_batches
    from gpt2kit.data.tables import Table

    columns = tuple(columns or rows[0])
    cells = [[row[name] for name in columns] for row in rows]
    if output_format(out) == "parquet":  # whose objects would need the same keys in every row
        cells = [[json.dumps(c) if isinstance(c, dict) else c for c in row] for row in cells]
    types = {
        name: float
        for n, name in enumerate(columns)
        if any(isinstance(row[n], float) for row in cells)
    }
    n = write_batches(out, [Table(columns, cells, out, types=types)])
    output.note(f"wrote {output.count(n, 'row')} to ", out)


def save_picture(figure: Any, picture: Path) -> None:
    """Write a figure of matplotlib's, and say so."""
    from gpt2kit.plots import save

    save(figure, picture)
    output.note("wrote ", picture)
