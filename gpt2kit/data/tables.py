"""Tables: named columns and rows, and how their cells are written as text.

A cell of CSV or TSV is text. A cell of JSONL or Parquet is any value, or ABSENT if an object lacks
the key. `gpt2kit.data.streams` reads and writes the files.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gpt2kit.data.packed import unpacked_name
from gpt2kit.errors import CorpusError

Format = Literal["csv", "tsv", "jsonl", "parquet", "txt"]
FORMATS: tuple[Format, ...] = ("csv", "tsv", "jsonl", "parquet", "txt")

DELIMITERS = {"csv": ",", "tsv": "\t"}


class _Absent:
    """The cell of a JSONL object that lacks the key."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT = _Absent()


@dataclass(frozen=True)
class Table:
    """Named columns and rows of as many cells; two columns may have one name.

    A table may be a part of a file. `errors` say, by the index of a row, what is wrong with it; the
    cells of such a row are as far as they could be read.
    """

    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]]
    path: Path  # names the table in messages
    first: int = 1  # the number of the first row in its file, from 1
    errors: Mapping[int, str] = field(default_factory=dict)
    # of columns whose types are known: float, int, str, or a type of Arrow
    types: Mapping[str, Any] = field(default_factory=dict)

    def column(self, name: str) -> int:
        """Return the index of a column; raises CorpusError unless there is exactly one."""
        found = [index for index, each in enumerate(self.columns) if each == name]
        if len(found) == 1:
            return found[0]
        shown = ", ".join(map(repr, self.columns[:50]))
        if found:
            raise CorpusError(f"{self.path}: {len(found)} columns are called {name!r}")
        raise CorpusError(f"{self.path}: no column {name!r}; its columns are {shown[:200]}")

    def texts(self, name: str, errors: dict[int, str] | None = None) -> list[str]:
        """Return the cells of a column as texts, an absent or null one as an empty text.

        A cell that is no text raises CorpusError. If `errors` are given, the message is put there
        under the index of the row instead, and the text is empty.
        """
        index = self.column(name)
        found = []
        for number, row in enumerate(self.rows):
            text, problem = cell_text(row[index])
            if problem and errors is None:
                raise CorpusError(f"{self.path}: row {self.first + number:,}: {problem}")
            if problem and errors is not None:
                errors.setdefault(number, problem)
            found.append(text)
        return found


def format_of(path: Path) -> Format | None:
    """Return the format that the end of a file's name tells, if any; .gz and .zst do not count."""
    suffix = unpacked_name(path).suffix.lower()
    return next((name for name in FORMATS if suffix == f".{name}"), None)


def cell_text(cell: Any) -> tuple[str, str | None]:
    """Return the text of a cell, or what is wrong with it."""
    if isinstance(cell, str):
        return cell, None
    if cell is None or cell is ABSENT:
        return "", None
    if isinstance(cell, int | float) and not isinstance(cell, bool):
        return str(cell), None
    return "", f"{json.dumps(cell, default=str)[:40]} is no text"


# --- writing --------------------------------------------------------------------------------------


def written(tables: Table | Iterable[Table], format: Format) -> Iterator[str]:
    """Yield tables, one below another, as lines of text, quoted as in RFC 4180.

    The first table names the columns of CSV and TSV; a later one with others raises CorpusError,
    and so does JSONL for two columns of one name. None, and a number that is not finite, is an
    empty cell or null. In a column whose type is float floats have nine digits, which is enough
    for any float32; others, such as those of a table that was read, have all of theirs.
    """
    tables = [tables] if isinstance(tables, Table) else tables
    if format == "jsonl":
        for table in tables:
            _check_names(table)
            exact = {name for name in table.columns if table.types.get(name) is not float}
            for row in table.rows:
                yield json_line(table.columns, row, exact)
        return
    if format not in DELIMITERS:
        raise ValueError(f"{format} is not written as lines of text")
    buffer = io.StringIO(newline="")
    # With \r\n Python quotes a cell with a \r alone, too; `_emptied` makes it \n.
    writer = csv.writer(buffer, delimiter=DELIMITERS[format], lineterminator="\r\n")
    columns: tuple[str, ...] | None = None
    for table in tables:
        if columns is None:
            columns = table.columns
            writer.writerow(columns)
            yield _emptied(buffer)
        rounded = [table.types.get(name) is float for name in columns]
        for cells in aligned(table, columns).rows:
            writer.writerow([_cell(*each) for each in zip(cells, rounded, strict=True)])
            yield _emptied(buffer)


def _emptied(buffer: io.StringIO) -> str:
    """Return the line in a buffer, which is empty then."""
    line = buffer.getvalue().removesuffix("\r\n") + "\n"
    buffer.seek(0)
    buffer.truncate()
    return line


def aligned(table: Table, columns: Sequence[str]) -> Table:
    """Return a table with exactly these columns; raises CorpusError if it has another one."""
    if tuple(columns) == table.columns:
        return table
    if extra := [name for name in table.columns if name not in columns]:
        raise CorpusError(
            f"{table.path}: from row {table.first:,} on there is a column {extra[0]!r} that the "
            "rows before it lack; write a .jsonl file, whose rows may have different columns"
        )
    index = {name: number for number, name in enumerate(table.columns)}
    rows = [
        [row[index[name]] if name in index else ABSENT for name in columns] for row in table.rows
    ]
    return Table(tuple(columns), rows, table.path, table.first, table.errors, table.types)


def _check_names(table: Table) -> None:
    """Raise CorpusError for two columns of one name, of which an object would lose one."""
    if twice := [name for name in table.columns if table.columns.count(name) > 1]:
        raise CorpusError(
            f"{table.path}: two columns are called {twice[0]!r}, but the keys of a JSON object "
            "differ; rename one of them, or write a .csv file"
        )


def json_line(columns: Sequence[str], row: Sequence[Any], exact: Collection[str] = ()) -> str:
    """Return a row as a line of JSON; floats have nine digits, but all in the `exact` columns."""
    cells = {
        column: _number(cell, rounded=column not in exact) if isinstance(cell, float) else cell
        for column, cell in zip(columns, row, strict=True)
        if cell is not ABSENT
    }
    return json.dumps(cells, ensure_ascii=False, default=str) + "\n"


def _number(cell: float, *, rounded: bool) -> float | None:
    if not math.isfinite(cell):
        return None
    return float(f"{cell:.9g}") if rounded else cell


def _cell(cell: Any, rounded: bool) -> str:
    if isinstance(cell, str):
        return cell
    if cell is None or cell is ABSENT or (isinstance(cell, float) and not math.isfinite(cell)):
        return ""
    if isinstance(cell, float):
        return f"{cell:.9g}" if rounded else repr(cell)
    if isinstance(cell, int | list | dict):
        return json.dumps(cell, ensure_ascii=False, default=str)
    return str(cell)
