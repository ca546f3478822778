"""Read TensorFlow checkpoints (the TensorBundle format) without TensorFlow.

A checkpoint is one or more data files, PREFIX.data-00000-of-00001, which hold the tensors' bytes and nothing else, and PREFIX.index, a
LevelDB table (`gpt2kit.checkpoints.leveldb`) that says what lies where:

    key              value, a protobuf message (fields by number; one left out is 0)
    ""               header: 1 number of data files, 2 endianness (0 little), 3 version {2 oldest reader, 3 readers that are too bad}
    variable's name  entry: 1 dtype, 2 shape {2 dimension {1 size}, 3 rank unknown}, 3 data file, 4 offset, 5 size, 6 masked crc32c
                            of the bytes, 7 slice {1 extent {1 start, 2 length}}
    zero byte, …     entry of one slice of a variable that was saved in slices: the variable's own entry then has no bytes

Elements are in C order. This module knows nothing of GPT-2: which names and shapes a model needs is known in `names.py`.

The files are taken for hostile: every size is held against the files' real sizes before anything is allocated. The checksums prove that
the bytes are those that were saved, not who saved them.
"""

from __future__ import annotations

import io
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from gpt2kit.checkpoints.leveldb import (
    LARGEST_TABLE,
    Cursor,
    Damaged,
    Unsupported,
    is_table,
    mask,
    shown,
    table_items,
)
from gpt2kit.errors import CheckpointError, CheckpointFormatError, CheckpointNotFoundError
from gpt2kit.files import check_regular, impostor

_MOST_SHARDS = 10_000
_HIGHEST_RANK = 8
_LARGEST_TENSOR = 1 << 56  # elements
_CHUNK = (
    1 << 20
)  # bytes that are read, then checksummed while they are still in the processor's cache

# TensorFlow's number for a dtype -> the name that torch and NumPy share, bytes per element (0: not numbers, cannot be read).
_DTYPES = {
    1: ("float32", 4),
    2: ("float64", 8),
    3: ("int32", 4),
    4: ("uint8", 1),
    5: ("int16", 2),
    6: ("int8", 1),
    7: ("string", 0),
    8: ("complex64", 8),
    9: ("int64", 8),
    10: ("bool", 1),
    14: ("bfloat16", 2),
    17: ("uint16", 2),
    18: ("complex128", 16),
    19: ("float16", 2),
    20: ("resource", 0),
    21: ("variant", 0),
    22: ("uint32", 4),
    23: ("uint64", 8),
}

Box = tuple[tuple[int, int], ...]  # where a slice lies in its variable: (start, stop) per axis
Extents = Sequence[
    tuple[int, int | None]
]  # the same as stored: (start, length) per axis, None for the whole axis

_V1 = "is a checkpoint in TensorFlow's first format (V1, before 0.12); load it with TensorFlow and save it with tf.compat.v1.train.Saver"


@dataclass(frozen=True, slots=True)
class BundlePart:
    """Where one run of a variable's bytes is: all of them, or those of one slice."""

    shard: int  # number of the data file
    offset: int
    nbytes: int
    checksum: int  # masked crc32c
    box: Box

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the part."""
        return tuple(stop - start for start, stop in self.box)


@dataclass(frozen=True, slots=True)
class BundleEntry:
    """One variable of a checkpoint: what it is and where its bytes are."""

    dtype: str
    shape: tuple[int, ...]
    itemsize: int  # bytes per element; 0 for a dtype that is not made of numbers ("string"), which cannot be read
    parts: tuple[BundlePart, ...]  # one, or the slices of a partitioned variable

    @property
    def nbytes(self) -> int:
        """Bytes of the whole variable."""
        return sum(part.nbytes for part in self.parts)


class TensorBundle:
    """A checkpoint whose index has been read and checked, and whose tensors can be read one by one, from several threads at once.

    Raises CheckpointNotFoundError for a missing index or data file, and CheckpointFormatError for files that are damaged, of a kind that
    is not supported, or smaller than the index says. Bytes after the last tensor are allowed, as TensorFlow allows them.
    """

    prefix: Path
    entries: Mapping[
        str, BundleEntry
    ]  # by variable name, sorted; a partitioned variable is one entry

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self._index = Path(f"{prefix}.index")
        try:
            items = table_items(_read_index(prefix, self._index))
            self._num_shards = _parse_header(items)
            records = {key: _parse_record(key, value) for key, value in items}
            self.entries = MappingProxyType(_join_slices(records, self._num_shards))
        except Damaged as damage:
            raise CheckpointFormatError(
                self._index, f"{damage}; the file is damaged: download or copy it again"
            ) from damage
        except Unsupported as reason:
            raise CheckpointFormatError(self._index, str(reason)) from reason
        self._check_data_files()

    def read(self, name: str) -> np.ndarray:
        """Return a variable as a new array of its shape; bfloat16, which NumPy lacks, comes back as its bits in uint16."""
        entry = self.entries[name]
        self._require_numbers(name)
        out = np.empty(entry.nbytes, np.uint8)
        self.read_into(name, out)
        dtype = np.dtype("uint16" if entry.dtype == "bfloat16" else entry.dtype)
        return out.view(dtype.newbyteorder("<")).reshape(entry.shape)

    def read_into(self, name: str, out: npt.NDArray[np.uint8]) -> None:
        """Fill `out`, a contiguous uint8 array of the entry's nbytes, with a variable's elements in C order, little-endian.

        The bytes go from the file to `out` with no copy between, or by way of one slice at a time. After an error `out` is undefined.
        """
        entry = self.entries[name]
        self._require_numbers(name)
        if (
            out.dtype != np.uint8
            or out.shape != (entry.nbytes,)
            or not (out.flags.c_contiguous and out.flags.writeable)
        ):
            raise ValueError(
                f"{name} needs a writable contiguous array of {entry.nbytes} uint8, not {out.shape} {out.dtype}"
            )
        if len(entry.parts) == 1:
            self._read_part(name, entry.parts[0], out)
            return
        whole = out.reshape(*entry.shape, entry.itemsize)
        for part in entry.parts:
            piece = np.empty(part.nbytes, np.uint8)
            self._read_part(name, part, piece)
            whole[tuple(slice(*extent) for extent in part.box)] = piece.reshape(
                *part.shape, entry.itemsize
            )

    def _read_part(self, name: str, part: BundlePart, out: npt.NDArray[np.uint8]) -> None:
        """Fill `out` from the file and check its checksum.

        Reading, not mapping: when a file shrinks under a map, the process dies of SIGBUS; when it shrinks under a read, we can say so.
        A file is opened for each part, so that threads share no position and nothing stays open.
        """
        path = self._data_file(part.shard)
        frozen = out.view()
        frozen.flags.writeable = False  # google_crc32c takes nothing that could change meanwhile
        done, crc = 0, 0
        with _opened(path) as file:
            file.seek(part.offset)
            while done < part.nbytes:
                count = file.readinto(out[done : done + _CHUNK])  # type: ignore[arg-type]
                if not count:
                    raise CheckpointFormatError(
                        path, f"ends inside {name!r}: it became shorter while it was being read"
                    )
                crc = google_crc32c.extend(crc, frozen[done : done + count])
                done += count
        if mask(crc) != part.checksum:
            found, expected = mask(crc), part.checksum
            raise CheckpointFormatError(
                path,
                f"{name!r} has checksum {found:#010x}, not {expected:#010x}; the file is damaged: download or copy it again",
            )

    def _require_numbers(self, name: str) -> None:
        """Raise unless the variable is made of numbers."""
        entry = self.entries[name]
        if not entry.itemsize:
            raise CheckpointFormatError(
                self._index, f"{name!r} is a {entry.dtype}: only tensors of numbers can be read"
            )

    def _data_file(self, shard: int) -> Path:
        return Path(f"{self.prefix}.data-{shard:05d}-of-{self._num_shards:05d}")

    def _check_data_files(self) -> None:
        """Raise unless every part lies inside its data file, on bytes of its own."""
        parts = [
            (part.shard, part.offset, part.nbytes, name)
            for name, entry in self.entries.items()
            for part in entry.parts
        ]
        ends: dict[int, int] = {}  # data file -> end of its last part
        for shard, offset, nbytes, name in sorted(parts):
            # Parts that share bytes would let a small file ask for any amount of memory.
            if nbytes and offset < ends.get(shard, 0):
                raise CheckpointFormatError(
                    self._index,
                    f"{name!r} lies on the bytes of another tensor; the file is damaged",
                )
            ends[shard] = max(ends.get(shard, 0), offset + nbytes)
        sizes: dict[int, int] = {}
        missing = []
        for shard in ends:
            try:
                sizes[shard] = check_regular(self._data_file(shard), error=CheckpointError)
            except CheckpointNotFoundError as error:
                missing += error.missing
        if missing:
            raise CheckpointNotFoundError(
                f"{self.prefix}: {len(missing)} of {self._num_shards} data files missing: {', '.join(missing[:3])}"
                f"{', …' if len(missing) > 3 else ''}; put them beside the index, or download the checkpoint again",
                path=self.prefix,
                missing=missing,
            )
        for shard, end in ends.items():
            if sizes[shard] < end:
                path = self._data_file(shard)
                shortage = f"is {sizes[shard]:,} bytes, but the index needs {end:,}; download or copy it again"
                raise CheckpointFormatError(path, impostor(_read(path, 0, 64)) or shortage)


@contextmanager
def _opened(path: Path) -> Iterator[io.FileIO]:
    """Open a regular file, and turn what the operating system says against it into our errors."""
    check_regular(path, error=CheckpointError)
    try:
        with open(path, "rb", buffering=0) as file:
            yield file
    except OSError as error:
        raise CheckpointFormatError(path, f"cannot be read: {error.strerror}") from error


def _read(path: Path, start: int, count: int) -> bytes:
    with _opened(path) as file:
        file.seek(start)
        return file.read(count)


def _read_index(prefix: Path, index: Path) -> bytes:
    """Return the bytes of the index file, which look like a table."""
    try:
        size = check_regular(index, error=CheckpointError)
    except CheckpointNotFoundError as error:
        if prefix.is_file() and is_table(_read(prefix, max(0, prefix.stat().st_size - 64), 64)):
            raise CheckpointFormatError(prefix, _V1) from error
        raise CheckpointNotFoundError(
            f"{index}: no such file; a TensorFlow checkpoint is an .index file and its .data files: name another, or download it again",
            path=index,
            missing=[index.name],
        ) from error
    if size > LARGEST_TABLE:
        raise Unsupported(
            f"is {size:,} bytes, and no index needs more than {LARGEST_TABLE:,}; is this another file?"
        )
    data = _read(index, 0, size)
    if not is_table(data):
        shortage = f"is not a TensorFlow index, or only a part of one ({len(data):,} bytes); download it again"
        raise Unsupported(impostor(data[:64]) or shortage)
    return data


@dataclass(slots=True)
class _Record:
    """One entry as it stands in the index."""

    dtype: int = 0
    shape: list[int] = field(default_factory=list)
    shard: int = 0
    offset: int = 0
    size: int = 0
    checksum: int = 0
    slices: list[Extents] = field(default_factory=list)


_SCALARS = {1: "dtype", 3: "shard", 4: "offset", 5: "size", 6: "checksum"}
_EITHER = (int, bytes)


def _fields(
    message: bytes, kinds: Mapping[int, type | tuple[type, ...]]
) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each field of a message whose kind is given: int (signed, 64 bits) or bytes (string or sub-message)."""
    cursor = Cursor(message)
    while cursor:
        number, wire_type = divmod(cursor.varint(32), 8)
        value: int | bytes
        if wire_type == 0:
            value = cursor.varint()
            value -= value >> 63 << 64
        elif wire_type == 2:
            value = cursor.take(cursor.varint())
        elif wire_type in (1, 5):
            value = int.from_bytes(cursor.take(8 if wire_type == 1 else 4), "little")
        else:
            raise Damaged(f"a field has wire type {wire_type}")
        if number in kinds:
            if not isinstance(value, kinds[number]):
                raise Damaged(f"field {number} has wire type {wire_type}, which is not its own")
            yield number, value


def _parse_header(items: Iterator[tuple[bytes, bytes]]) -> int:
    """Take the header, which comes first, and return the number of data files."""
    key, message = next(items, (None, b""))
    if key != b"":
        raise Unsupported(
            "has no header: a table of another program, or a checkpoint of TensorFlow's first format (V1, before 0.12)"
        )
    num_shards = endianness = oldest_reader = 0
    bad_readers: list[int] = []
    for number, value in _fields(message, {1: _EITHER, 2: int, 3: bytes}):
        if number == 1:
            if isinstance(value, bytes):  # in V1, key "" holds the list of tensors
                raise Unsupported(_V1)
            num_shards = value
        elif number == 2:
            endianness = value
        else:
            for part, version in _fields(value, {2: int, 3: _EITHER}):
                if part == 2:
                    oldest_reader = version
                else:  # numbers one by one, or packed together
                    bad_readers += [version] if isinstance(version, int) else list(_packed(version))
    if endianness:
        raise Unsupported(
            "holds big-endian numbers; save the checkpoint again on a little-endian machine"
        )
    if oldest_reader > 1 or 1 in bad_readers:
        raise Unsupported(
            f"needs a reader of version {max(2, oldest_reader)}, and this is version 1: it was made by a newer TensorFlow"
        )
    if not 1 <= num_shards <= _MOST_SHARDS:
        raise Damaged(f"its header says {num_shards:,} data files, expected 1 to {_MOST_SHARDS:,}")
    return num_shards


def _packed(numbers: bytes) -> Iterator[int]:
    cursor = Cursor(numbers)
    while cursor:
        yield cursor.varint()


def _parse_record(key: bytes, message: bytes) -> _Record:
    """Read an entry; of its numbers, only dtype and shape are checked here."""
    record = _Record()
    for number, value in _fields(message, {2: bytes, 7: bytes} | dict.fromkeys(_SCALARS, int)):
        if number == 2:
            record.shape += _parse_shape(value)
        elif number == 7:
            record.slices.append(_parse_slice(value))
        else:
            setattr(record, _SCALARS[number], value)
    if record.dtype not in _DTYPES:
        raise Damaged(
            f"{shown(key)} has dtype number {record.dtype}, which is none of TensorFlow's"
        )
    if len(record.shape) > _HIGHEST_RANK:
        raise Damaged(f"{shown(key)} has {len(record.shape)} dimensions, more than {_HIGHEST_RANK}")
    # A tensor with a dimension of 0 is empty, but NumPy multiplies the others all the same.
    if (
        min(record.shape, default=0) < 0
        or math.prod(size or 1 for size in record.shape) > _LARGEST_TENSOR
    ):
        raise Damaged(f"{shown(key)} has the shape {record.shape}, which cannot be")
    return record


def _parse_shape(message: bytes) -> list[int]:
    shape = []
    for number, value in _fields(message, {2: bytes, 3: int}):
        if number == 2:
            shape.append(dict(_fields(value, {1: int})).get(1, 0))
        elif value:
            raise Damaged("a shape has no rank")
    return shape


def _parse_slice(message: bytes) -> Extents:
    extents = [dict(_fields(value, {1: int, 2: int})) for _, value in _fields(message, {1: bytes})]
    return [(extent.get(1, 0), extent.get(2)) for extent in extents]


def _join_slices(records: Mapping[bytes, _Record], num_shards: int) -> dict[str, BundleEntry]:
    """Return the variables by name, those in slices with all their slices."""
    entries: dict[str, BundleEntry] = {}
    slice_keys = {key for key in records if key.startswith(b"\0")}
    for key, record in records.items():
        if key.startswith(b"\0"):
            continue
        try:
            name = key.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Damaged(f"the name {shown(key)} is not UTF-8") from error
        if name == "_CHECKPOINTABLE_OBJECT_GRAPH" or name.endswith("/.ATTRIBUTES/VARIABLE_VALUE"):
            raise Unsupported(
                "is an object-based TensorFlow 2 checkpoint, named after Python attributes; GPT-2 needs one that is named after variables: "
                "save it with tf.compat.v1.train.Saver"
            )
        if record.slices:
            boxes = [_box(name, record.shape, extents) for extents in record.slices]
            if not _tile(boxes, record.shape):
                raise Damaged(f"the slices of {name!r} overlap or leave gaps")
            keys = [_slice_key(key, extents) for extents in record.slices]
            slice_keys.difference_update(keys)
            parts = tuple(
                _slice_part(name, record, records.get(key), box, num_shards)
                for key, box in zip(keys, boxes, strict=True)
            )
        else:
            parts = (_part(name, record, tuple((0, size) for size in record.shape), num_shards),)
        dtype, itemsize = _DTYPES[record.dtype]
        entries[name] = BundleEntry(dtype, tuple(record.shape), itemsize, parts)
    if slice_keys:
        raise Damaged(f"the slice {shown(min(slice_keys))} belongs to no variable")
    return entries


def _part(name: str, record: _Record, box: Box, num_shards: int) -> BundlePart:
    """Return where a record's bytes are, having checked that their number is what shape and dtype make."""
    dtype, itemsize = _DTYPES[record.dtype]
    expected = math.prod(record.shape) * itemsize
    if itemsize and record.size != expected:
        raise Damaged(
            f"{name!r} has {record.size:,} bytes, but shape {record.shape} of {dtype} makes {expected:,}"
        )
    if not 0 <= record.shard < num_shards:
        raise Damaged(f"{name!r} is in data file {record.shard} of {num_shards}")
    if record.offset < 0 or record.size < 0:
        raise Damaged(f"{name!r} has offset {record.offset} and size {record.size}")
    return BundlePart(record.shard, record.offset, record.size, record.checksum, box)


def _slice_part(
    name: str, whole: _Record, record: _Record | None, box: Box, num_shards: int
) -> BundlePart:
    """Return where a slice's bytes are, having checked that its own entry agrees with the variable's."""
    if record is None:
        raise Damaged(f"{name!r} lacks its slice at {[start for start, _ in box]}")
    shape = [stop - start for start, stop in box]
    if record.dtype != whole.dtype or record.shape != shape or record.slices:
        raise Damaged(
            f"the slice of {name!r} at {[start for start, _ in box]} has another dtype or shape than its variable says"
        )
    return _part(name, record, box, num_shards)


def _box(name: str, shape: Sequence[int], extents: Extents) -> Box:
    """Return where a slice begins and ends on every axis, having checked that it lies inside its variable."""
    if len(extents) != len(shape):
        raise Damaged(
            f"a slice of {name!r} has {len(extents)} dimensions, the variable {len(shape)}"
        )
    box = tuple(
        (start, start + (size if length is None else length))
        for (start, length), size in zip(extents, shape, strict=True)
    )
    if not all(0 <= start < stop <= size for (start, stop), size in zip(box, shape, strict=True)):
        raise Damaged(f"a slice of {name!r} is at {list(box)}, outside the shape {list(shape)}")
    return box


def _tile(boxes: Sequence[Box], shape: Sequence[int]) -> bool:
    """Whether the boxes fill the shape and overlap nowhere, in time proportional to their number.

    Taking differences along every axis turns a box into signs at its corners and loses nothing. So boxes add up to the whole
    exactly if their corners add up to the corners of the whole: all the inner ones cancel.
    """
    corners: Counter[tuple[int, ...]] = Counter()
    whole = tuple((0, size) for size in shape)
    for box, count in [(whole, -1), *((box, 1) for box in boxes)]:
        for ends in itertools.product((0, 1), repeat=len(box)):
            corners[tuple(extent[end] for extent, end in zip(box, ends, strict=True))] += count * (
                -1
            ) ** sum(ends)
    return not any(corners.values())


def _slice_key(name: bytes, extents: Extents) -> bytes:
    """Return the key of a slice's own entry: (0, name, rank, start, length, start, length, …) in an encoding that sorts like its values."""
    ends = [
        _ordered(number)
        for start, length in extents
        for number in (start, -1 if length is None else length)
    ]
    rank = bytes([1, len(extents)]) if extents else b"\0"
    # A zero ends the name, so those in it are marked. (0xff would be too, but it does not occur in UTF-8.)
    return b"\0" + name.replace(b"\0", b"\0\xff") + b"\0\1" + rank + b"".join(ends)


def _ordered(number: int) -> bytes:
    """Encode a signed number so that the bytes sort like the numbers: in n bytes, the first n bits flipped (so their run says n)."""
    n = (number if number >= 0 else ~number).bit_length() // 7 + 1
    return (number % (1 << 8 * n) ^ ((1 << n) - 1) << 7 * n).to_bytes(n, "big")
