"""int8 weights: made once, then kept in a file so that the next start takes a quarter of the time.

The file NAME.gpt2kit-int8 is a safetensors file, but under its own name no other program takes it
for a model. `store.int8_file` says where it is. Its metadata has two fields:

    source    hash of the weights that it was made of; for other weights the file is made anew
    crc32c    checksum of the names and bytes of all tensors; a damaged file is made anew, with a
              warning
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import google_crc32c
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gpt2kit.checkpoints.safetensors_files import read_safetensors, write_safetensors
from gpt2kit.checkpoints.stored import Checkpoint, StoredTensor, as_bytes, empty_tensors
from gpt2kit.errors import CheckpointFormatError, Gpt2KitWarning
from gpt2kit.files import new_file
from gpt2kit.quantize import Int8GPT2, quantized_state
from gpt2kit.store import INT8_SUFFIX, int8_file

_VERSION = "2"  # of the file and of how weights are rounded
_DTYPES = {"F32": torch.float32, "I8": torch.int8}
# What is read of a large file to tell whether it changed: formats have their headers there.
_BEGINNING = 2**16


def build_int8_model(
    checkpoint: Checkpoint,
    read: Callable[[str], Tensor],
    *,
    write: bool = True,
    on_write: Callable[[Path], object] | None = None,
) -> Int8GPT2:
    """Build the int8 model of a checkpoint, in evaluation mode.

    It comes from the file of an earlier start if that is whole and was made of these weights.
    Otherwise it is made from the tensors that `read` returns by name, and with `write` the file is
    written; if that works, `on_write` is called with its path.
    """
    model = Int8GPT2(checkpoint.config)
    path = int8_file(checkpoint.path)
    source = _source(checkpoint)
    state = None
    try:
        state = _read(path, model, source)
    except CheckpointFormatError as damage:
        message = f"{damage}; the int8 weights are made anew from the model's own"
        warnings.warn(message, Gpt2KitWarning, stacklevel=3)
    if state is None:
        state = _quantize(checkpoint, model, read)
        if write and _write(path, state, source) and on_write is not None:
            on_write(path)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def check_int8_file(checkpoint: Checkpoint) -> bool | None:
    """Return whether a checkpoint's int8 file is in use, or None if there is no file.

    It is not in use if it was made of other weights. Raises CheckpointFormatError if it is damaged.
    """
    path = int8_file(checkpoint.path)
    if not path.is_file():
        return None
    return _read(path, Int8GPT2(checkpoint.config), _source(checkpoint)) is not None


def _quantize(
    checkpoint: Checkpoint, model: Int8GPT2, read: Callable[[str], Tensor]
) -> dict[str, Tensor]:
    """Round the tensors of a checkpoint; raise CheckpointFormatError for numbers beyond float32."""
    # The memory that stays is taken first, so that what comes and goes meanwhile leaves no holes in
    # it.
    state = empty_tensors(_specs(model))
    for name, tensor in quantized_state(checkpoint.config, read):
        state[name].copy_(tensor)
    if broken := _first_not_finite(state):
        detail = (
            f"{broken} has numbers that are too large for int8 weights, whose scales are float32"
        )
        raise CheckpointFormatError(checkpoint.path, f"{detail}; load it without --quantize")
    return state


def _specs(model: Int8GPT2) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return shape and dtype of every tensor of a model, whatever torch's default dtype is."""
    return {
        name: (tuple(value.shape), torch.int8 if value.dtype == torch.int8 else torch.float32)
        for name, value in model.state_dict().items()
    }


def _first_not_finite(state: Mapping[str, Tensor]) -> str | None:
    """Return the name of a tensor with a NaN or an infinity, or None."""
    floats = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    return next((name for name, tensor in floats.items() if not tensor.isfinite().all()), None)


def _source(checkpoint: Checkpoint) -> str:
    """Return a hash that changes with the files of a checkpoint and of what is below its adapters.

    Of each file it takes the name, the size, the time and the beginning.

    Hashing all of their bytes would take longer than reading the int8 weights, and as long as
    making them.
    """
    digest = hashlib.sha256(f"{_VERSION} {checkpoint.config} ".encode())
    digest.update(os.fsencode(checkpoint.path.name))  # a file's name may have any bytes
    files = sorted(checkpoint.folder.iterdir())
    while checkpoint.base is not None:
        checkpoint = checkpoint.base
        digest.update(os.fsencode(checkpoint.path.resolve()))
        files += sorted(checkpoint.folder.iterdir())
    for path in files:
        if path.is_file() and INT8_SUFFIX not in path.name and not path.name.startswith("."):
            status = path.stat()
            digest.update(os.fsencode(path.name))
            digest.update(f"\n{status.st_size} {status.st_mtime_ns} ".encode())
            with path.open("rb") as file:
                digest.update(file.read(_BEGINNING))
    return digest.hexdigest()


def _checksum(state: Mapping[str, Tensor]) -> str:
    """Return the crc32c of every tensor's name and bytes, in the order of the names."""
    crc = 0
    for name, tensor in sorted(state.items()):
        data = as_bytes(tensor).numpy()
        data.flags.writeable = False  # google_crc32c takes read-only memory only
        crc = google_crc32c.extend(google_crc32c.extend(crc, name.encode()), data)
    return f"{crc:08x}"


def _read(path: Path, model: Int8GPT2, source: str) -> dict[str, Tensor] | None:
    """Return the tensors of the file, or None if there is none or it was made of another source.

    Raises CheckpointFormatError if it is damaged.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt", backend="pread") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointFormatError(path, "this file is damaged") from error
    if metadata.get("source") != source:
        return None
    specs = _specs(model)
    stored = read_safetensors(path, dtypes=_DTYPES)
    if {name: (tensor.shape, tensor.dtype) for name, tensor in stored.items()} != specs:
        raise CheckpointFormatError(path, "this file has other tensors than the model")
    state = empty_tensors(specs)
    for name, tensor in state.items():
        stored[name].read(as_bytes(tensor))
    # The checksum also fails if another process puts a new file there between header and tensors.
    if _checksum(state) != metadata.get("crc32c") or _first_not_finite(state):
        raise CheckpointFormatError(path, "this file does not match its checksum: it is damaged")
    return state


def _write(path: Path, state: dict[str, Tensor], source: str) -> bool:
    """Write the file, whole or not at all; return whether its folder allowed that."""
    # float32 comes before int8, so that every tensor is aligned.
    ordered = sorted(state.items(), key=lambda item: item[1].dtype == torch.int8)
    tensors = {name: StoredTensor.of(tensor) for name, tensor in ordered}
    metadata = {"source": source, "crc32c": _checksum(state)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as file:
            write_safetensors(file, tensors, metadata=metadata)
    except OSError:
        return False
    return True
