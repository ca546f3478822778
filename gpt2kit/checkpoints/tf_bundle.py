"""Read TensorFlow checkpoints (the TensorBundle format) without TensorFlow.

A checkpoint PREFIX consists of

    PREFIX.index                  what the variables are and where their bytes are (`tf_index`)
    PREFIX.data-00000-of-00001    one or more data files: the bytes of the tensors and nothing else

Elements are in C order. This module knows nothing of GPT-2: which names and shapes a model needs is
known in `names.py`.

The files are taken for hostile: every size is compared with the files' real sizes before anything
is allocated. The checksums prove that the bytes are those that were saved, not who saved them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import google_crc32c
import numpy as np
import numpy.typing as npt

from gpt2kit.checkpoints.leveldb import LARGEST_TABLE, Damaged, Unsupported, is_table, mask
from gpt2kit.checkpoints.ranges import read_range
from gpt2kit.checkpoints.tf_index import V1, BundleEntry, BundlePart, parse_index
from gpt2kit.errors import CheckpointError, CheckpointFormatError, CheckpointNotFoundError
from gpt2kit.files import check_regular, impostor, open_regular, read_bytes, read_start


class TensorBundle:
    """A checkpoint whose index has been read and checked; several threads may read its tensors.

    Raises CheckpointNotFoundError for a missing index or data file, and CheckpointFormatError for
    files that are damaged, unsupported, or smaller than the index says. Bytes after the last tensor
    are allowed, as TensorFlow allows them.
    """

    prefix: Path
    entries: Mapping[str, BundleEntry]  # by variable name, sorted

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self._index = Path(f"{prefix}.index")
        try:
            self._num_shards, entries = parse_index(_read_index(prefix, self._index))
        except Damaged as damage:
            detail = f"{damage}; the file is damaged: download or copy it again"
            raise CheckpointFormatError(self._index, detail) from damage
        except Unsupported as reason:
            raise CheckpointFormatError(self._index, str(reason)) from reason
        self.entries = MappingProxyType(entries)
        self._check_overlaps()
        self._check_sizes()

    def read(self, name: str) -> np.ndarray:
        """Return a variable as a new array of its shape and dtype.

        bfloat16, which NumPy does not have, is returned as its bits in uint16.
        """
        entry = self.entries[name]
        self._require_numbers(name)
        out = np.empty(entry.nbytes, np.uint8)  # the elements' bytes, in C order
        self.read_into(name, out)
        dtype = np.dtype("uint16" if entry.dtype == "bfloat16" else entry.dtype)
        return out.view(dtype.newbyteorder("<")).reshape(entry.shape)

    def read_into(self, name: str, out: npt.NDArray[np.uint8]) -> None:
        """Fill `out` with a variable in C order, little-endian.

        `out` is a contiguous uint8 array of the entry's nbytes.
        The bytes go from the file straight to `out`, those of a partitioned variable by way of one
        slice at a time. After an error the content of `out` is undefined.
        """
        entry = self.entries[name]
        self._require_numbers(name)
        is_contiguous = out.flags.c_contiguous and out.flags.writeable
        if out.dtype != np.uint8 or out.shape != (entry.nbytes,) or not is_contiguous:
            expected = f"a writable contiguous array of {entry.nbytes} uint8"
            raise ValueError(f"{name} needs {expected}, not {out.shape} {out.dtype}")
        if len(entry.parts) == 1:
            self._read_part(name, entry.parts[0], out)
            return
        # A last axis for the bytes of an element, so that a slice is a box of bytes.
        whole = out.reshape(*entry.shape, entry.itemsize)
        for part in entry.parts:
            piece = np.empty(part.nbytes, np.uint8)
            self._read_part(name, part, piece)
            box = tuple(slice(*extent) for extent in part.box)
            # (*part.shape, itemsize) into its box of (*entry.shape, itemsize)
            whole[box] = piece.reshape(*part.shape, entry.itemsize)

    def _read_part(self, name: str, part: BundlePart, out: npt.NDArray[np.uint8]) -> None:
        """Fill `out` from the file and check its checksum."""
        path = self._data_file(part.shard)
        crc = read_range(path, repr(name), part.offset, out, extend=google_crc32c.extend)
        # Only now is `out` known to be right: it was filled while the checksum was computed.
        if mask(crc) != part.checksum:
            found = f"has checksum {mask(crc):#010x}, not {part.checksum:#010x}"
            detail = f"{name!r} {found}; the file is damaged: download or copy it again"
            raise CheckpointFormatError(path, detail)

    def _require_numbers(self, name: str) -> None:
        """Raise CheckpointFormatError unless the variable consists of numbers."""
        entry = self.entries[name]
        if not entry.itemsize:
            detail = f"{name!r} is a {entry.dtype}: only tensors of numbers can be read"
            raise CheckpointFormatError(self._index, detail)

    def _data_file(self, shard: int) -> Path:
        return Path(f"{self.prefix}.data-{shard:05d}-of-{self._num_shards:05d}")

    def _check_overlaps(self) -> None:
        """Raise CheckpointFormatError unless every part has bytes of its own.

        Otherwise a small file could ask for any amount of memory.
        """
        parts = sorted(
            (part.shard, part.offset, part.nbytes, name)
            for name, entry in self.entries.items()
            for part in entry.parts
        )
        end = (0, 0)  # data file, and where its last part so far ends
        for shard, offset, nbytes, name in parts:
            # Empty tensors may be anywhere.
            if nbytes and (shard, offset) < end:
                detail = f"{name!r} overlaps the bytes of another tensor; the file is damaged"
                raise CheckpointFormatError(self._index, detail)
            end = max(end, (shard, offset + nbytes))

    def _check_sizes(self) -> None:
        """Raise unless every data file is here and large enough for its parts."""
        ends: dict[int, int] = {}  # data file -> end of its last part
        for entry in self.entries.values():
            for part in entry.parts:
                ends[part.shard] = max(ends.get(part.shard, 0), part.offset + part.nbytes)
        sizes: dict[int, int] = {}
        missing = []  # all of them are listed in one error
        for shard in sorted(ends):
            try:
                sizes[shard] = check_regular(self._data_file(shard), error=CheckpointError)
            except CheckpointNotFoundError as error:
                missing += error.missing
        if missing:
            names = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
            counts = f"{len(missing)} of {self._num_shards} data files missing"
            advice = "put them beside the index, or download the checkpoint again"
            message = f"{self.prefix}: {counts}: {names}; {advice}"
            raise CheckpointNotFoundError(message, path=self.prefix, missing=missing)
        for shard, end in ends.items():
            if sizes[shard] < end:
                path = self._data_file(shard)
                found = f"is {sizes[shard]:,} bytes, but the index needs {end:,}"
                explanation = impostor(read_start(path, error=CheckpointError))
                detail = explanation or f"{found}; download or copy it again"
                raise CheckpointFormatError(path, detail)


def _read_index(prefix: Path, index: Path) -> bytes:
    """Return the bytes of the index file, which end as a table does."""
    try:
        size = check_regular(index, error=CheckpointError)
    except CheckpointNotFoundError as error:
        # In the first format the prefix itself is a file, and ends as a table does.
        if prefix.is_file() and is_table(_last_bytes(prefix)):
            raise CheckpointFormatError(prefix, V1) from error
        what = "a TensorFlow checkpoint is an .index file and its .data files"
        message = f"{index}: no such file; {what}: name another, or download it again"
        raise CheckpointNotFoundError(message, path=index, missing=[index.name]) from error
    if size > LARGEST_TABLE:
        found = f"is {size:,} bytes, and no index needs more than {LARGEST_TABLE:,}"
        raise Unsupported(f"{found}; is this another file?")
    data = read_bytes(index, largest=LARGEST_TABLE, error=CheckpointError)
    if not is_table(data):
        shortage = f"is not a TensorFlow index, or only a part of one ({len(data):,} bytes)"
        raise Unsupported(impostor(data[:64]) or f"{shortage}; download it again")
    return data


def _last_bytes(path: Path) -> bytes:
    """Return the last 64 bytes of a file, where a table has its footer."""
    with open_regular(path, error=CheckpointError) as file:
        file.seek(max(0, path.stat().st_size - 64))
        return file.read(64)
