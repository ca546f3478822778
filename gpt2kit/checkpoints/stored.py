"""A checkpoint before it is a model: its configuration, and tensors that still lie in files."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from gpt2kit import memory
from gpt2kit.checkpoints.names import is_transposed
from gpt2kit.config import GPT2Config
from gpt2kit.errors import CheckpointMismatchError

# The dtypes that weights are read from; anything else in a file is refused rather than converted.
FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

_ALIGNMENT = 64  # bytes


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint, under our name and in our orientation, not read yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    source: Callable[[Tensor | None], Tensor]  # reads it as it lies in the file
    transposed: bool = False  # whether it lies there the other way round

    @classmethod
    def of(cls, tensor: Tensor) -> StoredTensor:
        """Present a tensor that is in memory already, to be written; reading it gives the tensor itself, on the CPU."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda _: tensor.detach().cpu())

    def read(self, buffer: Tensor | None = None) -> Tensor:
        """Return the tensor: into the memory of `buffer`, flat bytes and enough of them, where the format allows; else into its own.

        Several threads may read at once. Raises CheckpointFormatError for a damaged file.
        """
        tensor = self.source(buffer)
        return tensor.t() if self.transposed else tensor

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def transpose_if_conv1d(name: str, stored: StoredTensor) -> StoredTensor:
    """Turn a tensor of an (in, out) file to our orientation, or back: the operation is its own inverse."""
    return (
        replace(stored, shape=stored.shape[::-1], transposed=not stored.transposed)
        if is_transposed(name)
        else stored
    )


def view_into(shape: tuple[int, ...], dtype: torch.dtype, buffer: Tensor | None) -> Tensor:
    """Return an empty_tensors tensor, in the buffer or in memory of its own."""
    if buffer is None:
        return torch.empty(shape, dtype=dtype)
    return buffer[: torch.Size(shape).numel() * dtype.itemsize].view(dtype).view(shape)


def empty_tensors(
    specs: Mapping[str, tuple[tuple[int, ...], torch.dtype]], device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Return tensors of these shapes and dtypes that nothing has been written to; on the CPU they share large pages."""
    if torch.device(device).type != "cpu" or not memory.available():
        return {
            name: torch.empty(shape, dtype=dtype, device=device)
            for name, (shape, dtype) in specs.items()
        }
    sizes = [torch.Size(shape).numel() for shape, _ in specs.values()]
    aligned = [
        -(-size * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        for size, (_, dtype) in zip(sizes, specs.values(), strict=True)
    ]
    pages = memory.take(sum(aligned) + memory.LARGE_PAGE)
    first = -torch.frombuffer(pages, dtype=torch.uint8).data_ptr() % memory.LARGE_PAGE
    starts = itertools.accumulate(aligned[:-1], initial=first)
    return {
        name: torch.frombuffer(pages, dtype=dtype, count=size, offset=start).view(
            shape
        )  # keeps the memory as long as itself
        for (name, (shape, dtype)), size, start in zip(specs.items(), sizes, starts, strict=True)
    }


def as_bytes(tensor: Tensor) -> Tensor:
    """Return the memory of a contiguous tensor as flat bytes."""
    return tensor.view(-1).view(torch.uint8)


@dataclass(frozen=True)
class Checkpoint:
    """What a folder or file holds, in whatever format: everything needed to build the model, nothing read but headers."""

    path: Path
    format: str  # for people: "OpenAI TensorFlow", "safetensors", …
    config: GPT2Config
    tensors: dict[str, StoredTensor]
    skipped: tuple[str, ...] = ()  # known and not part of the model: mask buffers, optimizer slots
    tied_copy: StoredTensor | None = field(
        default=None, repr=False
    )  # lm_head.weight of a tied model, to be compared with wte

    def __post_init__(self) -> None:
        """Raise CheckpointMismatchError, listing every difference, unless the tensors are those of the configuration."""
        expected = self.config.shapes()
        missing = expected.keys() - self.tensors.keys()
        unexpected = self.tensors.keys() - expected.keys()
        shared = expected.keys() & self.tensors.keys()
        misshapen = {
            name: (expected[name], self.tensors[name].shape)
            for name in shared
            if expected[name] != self.tensors[name].shape
        }
        if missing or unexpected or misshapen:
            raise CheckpointMismatchError(
                self.path, missing=list(missing), unexpected=list(unexpected), misshapen=misshapen
            )

    @property
    def folder(self) -> Path:
        """The directory that the weights lie in, where a vocabulary may be too."""
        return self.path if self.path.is_dir() else self.path.parent
