"""safetensors files, read and written one tensor at a time.

header length    uint64, little-endian header           JSON: name -> dtype, shape and offsets
[start, end] after the header; "__metadata__" -> texts tensors          end to end, in C order
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from gpt2kit.checkpoints.names import BUFFERS
from gpt2kit.checkpoints.stored import StoredTensor, as_bytes
from gpt2kit.errors import CheckpointFormatError

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()} | {torch.int8: "I8"}


def read_safetensors(
    path: Path, *, dtypes: Mapping[str, torch.dtype] = _DTYPES
) -> dict[str, StoredTensor]:
    """Return the tensors of a file by the names in it, without reading them.

    Raises CheckpointFormatError for damage, and for a dtype that is not among `dtypes` unless the
    tensor is a mask.
    """
    try:
        safe_open(path, framework="pt", backend="pread")  # compares the whole header with the file
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        detail = f"not a whole safetensors file ({error}); get it again"
        raise CheckpointFormatError(path, detail) from error
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in dtypes and not name.endswith(BUFFERS):
            detail = f"{name} has dtype {entry['dtype']}, expected one of {', '.join(dtypes)}"
            raise CheckpointFormatError(path, detail)
        # Masks of any dtype are listed, because callers name what they skip, but never read.
        shape, dtype = tuple(entry["shape"]), dtypes.get(entry["dtype"], torch.uint8)
        offset = 8 + length + entry["data_offsets"][0]
        tensors[name] = StoredTensor.at(path, name, offset, shape, dtype)
    return tensors


def write_safetensors(
    file: BinaryIO,
    tensors: Mapping[str, StoredTensor],
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors in their order, converted to `dtype` if that is given.

    The library's own writer takes all tensors at once. This holds one at a time, so that a model
    larger than half of the memory can be converted.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0  # of the tensors so far, counted from the end of the header
    for name, stored in tensors.items():
        written = dtype or stored.dtype
        start, end = end, end + torch.Size(stored.shape).numel() * written.itemsize
        shape = list(stored.shape)
        header[name] = {
            "dtype": _DTYPE_NAMES[written],
            "shape": shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the tensors
    file.write(struct.pack("<Q", len(text)) + text)
    for stored in tensors.values():
        # In C order: a transposed matrix is copied here.
        tensor = stored.read().to(dtype or stored.dtype).contiguous()
        file.write(as_bytes(tensor).numpy().data)
