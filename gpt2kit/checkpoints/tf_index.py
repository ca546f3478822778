"""The entries of a TensorFlow checkpoint's index: protobuf messages in, checked variables out.

The index is a LevelDB table (`gpt2kit.checkpoints.leveldb`). Its values are protobuf messages;
below, fields are given by number, and a field that is left out is 0:

    key              value
    ""               header: 1 number of data files, 2 endianness (0 little),
                     3 version {2 oldest reader, 3 readers that are refused}
    variable's name  entry: 1 dtype, 2 shape {2 dimension {1 size}, 3 rank unknown}, 3 data file,
                     4 offset, 5 size, 6 masked crc32c of the bytes,
                     7 slice {1 extent {1 start, 2 length}}
    zero byte, …     entry of one slice of a variable that was saved in slices: the variable's own
                     entry then has no bytes

The messages are taken for hostile: sizes are checked before anything is allocated for them.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpt2kit.checkpoints.leveldb import Cursor, Damaged, Unsupported, shown, table_items

_MOST_SHARDS = 10_000
_HIGHEST_RANK = 8
_LARGEST_TENSOR = 1 << 56  # elements

# TensorFlow's number of a dtype -> the name that torch and NumPy share, and bytes per element; 0
# for dtypes that are not numbers and cannot be read.
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

# Where a slice is in its variable: (start, stop) for each axis.
Box = tuple[tuple[int, int], ...]
# The same as it is stored: (start, length) for each axis, None for the whole axis.
Extents = Sequence[tuple[int, int | None]]

V1 = (
    "is a checkpoint in TensorFlow's first format (V1, before 0.12); load it with TensorFlow"
    " and save it with tf.compat.v1.train.Saver"
)
_OBJECT_BASED = (
    "is an object-based TensorFlow 2 checkpoint, named after Python attributes; GPT-2 needs one"
    " that is named after variables: save it with tf.compat.v1.train.Saver"
)


@dataclass(frozen=True, slots=True)
class BundlePart:
    """Where the bytes of a variable, or of one of its slices, are."""

    shard: int  # number of the data file
    offset: int  # in that file
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
    itemsize: int  # bytes per element; 0 for "string" and others that cannot be read
    parts: tuple[BundlePart, ...]  # one, or the slices of a partitioned variable

    @property
    def nbytes(self) -> int:
        """Bytes of the whole variable."""
        return sum(part.nbytes for part in self.parts)


def parse_index(table: bytes) -> tuple[int, dict[str, BundleEntry]]:
    """Return the number of data files, and every variable by name, sorted.

    A variable in slices is one entry.
    Raises Damaged or Unsupported.
    """
    items = table_items(table)
    num_shards = _parse_header(items)
    records = {key: _parse_record(key, value) for key, value in items}
    return num_shards, _join_slices(records, num_shards)


# --- protobuf messages ----------------------------------------------------------------------------


@dataclass(slots=True)
class _Record:
    """One entry as it is in the index."""

    dtype: int = 0
    shape: list[int] = field(default_factory=list)
    shard: int = 0
    offset: int = 0
    size: int = 0  # bytes
    checksum: int = 0
    slices: list[Extents] = field(default_factory=list)


_SCALARS = {1: "dtype", 3: "shard", 4: "offset", 5: "size", 6: "checksum"}
_EITHER = (int, bytes)


def _fields(
    message: bytes, kinds: Mapping[int, type | tuple[type, ...]]
) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each field that `kinds` lists: int (signed, 64 bits) or bytes.

    Bytes are a string or a message in the message. Other fields are skipped.
    """
    cursor = Cursor(message)
    while cursor:
        number, wire_type = divmod(cursor.varint(32), 8)
        value: int | bytes
        if wire_type == 0:
            value = cursor.varint()
            value -= value >> 63 << 64  # two's complement
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
        v1 = "a checkpoint of TensorFlow's first format (V1, before 0.12)"
        raise Unsupported(f"has no header: a table of another program, or {v1}")
    num_shards = endianness = oldest_reader = 0
    bad_readers: list[int] = []
    for number, value in _fields(message, {1: _EITHER, 2: int, 3: bytes}):
        if number == 1:
            if isinstance(value, bytes):  # in V1, the key "" has the list of tensors
                raise Unsupported(V1)
            num_shards = value
        elif number == 2:
            endianness = value
        else:
            for part, version in _fields(value, {2: int, 3: _EITHER}):
                if part == 2:
                    oldest_reader = version
                else:  # the numbers come one by one, or packed together
                    bad_readers += [version] if isinstance(version, int) else list(_packed(version))
    if endianness:
        advice = "save the checkpoint again on a little-endian machine"
        raise Unsupported(f"holds big-endian numbers; {advice}")
    if oldest_reader > 1 or 1 in bad_readers:
        needed = f"needs a reader of version {max(2, oldest_reader)}, and this is version 1"
        raise Unsupported(f"{needed}: it was made by a newer TensorFlow")
    if not 1 <= num_shards <= _MOST_SHARDS:
        raise Damaged(f"its header says {num_shards:,} data files, expected 1 to {_MOST_SHARDS:,}")
    return num_shards


def _packed(numbers: bytes) -> Iterator[int]:
    """Yield the numbers of a packed field."""
    cursor = Cursor(numbers)
    while cursor:
        yield cursor.varint()


def _parse_record(key: bytes, message: bytes) -> _Record:
    """Read an entry, and check its dtype and shape."""
    record = _Record()
    for number, value in _fields(message, {2: bytes, 7: bytes} | dict.fromkeys(_SCALARS, int)):
        if number == 2:
            record.shape += _parse_shape(value)
        elif number == 7:
            record.slices.append(_parse_slice(value))
        else:
            setattr(record, _SCALARS[number], value)
    if record.dtype not in _DTYPES:
        found = f"dtype number {record.dtype}"
        raise Damaged(f"{shown(key)} has {found}, which is none of TensorFlow's")
    if len(record.shape) > _HIGHEST_RANK:
        raise Damaged(f"{shown(key)} has {len(record.shape)} dimensions, more than {_HIGHEST_RANK}")
    # A tensor with a dimension of 0 is empty, but NumPy multiplies the other dimensions all the
    # same.
    elements = math.prod(size or 1 for size in record.shape)
    if min(record.shape, default=0) < 0 or elements > _LARGEST_TENSOR:
        raise Damaged(f"{shown(key)} has the impossible shape {record.shape}")
    return record


def _parse_shape(message: bytes) -> list[int]:
    """Return the dimensions of a shape."""
    shape = []
    for number, value in _fields(message, {2: bytes, 3: int}):
        if number == 2:
            shape.append(dict(_fields(value, {1: int})).get(1, 0))
        elif value:
            raise Damaged("a shape has no rank")
    return shape


def _parse_slice(message: bytes) -> Extents:
    """Return the start and length of a slice on each axis."""
    extents = [dict(_fields(value, {1: int, 2: int})) for _, value in _fields(message, {1: bytes})]
    return [(extent.get(1, 0), extent.get(2)) for extent in extents]


# --- variables ------------------------------------------------------------------------------------


def _join_slices(records: Mapping[bytes, _Record], num_shards: int) -> dict[str, BundleEntry]:
    """Return the variables by name; one that was saved in slices has all of them."""
    entries: dict[str, BundleEntry] = {}
    slice_keys = {key for key in records if key.startswith(b"\0")}
    for key, record in records.items():
        if key.startswith(b"\0"):
            continue
        name = _name(key)
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


def _name(key: bytes) -> str:
    """Return the name of a variable; raise Unsupported if it names a Python attribute."""
    try:
        name = key.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Damaged(f"the name {shown(key)} is not UTF-8") from error
    if name == "_CHECKPOINTABLE_OBJECT_GRAPH" or name.endswith("/.ATTRIBUTES/VARIABLE_VALUE"):
        raise Unsupported(_OBJECT_BASED)
    return name


def _part(name: str, record: _Record, box: Box, num_shards: int) -> BundlePart:
    """Return where a record's bytes are; their number must agree with shape and dtype."""
    dtype, itemsize = _DTYPES[record.dtype]
    expected = math.prod(record.shape) * itemsize
    if itemsize and record.size != expected:
        found = f"{record.size:,} bytes, but shape {record.shape} of {dtype} makes {expected:,}"
        raise Damaged(f"{name!r} has {found}")
    if not 0 <= record.shard < num_shards:
        raise Damaged(f"{name!r} is in data file {record.shard} of {num_shards}")
    if record.offset < 0 or record.size < 0:
        raise Damaged(f"{name!r} has offset {record.offset} and size {record.size}")
    return BundlePart(record.shard, record.offset, record.size, record.checksum, box)


def _slice_part(
    name: str, whole: _Record, record: _Record | None, box: Box, num_shards: int
) -> BundlePart:
    """Return where a slice's bytes are; its own entry must agree with the variable's."""
    start = [start for start, _ in box]
    if record is None:
        raise Damaged(f"{name!r} lacks its slice at {start}")
    shape = [stop - start for start, stop in box]
    if record.dtype != whole.dtype or record.shape != shape or record.slices:
        detail = "has another dtype or shape than its variable says"
        raise Damaged(f"the slice of {name!r} at {start} {detail}")
    return _part(name, record, box, num_shards)


# --- slices ---------------------------------------------------------------------------------------


def _box(name: str, shape: Sequence[int], extents: Extents) -> Box:
    """Return where a slice starts and stops on each axis; it must be inside its variable."""
    if len(extents) != len(shape):
        counts = f"{len(extents)} dimensions, the variable {len(shape)}"
        raise Damaged(f"a slice of {name!r} has {counts}")
    box = tuple(
        (start, start + (size if length is None else length))
        for (start, length), size in zip(extents, shape, strict=True)
    )
    if not all(0 <= start < stop <= size for (start, stop), size in zip(box, shape, strict=True)):
        raise Damaged(f"a slice of {name!r} is at {list(box)}, outside the shape {list(shape)}")
    return box


def _tile(boxes: Sequence[Box], shape: Sequence[int]) -> bool:
    """Whether the boxes fill the shape without overlap, in time proportional to their number.

    Taking differences along every axis turns the indicator function of a box into signs at its
    corners, and loses nothing. So the boxes add up to the whole if and only if their corners add up
    to those of the whole: all inner corners cancel.
    """
    corners: Counter[tuple[int, ...]] = Counter()
    whole = tuple((0, size) for size in shape)
    for box, count in [(whole, -1), *((box, 1) for box in boxes)]:
        for ends in itertools.product((0, 1), repeat=len(box)):
            corner = tuple(extent[end] for extent, end in zip(box, ends, strict=True))
            corners[corner] += count * (-1) ** sum(ends)
    return not any(corners.values())


def _slice_key(name: bytes, extents: Extents) -> bytes:
    """Return the key of a slice's own entry: (0, name, rank, start, length, start, length, …).

    The encoding, TensorFlow's OrderedCode, sorts like the values.
    """
    ends = [
        _ordered(number)
        for start, length in extents
        for number in (start, -1 if length is None else length)
    ]
    rank = bytes([1, len(extents)]) if extents else b"\0"
    # A zero byte ends the name, so one in the name is marked. (0xff would be too, but is not in
    # UTF-8.)
    return b"\0" + name.replace(b"\0", b"\0\xff") + b"\0\1" + rank + b"".join(ends)


def _ordered(number: int) -> bytes:
    """Encode a number in n bytes that sort like the numbers; the first n bits say n."""
    n = (number if number >= 0 else ~number).bit_length() // 7 + 1
    return (number % (1 << 8 * n) ^ ((1 << n) - 1) << 7 * n).to_bytes(n, "big")
