"""Files that are compressed with gzip or Zstandard, read and written as a stream of bytes."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from gpt2kit.errors import CorpusError, MissingDependencyError

_SUFFIXES = (".gz", ".zst")
_GZIP_START = b"\x1f\x8b"
_WORKBOOK_STARTS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # .xlsx and .ods, which are zip; .xls
_BLOCK = 2**20  # bytes that are read at once


def unpacked_name(path: Path) -> Path:
    """Return a file's name without the .gz or .zst at its end."""
    return path.with_suffix("") if path.suffix.lower() in _SUFFIXES else path


def unpacked_blocks(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Yield the content of a file in blocks, unpacked if the file's name ends in .gz or .zst.

    Raises CorpusError for damaged files, MissingDependencyError for .zst without pyarrow.
    """
    suffix = path.suffix.lower()
    source: Any = file
    if suffix == ".gz":
        source = gzip.GzipFile(fileobj=file, mode="rb")
    elif suffix == ".zst":
        pyarrow = require_pyarrow()
        source = pyarrow.CompressedInputStream(
            pyarrow.PythonFile(_KeptOpen(file), mode="r"), "zstd"
        )
    try:
        while block := _read(source) if suffix == ".zst" else source.read(_BLOCK):
            if source is file and block.startswith(_GZIP_START):
                raise CorpusError(f"{path}: compressed with gzip; give it a name in .gz", path=path)
            if source is file and block.startswith(_WORKBOOK_STARTS):
                found = "looks like a workbook of Excel or another office program"
                raise CorpusError(f"{path}: {found}; save the table as .csv first", path=path)
            yield block
    except (EOFError, zlib.error, OSError) as error:
        if source is file:
            raise
        raise CorpusError(f"{path}: damaged or not {suffix}: {error}", path=path) from error


def _read(source: Any) -> bytes:
    """Return a block of a stream of pyarrow's, whose own `read` loses its memory if it fails."""
    block = bytearray(_BLOCK)
    return bytes(memoryview(block)[: source.readinto(block)])


@contextlib.contextmanager
def packing(file: BinaryIO, path: Path) -> Iterator[BinaryIO]:
    """Give a file to write, whose content is compressed if the name ends in .gz or .zst.

    The same content always becomes the same bytes: gzip's header names neither time nor file.
    """
    suffix = path.suffix.lower()
    if suffix == ".gz":
        with gzip.GzipFile(
            filename="", fileobj=file, mode="wb", compresslevel=6, mtime=0
        ) as packed:
            yield cast(BinaryIO, packed)
    elif suffix == ".zst":
        pyarrow = require_pyarrow()
        inner = pyarrow.PythonFile(_KeptOpen(file), mode="w")
        with pyarrow.CompressedOutputStream(inner, "zstd") as packed:
            yield packed
    else:
        yield file


class _KeptOpen:
    """An open file that pyarrow cannot close: whoever opened it does."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.write, self.flush = file.read, file.write, file.flush

    def close(self) -> None:
        """Leave the file open."""


def require_pyarrow() -> Any:
    """Return the package pyarrow; raises MissingDependencyError if it is not installed."""
    try:
        import pyarrow
    except ImportError:
        raise MissingDependencyError("pyarrow", extra="tables") from None
    return pyarrow
