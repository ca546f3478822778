"""The input files of a plan: found, cut into parts at the ends of rows, and read again.

.txt and .jsonl are cut at line ends without decoding them, so that a bad row is found when its part
is read, and spoils no other row. Every line is a row, also a blank one: row numbers are line
numbers. Parquet is cut between row groups. CSV, whose quotes may contain line ends, and files that
are compressed are one part each.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gpt2kit.bulk.options import Reading
from gpt2kit.data.packed import unpacked_blocks
from gpt2kit.data.parquet import read_parquet, row_groups
from gpt2kit.data.streams import read_batches
from gpt2kit.data.tables import DELIMITERS, Format, Table, format_of
from gpt2kit.errors import CorpusError
from gpt2kit.files import check_regular, open_regular

PART_BYTES = 2**26  # a part ends after the row in which it reaches this size
_CHUNK = 2**20  # bytes that are read at once
_ROWS_AT_ONCE = 1024  # of Parquet
_NAMES = ".txt, .jsonl, .csv, .tsv (also with .gz or .zst) or .parquet"


@dataclass(frozen=True)
class Part:
    """Some rows of one input file, with the number of the first among all rows of the plan."""

    number: int
    file: str  # the name of the input
    # Offsets of the first byte and after the last one; numbers of row groups for Parquet
    start: int
    end: int
    first_row: int  # from 1, over all inputs
    rows: int
    sha256: str  # of the bytes; empty for CSV, Parquet and compressed files
    size: int  # of its bytes in the file


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


def _kind(path: Path) -> Format:
    kind = format_of(path)
    if kind is None:
        raise CorpusError(f"{path}: expected a name that ends in {_NAMES}", path=path)
    return kind


def _is_cut_at_lines(path: Path) -> bool:
    return path.suffix.lower() in (".txt", ".jsonl")


def find(sources: Sequence[str | Path]) -> list[tuple[str, Path]]:
    """Return the name and path of each file that paths, folders and globs stand for, in order.

    Names are relative to the folder that all of them are in, so that they are the same on machines
    that have it in different places. Raises CorpusError if there are none, or one comes twice.
    """
    files = list(dict.fromkeys(_absolute(path) for source in sources for path in _files(source)))
    home = files[0].parent
    while not all(path.is_relative_to(home) for path in files):
        home = home.parent
    return [(path.relative_to(home).as_posix(), path) for path in files]


def _absolute(path: Path) -> Path:
    return Path.cwd() / path if not path.is_absolute() else path


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
        _kind(path)
        return [path]
    files = sorted(each for each in found if each.is_file())
    if not files:
        raise CorpusError(problem, path=path)
    return files


# --- cutting --------------------------------------------------------------------------------------


def cut(named: Sequence[tuple[str, Path]], part_rows: int) -> tuple[list[Input], list[Part]]:
    """Read all files once, and return their descriptions and their parts in order.

    Raises CorpusError for a file that cannot be read, and if there is no row at all.
    """
    inputs: list[Input] = []
    parts: list[Part] = []
    row = 1
    for name, path in named:
        check_regular(path, error=CorpusError)
        status = path.stat()
        if _is_cut_at_lines(path):
            whole = hashlib.sha256()
            ranges = [(*each, each[1] - each[0]) for each in _ranges(path, part_rows, whole)]
            digest = whole.hexdigest()
        else:
            digest = sha256_of(path)
            ranges = list(_groups(path, part_rows) if _kind(path) == "parquet" else _whole(path))
        for start, end, rows, own, size in ranges:
            parts.append(Part(len(parts), name, start, end, row, rows, own, size))
            row += rows
        inputs.append(Input(name, status.st_size, status.st_mtime_ns, digest, path))
    if not parts:
        raise CorpusError(f"{named[0][1]}: empty, expected a text in each line")
    return inputs, parts


def _ranges(path: Path, part_rows: int, whole: Any) -> Iterator[tuple[int, int, int, str]]:
    """Yield start, end, number of rows and sha256 of each range of whole lines."""
    start = offset = rows = 0
    own = hashlib.sha256()
    with open_regular(path, error=CorpusError) as file:
        while chunk := file.read(_CHUNK):
            whole.update(chunk)
            ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == 10) + 1  # after each line
            done = used = 0  # lines and bytes of the chunk that belong to parts already made
            while True:
                by_rows = done + part_rows - rows - 1
                by_size = int(np.searchsorted(ends, start + PART_BYTES - offset))
                last = max(done, min(by_rows, by_size))
                if last >= len(ends):
                    break
                end = int(ends[last])
                own.update(chunk[used:end])
                yield start, offset + end, rows + last + 1 - done, own.hexdigest()
                start, rows, own = offset + end, 0, hashlib.sha256()
                done, used = last + 1, end
            own.update(chunk[used:])
            rows += len(ends) - done
            offset += len(chunk)
            unfinished = len(ends) == 0 or int(ends[-1]) < len(chunk)
    if offset > start:
        yield start, offset, rows + unfinished, own.hexdigest()


def _whole(path: Path) -> Iterator[tuple[int, int, int, str, int]]:
    """Yield a file that cannot be cut as one range, if it has any row."""
    size = path.stat().st_size
    if rows := sum(1 for _ in _rows_of_whole(path, 1, Reading())):
        yield 0, size, rows, "", size


def _groups(path: Path, part_rows: int) -> Iterator[tuple[int, int, int, str, int]]:
    """Yield ranges of row groups with at most `part_rows` rows, or one group with more."""
    start = rows = size = 0
    sizes = row_groups(path)
    for group, (of_group, n_bytes) in enumerate(sizes):
        if rows and (rows + of_group > part_rows or size + n_bytes > PART_BYTES):
            yield start, group, rows, "", size
            start, rows, size = group, 0, 0
        rows, size = rows + of_group, size + n_bytes
    if rows:
        yield start, len(sizes), rows, "", size


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file."""
    with open_regular(path, error=CorpusError) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- reading --------------------------------------------------------------------------------------


def read(part: Part, path: Path, reading: Reading) -> Iterator[SourceRow]:
    """Yield the rows of a part.

    Raises CorpusError at the end if these are not the bytes that the plan was made for, as far as
    the part has a hash.
    """
    if _kind(path) == "parquet":
        yield from _rows_of_groups(part, path)
        return
    if not _is_cut_at_lines(path):
        yield from _rows_of_whole(path, part.first_row, reading)
        return
    digest = hashlib.sha256()
    with open_regular(path, error=CorpusError) as file:
        file.seek(part.start)
        lines = _lines(file, part.end - part.start, reading.max_bytes, digest)
        yield from _parsed(lines, path, part.first_row, part.start == 0, reading)
    if digest.hexdigest() != part.sha256:
        raise CorpusError(f"{path}: it has changed since the plan was made", path=path)


def _rows_of_groups(part: Part, path: Path) -> Iterator[SourceRow]:
    with open_regular(path, error=CorpusError) as file:
        groups = range(part.start, part.end)
        for table in read_parquet(file, path, _ROWS_AT_ONCE, groups):
            yield from _rows_of_table(table, part.first_row - 1)


def _rows_of_whole(path: Path, first_row: int, reading: Reading) -> Iterator[SourceRow]:
    """Yield the rows of CSV, or of a compressed file."""
    if _kind(path) in DELIMITERS:
        for table in read_batches(path, strict=False):
            yield from _rows_of_table(table, first_row - 1)
        return
    with open_regular(path, error=CorpusError) as file:
        unpacked = io.BufferedReader(_Unpacked(unpacked_blocks(file, path)))
        lines = _lines(unpacked, None, reading.max_bytes, hashlib.sha256())
        yield from _parsed(lines, path, first_row, True, reading)


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


def _rows_of_table(table: Table, before: int) -> Iterator[SourceRow]:
    for index, row in enumerate(table.rows):
        cells = dict(zip(table.columns, row, strict=True))
        yield SourceRow(before + table.first + index, cells, table.errors.get(index))


def _parsed(
    lines: Iterator[bytes | int], path: Path, first_row: int, is_start: bool, reading: Reading
) -> Iterator[SourceRow]:
    parse = _parse_json if _kind(path) == "jsonl" else _parse_text
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
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return SourceRow(number, {}, _undecodable(error))
    except (ValueError, RecursionError) as error:
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
