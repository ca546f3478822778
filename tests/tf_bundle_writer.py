"""Write TensorFlow checkpoints for tests: valid ones, and ones in which a single field is wrong.

`write_bundle` makes a whole checkpoint of arrays. The functions that it is made of (`table`,
`header`, `entry`, `slice_key`, `message`) accept any values, valid or not. Nothing here uses the
code of the reader.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import google_crc32c
import numpy as np

DTYPE_NUMBERS = {
    "float32": 1,
    "float64": 2,
    "int32": 3,
    "uint8": 4,
    "int16": 5,
    "int8": 6,
    "string": 7,
    "complex64": 8,
    "int64": 9,
    "bool": 10,
    "bfloat16": 14,
    "uint16": 17,
    "complex128": 18,
    "float16": 19,
    "uint32": 22,
    "uint64": 23,
}
MAGIC = bytes.fromhex("57fb808b247547db")
EMPTY_BLOCK = bytes.fromhex("0000000001000000")  # no entries, one restart at 0

Extents = Sequence[
    tuple[int, int | None]
]  # (start, length) per axis; None leaves the length out: the whole axis
Field = tuple[int, "int | bytes"]


def masked_crc(data: bytes) -> int:
    crc: int = google_crc32c.value(data)
    rotated = (crc >> 15) + ((crc & 0x7FFF) << 17)
    return (rotated + 0xA282EAD8) % 2**32


def varint(number: int) -> bytes:
    number %= 2**64
    groups = []
    while True:
        groups.append(number % 128)
        number //= 128
        if not number:
            return bytes([group + 128 for group in groups[:-1]] + groups[-1:])


# Messages.


def message(*fields: Field) -> bytes:
    """Encode a protobuf message; zeros are written like any other number."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def fixed32(number: int, value: int) -> bytes:
    return varint(number << 3 | 5) + struct.pack("<I", value)


def header(num_shards: int = 1, *more: Field, version: Sequence[Field] = ((1, 1),)) -> bytes:
    return message((1, num_shards), *more, (3, message(*version)))


def entry(
    dtype: int | None = 1,
    shape: Sequence[int] = (),
    *,
    shard: int = 0,
    offset: int = 0,
    size: int = 0,
    crc: int = 0,
    slices: Sequence[Extents] = (),
    more: bytes = b"",
) -> bytes:
    fields: list[Field] = [] if dtype is None else [(1, dtype)]
    fields.append((2, message(*((2, message((1, size))) for size in shape))))
    fields += [(3, shard), (4, offset), (5, size)]
    fields += [(7, slice_message(extents)) for extents in slices]
    return message(*fields) + fixed32(6, crc) + more


def slice_message(extents: Extents) -> bytes:
    return message(
        *(
            (1, message((1, start), *([] if length is None else [(2, length)])))
            for start, length in extents
        )
    )


def slice_key(name: str, extents: Extents) -> bytes:
    """Encode a slice's key in TensorFlow's OrderedCode, for numbers from -64 to 2**20 - 1."""

    def signed(number: int) -> bytes:
        if -64 <= number < 64:
            return bytes([0x80 ^ (number & 0xFF)])
        if number < 2**13:
            return struct.pack(">H", 0xC000 | number)
        assert number < 2**20
        return (0xE00000 | number).to_bytes(3, "big")

    ends = b"".join(
        signed(start) + signed(-1 if length is None else length) for start, length in extents
    )
    text = b"".join(b"\0\xff" if byte == 0 else bytes([byte]) for byte in name.encode())
    return b"\0" + text + b"\0\1" + (bytes([1, len(extents)]) if extents else b"\0") + ends


# Tables.


def block(items: Sequence[tuple[bytes, bytes]], restart_interval: int = 16) -> bytes:
    out, restarts, previous = b"", [], b""
    for count, (key, value) in enumerate(items):
        shared = 0
        if count % restart_interval == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(previous)) and key[shared] == previous[shared]:
                shared += 1
        out += (
            varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        )
        previous = key
    restarts = restarts or [0]
    return (
        out
        + b"".join(struct.pack("<I", restart) for restart in restarts)
        + struct.pack("<I", len(restarts))
    )


def table_of_blocks(blocks: Sequence[tuple[bytes, bytes, int]]) -> bytes:
    """Make a table of finished data blocks, each with its last key and its compression byte."""
    out = b""

    def put(content: bytes, compression: int = 0) -> bytes:
        nonlocal out
        handle = varint(len(out)) + varint(len(content))
        content += bytes([compression])
        out += content + struct.pack("<I", masked_crc(content))
        return handle

    index = [(last_key, put(content, compression)) for last_key, content, compression in blocks]
    metaindex = put(EMPTY_BLOCK)
    handles = metaindex + put(block(index, restart_interval=1))
    return out + handles.ljust(40, b"\0") + MAGIC


def table(
    items: Sequence[tuple[bytes, bytes]], *, items_per_block: int = 10**9, compress: bool = False
) -> bytes:
    """Make a table of items, which stay in the order that they have."""
    chunks = [items[at : at + items_per_block] for at in range(0, len(items), items_per_block)]
    contents = [(chunk[-1][0], block(chunk)) for chunk in chunks]
    if compress:
        return table_of_blocks([(key, snappy(content), 1) for key, content in contents])
    return table_of_blocks([(key, content, 0) for key, content in contents])


def snappy(data: bytes) -> bytes:
    """Compress with literals and with copies from where the same four bytes last stood."""
    seen: dict[bytes, int] = {}
    out, at, literal_from = varint(len(data)), 0, 0

    def literal(piece: bytes) -> bytes:
        if not piece:
            return b""
        if len(piece) <= 60:
            return bytes([(len(piece) - 1) << 2]) + piece
        return bytes([61 << 2]) + struct.pack("<H", len(piece) - 1) + piece

    while at < len(data):
        four = data[at : at + 4]
        before = seen.get(four)
        seen[four] = at
        if before is None or len(four) < 4 or at - before >= 2**16:
            at += 1
            continue
        length = 4
        while (
            length < 64 and at + length < len(data) and data[before + length] == data[at + length]
        ):
            length += 1
        out += literal(data[literal_from:at])
        offset = at - before
        if length < 12 and offset < 2**11:
            out += bytes([(offset >> 8) << 5 | (length - 4) << 2 | 1, offset & 0xFF])
        else:
            out += bytes([(length - 1) << 2 | 2]) + struct.pack("<H", offset)
        at = literal_from = at + length
    return out + b"".join(
        literal(data[start : start + 2**16]) for start in range(literal_from, len(data), 2**16)
    )


def repair(index: bytes, positions: Sequence[tuple[int, int]]) -> bytes:
    """Recompute the checksums of the blocks at these (offset, size), which someone has changed."""
    out = bytearray(index)
    for offset, size in positions:
        end = offset + size + 1
        out[end : end + 4] = struct.pack("<I", masked_crc(bytes(out[offset:end])))
    return bytes(out)


def block_positions(index: bytes) -> list[tuple[int, int]]:
    """Find offset and size of all blocks of a valid table without compression.

    The order is data blocks, metaindex block, index block.
    """

    def numbers(data: bytes, count: int) -> list[int]:
        found = []
        for _ in range(count):
            length = next(at for at, byte in enumerate(data) if byte < 128) + 1
            found.append(sum((byte & 127) << 7 * at for at, byte in enumerate(data[:length])))
            data = data[length:]
        return found

    meta_offset, meta_size, offset, size = numbers(index[-48:-8], 4)
    content = index[offset : offset + size]
    content = content[: len(content) - 4 - 4 * int(struct.unpack("<I", content[-4:])[0])]
    positions = []
    while content:  # no key of an index block shares bytes with the one before
        _, unshared, length = numbers(content, 3)
        start = sum(len(varint(number)) for number in (0, unshared, length)) + unshared
        data_offset, data_size = numbers(content[start : start + length], 2)
        positions.append((data_offset, data_size))
        content = content[start + length :]
    return [*positions, (meta_offset, meta_size), (offset, size)]


# Checkpoints.


def write_files(
    prefix: Path,
    items: Mapping[bytes, bytes],
    shards: Sequence[bytes] = (b"",),
    *,
    head: bytes | None = None,
) -> Path:
    """Write an index of these items, sorted, after a header, and these data files."""
    everything = sorted({b"": header(len(shards)) if head is None else head, **items}.items())
    Path(f"{prefix}.index").write_bytes(table(everything))
    for number, content in enumerate(shards):
        Path(f"{prefix}.data-{number:05d}-of-{len(shards):05d}").write_bytes(content)
    return prefix


def write_bundle(
    prefix: Path,
    tensors: Mapping[str, np.ndarray],
    *,
    num_shards: int = 1,
    slices: Mapping[str, Sequence[Extents]] | None = None,
    dtypes: Mapping[str, str] | None = None,
    items_per_block: int = 10**9,
    compress: bool = False,
    padding: int = 0,
) -> Path:
    """Write a valid checkpoint of these arrays and return its prefix.

    The data files take turns to get an array, with `padding` zeros after each. Arrays named in
    `slices` are stored in slices. `dtypes` has the TensorFlow dtypes that differ from NumPy's
    (bfloat16 is stored as uint16).
    """
    shards = [bytearray() for _ in range(num_shards)]
    items = {b"": header(num_shards)}

    def put(key: bytes, dtype: int, array: np.ndarray) -> None:
        shard = (len(items) - 1) % num_shards
        data = array.astype(array.dtype.newbyteorder("<")).tobytes()
        items[key] = entry(
            dtype,
            array.shape,
            shard=shard,
            offset=len(shards[shard]),
            size=len(data),
            crc=masked_crc(data),
        )
        shards[shard] += data + bytes(padding)

    for name, array in tensors.items():
        dtype = DTYPE_NUMBERS[(dtypes or {}).get(name, array.dtype.name)]
        cuts = (slices or {}).get(name)
        if cuts is None:
            put(name.encode(), dtype, array)
            continue
        for extents in cuts:
            window = tuple(
                slice(start, None if length is None else start + length)
                for start, length in extents
            )
            put(slice_key(name, extents), dtype, array[window])
        items[name.encode()] = entry(dtype, array.shape, slices=cuts)
    Path(f"{prefix}.index").write_bytes(
        table(sorted(items.items()), items_per_block=items_per_block, compress=compress)
    )
    for number, content in enumerate(shards):
        Path(f"{prefix}.data-{number:05d}-of-{num_shards:05d}").write_bytes(content)
    return prefix
