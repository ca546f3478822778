"""Read files that torch.save wrote, trusting nothing in them.

torch.save has two formats. Since torch 1.6 a file is a zip archive:

    NAME/data.pkl    a pickle: dictionaries of tensors, which refer to storages by key
    NAME/data/KEY    the bytes of one storage, uncompressed, with the zip's CRC-32
    NAME/byteorder   "little" or "big" (newer versions)

Before that it is a series of pickles, then the storages; there are no checksums:

    magic number, protocol number, description of the machine, content, keys of the storages
    for each key: number of elements (int64), then their bytes

Only descriptions are read when a file is opened, by an interpreter that cannot run code
(`gpt2kit.checkpoints.unpickle`). Each tensor is read when it is needed, straight from the
file, and the archive's checksum is verified then, which torch itself does not do.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gpt2kit.checkpoints.ranges import read_range
from gpt2kit.checkpoints.stored import FLOAT_DTYPES, StoredTensor, as_bytes, view_into
from gpt2kit.checkpoints.unpickle import PickledTensor, Storage, Unreadable, unpickle
from gpt2kit.errors import CheckpointError, CheckpointFormatError
from gpt2kit.files import check_regular, impostor, open_regular, read_start

ADVICE = (
    "if you trust its source, open it with the program that wrote it and save it as safetensors"
)

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80\x02"
_LARGEST_PICKLE = 2**22  # bytes; the optimizer and weights of the largest GPT-2 need 0.4 MB

# The first three pickles of the older format.
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


class Record(NamedTuple):
    """Where the bytes of a storage are in the file."""

    offset: int
    nbytes: int
    crc32: int | None  # None in the older format


@dataclass(frozen=True)
class TorchFile:
    """An opened file of torch.save: its content, with descriptions in place of tensors."""

    path: Path
    content: dict[Any, Any]
    records: Mapping[str, Record]  # by the key of the storage

    def tensor(self, name: str, value: Any) -> StoredTensor:
        """Return a value of the content as a tensor that can be read.

        Raises CheckpointFormatError, with the name, unless it is a plain float tensor that the file
        holds.
        """
        if not isinstance(value, PickledTensor):
            detail = f"{name} is a {type(value).__name__}, expected a tensor"
            raise CheckpointFormatError(self.path, detail)
        storage, numel = value.storage, math.prod(value.shape)
        if storage.dtype not in FLOAT_DTYPES:
            found = str(storage.dtype).removeprefix("torch.")
            detail = f"{name} has dtype {found}, expected float32, float16, bfloat16 or float64"
            raise CheckpointFormatError(self.path, detail)
        record = self.records.get(storage.key)
        if record is None or record.nbytes != storage.numel * storage.dtype.itemsize:
            detail = f"{name} declares another number of bytes than its record in the file has"
            raise CheckpointFormatError(self.path, f"{detail}; the file is damaged: get it again")
        # A view with stride 0 shows the same number many times: such a tensor is larger than its
        # storage.
        # `last` is the index in the storage of the last number that the view reaches.
        last = value.offset + sum(
            (size - 1) * step for size, step in zip(value.shape, value.stride, strict=True)
        )
        if numel and max(last + 1, numel) > storage.numel:
            detail = f"{name} declares {numel:,} numbers, more than its part of the file holds"
            raise CheckpointFormatError(self.path, detail)
        read = partial(self._read, name, value, record)
        return StoredTensor(value.shape, storage.dtype, read)

    def is_same(self, first: Any, second: Any) -> bool:
        """Whether two tensors have the same numbers, by their storages or the file's checksums.

        Without checksums both are read. Raises CheckpointFormatError as `tensor` does.
        """
        if first == second:  # one view of one storage
            return True
        stored = [self.tensor("a head or token embedding", value) for value in (first, second)]
        if stored[0].shape != stored[1].shape or stored[0].dtype != stored[1].dtype:
            return False
        records = [self.records[value.storage.key] for value in (first, second)]
        is_all = [value.storage.numel == math.prod(value.shape) for value in (first, second)]
        if all(is_all) and first.stride == second.stride and records[0].crc32 is not None:
            return records[0][1:] == records[1][1:]
        return torch.equal(*(each.read() for each in stored))

    def _read(
        self, name: str, tensor: PickledTensor, record: Record, buffer: Tensor | None
    ) -> Tensor:
        """Read a whole storage, check its checksum, and return the tensor's view of it."""
        storage = tensor.storage
        # The usual tensor is all of its storage, and can be read straight into the buffer.
        is_all = tensor.offset == 0 and math.prod(tensor.shape) == storage.numel
        is_all = is_all and tensor.stride == _row_major(tensor.shape)
        flat = view_into((storage.numel,), storage.dtype, buffer if is_all else None)
        found = read_range(
            self.path, name, record.offset, as_bytes(flat).numpy(), extend=_extend_crc32
        )
        # The checksum is that of the whole storage: also for a view of a part, all of it was read.
        if record.crc32 not in (None, found):
            detail = f"{name} does not match its checksum; the file is damaged: get it again"
            raise CheckpointFormatError(self.path, detail)
        # as_strided counts from the start of the memory, of which the buffer may be a part.
        offset = flat.storage_offset() + tensor.offset
        return flat.as_strided(tensor.shape, tensor.stride, offset)


def is_pickled(start: bytes) -> bool:
    """Whether a file that begins like this is in one of torch.save's two formats."""
    return start.startswith((_ZIP, _PICKLE))


def open_file(path: Path) -> TorchFile:
    """Open a file of torch.save whose content is a dictionary; no tensor is read.

    Raises CheckpointFormatError for anything damaged, hostile or of another kind.
    """
    start = read_start(path, error=CheckpointError)
    if explanation := impostor(start):
        raise CheckpointFormatError(path, explanation)
    if not is_pickled(start):
        detail = "expected a file written by torch.save, found something else"
        raise CheckpointFormatError(path, detail)
    try:
        content, records = (_open_zip if start.startswith(_ZIP) else _open_older)(path)
    except Unreadable as reason:
        raise CheckpointFormatError(path, f"{reason}; {ADVICE}") from reason
    if not isinstance(content, dict):
        detail = f"expected a dictionary of tensors, found a {type(content).__name__}"
        raise CheckpointFormatError(path, detail)
    return TorchFile(path, content, records)


def _extend_crc32(checksum: int, data: Any) -> int:
    return zlib.crc32(data, checksum)


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


# --- the zip format -------------------------------------------------------------------------------


def _open_zip(path: Path) -> tuple[Any, dict[str, Record]]:
    """Return the content of an archive, and its storages by key."""
    records = _archive_records(path)
    pickles = [name for name in records if name.endswith("/data.pkl")]
    if any("/code/" in name or name.endswith("constants.pkl") for name in records):
        raise CheckpointFormatError(path, "this is a TorchScript program, expected weights")
    if len(pickles) != 1:
        raise CheckpointFormatError(path, "the archive has no data.pkl; torch.save did not make it")
    root = pickles[0].removesuffix("data.pkl")  # the name under which the file was saved
    order = records.get(f"{root}byteorder")
    if order is not None and _read_record(path, "byteorder", order) != b"little":
        detail = "its numbers are big-endian; save it again on a little-endian machine"
        raise CheckpointFormatError(path, detail)
    content, _ = unpickle(io.BytesIO(_read_record(path, "data.pkl", records[pickles[0]])))
    data = f"{root}data/"
    storages = {name.removeprefix(data): records[name] for name in records if name.startswith(data)}
    return content, storages


def _archive_records(path: Path) -> dict[str, Record]:
    """Return the records of an archive by name, each uncompressed and inside the file."""
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            entries = archive.infolist()  # the central directory, at the end of the file
            records = {entry.filename: _record(entry, file) for entry in entries}
    except CheckpointFormatError:
        raise
    except Exception as error:  # zipfile raises a dozen unrelated types over damage
        detail = "the archive is damaged or cut short; get it again"
        raise CheckpointFormatError(path, detail) from error
    size = check_regular(path, error=CheckpointError)
    # Of two records with one name, programs differ in which one they read.
    if len(records) != len(entries):
        raise CheckpointFormatError(path, "two records of the archive have the same name")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointFormatError(path, "the archive is compressed, which torch.save never does")
    # Records that share bytes would let a small file ask for any amount of memory.
    if sum(entry.file_size for entry in entries) > size:
        detail = (
            "the archive declares more bytes than the file has; it may be cut short: get it again"
        )
        raise CheckpointFormatError(path, detail)
    return records


def _record(entry: zipfile.ZipInfo, file: io.BufferedReader) -> Record:
    """Return where an entry's bytes are: after its local header, which gives its own length."""
    file.seek(entry.header_offset)
    header = file.read(30)  # its fixed part; the name and an extra field follow
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    start = entry.header_offset + len(header) + name_length + extra_length
    return Record(start, entry.file_size, entry.CRC)


def _read_record(path: Path, name: str, record: Record) -> bytes:
    """Return the bytes of a small record, checked."""
    if record.nbytes > _LARGEST_PICKLE:
        detail = f"{name} has {record.nbytes:,} bytes, expected at most {_LARGEST_PICKLE:,}"
        raise CheckpointFormatError(path, detail)
    out = np.empty(record.nbytes, np.uint8)
    if read_range(path, name, record.offset, out, extend=_extend_crc32) != record.crc32:
        detail = f"{name} does not match its checksum; the file is damaged: get it again"
        raise CheckpointFormatError(path, detail)
    return out.tobytes()


# --- the format before torch 1.6 ------------------------------------------------------------------


def _open_older(path: Path) -> tuple[Any, dict[str, Record]]:
    """Return the content of a series of pickles, and its storages by key."""
    with open_regular(path, error=CheckpointError) as file:
        # All five pickles must be in the first megabytes, so that a hostile length costs no memory.
        start = io.BytesIO(file.read(_LARGEST_PICKLE))
        if unpickle(start)[0] != _MAGIC or unpickle(start)[0] != _PROTOCOL:
            raise Unreadable("it is a pickle that torch.save did not write")
        machine, _ = unpickle(start)
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise Unreadable("its numbers are not little-endian")
        content, storages = unpickle(start)
        keys, _ = unpickle(start)
        if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
            raise Unreadable("its list of storages is not that of its tensors")
        return content, _older_records(path, file, start.tell(), [storages[key] for key in keys])


def _older_records(
    path: Path, file: BinaryIO, offset: int, storages: list[Storage]
) -> dict[str, Record]:
    """Return where the storages are: one after another from `offset` on, each after its length."""
    size = check_regular(path, error=CheckpointError)
    records = {}
    for storage in storages:
        file.seek(offset)
        numel = int.from_bytes(file.read(8), "little")  # should be storage.numel; `tensor` checks
        nbytes = numel * storage.dtype.itemsize
        if offset + 8 + nbytes > size:
            raise CheckpointFormatError(path, "the file ends too early; get it again")
        records[storage.key] = Record(offset + 8, nbytes, None)
        offset += 8 + nbytes
    return records
