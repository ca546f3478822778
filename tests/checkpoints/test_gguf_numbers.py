"""Numbers in blocks: the bytes of ggml's reference code, and back."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gpt2kit.checkpoints.gguf.numbers import BF16, F16, Q4_0, Q8_0, NumberType

# Of `sample()`: the sha256 of the bytes that gguf 0.19.0's quantize gives, and of what its
# dequantize makes of them.
GOLDEN = {
    "Q8_0": (
        "23711571eb27d39569d639476e840829b802716d0cfeb785788e977fd3138b87",
        "d4e002eab81d94414a4ba4b665f6f9857b96cf08dc5b171e28068ade152e09d2",
    ),
    "Q4_0": (
        "784241918d3bb5b082d8a0aeabd196a0b806614d4c3477ea3d05e535685615d1",
        "66027b5a27f99c1651e237fa459f48ed96eb3fc1dbab0c07f169b6b8a09db04d",
    ),
}


def sample() -> Tensor:
    """Return (64, 96) numbers of very different sizes, with zeros, ties and equal extremes."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((64, 96))
    sizes = generator.choice([1e-30, 1e-6, 1e-3, 1, 100], (64, 1))
    x = (x * sizes).astype(np.float32)
    x[0] = x[1] = 0
    x[1, :5] = [0.5, -0.5, 1.5, -127, 2.5]
    x[2, :32] = -1
    return torch.from_numpy(x)


def encoded(kind: NumberType, x: Tensor) -> bytes:
    return b"".join(bytes(chunk) for chunk in kind.chunks(x))


def decoded(kind: NumberType, data: bytes, n: int) -> Tensor:
    numbers = torch.empty(n)
    kind.fill(numbers, np.frombuffer(data, np.uint8))
    return numbers


@pytest.mark.parametrize("kind", [Q8_0, Q4_0], ids=lambda kind: kind.name)
def test_blocks_have_the_bytes_of_the_gguf_package(kind: NumberType) -> None:
    x = sample()
    data = encoded(kind, x)
    assert len(data) == kind.nbytes(tuple(x.shape))
    found = decoded(kind, data, x.numel())
    digests = [hashlib.sha256(each).hexdigest() for each in (data, found.numpy().tobytes())]
    assert tuple(digests) == GOLDEN[kind.name]


@pytest.mark.parametrize("kind", [Q8_0, Q4_0, BF16, F16], ids=lambda kind: kind.name)
def test_the_gguf_package_gives_equal_bytes_for_random_numbers(kind: NumberType) -> None:
    gguf: Any = pytest.importorskip("gguf")
    x = torch.randn(300, 256, generator=torch.Generator().manual_seed(5))
    theirs = gguf.quants.quantize(x.numpy(), gguf.GGMLQuantizationType[kind.name])
    assert encoded(kind, x) == theirs.tobytes()


@pytest.mark.parametrize("kind", [Q8_0, Q4_0], ids=lambda kind: kind.name)
def test_numbers_that_were_rounded_once_are_rounded_to_themselves(kind: NumberType) -> None:
    x = torch.randn(64, 96, generator=torch.Generator().manual_seed(2))
    data = encoded(kind, x)
    numbers = decoded(kind, data, x.numel())
    assert encoded(kind, numbers.view(64, 96)) == data
    assert float((numbers - x.view(-1)).abs().max()) <= kind.error * float(x.abs().max())


@pytest.mark.parametrize("kind", [Q8_0, Q4_0], ids=lambda kind: kind.name)
def test_numbers_too_small_for_a_scale_become_zeros(kind: NumberType) -> None:
    # 1 / scale is infinite there, and what C makes of infinity times zero is undefined.
    x = torch.full((2, 32), 1e-40)
    assert not decoded(kind, encoded(kind, x), 64).any()


@pytest.mark.parametrize(("kind", "size"), [(Q8_0, 1e10), (Q4_0, -1e10), (F16, 1e6)])
def test_a_number_that_is_too_large_raises(kind: NumberType, size: float) -> None:
    with pytest.raises(OverflowError):
        encoded(kind, torch.full((1, 32), size))
