"""A checkpoint before it is a model: its configuration, and tensors that are still in files."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from gpt2kit.checkpoints import memory
from gpt2kit.checkpoints.names import is_transposed
from gpt2kit.checkpoints.ranges import read_range
from gpt2kit.config import GPT2Config
from gpt2kit.errors import CheckpointFormatError, CheckpointMismatchError
from gpt2kit.tokenizers import Tokenizer

# The dtypes that weights are read from; anything else in a file is refused rather than converted.
FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

_PIECE = 2**20  # numbers that are converted at once
_ALIGNMENT = 64  # bytes: a line of the processor's cache, and the widest vector


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint, under our name and in our orientation, not read yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    # Reads the tensor as it is in the file: into the buffer, flat bytes, or into memory of its own.
    source: Callable[[Tensor | None], Tensor]
    transposed: bool = False  # whether the file holds it as (in, out), which is (out, in) here
    # Reads some rows of a matrix alone, from the first index to before the second one
    rows: Callable[[int, int], Tensor] | None = None

    @classmethod
    def of(cls, tensor: Tensor) -> StoredTensor:
        """Present a tensor in memory as a stored one; `read` returns it, on the CPU."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda _: tensor.detach().cpu())

    @classmethod
    def zeros(cls, shape: tuple[int, ...]) -> StoredTensor:
        """Present zeros as a stored tensor; they are made when it is read."""
        return cls(
            shape, torch.float32, lambda _: torch.zeros(shape, dtype=torch.float32, device="cpu")
        )

    @classmethod
    def at(
        cls, path: Path, name: str, offset: int, shape: tuple[int, ...], dtype: torch.dtype
    ) -> StoredTensor:
        """Present the bytes of a file from `offset` on; `name` is the tensor's in messages."""

        def read(buffer: Tensor | None) -> Tensor:
            tensor = view_into(shape, dtype, buffer)
            read_range(path, name, offset, as_bytes(tensor).numpy())
            return tensor

        def rows(start: int, stop: int) -> Tensor:
            tensor = torch.empty((stop - start, *shape[1:]), dtype=dtype, device="cpu")
            begin = offset + start * torch.Size(shape[1:]).numel() * dtype.itemsize
            read_range(path, name, begin, as_bytes(tensor).numpy())
            return tensor

        return cls(shape, dtype, read, rows=rows if len(shape) == 2 else None)

    def read(self, buffer: Tensor | None = None) -> Tensor:
        """Return the tensor, in the memory of `buffer` if the format can read into it.

        `buffer` is at least `nbytes` flat uint8. Several threads may read at once. Raises
        CheckpointFormatError for a damaged file.
        """
        tensor = self.source(buffer)
        return tensor.t() if self.transposed else tensor

    def pieces(self, n: int) -> Iterator[Tensor]:
        """Yield the rows of the tensor in pieces of about n numbers, with one piece in memory.

        It is one piece if its format has no rows that can be read alone.
        """
        if self.rows is None or self.transposed:
            yield self.read()
            return
        step = max(1, n // self.shape[1])
        for start in range(0, self.shape[0], step):
            yield self.rows(start, min(start + step, self.shape[0]))

    def read_as(self, dtype: torch.dtype) -> Tensor:
        """Return the tensor in a dtype; in another one only pieces of it are in memory."""
        if dtype == self.dtype or self.rows is None or self.transposed:
            return self.read().to(dtype)
        whole, done = torch.empty(self.shape, dtype=dtype, device="cpu"), 0
        for piece in self.pieces(_PIECE):
            whole[done : done + len(piece)] = piece
            done += len(piece)
        return whole

    def turned(self) -> StoredTensor:
        """Return a matrix with its axes exchanged."""
        return replace(self, shape=self.shape[::-1], transposed=not self.transposed)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in its own dtype."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def transpose_if_conv1d(name: str, stored: StoredTensor) -> StoredTensor:
    """Turn a Conv1D matrix from (in, out) to (out, in), or back; leave other tensors alone."""
    return stored.turned() if is_transposed(name) else stored


def view_into(shape: tuple[int, ...], dtype: torch.dtype, buffer: Tensor | None) -> Tensor:
    """Return an uninitialized tensor in the memory of a buffer, or in its own."""
    if buffer is None:
        return torch.empty(shape, dtype=dtype, device="cpu")
    return buffer[: torch.Size(shape).numel() * dtype.itemsize].view(dtype).view(shape)


def empty_tensors(
    specs: Mapping[str, tuple[tuple[int, ...], torch.dtype]], device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Return uninitialized tensors; those on the CPU share large pages of memory."""
    if torch.device(device).type != "cpu" or not memory.available():
        return {
            name: torch.empty(shape, dtype=dtype, device=device)
            for name, (shape, dtype) in specs.items()
        }
    sizes = [torch.Size(shape).numel() for shape, _ in specs.values()]  # elements
    aligned = [
        -(-size * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        for size, (_, dtype) in zip(sizes, specs.values(), strict=True)
    ]
    pages = memory.take(sum(aligned) + memory.LARGE_PAGE)
    # The first tensor starts where a large page starts.
    first = -torch.frombuffer(pages, dtype=torch.uint8).data_ptr() % memory.LARGE_PAGE
    starts = itertools.accumulate(aligned[:-1], initial=first)
    # Each tensor keeps the pages alive.
    return {
        name: torch.frombuffer(pages, dtype=dtype, count=size, offset=start).view(shape)
        for (name, (shape, dtype)), size, start in zip(specs.items(), sizes, starts, strict=True)
    }


def as_bytes(tensor: Tensor) -> Tensor:
    """Return the memory of a contiguous tensor as flat uint8."""
    return tensor.view(-1).view(torch.uint8)


def join(parts: Sequence[StoredTensor]) -> StoredTensor:
    """Return tensors as one, stacked along the first axis; each is read when that is read.

    None of them is transposed.
    """
    if len(parts) == 1:
        return parts[0]
    dtype = functools.reduce(torch.promote_types, (part.dtype for part in parts))
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])

    def read(buffer: Tensor | None) -> Tensor:
        whole = view_into(shape, dtype, buffer)
        rows = torch.split(whole, [part.shape[0] for part in parts])
        for part, own in zip(parts, rows, strict=True):
            tensor = part.read(as_bytes(own) if part.dtype == dtype else None)
            if tensor.data_ptr() != own.data_ptr():
                own.copy_(tensor)
        return whole

    return StoredTensor(shape, dtype, read)


def check_tensors(
    path: Path,
    expected: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, StoredTensor],
    *,
    advice: str | None = None,
) -> None:
    """Raise CheckpointMismatchError unless the tensors have the expected names and shapes."""
    shared = expected.keys() & tensors.keys()
    misshapen = {
        name: (expected[name], tensors[name].shape)
        for name in shared
        if expected[name] != tensors[name].shape
    }
    if misshapen or expected.keys() != tensors.keys():
        raise CheckpointMismatchError(
            path,
            missing=list(expected.keys() - shared),
            unexpected=list(tensors.keys() - shared),
            misshapen=misshapen,
            advice=advice,
        )


def check_finite(
    path: Path, name: str, tensor: Tensor, *, dtype: torch.dtype | None = None
) -> None:
    """Raise CheckpointFormatError for NaN and infinity, also those of a conversion to `dtype`.

    The tensor is as it was before that conversion, or after it.
    """
    if not tensor.numel():
        return
    # Both are NaN if any number is; 20 times as fast as isfinite
    ends = torch.stack(torch.aminmax(tensor))  # (2,)
    is_finite = bool(ends.isfinite().all())
    if is_finite and (dtype is None or ends.to(dtype).isfinite().all()):
        return
    converted = tensor.to(dtype) if is_finite else tensor
    count = int((~torch.isfinite(converted)).sum())
    found = f"{name} holds {count:,} numbers that are NaN or infinite"
    if dtype is None or converted.dtype != dtype:
        raise CheckpointFormatError(path, f"{found}; the weights are damaged: get them again")
    as_dtype = str(dtype).removeprefix("torch.")
    advice = "take a wider --dtype, if the weights are not damaged"
    raise CheckpointFormatError(path, f"{found} as {as_dtype}; {advice}")


@dataclass(frozen=True)
class Checkpoint:
    """All that is needed to build a model from a folder or file; only headers are read.

    Raises CheckpointMismatchError, which lists every difference, unless the tensors have the names
    and shapes of the configuration.
    """

    path: Path
    format: str  # for people: "OpenAI TensorFlow", "safetensors", …
    config: GPT2Config
    tensors: dict[str, StoredTensor]
    skipped: tuple[str, ...] = ()  # known but not part of the model: masks, optimizer slots
    # lm_head.weight of a model with a tied head, which must equal wte.weight
    tied_copy: StoredTensor | None = field(default=None, repr=False)
    # Whether it is a file that a training program saved, without files of a vocabulary beside it
    is_alone: bool = False
    dataset: str | None = None  # what nanoGPT calls the folder of its text and vocabulary
    # Reads the vocabulary that is in the file of the weights itself
    own_vocabulary: Callable[[], Tokenizer | None] | None = field(default=None, repr=False)
    base: Checkpoint | None = field(default=None, repr=False)  # what adapters were applied to
    class_head: StoredTensor | None = field(default=None, repr=False)  # scores of labels, (L, C)

    def __post_init__(self) -> None:
        check_tensors(self.path, self.config.shapes(), self.tensors)

    @property
    def folder(self) -> Path:
        """The folder of the weights, which may hold a vocabulary, too."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def dtype(self) -> torch.dtype:
        """The narrowest dtype that holds every tensor exactly."""
        return functools.reduce(
            torch.promote_types, (stored.dtype for stored in self.tensors.values())
        )
