"""The header of a GGUF file: its keys, and where each tensor is; every length is checked first.

    "GGUF"         4 bytes
    version        uint32: 3, or 2, which differs in nothing that is read here
    tensors        uint64, how many
    keys           uint64, how many
    each key       name, uint32 type, value; a text is uint64 bytes and UTF-8, an array
                   uint32 type, uint64 length and its values
    each tensor    name, uint32 axes, uint64 each (the fastest first), uint32 type, uint64 offset
    padding        to a multiple of general.alignment, 32 if there is no such key
    tensors        each at its offset from here, a multiple of the alignment

The file may be hostile: nothing is allocated before its size is known to be in the file.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from gpt2kit.checkpoints.gguf.numbers import BLOCK, OTHERS, TYPES, NumberType
from gpt2kit.checkpoints.ranges import read_range
from gpt2kit.checkpoints.stored import StoredTensor, view_into
from gpt2kit.errors import CheckpointError, CheckpointFormatError
from gpt2kit.files import impostor, open_regular

MAGIC = b"GGUF"
ALIGNMENT = 32  # bytes
TEXT, ARRAY = 8, 9  # types of values
# The other types of values, as struct and NumPy spell them.
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}

_LARGEST_HEADER = 2**28  # bytes
_LARGEST_TEXT = 2**20  # bytes
_LONGEST_ARRAY = 2**21  # elements; a vocabulary has at most 10^6 tokens
_MOST_ELEMENTS = 2**22  # of all arrays, each of which becomes a Python object of up to 36 bytes
_MOST = 2**16  # keys, and tensors
_LONGEST_NAME = 2**10  # bytes of the name of a key or tensor
_MOST_AXES = 4
_LARGEST_ALIGNMENT = 2**20
_READ_AHEAD = 2**20
_CHUNK_BLOCKS = 2**16  # blocks of a quantized tensor that are read at once

T = TypeVar("T")


@dataclass(frozen=True)
class GGUFFile:
    """What the header of a file says."""

    path: Path
    keys: dict[str, Any]
    tensors: dict[str, StoredTensor]  # by the names in the file
    types: dict[str, NumberType]
    offsets: dict[str, int]  # from the beginning of the file

    def value(self, name: str, kind: type[T], default: T | None = None) -> T:
        """Return the value of a key; raise CheckpointFormatError for a missing or unfit one."""
        if name not in self.keys and default is not None:
            return default
        if name not in self.keys:
            raise CheckpointFormatError(self.path, f"the key {name} is missing")
        value = self.keys[name]
        if type(value) is not kind:
            found = type(value).__name__
            raise CheckpointFormatError(
                self.path, f"{name} is of type {found}, expected {kind.__name__}"
            )
        return value

    def texts(self, name: str) -> list[str]:
        """Return the value of a key that is a list of texts; empty if there is no such key."""
        values: list[Any] = self.value(name, list, [])
        if not all(isinstance(value, str) for value in values):
            raise CheckpointFormatError(self.path, f"{name} is not a list of texts")
        return values


def read_header(path: Path) -> GGUFFile:
    """Read the keys of a file and where its tensors are.

    Raises CheckpointFormatError for anything that is not as the format says, with the key or tensor
    where that is.
    """
    with open_regular(path, error=CheckpointError) as file:
        reader = _Reader(path, file)
        reader.check_start()
        n_tensors, n_keys = reader.count("tensors"), reader.count("keys")
        keys = reader.keys(n_keys)
        found = reader.tensors(n_tensors)
        return _locate(path, keys, found, reader.offset, reader.size)


class _Reader:
    """Reads the header from its beginning to its end, and never beyond the file's."""

    def __init__(self, path: Path, file: BufferedReader) -> None:
        self.path, self.file = path, file
        self.size = os.fstat(file.fileno()).st_size
        self.offset = 0  # of the next byte to be taken
        self.elements = 0  # of the arrays so far
        self._data, self._start = b"", 0  # a part of the file, and where it begins

    def take(self, n: int, what: str) -> bytes:
        """Return the next n bytes."""
        if n > self.size - self.offset:
            raise CheckpointFormatError(
                self.path, f"ends inside {what}; it was cut short or damaged: get it again"
            )
        if self.offset + n > _LARGEST_HEADER:
            raise CheckpointFormatError(self.path, f"its header is larger than {_LARGEST_HEADER:,}")
        at = self.offset - self._start
        if at + n > len(self._data):
            self._data = self._data[at:] + self.file.read(max(n, _READ_AHEAD))
            self._start, at = self.offset, 0
            if n > len(self._data):  # it became shorter
                raise CheckpointFormatError(self.path, f"ends inside {what}: get it again")
        self.offset += n
        return self._data[at : at + n]

    def integer(self, form: str, what: str) -> int:
        """Return an unsigned integer: I has 4 bytes, Q has 8."""
        return int(struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}"), what))[0])

    def text(self, what: str, largest: int = _LARGEST_TEXT) -> str:
        """Return a text."""
        length = self.integer("Q", what)
        if length > largest:
            detail = f"{what} is a text of {length:,} bytes, expected at most {largest:,}"
            raise CheckpointFormatError(self.path, detail)
        data = self.take(length, what)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise CheckpointFormatError(self.path, f"{what} is not UTF-8 text") from error

    def check_start(self) -> None:
        """Raise CheckpointFormatError unless this is a GGUF file of a version that is known."""
        start = self.file.peek(64)[:64]
        if not start.startswith(MAGIC):
            detail = impostor(start) or f"expected a GGUF file; it begins with {start[:4]!r}"
            raise CheckpointFormatError(self.path, detail)
        self.take(len(MAGIC), "its first bytes")
        version = self.integer("I", "its version")
        if version in (2, 3):
            return
        detail = f"GGUF of version {version}, expected 2 or 3"
        if version in (2 << 24, 3 << 24):
            detail = "GGUF of a big-endian machine; expected a little-endian file"
        raise CheckpointFormatError(self.path, detail)

    def count(self, what: str) -> int:
        """Return how many keys or tensors there are."""
        count = self.integer("Q", f"the number of its {what}")
        if count > _MOST:
            detail = f"has {count:,} {what}, expected at most {_MOST:,}"
            raise CheckpointFormatError(self.path, detail)
        return count

    def keys(self, count: int) -> dict[str, Any]:
        """Return the keys and their values."""
        keys: dict[str, Any] = {}
        for index in range(count):
            name = self.text(f"the name of key {index}", _LONGEST_NAME)
            what = f"the key {ascii(name)[1:-1][:80]}"
            if name in keys:
                raise CheckpointFormatError(self.path, f"{what} is there twice")
            keys[name] = self.value(self.integer("I", what), what)
        return keys

    def value(self, kind: int, what: str) -> Any:
        """Return a value of one of the format's types."""
        if kind == TEXT:
            return self.text(what)
        if kind == ARRAY:
            return self.array(what)
        return self.scalars(kind, 1, what)[0]

    def array(self, what: str) -> list[Any]:
        """Return the values of an array, which must not be arrays again."""
        kind, length = self.integer("I", what), self.integer("Q", what)
        if length > _LONGEST_ARRAY:
            detail = f"{what} is an array of {length:,}, expected at most {_LONGEST_ARRAY:,}"
            raise CheckpointFormatError(self.path, detail)
        self.elements += length
        if self.elements > _MOST_ELEMENTS:
            detail = f"its arrays have more than {_MOST_ELEMENTS:,} elements"
            raise CheckpointFormatError(self.path, detail)
        if kind == TEXT:
            if 8 * length > self.size - self.offset:  # each text has its length at least
                raise CheckpointFormatError(self.path, f"ends inside {what}: get it again")
            return [self.text(what) for _ in range(length)]
        return self.scalars(kind, length, what)

    def scalars(self, kind: int, count: int, what: str) -> list[Any]:
        """Return numbers, or truths, of one type."""
        if kind not in SCALARS:
            raise CheckpointFormatError(self.path, f"{what} has the unknown type {kind}")
        dtype = np.dtype(SCALARS[kind]).newbyteorder("<")
        data = self.take(count * dtype.itemsize, what)
        if SCALARS[kind] == "?" and data.strip(b"\0\1"):
            raise CheckpointFormatError(self.path, f"{what} is a truth that is neither 0 nor 1")
        return list(np.frombuffer(data, dtype).tolist())

    def tensors(self, count: int) -> dict[str, tuple[tuple[int, ...], NumberType, int]]:
        """Return the shape, the type and the offset of every tensor, by its name."""
        found: dict[str, tuple[tuple[int, ...], NumberType, int]] = {}
        for index in range(count):
            name = self.text(f"the name of tensor {index}", _LONGEST_NAME)
            what = f"the tensor {ascii(name)[1:-1][:80]}"
            if name in found:
                raise CheckpointFormatError(self.path, f"{what} is there twice")
            n_axes = self.integer("I", what)
            if not 1 <= n_axes <= _MOST_AXES:
                detail = f"{what} has {n_axes:,} axes, expected 1 to {_MOST_AXES}"
                raise CheckpointFormatError(self.path, detail)
            shape = tuple(self.integer("Q", what) for _ in range(n_axes))[::-1]
            found[name] = (shape, self.number_type(what), self.integer("Q", what))
        return found

    def number_type(self, what: str) -> NumberType:
        """Return the type of a tensor's numbers."""
        code = self.integer("I", what)
        if code not in TYPES:
            known = ", ".join(each.name for each in TYPES.values())
            raise CheckpointFormatError(
                self.path,
                f"{what} has type {OTHERS.get(code, code)}, expected one of {known}; llama.cpp "
                "makes such a file: llama-quantize --allow-requantize FILE NEW q8_0",
            )
        return TYPES[code]


def _locate(
    path: Path,
    keys: dict[str, Any],
    found: dict[str, tuple[tuple[int, ...], NumberType, int]],
    end: int,
    size: int,
) -> GGUFFile:
    """Return the tensors of a file whose header ends at `end`, all of them inside the file."""
    alignment = keys.get("general.alignment", ALIGNMENT)
    if (
        type(alignment) is not int
        or not 8 <= alignment <= _LARGEST_ALIGNMENT
        or alignment & (alignment - 1)
    ):
        detail = f"general.alignment is {str(alignment)[:40]}, expected a power of two from 8 on"
        raise CheckpointFormatError(path, detail)
    start = -(-end // alignment) * alignment
    tensors, last, before = {}, start, "the header"
    for name, (shape, kind, offset) in sorted(found.items(), key=lambda item: item[1][2]):
        what = f"the tensor {ascii(name)[1:-1][:80]}"
        if 0 in shape or not kind.fits(shape):
            detail = f"{what} has shape {[*shape]}, which {kind.name} cannot have"
            raise CheckpointFormatError(path, detail)
        if offset % alignment:
            detail = f"{what} is at {offset:,}, which is no multiple of {alignment}"
            raise CheckpointFormatError(path, detail)
        nbytes = kind.nbytes(shape)
        if start + offset < last:
            raise CheckpointFormatError(path, f"{what} overlaps {before}")
        last, before = start + offset + nbytes, what
        if last > size:
            raise CheckpointFormatError(path, f"ends before {what} does; it was cut short")
        if kind.block_bytes:
            tensors[name] = _in_blocks(path, name, start + offset, shape, kind)
        else:
            tensors[name] = StoredTensor.at(path, name, start + offset, shape, kind.dtype)
    types = {name: kind for name, (_, kind, _) in found.items()}
    offsets = {name: start + offset for name, (_, _, offset) in found.items()}
    return GGUFFile(path, keys, {name: tensors[name] for name in found}, types, offsets)


def _in_blocks(
    path: Path, name: str, offset: int, shape: tuple[int, ...], kind: NumberType
) -> StoredTensor:
    """Return a tensor of numbers in blocks."""

    def rows(start: int, stop: int) -> Tensor:
        begin = offset + start * kind.nbytes(shape[1:])
        return _read_blocks(path, name, begin, (stop - start, *shape[1:]), kind, None)

    read = partial(_read_blocks, path, name, offset, shape, kind)
    return StoredTensor(shape, kind.dtype, read, rows=rows if len(shape) == 2 else None)


def _read_blocks(
    path: Path,
    name: str,
    offset: int,
    shape: tuple[int, ...],
    kind: NumberType,
    buffer: Tensor | None,
) -> Tensor:
    """Read a tensor of numbers in blocks, which become float32, a few blocks at a time."""
    tensor = view_into(shape, kind.dtype, buffer)
    flat = tensor.view(-1)
    data = np.empty(_CHUNK_BLOCKS * kind.block_bytes, np.uint8)
    for piece in torch.split(flat, _CHUNK_BLOCKS * BLOCK):
        part = data[: len(piece) // BLOCK * kind.block_bytes]
        read_range(path, name, offset, part)
        kind.fill(piece, part)
        offset += len(part)
    return tensor


def are_equal(file: GGUFFile, first: str, second: str) -> bool:
    """Whether two tensors have equal bytes, types and shapes; a piece of each is in memory."""
    one, other = file.tensors[first], file.tensors[second]
    if one.shape != other.shape or file.types[first] != file.types[second]:
        return False
    left = file.types[first].nbytes(one.shape)
    a, b = file.offsets[first], file.offsets[second]
    while left:
        n = min(left, _READ_AHEAD)
        parts = (np.empty(n, np.uint8), np.empty(n, np.uint8))
        read_range(file.path, first, a, parts[0])
        read_range(file.path, second, b, parts[1])
        if not np.array_equal(*parts):
            return False
        a, b, left = a + n, b + n, left - n
    return True
