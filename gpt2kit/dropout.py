"""Dropout in training on a processor: what torch's computes, with masks of one byte that are drawn four at a time.

torch draws a random number of 32 bits for every element, one after the other, and keeps float32 masks; attention with dropout
keeps 13 bytes for each of its weights. Drawing and multiplying was a quarter of a training step of 124M.

    B batch, T tokens, H heads, D head size
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Set a share p of the elements to zero in training, and divide the others by 1 - p; see torch.nn.functional.dropout.

    On a CPU, p is rounded to a multiple of 2^-16.
    """
    if not training or not 0 < p < 1 or x.device.type != "cpu":
        return F.dropout(x, p, training)
    return _Dropout.apply(x, p)  # type: ignore[no-any-return, no-untyped-call]


def scaled_dot_product_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float,
) -> Tensor:
    """Compute softmax(q @ k.T * scale) @ v, with dropout of the attention weights.

    (B, H, T, D) and twice (B, H, S, D) -> (B, H, T, D). The arguments are those of
    torch.nn.functional.scaled_dot_product_attention, which does the work except on a CPU with
    dropout and without a mask.
    """
    if not 0 < dropout_p < 1 or attn_mask is not None or q.device.type != "cpu":
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale
        )
    return _Attention.apply(q, k, v, dropout_p, is_causal, scale)  # type: ignore[no-any-return, no-untyped-call]


def _kept(shape: torch.Size, p: float) -> Tensor:
    """Draw which elements stay: True with probability 1 - p."""
    n = math.prod(shape)
    bits = torch.empty(-(-n // 4), dtype=torch.int64).random_(
        -(2**63), None
    )  # four numbers of 16 bits in each
    return (bits.view(torch.int16)[:n] >= round(p * 2**16) - 2**15).view(shape)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        kept = _kept(x.shape, p)
        ctx.save_for_backward(kept)
        ctx.scale = 1 / (1 - p)
        return (x * ctx.scale).mul_(kept)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        (kept,) = ctx.saved_tensors
        return (output_grads[0] * ctx.scale).mul_(kept), None


class _Attention(torch.autograd.Function):
    """Keeps which of the weights stayed; the weights themselves are computed again for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, p: float, causal: bool, scale: float
    ) -> Tensor:
        weights = _weights(q, k, causal, scale)  # (B, H, T, T)
        kept = _kept(weights.shape, p)
        ctx.save_for_backward(q, k, v, kept)
        ctx.causal, ctx.scale, ctx.kept_scale = causal, scale, 1 / (1 - p)
        return (weights * kept) @ (v * ctx.kept_scale)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, kept = ctx.saved_tensors
        weights = _weights(q, k, ctx.causal, ctx.scale)
        grad = output_grads[0].to(v.dtype) * ctx.kept_scale  # (B, H, T, D)
        v_grad = (weights * kept).transpose(-1, -2) @ grad
        weights_grad = (grad @ v.transpose(-1, -2)).mul_(kept)  # (B, H, T, T)
        scores_grad = torch.ops.aten._softmax_backward_data(
            weights_grad, weights, -1, weights.dtype
        )
        q_grad = (scores_grad @ k).mul_(ctx.scale)
        k_grad = scores_grad.transpose(-1, -2) @ (q * ctx.scale)
        return q_grad, k_grad, v_grad, None, None, None


def _weights(q: Tensor, k: Tensor, causal: bool, scale: float) -> Tensor:
    """Return the attention weights, in the queries' precision: (B, H, T, D) twice -> (B, H, T, T)."""
    # Scores in float32: rounded to bfloat16, a large one would be off by a tenth.
    precise = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast("cpu", enabled=False):
        scores = (q.to(precise) * scale) @ k.to(precise).transpose(-1, -2)
    if causal:
        scores.masked_fill_(torch.ones(scores.shape[-2:], dtype=torch.bool).triu_(1), -math.inf)
    return scores.softmax(dim=-1).to(q.dtype)
