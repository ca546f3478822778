"""Dropout for training on a CPU: what torch computes, with random masks that are faster to draw.

torch draws one 32-bit random number for each element, sequentially, and keeps float32 masks.
Drawing and applying these masks, and those of attention, took a quarter of a training step of
124M. Here a mask has one byte per element, and one 64-bit random number decides on four. The
environment variable GPT2KIT_OWN_DROPOUT=0 selects torch's function instead.
"""

from __future__ import annotations

import math
import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

VARIABLE = "GPT2KIT_OWN_DROPOUT"


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Set each element to zero with probability p and divide the others by 1 - p.

    The arguments are those of torch.nn.functional.dropout. On a CPU, p is rounded to a multiple
    of 2^-16.
    """
    if not training or not is_ours(x, p):
        return F.dropout(x, p, training)
    output: Tensor = _Dropout.apply(x, p)  # type: ignore[no-untyped-call]
    return output


def is_ours(x: Tensor, p: float) -> bool:
    """Whether this module computes dropout for a tensor, rather than torch."""
    return 0 < p < 1 and x.device.type == "cpu" and os.environ.get(VARIABLE) != "0"


def draw_kept(shape: torch.Size, p: float) -> Tensor:
    """Draw a boolean mask of the elements to keep: True with probability 1 - p."""
    n = math.prod(shape)
    # Each 64-bit random number is read as four 16-bit ones.
    bits = torch.empty(-(-n // 4), dtype=torch.int64).random_(-(2**63), None)
    return (bits.view(torch.int16)[:n] >= round(p * 2**16) - 2**15).view(shape)


class _Dropout(torch.autograd.Function):
    """Dropout that keeps its mask for the backward pass in one byte per element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        kept = draw_kept(x.shape, p)
        ctx.save_for_backward(kept)
        ctx.scale = 1 / (1 - p)
        output: Tensor = (x * ctx.scale).mul_(kept)
        return output

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        (kept,) = ctx.saved_tensors
        return (output_grads[0] * ctx.scale).mul_(kept), None
