"""Weights as eight-bit whole numbers: a quarter of float32's memory.

Every row of a matrix is rounded to whole numbers from -127 to 127 times one scale of its own; biases, norms and positions stay
float32. The vectors that meet such a matrix are rounded too, in blocks of 64 numbers with a scale each, so that products
are exact sums of whole numbers. This file defines the function in torch; the native step computes the same one.

    K inputs of a matrix, B any batch dimensions
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2kit.cache import KVCache
from gpt2kit.config import GPT2Config
from gpt2kit.model import GPT2

BLOCK = 64  # numbers of a vector that share a scale; the native step's too
_ROWS_AT_ONCE = 1024


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a matrix to int8 with one scale for each row: (rows, K) -> (rows, K) int8, (rows,) float32.

    A few rows at a time, so that it takes no memory worth naming beside the matrix and the result.
    """
    weight = weight.contiguous()  # a transposed one is read faster all at once
    whole = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(weight.shape[0], dtype=torch.float32)
    for start in range(0, weight.shape[0], _ROWS_AT_ONCE):
        rows = weight[start : start + _ROWS_AT_ONCE].float()
        largest = rows.abs().amax(dim=1)
        scales[start : start + _ROWS_AT_ONCE] = largest / 127
        whole[start : start + _ROWS_AT_ONCE] = (
            rows * (127 / largest).nan_to_num(posinf=0.0)[:, None]
        ).round()
    return whole, scales


def quantized_state(
    config: GPT2Config, read: Callable[[str], Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of an Int8GPT2, made of those of a GPT2 that `read` gives by name, one matrix at a time."""
    for name, shape in config.shapes().items():
        tensor = read(name)
        if len(shape) == 2 and name != "wpe.weight":
            whole, scales = quantized(tensor)
            yield name, whole
            yield name.replace("weight", "scales"), scales
        else:
            yield name, tensor.float().contiguous()


def rounded(x: Tensor) -> Tensor:
    """Round the last dimension to eight bits in blocks of 64, each with its own scale, and return the values that stand for: (B, K)."""
    K = x.shape[-1]
    padded = F.pad(x, (0, -K % BLOCK))
    blocks = padded.view(*padded.shape[:-1], -1, BLOCK)  # (B, K / 64, 64)
    largest = blocks.abs().amax(dim=-1, keepdim=True)
    whole = (blocks * (127 / largest).nan_to_num(posinf=0.0)).round()
    return (whole * (largest / 127)).view(padded.shape)[..., :K]


def int8_linear(x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply by an int8 matrix: (B, K) -> (B, rows)."""
    y = F.linear(rounded(x), weight.to(x.dtype)) * scales.to(x.dtype)
    return y if bias is None else y + bias


class Int8Linear(nn.Module):
    """nn.Linear with a rounded weight."""

    bias: nn.Parameter | None

    def __init__(self, rows: int, columns: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.empty((rows, columns), dtype=torch.int8), requires_grad=False
        )
        self.scales = nn.Parameter(torch.empty(rows, dtype=torch.float32), requires_grad=False)
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(rows), requires_grad=False) if bias else None
        )

    def forward(self, x: Tensor) -> Tensor:
        return int8_linear(x, self.weight, self.scales, self.bias)


class Int8Embedding(nn.Module):
    """nn.Embedding with a rounded weight."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.empty((rows, columns), dtype=torch.int8), requires_grad=False
        )
        self.scales = nn.Parameter(torch.empty(rows, dtype=torch.float32), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.weight[ids].float() * self.scales[ids][..., None]


class Int8GPT2(GPT2):
    """A GPT-2 whose matrices are int8; for inference on a CPU."""

    is_quantized = True

    def __init__(self, config: GPT2Config) -> None:
        with torch.device("meta"):  # what is replaced is never allocated
            super().__init__(config)
            for module in list(self.modules()):
                for name, child in module.named_children():
                    if isinstance(child, nn.Linear):
                        setattr(
                            module,
                            name,
                            Int8Linear(
                                child.out_features, child.in_features, bias=child.bias is not None
                            ),
                        )
            self.wte = Int8Embedding(config.n_vocab, config.n_embd)  # type: ignore[assignment]

    def head(self, hidden: Tensor) -> Tensor:
        head = self.wte if self.config.tie_word_embeddings else self.lm_head
        return int8_linear(hidden, head.weight, head.scales, None)  # type: ignore[arg-type]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of everything but the matrices."""
        return torch.float32

    def new_cache(self, batch_size: int = 1, *, capacity: int | None = None) -> KVCache:
        """Return an empty cache in bfloat16: in float32, reading it would soon cost more than reading the weights."""
        return KVCache(
            self.config, batch_size, capacity=capacity, dtype=torch.bfloat16, device=self.device
        )
