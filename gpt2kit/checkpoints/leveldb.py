"""Read a LevelDB table: sorted keys and their values, in blocks with checksums.

A table is read from its end, where the footer says what else there is:

    table    data block, data block, …, metaindex block (not needed here), index block, footer
    footer   handle of the metaindex block, handle of the index block, zeros up to 40 bytes,
             magic number (8 bytes)
    handle   varint offset, varint size: where a block is; the values of the index block are the
             handles of the data blocks
    block    entry, entry, …, restart offsets (uint32 each), their number (uint32)
    trailer  after each block, not counted in its size: compression (1 byte: 0 none, 1 snappy),
             masked crc32c of the block and that byte (uint32)
    entry    varint shared, varint unshared, varint length, key, value; of the key, the first
             `shared` bytes are those of the previous key, and the other `unshared` bytes are stored

The bytes are taken for hostile: whatever they are, the result is the table's items, Damaged or
Unsupported, in bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import google_crc32c

from gpt2kit.checkpoints import snappy

LARGEST_TABLE = 64 << 20  # bytes; the index of the 1558M model has 20,724

_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_FOOTER = 48  # bytes
_TRAILER = 5
_LARGEST_EXPANSION = 64  # snappy makes at most 64 bytes of 3
_LONGEST_KEY = 64 << 10
_ENTRY_OVERHEAD = 64  # bytes counted for holding an entry, besides its key and value


class Damaged(Exception):
    """The bytes break the format; the message says where."""


class Unsupported(Exception):
    """The bytes are of a kind that this module does not read; the message says which."""


class Cursor:
    """An offset in some bytes, from which numbers and bytes are taken; false at the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    def __bool__(self) -> bool:
        return self._offset < len(self._data)

    def take(self, count: int) -> bytes:
        """Take the next `count` bytes."""
        if count > len(self._data) - self._offset:
            raise Damaged("something ends before its declared length")
        self._offset += count
        return self._data[self._offset - count : self._offset]

    def rest(self) -> bytes:
        """Take everything that is left."""
        return self.take(len(self._data) - self._offset)

    def varint(self, bits: int = 64) -> int:
        """Take a number in groups of 7 bits, lowest first; the top bit says that more follow."""
        value = 0
        for shift in range(0, bits, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80 and value < 1 << bits:
                return value
        raise Damaged(f"a number has more than {bits} bits")


def mask(crc: int) -> int:
    """Mask a checksum as LevelDB does: the CRC of data that holds CRCs would be weak."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def shown(key: bytes) -> str:
    """Return a key for a message, with escapes and cut to a bounded length."""
    text = repr(key[:60].decode("utf-8", "backslashreplace"))
    return text if len(key) <= 60 else f"{text}…"


def is_table(data: bytes) -> bool:
    """Whether these bytes end as tables do."""
    return len(data) >= _FOOTER and data.endswith(_MAGIC)


def table_items(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a table, the keys in strictly increasing order."""
    footer = Cursor(data[-_FOOTER:-8])  # without the magic number
    metaindex = footer.varint(), footer.varint()
    index = footer.varint(), footer.varint()
    _read_block(data, *metaindex)  # empty in TensorFlow's files; read for its checksum
    previous, end, spent = None, 0, 0
    for _, value in _block_items(_read_block(data, *index)):
        handle = Cursor(value)  # the keys of the index block only help to search
        offset, size = handle.varint(), handle.varint()
        # Blocks that share bytes would let a small file hold any number of entries.
        if offset < end:
            raise Damaged(f"the block at byte {offset:,} overlaps another one")
        end = offset + size + _TRAILER
        for key, item in _block_items(_read_block(data, offset, size)):
            if previous is not None and key <= previous:
                raise Damaged(
                    f"the key {shown(key)} comes after {shown(previous)}: they are not sorted"
                )
            # Shared prefixes and compression let a small file spell out enormous keys: count what
            # they come to.
            spent += len(key) + len(item) + _ENTRY_OVERHEAD
            if spent > LARGEST_TABLE:
                raise Damaged(f"its entries expand to more than {LARGEST_TABLE:,} bytes")
            yield key, item
            previous = key


def _read_block(data: bytes, offset: int, size: int) -> bytes:
    """Return a block, checked and uncompressed."""
    end = offset + size
    if end + _TRAILER > len(data) - _FOOTER:
        raise Damaged(
            f"the block at byte {offset:,} would end at {end:,}, past the end of the file"
        )
    compression, expected = data[end], int.from_bytes(data[end + 1 : end + _TRAILER], "little")
    # The checksum covers the block and the byte that tells its compression.
    found = mask(google_crc32c.value(data[offset : end + 1]))
    if found != expected:
        raise Damaged(
            f"the block at byte {offset:,} has checksum {found:#010x}, not {expected:#010x}"
        )
    if compression == 0:
        return data[offset:end]
    if compression != 1:
        raise Unsupported(
            f"the block at byte {offset:,} is compressed in an unknown way ({compression})"
        )
    # The declared size is checked before anything is decompressed.
    stream = Cursor(data[offset:end])
    expanded = stream.varint(32)
    if expanded > min(LARGEST_TABLE, _LARGEST_EXPANSION * size):
        raise Damaged(
            f"the block at byte {offset:,} declares that its {size:,} bytes expand to {expanded:,}"
        )
    try:
        return snappy.decompress(stream.rest(), expanded)
    except ValueError as error:
        raise Damaged(f"the block at byte {offset:,}: {error}") from error


def _block_items(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a block."""
    # Restart offsets are for a binary search. Reading from the front needs only their number.
    restarts = int.from_bytes(block[-4:], "little")
    entries_end = len(block) - 4 * (1 + restarts)
    if entries_end < 0:
        raise Damaged(f"a block of {len(block):,} bytes cannot hold {restarts:,} restarts")
    cursor = Cursor(block[:entries_end])
    key = b""
    while cursor:
        shared, unshared, length = cursor.varint(32), cursor.varint(32), cursor.varint(32)
        if shared > len(key):
            raise Damaged(f"a key shares {shared:,} bytes with {shown(key)}, which has fewer")
        if shared + unshared > _LONGEST_KEY:
            raise Damaged(f"a key has {shared + unshared:,} bytes, more than {_LONGEST_KEY:,}")
        key = key[:shared] + cursor.take(unshared)  # keys are compressed against the previous one
        yield key, cursor.take(length)
