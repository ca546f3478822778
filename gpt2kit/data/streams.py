"""Files of rows, read and written a batch at a time: CSV, TSV, JSONL, Parquet, lines of text.

    for table in read_batches(Path("texts.jsonl.gz")):   # at most 4,096 rows each
        ...
    write_batches(Path("scored.parquet"), tables)        # appears complete or not at all

Every column, row and cell stays as it was. The end of the name tells the format: .csv, .tsv, .jsonl
or .txt, each also with .gz or .zst behind it, or .parquet. Parquet and .zst need gpt2kit[tables].
"""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from gpt2kit.data.encodings import decoded
from gpt2kit.data.packed import packing, unpacked_blocks
from gpt2kit.data.parquet import ParquetWriter, read_parquet
from gpt2kit.data.tables import ABSENT, DELIMITERS, FORMATS, Format, Table, format_of, written
from gpt2kit.data.texts import json_object
from gpt2kit.errors import CorpusError
from gpt2kit.files import new_file, open_regular

ROWS_AT_ONCE = 4096
_CHARACTERS_AT_ONCE = 2**20  # a batch ends after the row that reaches them
LARGEST_ROW = 2**24  # characters: a compressed file of a megabyte may have one of gigabytes
_TOO_LONG = f"has more than {LARGEST_ROW:,} characters, the most that a row may have"

_Row = tuple[Any, str | None]  # cells or an object, and what is wrong with them, if anything


def read_batches(
    path: Path,
    *,
    file: BinaryIO | None = None,
    format: Format | None = None,
    encoding: str = "utf-8",
    rows: int = ROWS_AT_ONCE,
    strict: bool = True,
) -> Iterator[Table]:
    """Yield the rows of a file in tables of at most `rows` rows; the first may have none.

    `file` is read in place of `path`, which then names it in messages. `format` is told by the name
    unless it is given. The columns of JSONL may differ from batch to batch. Lines of text have the
    columns line, the number, and text; those of white space alone are left out. A byte order mark
    is skipped, and so are empty lines. CSV may have semicolons in place of commas.

    Raises CorpusError for a file without rows and columns, bytes that cannot be decoded, and a row
    with more or fewer cells than there are columns, a line that is no JSON object, or one of more
    than LARGEST_ROW characters. Unless `strict`, such a row is yielded with its message in
    `Table.errors`; but a row of CSV that is too long always raises, for a quotation mark may be
    missing, and where the next row begins is not known.
    """
    format = format or format_of(path)
    if format is None:
        names = ", ".join(f".{name}" for name in FORMATS)
        raise CorpusError(f"{path}: the name tells no format; expected one of {names}", path=path)
    with contextlib.ExitStack() as stack:
        source: BinaryIO
        if file is None:
            source = stack.enter_context(open_regular(path, error=CorpusError))
        else:
            source = file
        if format == "parquet":
            if not source.seekable():
                source = io.BytesIO(source.read())
            for table in read_parquet(source, path, rows):
                yield from _shorter(table)
            return
        texts = decoded(
            unpacked_blocks(source, path), path, encoding, lenient=format == "jsonl" and not strict
        )
        if format in DELIMITERS:
            yield from _read_csv(texts, path, format, rows, strict)
        elif format == "jsonl":
            yield from _read_jsonl(texts, path, rows, strict)
        else:
            yield from _read_lines(texts, path, rows, strict)


def read_table(data: bytes, path: Path, format: Format, *, encoding: str = "utf-8") -> Table:
    """Read a whole table from the bytes of a file; `path` names it in messages.

    Raises the errors of `read_batches`.
    """
    file = io.BytesIO(data)
    batches = list(read_batches(path, file=file, format=format, encoding=encoding))
    columns = tuple(dict.fromkeys(name for table in batches for name in table.columns))
    if all(table.columns == batches[0].columns for table in batches):
        columns = batches[0].columns  # two of them may have one name
        rows = [row for table in batches for row in table.rows]
        return Table(columns, rows, path, types=batches[0].types)
    rows = [
        [cells.get(name, ABSENT) for name in columns]
        for table in batches
        for cells in (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    ]
    return Table(columns, rows, path)


def write_batches(
    path: Path, tables: Iterable[Table], *, format: Format | None = None, bom: bool = False
) -> int:
    """Write tables, one below another, to a file that appears complete or not at all.

    The format is told by the name unless it is given. `bom` begins CSV and TSV with a byte order
    mark, from which Excel knows UTF-8. Returns the number of rows.
    """
    format = format or format_of(path)
    count = _Count()
    with new_file(path) as file, packing(file, path) as packed:
        write_to(packed, count.rows(tables), format or "csv", bom=bom)
    return count.n


def write_to(file: BinaryIO, tables: Iterable[Table], format: Format, *, bom: bool = False) -> None:
    """Write tables, one below another, to an open file."""
    if format == "parquet":
        with contextlib.closing(ParquetWriter(file)) as writer:
            for table in tables:
                writer.write(table)
        return
    lines = written(tables, format)
    # A file's name in a cell may have bytes that are not UTF-8.
    for line in chain(["\ufeff"] if bom and format != "jsonl" else [], lines):
        file.write(line.encode(errors="surrogateescape"))


class _Count:
    """Counts the rows of tables as they pass."""

    def __init__(self) -> None:
        self.n = 0

    def rows(self, tables: Iterable[Table]) -> Iterator[Table]:
        for table in tables:
            self.n += len(table.rows)
            yield table


# --- formats --------------------------------------------------------------------------------------


def _read_csv(
    texts: Iterator[str], path: Path, format: Format, n: int, strict: bool
) -> Iterator[Table]:
    source = _BoundedRows(_csv_lines(texts), path)
    text_lines = iter(source)
    first_line = next(text_lines, "")
    delimiter = _delimiter(first_line, DELIMITERS[format])
    reader = csv.reader(chain([first_line], text_lines), delimiter=delimiter, strict=True)
    lines = _csv_cells(reader, source, path, strict)
    header = _some(lines, 1)
    if not header:
        raise CorpusError(f"{path}: empty, expected a table whose first line names its columns")
    cells, problem = header[0]
    if problem:
        raise CorpusError(f"{path}: {problem}", path=path)
    columns = tuple(cells)
    yield Table(columns, [], path)
    rows, first = _fitted(lines, reader, columns, path, strict), 1
    while some := _some(rows, n):
        yield _table(columns, some, path, first)
        first += len(some)


def _delimiter(header: str, usual: str) -> str:
    """Return what separates the names of the columns: the usual sign, or Excel's semicolon."""
    # Excel writes semicolons in countries where the comma is the decimal sign.
    names = re.sub('"[^"]*"', "", header)
    return ";" if usual not in names and ";" in names else usual


class _BoundedRows:
    """Lines of CSV, of which several may be one row; raises CorpusError for a row too long."""

    def __init__(self, lines: Iterator[str], path: Path) -> None:
        self._lines, self._path = lines, path
        self._read = self._size = 0  # lines so far; characters of the row
        self._start = 1  # the line in which the row begins

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self._read += 1
            self._size += len(line)
            if self._size > LARGEST_ROW:
                raise CorpusError(
                    f"{self._path}: the row that begins in line {self._start:,} {_TOO_LONG}; "
                    "is a quotation mark missing at its end?",
                    path=self._path,
                )
            yield line

    def end_row(self) -> None:
        """Begin to count a row anew."""
        self._size, self._start = 0, self._read + 1


def _csv_cells(reader: Any, source: _BoundedRows, path: Path, strict: bool) -> Iterator[_Row]:
    """Yield the cells of each line that is not empty; none if its quotes are wrong."""
    while True:
        source.end_row()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = (
                f"line {reader.line_num:,}: {error}; a quotation mark inside of a cell is "
                "written twice, and the cell between quotation marks"
            )
            if strict:
                raise CorpusError(f"{path}: {problem}", path=path) from None
            yield [], problem
            continue
        if cells:
            yield cells, None


def _fitted(
    lines: Iterator[_Row], reader: Any, columns: Sequence[str], path: Path, strict: bool
) -> Iterator[_Row]:
    """Yield rows with a cell for each column."""
    for cells, problem in lines:
        if problem is None and len(cells) != len(columns):
            problem = _ragged(reader.line_num, cells, columns)
            if strict:
                raise CorpusError(f"{path}: {problem}", path=path)
        if problem is not None:
            cells = [*cells[: len(columns)], *[""] * (len(columns) - len(cells))]
        yield cells, problem


def _ragged(line: int, cells: Sequence[str], columns: Sequence[str]) -> str:
    message = (
        f"line {line:,} has {len(cells)} cells, expected {len(columns)}; "
        "a cell with a comma or line end stands between quotation marks"
    )
    if len(cells) == len(columns) + 1 and line == 2:
        return f"{message}; if R named the rows, write it with write.csv or row.names = FALSE"
    return message


def _csv_lines(texts: Iterable[str]) -> Iterator[str]:
    r"""Yield the lines of a text with their ends: \n, \r\n or \r."""
    rest: list[str] = []  # of the last line, which may go on
    for text in texts:
        rest.append(text)
        if len(rest) == 1 or rest[0].endswith(("\r", "\n")) or "\n" in text or "\r" in text:
            *lines, last = io.StringIO("".join(rest), newline="")
            yield from lines
            rest = [last]
        if sum(map(len, rest)) > LARGEST_ROW:
            break  # whoever takes this line refuses it
    if rest:
        yield "".join(rest)


def _read_jsonl(texts: Iterator[str], path: Path, n: int, strict: bool) -> Iterator[Table]:
    rows, first = _objects(texts, path, strict), 1
    while some := _some(rows, n):
        columns = tuple(dict.fromkeys(key for value, _ in some for key in value))
        cells = [([value.get(key, ABSENT) for key in columns], wrong) for value, wrong in some]
        yield _table(columns, cells, path, first)
        first += len(some)
    if first == 1:
        raise CorpusError(f"{path}: empty, expected a JSON object on each line")


def _objects(texts: Iterable[str], path: Path, strict: bool) -> Iterator[_Row]:
    """Yield the object on each line that is not blank."""
    for number, line in enumerate(_lines(texts), 1):
        if line is not None and not line.strip():
            continue
        try:
            yield json_object(_short(line, path, number), path, number), None
        except CorpusError as error:
            if strict:
                raise
            yield {}, str(error).removeprefix(f"{path}: ")


def _read_lines(texts: Iterator[str], path: Path, n: int, strict: bool) -> Iterator[Table]:
    rows, first = _numbered(texts, path, strict), 1
    while some := _some(rows, n):
        yield _table(("line", "text"), some, path, first)
        first += len(some)
    if first == 1:
        raise CorpusError(f"{path}: no text, expected a text on each line")


def _numbered(texts: Iterable[str], path: Path, strict: bool) -> Iterator[_Row]:
    """Yield the number and text of each line that is not blank."""
    for number, line in enumerate(_lines(texts), 1):
        if line is not None and not line.strip():
            continue
        try:
            yield [number, _short(line, path, number).removesuffix("\r")], None
        except CorpusError as error:
            if strict:
                raise
            yield [number, ""], str(error).removeprefix(f"{path}: ")


def _short(line: str | None, path: Path, number: int) -> str:
    """Return a line, unless it was too long; raises CorpusError for one that was."""
    if line is None:
        raise CorpusError(f"{path}: line {number:,} {_TOO_LONG}", path=path)
    return line


def _lines(texts: Iterable[str]) -> Iterator[str | None]:
    r"""Yield the lines of a text without the \n at their ends; None for one that is too long.

    Such a line is never whole in memory, and what is left of it is read after the None.
    """
    rest: str | None = ""  # of a line that goes on; None if it is too long already
    for text in texts:
        if rest is None:
            _, end, text = text.partition("\n")
            if not end:
                continue
            rest = ""
        *lines, rest = (rest + text).split("\n")
        yield from (line if len(line) <= LARGEST_ROW else None for line in lines)
        if len(rest) > LARGEST_ROW:
            yield (rest := None)
    if rest is not None:
        yield rest


def _some(rows: Iterator[_Row], n: int) -> list[_Row]:
    """Take at most n rows, and fewer if they are long."""
    found: list[_Row] = []
    size = 0
    before = csv.field_size_limit(LARGEST_ROW)  # of the whole process
    try:
        for row in rows:
            found.append(row)
            cells = row[0].values() if isinstance(row[0], dict) else row[0]
            size += sum(len(cell) for cell in cells if isinstance(cell, str))
            if len(found) >= n or size >= _CHARACTERS_AT_ONCE:
                break
    finally:
        csv.field_size_limit(before)
    return found


def _shorter(table: Table) -> Iterator[Table]:
    """Yield a table in parts that are short enough; if it has no rows, as it is."""
    rows: Iterator[_Row] = ((cells, None) for cells in table.rows)
    first = table.first
    while some := _some(rows, len(table.rows)):
        yield replace(table, rows=[cells for cells, _ in some], first=first)
        first += len(some)
    if not table.rows:
        yield table


def _table(columns: tuple[str, ...], rows: Sequence[_Row], path: Path, first: int) -> Table:
    errors = {index: problem for index, (_, problem) in enumerate(rows) if problem}
    return Table(columns, [cells for cells, _ in rows], path, first=first, errors=errors)
