"""Read files that torch.save wrote, trusting nothing in them.

Only tensors and plain containers are unpickled (`weights_only=True`, whatever the environment says, and never a second try
without it). torch itself accepts bit flips, storages shorter than declared and compressed bombs in the zip format, so the
archive is checked first: every record stored plainly, with the checksum it was written with.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2kit.checkpoints.stored import FLOAT_DTYPES
from gpt2kit.errors import CheckpointError, CheckpointFormatError
from gpt2kit.files import impostor, read_start

ADVICE = "if you trust where it came from, open it with the program that wrote it and save it as safetensors"


_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80\x02"


def is_pickled(start: bytes) -> bool:
    """Whether a file that begins like this is one of torch.save's two formats: zip since 1.6, bare pickles before."""
    return start.startswith((_ZIP, _PICKLE))


def is_mapped(path: Path) -> bool:
    """Whether `load` maps this file: the zip format can be, unless it is called safetensors, which torch would believe."""
    return (
        read_start(path, error=CheckpointError).startswith(_ZIP) and path.suffix != ".safetensors"
    )


def load(path: Path) -> dict[str, Any]:
    """Return the dictionary in a file of torch.save.

    Where `is_mapped(path)`, its tensors are windows of the file; otherwise they have been read.

    Raises CheckpointFormatError for anything damaged, hostile or of another kind.
    """
    start = read_start(path, error=CheckpointError)
    if explanation := impostor(start):
        raise CheckpointFormatError(path, explanation)
    if not is_pickled(start):
        raise CheckpointFormatError(
            path, "expected a file written by torch.save, found something else"
        )
    sizes = _check_archive(path) if start.startswith(_ZIP) else None
    try:
        if is_mapped(path):
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        else:
            with path.open("rb") as file:
                value = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damage surfaces as a dozen unrelated types
        first_line = str(error).strip().split("\n")[0]
        raise CheckpointFormatError(
            path,
            f"cannot be read as tensors only ({type(error).__name__}: {first_line[:150]}); {ADVICE}",
        ) from error
    if not isinstance(value, dict):
        raise CheckpointFormatError(
            path, f"expected a dictionary of tensors, found a {type(value).__name__}"
        )
    if sizes is not None:
        _check_storages(path, value, sizes)
    return value


def check_tensor(path: Path, name: str, value: Any) -> Tensor:
    """Return the value if it is a plain float tensor; raise CheckpointFormatError naming what it is instead."""
    if not isinstance(value, Tensor):
        raise CheckpointFormatError(path, f"{name} is a {type(value).__name__}, expected a tensor")
    if (
        value.layout is not torch.strided
        or value.is_quantized
        or value.is_nested
        or value.device.type != "cpu"
    ):
        raise CheckpointFormatError(
            path, f"{name} is a sparse, quantized, nested or data-less tensor, expected a plain one"
        )
    if value.dtype not in FLOAT_DTYPES:
        raise CheckpointFormatError(
            path,
            f"{name} has dtype {str(value.dtype).removeprefix('torch.')}, expected float32, float16, bfloat16 or float64",
        )
    if value.numel() * value.itemsize > value.untyped_storage().nbytes():
        raise CheckpointFormatError(
            path, f"{name} declares {value.numel():,} numbers, more than the file holds"
        )
    return value


def _check_archive(path: Path) -> list[int]:
    """Check the zip records and their checksums; return the sizes of the storages in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            names = [record.filename for record in records]
            if len(set(names)) != len(names):
                raise CheckpointFormatError(path, "two records of the archive have the same name")
            if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                raise CheckpointFormatError(
                    path, "the archive is compressed, which torch.save never does"
                )
            if sum(record.file_size for record in records) > os.path.getsize(path):
                raise CheckpointFormatError(
                    path,
                    "the archive declares more bytes than the file has; it may be cut short: get it again",
                )
            if any("/code/" in name or name.endswith("constants.pkl") for name in names):
                raise CheckpointFormatError(path, "this is a TorchScript program, expected weights")
            if damaged := archive.testzip():
                raise CheckpointFormatError(
                    path,
                    f"checksum of record {damaged} does not match; the file is damaged: get it again",
                )
    except CheckpointFormatError:
        raise
    except Exception as error:
        raise CheckpointFormatError(
            path, f"the archive is damaged or cut short ({error}); get it again"
        ) from error
    return sorted(record.file_size for record in records if "/data/" in record.filename)


def _check_storages(path: Path, value: dict[str, Any], sizes: list[int]) -> None:
    """Check that each storage is as long as its record: mapping a shorter one would take its neighbour's bytes."""
    storages: dict[int, int] = {}

    def collect(item: Any) -> None:
        if (
            isinstance(item, Tensor)
            and item.layout is torch.strided
            and item.device.type == "cpu"
            and item.untyped_storage().nbytes()
        ):
            storages[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
        elif isinstance(item, dict):
            for inner in item.values():
                collect(inner)
        elif isinstance(item, list | tuple):
            for inner in item:
                collect(inner)

    collect(value)
    remaining = list(sizes)
    for nbytes in storages.values():
        if nbytes not in remaining:
            raise CheckpointFormatError(
                path,
                f"a tensor declares {nbytes:,} bytes and no record of the archive has as many; the file is damaged",
            )
        remaining.remove(nbytes)
