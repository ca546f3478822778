"""Weights as initializers of an ONNX graph: float32, float16, or matrices in 8 bits.

A matrix is (in, out) there, the other way round than here, except the token embedding. In 8 bits it
is two initializers:

    NAME_quantized    uint8, 128 for 0; never 0
    NAME_scale        float32, for each row (out): number = scale * (uint8 - 128)

Integers without a sign are added up without overflow on every processor; older ones cut sums of
products with signed integers to 16 bits.

    V vocabulary, C width, P positions
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from onnx import TensorProto
from torch import Tensor

from gpt2kit.checkpoints.gguf.numbers import F16, F32, NumberType
from gpt2kit.checkpoints.stored import StoredTensor
from gpt2kit.config import GPT2Config
from gpt2kit.errors import CheckpointError
from gpt2kit.quantize import quantized
from gpt2kit.variants import Sinusoids

ZERO = 128  # what stands for 0 in a matrix of 8 bits
INT8_ERROR = 1 / 250  # of rounding to 8 bits, relative to the largest number of a row

# The dtypes of files -> the type of everything but matrices in 8 bits
NUMBERS: dict[str, NumberType] = {"f32": F32, "f16": F16, "int8": F32}
ELEMENT = {F32.name: TensorProto.FLOAT, F16.name: TensorProto.FLOAT16}
_DTYPE = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.UINT8: torch.uint8,
}

Chunks = Iterable[memoryview]


@dataclass(frozen=True)
class Initializer:
    """One tensor of the file."""

    name: str
    element: int  # ONNX's code of its type
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * _DTYPE[self.element].itemsize

    def at(self, path: Path, offset: int) -> StoredTensor:
        """Return the tensor in a file that it was written to."""
        return StoredTensor.at(path, self.name, offset, self.shape, _DTYPE[self.element])


@dataclass(frozen=True)
class Weight:
    """The initializers that are made of one tensor, and their bytes, which are made when read."""

    name: str
    initializers: tuple[Initializer, ...]
    data: Callable[[], Iterator[Chunks]]  # of each initializer, in their order
    found: Callable[[list[StoredTensor]], StoredTensor]  # from the initializers back to the tensor


def weights(config: GPT2Config, tensors: dict[str, StoredTensor], dtype: str) -> Iterator[Weight]:
    """Yield the weights of a graph in the order of the model; `dtype` is one of NUMBERS."""
    kind = NUMBERS[dtype]
    for name, stored in with_positions(config, tensors).items():
        is_matrix = len(stored.shape) == 2 and name != "wpe.weight"
        turned = is_matrix and name != "wte.weight"
        if is_matrix and dtype == "int8":
            yield _in_8_bits(name, stored, turned)
        else:
            yield _plain(name, stored, kind, turned)


def with_positions(config: GPT2Config, tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the tensors, with the vectors of sinusoidal positions among them, (P, C)."""
    if config.positions != "sinusoidal":
        return tensors
    shape = (config.n_ctx, config.n_embd)

    def read(_: Tensor | None) -> Tensor:
        vectors: Tensor = Sinusoids(config.n_embd)(torch.arange(config.n_ctx))
        return vectors.float()

    return {**tensors, "wpe.weight": StoredTensor(shape, torch.float32, read)}


def _plain(name: str, stored: StoredTensor, kind: NumberType, turned: bool) -> Weight:
    """Return a weight in float32 or float16."""
    stored = stored.turned() if turned else stored
    initializer = Initializer(name, ELEMENT[kind.name], stored.shape)

    def chunks() -> Iterator[memoryview]:
        try:
            yield from kind.chunks(stored.read())
        except OverflowError:
            raise CheckpointError(
                f"{name} holds numbers that are too large for {kind.name}; take a wider --dtype"
            ) from None

    def found(parts: list[StoredTensor]) -> StoredTensor:
        return parts[0].turned() if turned else parts[0]

    return Weight(name, (initializer,), lambda: iter([chunks()]), found)


def _in_8_bits(name: str, stored: StoredTensor, turned: bool) -> Weight:
    """Return a matrix in 8 bits with a scale for each of its rows."""
    shape = stored.shape[::-1] if turned else stored.shape
    integers = Initializer(f"{name}_quantized", TensorProto.UINT8, shape)
    scale = Initializer(f"{name}_scale", TensorProto.FLOAT, stored.shape[:1])

    def data() -> Iterator[Chunks]:
        rows, scales = quantized(stored.read())  # (out, in) int8, (out,)
        unsigned = rows.view(torch.uint8).bitwise_xor_(ZERO)  # plus 128
        yield [(unsigned.t() if turned else unsigned).contiguous().numpy().data]
        yield [scales.numpy().data]

    def found(parts: list[StoredTensor]) -> StoredTensor:
        def read(_: Tensor | None) -> Tensor:
            unsigned = (parts[0].turned() if turned else parts[0]).read()  # (out, in)
            return (unsigned.float() - ZERO) * parts[1].read()[:, None]

        def rows(start: int, stop: int) -> Tensor:
            assert parts[0].rows is not None
            unsigned = parts[0].rows(start, stop)
            return (unsigned.float() - ZERO) * parts[1].read()[start:stop, None]

        return StoredTensor(stored.shape, torch.float32, read, rows=None if turned else rows)

    return Weight(name, (integers, scale), data, found)
