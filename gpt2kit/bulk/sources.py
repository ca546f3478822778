"""The input files of a plan: found, and read again row by row.

Every line of .txt and .jsonl is a row, also a blank one: row numbers are line numbers. A row that
cannot be read is one with an error, and spoils no other.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

from gpt2kit.bulk.options import Reading
from gpt2kit.data.packed import unpacked_blocks
from gpt2kit.data.parquet import read_parquet
from gpt2kit.data.streams import read_batches
from gpt2kit.data.tables import DELIMITERS, Format, Table, cell_text, format_of
from gpt2kit.data.texts import json_value
from gpt2kit.errors import CorpusError
from gpt2kit.files import open_regular

_ROWS_AT_ONCE = 1024  # of Parquet
_NAMES = ".txt, .jsonl, .csv, .tsv (also with .gz or .zst) or .parquet"


@dataclass(frozen=True)
class Part:
    """Some rows of one input file, with the number of the first among all rows of the plan."""

    number: int
    file: str  # the name of the input
    unit: Literal["bytes", "groups", "rows"]  # what `start` and `end` count: groups are Parquet's
    start: int
    end: int  # not in the part
    first_row: int  # from 1, over all inputs
    rows: int
    sha256: str  # of a range of bytes; empty for other parts
    size: int  # bytes, or characters of a range of rows


@dataclass(frozen=True)
class Input:
    """An input file as it was when the plan was made."""

    name: str  # relative to the folder that all inputs are in
    size: int
    modified: int  # nanoseconds, as the file system has it
    sha256: str
    path: Path = field(default=Path(), compare=False)  # where it is on this machine


@dataclass(frozen=True)
class SourceRow:
    """One row of an input: its cells, or what is wrong with it."""

    number: int
    cells: dict[str, Any]
    error: str | None = None


def kind_of(path: Path) -> Format:
    """Return the format of an input; raises CorpusError if its name tells none."""
    kind = format_of(path)
    if kind is None:
        raise CorpusError(f"{path}: expected a name that ends in {_NAMES}", path=path)
    return kind


def find(sources: Sequence[str | Path], results: Sequence[Path] = ()) -> list[tuple[str, Path]]:
    """Return the name and path of each file that paths, folders and globs stand for, in order.

    Names are relative to the folder that all of them are in, so that they are the same on machines
    that have it in different places. A file that is named twice comes once, and those in folders
    of `results` are left out. Raises CorpusError if there are none.
    """
    named = dict.fromkeys(_absolute(path) for source in sources for path in _files(source))
    resolved = cache(os.path.realpath)  # once for all files of a folder
    own = set(map(resolved, results))
    files = [path for path in named if resolved(path.parent) not in own]
    if not files:
        raise CorpusError(f"{sources[0]}: no files but results of this command; name its inputs")
    home = files[0].parent
    while not all(path.is_relative_to(home) for path in files):
        home = home.parent
    return [(path.relative_to(home).as_posix(), path) for path in files]


def _absolute(path: Path) -> Path:
    """Return an absolute path without "..", so that a file has one path however it is typed."""
    path = Path.cwd() / path
    # Asked of the system: after a link to a folder, ".." is the folder that its target is in.
    return Path(os.path.realpath(path.parent), path.name) if ".." in path.parts else path


def _files(source: str | Path) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        found = [each for each in path.rglob("*") if format_of(each) is not None]
        problem = f"{path}: this folder has no file whose name ends in {_NAMES}"
    elif not path.exists() and any(sign in str(source) for sign in "*?["):
        import glob

        found = [Path(name) for name in glob.glob(str(source), recursive=True)]
        problem = f"{source}: no file matches"
    else:
        kind_of(path)
        return [path]
    files = sorted(each for each in found if each.is_file())
    if not files:
        raise CorpusError(problem, path=path)
    return files


# --- rows -----------------------------------------------------------------------------------------


def texts_of(rows: Iterable[SourceRow], by: Sequence[str]) -> Iterator[list[SourceRow]]:
    """Yield the rows of each text: those after one another that agree in these columns.

    Without columns every row is a text. A row that cannot be read, and does not say which text it
    is of, belongs to the one before it.
    """
    text: list[SourceRow] = []
    key: tuple[str, ...] | None = None
    for row in rows:
        own = text_key(row, by)
        if text and (not by or own not in (None, key)):
            yield text
            text = []
        if own is not None or not text:
            key = own
        text.append(row)
    if text:
        yield text


def text_key(row: SourceRow, by: Sequence[str]) -> tuple[str, ...] | None:
    """Return what tells the text of a row from others; None for a row that does not say it."""
    key = tuple(cell_text(row.cells.get(name))[0] for name in by)
    return None if row.error and not any(key) else key


def length_of(row: SourceRow) -> int:
    """Return how many characters the cells of a row have."""
    return sum(len(cell) for cell in row.cells.values() if isinstance(cell, str))


def columns_of(path: Path, rows: int) -> list[str]:
    """Return the columns or keys of the first rows of a file."""
    return list(dict.fromkeys(name for row in islice(rows_of(path), rows) for name in row.cells))


def read(part: Part, path: Path, reading: Reading) -> Iterator[SourceRow]:
    """Yield the rows of a part.

    Raises CorpusError at the end if these are not the bytes that the plan was made for, as far as
    the part has a hash.
    """
    if part.unit == "groups":
        groups = range(part.start, part.end)
        yield from _rows_of_parquet(path, part.first_row, groups)
    elif part.unit == "rows":
        yield from rows_of(path, reading, part.first_row, part.start, part.end)
    else:
        digest = hashlib.sha256()
        with open_regular(path, error=CorpusError) as file:
            file.seek(part.start)
            lines = _lines(file, part.end - part.start, reading.max_bytes, digest)
            yield from _parsed(lines, path, part.first_row, part.start == 0, reading)
        if digest.hexdigest() != part.sha256:
            raise CorpusError(f"{path}: it has changed since the plan was made", path=path)


def rows_of(
    path: Path,
    reading: Reading | None = None,
    first_row: int = 1,
    start: int = 0,
    end: int | None = None,
) -> Iterator[SourceRow]:
    """Yield the rows of a file from the one at `start`, whose number is `first_row`, to `end`."""
    reading = reading or Reading()
    if kind_of(path) == "parquet":
        yield from islice(_rows_of_parquet(path, first_row - start), start, end)
    elif kind_of(path) in DELIMITERS:
        tables = read_batches(path, strict=False)
        rows = (row for table in tables for row in _rows_of_table(table, first_row - start))
        yield from islice(rows, start, end)
    else:
        lines = islice(all_lines(path, reading.max_bytes), start, end)
        yield from _parsed(lines, path, first_row, start == 0, reading)


def _rows_of_parquet(
    path: Path, first_row: int, groups: Sequence[int] | None = None
) -> Iterator[SourceRow]:
    with open_regular(path, error=CorpusError) as file:
        for table in read_parquet(file, path, _ROWS_AT_ONCE, groups):
            yield from _rows_of_table(table, first_row)


def all_lines(path: Path, longest: int) -> Iterator[bytes | int]:
    """Yield the lines of a file, which may be compressed, as `_lines` does."""
    with open_regular(path, error=CorpusError) as file:
        unpacked = io.BufferedReader(_Unpacked(unpacked_blocks(file, path)))
        yield from _lines(unpacked, None, longest, hashlib.sha256())


class _Unpacked(io.RawIOBase):
    """Blocks of bytes as a file that gives lines."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._rest = blocks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._rest = self._rest or next(self._blocks, b"")
        n = min(len(buffer), len(self._rest))
        buffer[:n], self._rest = self._rest[:n], self._rest[n:]
        return n


def _rows_of_table(table: Table, first_row: int) -> Iterator[SourceRow]:
    for index, row in enumerate(table.rows):
        cells = dict(zip(table.columns, row, strict=True))
        yield SourceRow(first_row + table.first - 1 + index, cells, table.errors.get(index))


def _parsed(
    lines: Iterator[bytes | int], path: Path, first_row: int, is_start: bool, reading: Reading
) -> Iterator[SourceRow]:
    parse = _parse_json if kind_of(path) == "jsonl" else _parse_text
    for number, line in enumerate(lines, first_row):
        if isinstance(line, int):
            problem = f"{line:,} bytes, expected at most {reading.max_bytes:,}"
            yield SourceRow(number, {}, problem)
        elif is_start and number == first_row:
            yield parse(number, line.removeprefix(b"\xef\xbb\xbf"))
        else:
            yield parse(number, line)


def _lines(file: BinaryIO, left: int | None, longest: int, digest: Any) -> Iterator[bytes | int]:
    """Yield lines without their ends, up to `left` bytes or the end of the file.

    A line that is too long is its size, and is never whole in memory.
    """
    rest = math.inf if left is None else left
    while rest > 0:
        line = piece = file.readline(int(min(rest, longest + 2)))
        size = len(piece)
        while piece:
            digest.update(piece)
            rest -= len(piece)
            if piece.endswith(b"\n") or rest <= 0:
                break
            piece = file.readline(int(min(rest, longest + 2)))
            size += len(piece)
        if not line:
            return
        text = line.removesuffix(b"\n").removesuffix(b"\r")
        yield text if size == len(line) and len(text) <= longest else size


def _parse_text(number: int, line: bytes) -> SourceRow:
    try:
        return SourceRow(number, {"text": line.decode()})
    except UnicodeDecodeError as error:
        return SourceRow(number, {}, _undecodable(error))


def _parse_json(number: int, line: bytes) -> SourceRow:
    try:
        value = json_value(line.decode())
    except UnicodeDecodeError as error:
        return SourceRow(number, {}, _undecodable(error))
    except ValueError as error:
        problem = f"not valid JSON: {error}" if line.strip() else "empty"
        return SourceRow(number, {}, problem)
    if not isinstance(value, dict):
        return SourceRow(number, {}, "no JSON object")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return SourceRow(number, {}, "half a surrogate pair, which is no character")
    return SourceRow(number, value)


def _undecodable(error: UnicodeDecodeError) -> str:
    return f"not UTF-8: byte {error.start + 1:,} of the row is 0x{error.object[error.start]:02x}"
