"""int8 weights: how they are made, and a model that computes with them.

They take a quarter of float32's memory. Each row of a matrix is rounded to integers from -127 to
127, with one scale per row; biases, norms and positions stay float32. The input of a matrix is
rounded too, with one scale for each block of 64 numbers, so that the products within a block are
integers and add up without error. This file defines the computation in torch; the native step does
the same.

    B any batch dimensions, K columns of a matrix
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2kit.cache import KVCache
from gpt2kit.config import GPT2Config
from gpt2kit.model import GPT2

BLOCK = 64  # numbers of an input that share a scale; BLOCK in step.h is the same
_ROWS_AT_ONCE = 1024


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a matrix to int8 with one scale per row: (rows, K) -> (rows, K) int8, (rows,) float32.

    It works on a few rows at a time, so that it needs little memory beyond input and result.
    """
    weight = weight.contiguous()  # a transposed matrix is read faster in one piece
    integers = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = torch.empty(weight.shape[0], dtype=torch.float32, device=weight.device)
    for start in range(0, weight.shape[0], _ROWS_AT_ONCE):
        chunk = slice(start, start + _ROWS_AT_ONCE)
        rows = weight[chunk].float()
        integers[chunk], scales[chunk] = _round(rows)
    return integers, scales


def quantized_state(
    config: GPT2Config, read: Callable[[str], Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Yield name and tensor of every parameter of an Int8GPT2, one at a time.

    `read` returns the parameter of that name of the GPT2 that it is made from.
    """
    for name, shape in config.shapes().items():
        tensor = read(name)
        if len(shape) == 2 and name != "wpe.weight":
            integers, scales = quantized(tensor)
            yield name, integers
            yield name.replace("weight", "scales"), scales
        else:
            yield name, tensor.float().contiguous()


def rounded(x: Tensor) -> Tensor:
    """Round an input to int8 in blocks of 64, and return the rounded values: (B, K) -> (B, K)."""
    K = x.shape[-1]
    padded = F.pad(x, (0, -K % BLOCK))  # (B, K rounded up to a multiple of 64)
    blocks = padded.view(*padded.shape[:-1], padded.shape[-1] // BLOCK, BLOCK)  # (B, K / 64, 64)
    integers, scales = _round(blocks)
    return (integers * scales[..., None]).view(padded.shape)[..., :K]


def _round(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round the last dimension to integers from -127 to 127: (B, K) -> (B, K), scales (B,)."""
    largest = x.abs().amax(dim=-1)
    factor = (127 / largest).nan_to_num(posinf=0.0)  # zeros stay zeros
    return (x * factor[..., None]).round(), largest / 127


def int8_linear(x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply with an int8 matrix: (B, K), (rows, K), (rows,), (rows,) -> (B, rows)."""
    y = F.linear(rounded(x), weight.to(x.dtype)) * scales.to(x.dtype)
    return y if bias is None else y + bias


class _Int8Matrix(nn.Module):
    """A matrix (rows, columns) of int8 weights with one scale per row."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        weight = torch.empty((rows, columns), dtype=torch.int8)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scales = nn.Parameter(torch.empty(rows, dtype=torch.float32), requires_grad=False)


class Int8Linear(_Int8Matrix):
    """nn.Linear with int8 weights."""

    bias: nn.Parameter | None

    def __init__(self, rows: int, columns: int, *, bias: bool) -> None:
        super().__init__(rows, columns)
        parameter = nn.Parameter(torch.empty(rows), requires_grad=False) if bias else None
        self.register_parameter("bias", parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply with the matrix and add the bias: (B, columns) -> (B, rows)."""
        return int8_linear(x, self.weight, self.scales, self.bias)


class Int8Embedding(_Int8Matrix):
    """nn.Embedding with int8 weights."""

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors of some ids: (B,) -> (B, columns) float32."""
        return self.weight[ids].float() * self.scales[ids][..., None]


class Int8GPT2(GPT2):
    """A GPT-2 with int8 matrices, for inference on a CPU."""

    is_quantized = True

    def __init__(self, config: GPT2Config) -> None:
        # On the meta device, so that the matrices that are replaced are never allocated
        with torch.device("meta"):
            super().__init__(config)
            for module in list(self.modules()):
                for name, child in module.named_children():
                    if isinstance(child, nn.Linear):
                        rows, columns, bias = *child.weight.shape, child.bias is not None
                        setattr(module, name, Int8Linear(rows, columns, bias=bias))
            self.wte = Int8Embedding(config.n_vocab, config.n_embd)  # type: ignore[assignment]

    def head(self, hidden: Tensor) -> Tensor:
        """Return the logits: (B, C) -> (B, V)."""
        if self.config.head == "none":
            return hidden
        head = self.lm_head if self.config.has_own_head else self.wte
        return int8_linear(hidden, head.weight, head.scales, self.head_bias)  # type: ignore[arg-type]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of all parameters but the matrices."""
        return torch.float32

    def new_cache(self, batch_size: int = 1, *, capacity: int | None = None) -> KVCache:
        """Return an empty bfloat16 cache.

        In a long text, reading a float32 cache would take longer than reading the int8 weights.
        """
        return KVCache(
            self.config, batch_size, capacity=capacity, dtype=torch.bfloat16, device=self.device
        )
