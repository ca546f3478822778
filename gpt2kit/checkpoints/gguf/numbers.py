"""How GGUF stores the numbers of a tensor: plain, or in blocks of 32 that share a scale.

    Q8_0    scale float16, then 32 int8: number = scale * int8
    Q4_0    scale float16, then 16 bytes: byte j has number j in its low half, number j + 16 in its
            high half, each plus 8: number = scale * (half - 8)

Rounding and arithmetic are those of ggml's reference code, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

BLOCK = 32  # numbers that share a scale
_CHUNK = 2**20  # numbers that are converted at once


@dataclass(frozen=True)
class NumberType:
    """One way to store numbers."""

    name: str  # as in ggml: "Q8_0"
    code: int  # in the description of a tensor
    file_type: int  # general.file_type of a file whose matrices have this type
    dtype: torch.dtype  # what it is read as
    # The largest error of rounding to it, relative to the largest number of the tensor
    error: float
    block_bytes: int = 0  # bytes of a block; 0 for plain numbers
    encode: Callable[[Floats], Bytes] | None = None  # (n, 32) -> (n, block_bytes)
    decode: Callable[[Bytes], Floats] | None = None  # (n, block_bytes) -> (n, 32)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the rows of a tensor can be cut into blocks."""
        return not self.block_bytes or (bool(shape) and shape[-1] % BLOCK == 0)

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of a tensor in the file; its rows must fit."""
        count = math.prod(shape)  # in Python's integers: the axes of a damaged file are anything
        if self.block_bytes:
            return count // BLOCK * self.block_bytes
        return count * self.dtype.itemsize

    def chunks(self, tensor: Tensor) -> Iterator[memoryview]:
        """Yield the bytes of a tensor in pieces, so that no second tensor is in memory.

        Raises OverflowError for a number that the type cannot hold.
        """
        flat = tensor.contiguous().view(-1)
        for piece in torch.split(flat, _CHUNK):
            if self.encode is None:
                numbers = piece.to(self.dtype)
                if not bool(torch.isfinite(numbers).all()):
                    raise OverflowError
                yield numbers.view(torch.uint8).numpy().data
            else:
                yield self.encode(piece.float().numpy().reshape(-1, BLOCK)).reshape(-1).data

    def fill(self, numbers: Tensor, data: Bytes) -> None:
        """Write the numbers of whole blocks into a flat float32 tensor."""
        assert self.decode is not None
        blocks = data.reshape(-1, self.block_bytes)
        numbers.numpy()[:] = self.decode(blocks).reshape(-1)


def _encode_q8_0(x: Floats) -> Bytes:
    scale = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)  # (n, 1)
    scaled = x * _inverse(scale)
    # Halves are rounded away from zero, as C's roundf does; np.round takes the even neighbor.
    size = np.abs(scaled)
    whole = np.floor(size)
    rounded = np.sign(scaled) * (whole + np.floor(2 * (size - whole)))
    return np.concatenate([_as_half(scale), rounded.astype(np.int8).view(np.uint8)], axis=1)


def _decode_q8_0(blocks: Bytes) -> Floats:
    scale, numbers = np.split(blocks, [2], axis=1)
    result: Floats = numbers.view(np.int8).astype(np.float32) * _from_half(scale)
    return result


def _encode_q4_0(x: Floats) -> Bytes:
    # The number of largest size becomes -8 exactly, whatever its sign.
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)  # (n, 1)
    scale = largest / np.float32(-8)
    halves = np.trunc(x * _inverse(scale) + np.float32(8.5)).astype(np.uint8).clip(0, 15)
    packed = halves[:, : BLOCK // 2] | (halves[:, BLOCK // 2 :] << np.uint8(4))
    return np.concatenate([_as_half(scale), packed], axis=1)


def _decode_q4_0(blocks: Bytes) -> Floats:
    scale, packed = np.split(blocks, [2], axis=1)
    halves = np.concatenate([packed & np.uint8(15), packed >> np.uint8(4)], axis=1)
    result: Floats = _from_half(scale) * (halves.astype(np.float32) - np.float32(8))
    return result


def _inverse(scale: Floats) -> Floats:
    """Return 1 / scale, and 0 for the scale of zeros or of numbers too small to have one."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scale
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _as_half(scale: Floats) -> Bytes:
    """Return float16 scales as bytes, (n, 2); raise OverflowError if one is too large."""
    with np.errstate(over="ignore"):
        half = scale.astype("<f2")
    if not np.isfinite(half).all():
        raise OverflowError
    return half.view(np.uint8)


def _from_half(scale: Bytes) -> Floats:
    return np.ascontiguousarray(scale).view("<f2").astype(np.float32)  # (n, 1)


F32 = NumberType("F32", 0, 0, torch.float32, 2**-24)
F16 = NumberType("F16", 1, 1, torch.float16, 2**-11)
BF16 = NumberType("BF16", 30, 32, torch.bfloat16, 2**-8)
Q8_0 = NumberType("Q8_0", 8, 7, torch.float32, 1 / 127, 34, _encode_q8_0, _decode_q8_0)
Q4_0 = NumberType("Q4_0", 2, 2, torch.float32, 0.13, 18, _encode_q4_0, _decode_q4_0)

TYPES = {each.code: each for each in (F32, F16, BF16, Q8_0, Q4_0)}

# Others, which are refused by name.
OTHERS = {
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}
