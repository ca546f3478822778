"""int8 weights: made once, and kept beside the weights that they were made of.

The file NAME.gpt2kit-int8 is no model by itself, and no other program takes it for one: the directory stays what it was. It says
which weights it was made of, and is made anew when they are others.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gpt2kit.checkpoints.huggingface import safetensors_file, write_safetensors
from gpt2kit.checkpoints.stored import Checkpoint, StoredTensor, as_bytes, empty_tensors
from gpt2kit.errors import CheckpointFormatError
from gpt2kit.files import new_file
from gpt2kit.quantize import Int8GPT2, quantized_state
from gpt2kit.store import INT8_SUFFIX, int8_file

_VERSION = "1"  # of how weights are rounded
_DTYPES = {"F32": torch.float32, "I8": torch.int8}


def build_int8_model(checkpoint: Checkpoint, read: Callable[[str], Tensor]) -> Int8GPT2:
    """Build the int8 model of a checkpoint, in evaluation mode, from the file beside it or else from its tensors, which `read` gives.

    Where the file cannot be written, the model is made anew each time.
    """
    model = Int8GPT2(checkpoint.config)
    path = int8_file(checkpoint.path)
    source = fingerprint(checkpoint)
    state = _read(path, model, source)
    if state is None:
        # All of the memory that stays is taken first: what comes and goes meanwhile then leaves no holes in it.
        state = empty_tensors(
            {
                name: (tuple(tensor.shape), tensor.dtype)
                for name, tensor in model.state_dict().items()
            }
        )
        for name, tensor in quantized_state(checkpoint.config, read):
            state[name].copy_(tensor)
        with contextlib.suppress(OSError):
            _write(path, state, source)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def fingerprint(checkpoint: Checkpoint) -> str:
    """Return a hash that changes with the checkpoint's files: their names, sizes, times of change and beginnings.

    The headers are in the beginnings. Hashing all of the bytes would take longer than reading the int8 weights, and as long as making them.
    """
    digest = hashlib.sha256(f"{_VERSION} {checkpoint.path.name} {checkpoint.config}".encode())
    for path in sorted(checkpoint.folder.iterdir()):
        if path.is_file() and INT8_SUFFIX not in path.name and not path.name.startswith("."):
            status = path.stat()
            digest.update(f"\n{path.name} {status.st_size} {status.st_mtime_ns} ".encode())
            with path.open("rb") as file:
                digest.update(file.read(2**16))
    return digest.hexdigest()


def _read(path: Path, model: Int8GPT2, source: str) -> dict[str, Tensor] | None:
    """Return the tensors in the file, or None unless it is whole and was made of this source."""
    specs = {
        name: (tuple(tensor.shape), tensor.dtype) for name, tensor in model.state_dict().items()
    }
    try:
        before = path.stat()
        with safe_open(path, framework="pt", backend="pread") as file:
            if (file.metadata() or {}).get("source") != source:
                return None
        stored = safetensors_file(path, dtypes=_DTYPES)
        if {name: (tensor.shape, tensor.dtype) for name, tensor in stored.items()} != specs:
            return None
        state = empty_tensors(specs)
        for name, tensor in state.items():
            stored[name].read(as_bytes(tensor))
        after = path.stat()
    except (SafetensorError, OSError, CheckpointFormatError):
        return None
    is_the_same = (before.st_ino, before.st_mtime_ns) == (
        after.st_ino,
        after.st_mtime_ns,
    )  # nobody has put another file there
    return state if is_the_same else None


def _write(path: Path, state: dict[str, Tensor], source: str) -> None:
    """Write the file, whole or not at all."""
    # Tensors of equal alignment lie together, so that all are aligned.
    ordered = sorted(state.items(), key=lambda item: item[1].dtype == torch.int8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as file:
        write_safetensors(
            file,
            {name: StoredTensor.of(tensor) for name, tensor in ordered},
            None,
            {"source": source},
        )
