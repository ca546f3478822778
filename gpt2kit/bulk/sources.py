"""The input files of a plan: found, cut into parts at the ends of rows, and read again.

Lines are cut without decoding them, so that a bad row is found when its part is read, and spoils
no other row. Every line is a row, also a blank one: row numbers are line numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gpt2kit.bulk.options import Reading
from gpt2kit.errors import CorpusError
from gpt2kit.files import open_regular

PART_BYTES = 2**26  # a part ends after the row in which it reaches this size
_CHUNK = 2**20  # bytes that are read at once
_KINDS = {".txt": "lines", ".jsonl": "jsonl", ".ndjson": "jsonl"}

Kind = Literal["lines", "jsonl"]


@dataclass(frozen=True)
class Part:
    """Some rows of one input file, with the number of the first among all rows of the plan."""

    number: int
    file: str  # the name of the input
    start: int  # offset of the first byte
    end: int  # offset after the last byte
    first_row: int  # from 1, over all inputs
    rows: int
    sha256: str  # of the bytes


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


def kind_of(path: Path) -> Kind:
    """Return the kind of a file, as the end of its name says; raises CorpusError for others."""
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        raise CorpusError(f"{path}: expected a name that ends in {', '.join(_KINDS)}", path=path)
    return kind  # type: ignore[return-value]


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
        found = [each for each in path.rglob("*") if each.suffix.lower() in _KINDS]
        problem = f"{path}: this folder has no file whose name ends in {', '.join(_KINDS)}"
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


# --- cutting --------------------------------------------------------------------------------------


def cut(named: Sequence[tuple[str, Path]], part_rows: int) -> tuple[list[Input], list[Part]]:
    """Read all files once, and return their descriptions and their parts in order.

    Raises CorpusError for a file that cannot be read, and if there is no row at all.
    """
    inputs: list[Input] = []
    parts: list[Part] = []
    row = 1
    for name, path in named:
        whole = hashlib.sha256()
        status = path.stat()
        for start, end, rows, digest in _ranges(path, part_rows, whole):
            parts.append(Part(len(parts), name, start, end, row, rows, digest))
            row += rows
        inputs.append(Input(name, status.st_size, status.st_mtime_ns, whole.hexdigest(), path))
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


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file."""
    with open_regular(path, error=CorpusError) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- reading --------------------------------------------------------------------------------------


def read(part: Part, path: Path, reading: Reading) -> Iterator[SourceRow]:
    """Yield the rows of a part.

    Raises CorpusError at the end if these are not the bytes that the plan was made for.
    """
    parse = _PARSERS[kind_of(path)]
    digest = hashlib.sha256()
    for index, line in enumerate(_lines(part, path, reading.max_bytes, digest)):
        number = part.first_row + index
        if isinstance(line, int):
            problem = f"{line:,} bytes, expected at most {reading.max_bytes:,}"
            yield SourceRow(number, {}, problem)
        else:
            yield parse(number, line)
    if digest.hexdigest() != part.sha256:
        raise CorpusError(f"{path}: it has changed since the plan was made", path=path)


def _lines(part: Part, path: Path, longest: int, digest: Any) -> Iterator[bytes | int]:
    """Yield the lines of a part without their ends, or the size of a line that is too long."""
    with open_regular(path, error=CorpusError) as file:
        file.seek(part.start)
        left = part.end - part.start
        while left > 0:
            size = 0
            line = b""
            while left > 0 and not line.endswith(b"\n"):  # again only if it is too long
                line = file.readline(min(left, longest + 2))
                if not line:
                    return
                digest.update(line)
                left -= len(line)
                size += len(line)
            if part.start == 0 and part.end - part.start - left == size:
                line = line.removeprefix(b"\xef\xbb\xbf")
            text = line.removesuffix(b"\n").removesuffix(b"\r")
            yield text if size <= longest + 2 and len(text) <= longest else size


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


_PARSERS = {"lines": _parse_text, "jsonl": _parse_json}


def _undecodable(error: UnicodeDecodeError) -> str:
    return f"not UTF-8: byte {error.start + 1:,} of the row is 0x{error.object[error.start]:02x}"
