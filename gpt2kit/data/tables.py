"""Tables: CSV, TSV and JSONL in and out, with every column, row and cell as it was.

A cell of CSV or TSV is text. A cell of JSONL is any value, or ABSENT where an object lacks the key.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpt2kit.data.encodings import decode
from gpt2kit.data.texts import json_objects
from gpt2kit.errors import CorpusError

Format = Literal["csv", "tsv", "jsonl"]

_DELIMITER = {"csv": ",", "tsv": "\t"}
_LARGEST_CELL = 2**31 - 1  # of the csv module, whose own limit is 131,072 characters


class _Absent:
    """The cell of a JSONL object that lacks the key."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT = _Absent()


@dataclass(frozen=True)
class Table:
    """Named columns and rows of as many cells; two columns may have one name."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]]
    path: Path  # names the table in messages

    def column(self, name: str) -> int:
        """Return the index of a column; raises CorpusError unless there is exactly one."""
        found = [index for index, each in enumerate(self.columns) if each == name]
        if len(found) == 1:
            return found[0]
        shown = ", ".join(map(repr, self.columns))
        if found:
            raise CorpusError(f"{self.path}: {len(found)} columns are called {name!r}")
        advice = ""
        if len(self.columns) == 1 and any(sign in self.columns[0] for sign in ";\t"):
            advice = "; they are separated by another sign: save as .csv with commas, or as .tsv"
        raise CorpusError(f"{self.path}: no column {name!r}; there is {shown[:200]}{advice}")

    def texts(self, name: str) -> list[str]:
        """Return the cells of a column as texts, an absent or null one as an empty text."""
        index = self.column(name)
        return [_text(row[index], self.path, number) for number, row in enumerate(self.rows, 1)]


def format_of(path: Path) -> Format | None:
    """Return the format that the end of a file's name tells, if any."""
    suffix = path.suffix.lower()
    for name in ("csv", "tsv", "jsonl"):
        if suffix == f".{name}":
            return name
    return None


def read_table(data: bytes, path: Path, format: Format, *, encoding: str = "utf-8") -> Table:
    """Read a table from the bytes of a file; `path` names it in messages.

    A byte order mark is skipped, quoted cells may contain line ends, and empty lines are no rows.
    Raises CorpusError for a row with more or fewer cells than there are columns, with its line.
    """
    text = decode(data, path, encoding)
    table = _read_jsonl(text, path) if format == "jsonl" else _read_csv(text, path, format)
    if not table.columns:
        raise CorpusError(f"{path}: empty, expected a table whose first line names its columns")
    return table


def _read_jsonl(text: str, path: Path) -> Table:
    objects = [value for _, value in json_objects(text, path)]
    columns = tuple(dict.fromkeys(key for value in objects for key in value))
    rows = [[value.get(key, ABSENT) for key in columns] for value in objects]
    return Table(columns, rows, path)


def _read_csv(text: str, path: Path, format: Format) -> Table:
    before = csv.field_size_limit(_LARGEST_CELL)  # of the whole process
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=_DELIMITER[format], strict=True)
    columns: tuple[str, ...] = ()
    rows: list[list[str]] = []
    try:
        for cells in lines:
            if not cells:
                continue
            if not columns:
                columns = tuple(cells)
            elif len(cells) == len(columns):
                rows.append(cells)
            else:
                raise CorpusError(_ragged(path, lines.line_num, cells, columns), path=path)
    except csv.Error as error:
        raise CorpusError(
            f"{path}: line {lines.line_num:,}: {error}; a quotation mark inside of a cell is "
            "written twice, and the cell between quotation marks",
            path=path,
        ) from None
    finally:
        csv.field_size_limit(before)
    return Table(columns, rows, path)


def _ragged(path: Path, line: int, cells: Sequence[str], columns: Sequence[str]) -> str:
    message = f"{path}: line {line:,} has {len(cells)} cells, expected {len(columns)}"
    if len(cells) == len(columns) + 1 and line == 2:
        return f"{message}; R names its rows there: write it with write.csv or row.names = FALSE"
    return f"{message}; a cell with a comma or line end stands between quotation marks"


def _text(cell: Any, path: Path, row: int) -> str:
    if isinstance(cell, str):
        return cell
    if cell is None or cell is ABSENT:
        return ""
    if isinstance(cell, int | float) and not isinstance(cell, bool):
        return str(cell)
    raise CorpusError(f"{path}: row {row:,}: {json.dumps(cell)[:40]} is no text")


# --- writing --------------------------------------------------------------------------------------


def written(table: Table, format: Format) -> Iterator[str]:
    """Yield a table as lines of text: quoted as in RFC 4180, with \\n at their ends.

    None, and a number that is not finite, is an empty cell or null; floats have nine digits.
    """
    if format == "jsonl":
        for row in table.rows:
            yield json.dumps(_object(table.columns, row), ensure_ascii=False) + "\n"
        return
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=_DELIMITER[format], lineterminator="\n")
    for cells in (table.columns, *table.rows):
        writer.writerow([_cell(cell) for cell in cells])
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()


def _object(columns: Sequence[str], row: Sequence[Any]) -> dict[str, Any]:
    return {
        column: float(f"{cell:.9g}")
        if isinstance(cell, float) and math.isfinite(cell)
        else None
        if isinstance(cell, float)
        else cell
        for column, cell in zip(columns, row, strict=True)
        if cell is not ABSENT
    }


def _cell(cell: Any) -> str:
    if isinstance(cell, str):
        return cell
    if cell is None or cell is ABSENT or (isinstance(cell, float) and not math.isfinite(cell)):
        return ""
    if isinstance(cell, float):
        return f"{cell:.9g}"
    return json.dumps(cell, ensure_ascii=False)
