"""Input files cut into parts at the ends of rows.

.txt and .jsonl are cut at line ends without decoding them, so that a bad row is found when its part
is read. Parquet is cut between row groups. CSV, whose quotes may contain line ends, and files that
are compressed are cut by numbers of rows: who reads such a part reads what is before it, too, and
drops it, which takes little time beside a model. So are tables whose texts have several rows: their
parts end between two texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gpt2kit.bulk.options import Reading
from gpt2kit.bulk.sources import (
    Input,
    Part,
    all_lines,
    kind_of,
    length_of,
    rows_of,
    text_key,
    texts_of,
)
from gpt2kit.data.parquet import row_groups
from gpt2kit.data.tables import DELIMITERS
from gpt2kit.errors import CorpusError
from gpt2kit.files import check_regular, open_regular

PART_BYTES = 2**26  # a part ends after the row in which it reaches this size
_CHUNK = 2**20  # bytes that are read at once

_Range = tuple[int, int, int, str, int]  # start, end, rows, sha256 and size of a part


def cut(
    named: Sequence[tuple[str, Path]], part_rows: int, by: Sequence[str] = ()
) -> tuple[list[Input], list[Part]]:
    """Read all files once, and return their descriptions and their parts in order.

    With `by`, rows that agree in these columns are a text, and no text is cut. Raises CorpusError
    for a file that cannot be read, if there is no row at all, and if the rows of a text do not
    follow each other.
    """
    inputs: list[Input] = []
    parts: list[Part] = []
    row = 1
    for name, path in named:
        check_regular(path, error=CorpusError)
        status = path.stat()
        unit: Literal["bytes", "groups", "rows"]
        if not by and path.suffix.lower() in (".txt", ".jsonl"):
            whole = hashlib.sha256()
            unit, ranges = "bytes", list(_byte_ranges(path, part_rows, whole))
            digest = whole.hexdigest()
        elif not by and kind_of(path) == "parquet":
            unit, ranges, digest = "groups", list(_group_ranges(path, part_rows)), sha256_of(path)
        else:
            unit, ranges, digest = "rows", list(_row_ranges(path, part_rows, by)), sha256_of(path)
        for start, end, rows, own, size in ranges:
            parts.append(Part(len(parts), name, unit, start, end, row, rows, own, size))
            row += rows
        inputs.append(Input(name, status.st_size, status.st_mtime_ns, digest, path))
    if not parts:
        raise CorpusError(f"{named[0][1]}: empty, expected a text in each line")
    return inputs, parts


def _byte_ranges(path: Path, part_rows: int, whole: Any) -> Iterator[_Range]:
    """Yield ranges of whole lines, and put all bytes into the digest `whole`."""
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
                after = offset + end
                yield start, after, rows + last + 1 - done, own.hexdigest(), after - start
                start, rows, own = after, 0, hashlib.sha256()
                done, used = last + 1, end
            own.update(chunk[used:])
            rows += len(ends) - done
            offset += len(chunk)
            unfinished = len(ends) == 0 or int(ends[-1]) < len(chunk)
    if offset > start:
        yield start, offset, rows + unfinished, own.hexdigest(), offset - start


def _group_ranges(path: Path, part_rows: int) -> Iterator[_Range]:
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


def _row_ranges(path: Path, part_rows: int, by: Sequence[str]) -> Iterator[_Range]:
    """Yield ranges of rows, each up to the text with which it is large enough."""
    start = end = size = 0
    for rows, length in _texts(path, by) if by else _rows(path):
        end, size = end + rows, size + length
        if end - start >= part_rows or size >= PART_BYTES:
            yield start, end, end - start, "", size
            start, size = end, 0
    if end > start:
        yield start, end, end - start, "", size


def _rows(path: Path) -> Iterator[tuple[int, int]]:
    """Yield 1 and the length of each row."""
    if kind_of(path) in DELIMITERS:
        for row in rows_of(path):
            yield 1, length_of(row)
    else:  # what is on a line is read later
        for line in all_lines(path, Reading().max_bytes):
            yield 1, line if isinstance(line, int) else len(line)


def _texts(path: Path, by: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the number of rows and the length of each text; raises CorpusError for a text twice."""
    seen: set[tuple[str, ...]] = set()
    for text in texts_of(rows_of(path), by):
        key = text_key(text[0], by)
        if key in seen:
            raise CorpusError(
                f"{path}: the rows of a text have to follow each other, but those of "
                f"{', '.join(map('{}={}'.format, by, key or ()))} begin again in row "
                f"{text[0].number:,}; sort the table by {', '.join(by)}, or measure it without "
                "--out DIR, with a .csv or .jsonl file as --out",
                path=path,
            )
        if key is not None:
            seen.add(key)
        yield len(text), sum(map(length_of, text))


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file."""
    with open_regular(path, error=CorpusError) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
