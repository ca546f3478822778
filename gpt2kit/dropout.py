"""Dropout for training on a CPU: what torch computes, with random masks that are faster to draw.

torch draws one 32-bit random number for each element, sequentially, and keeps float32 masks; its
attention with dropout keeps 13 bytes for each attention weight. Drawing and applying these masks
took a quarter of a training step of 124M. Here a mask has one byte per element, and one 64-bit
random number decides on four. The environment variable GPT2KIT_OWN_DROPOUT=0 selects torch's
functions instead.

    B batch, T tokens, S keys, H heads, D head size
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
    if not training or not _is_ours(x, p):
        return F.dropout(x, p, training)
    output: Tensor = _Dropout.apply(x, p)  # type: ignore[no-untyped-call]
    return output


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Compute softmax(query @ key.T * scale) @ value, with dropout of the attention weights.

    (B, H, T, D) and twice (B, H, S, D) -> (B, H, T, D). The arguments are those of
    torch.nn.functional.scaled_dot_product_attention, which does the work except on a CPU with
    dropout and without a mask. Values that are not finite stay so, also where torch loses them.
    """
    output: Tensor
    if attn_mask is not None or not _is_ours(query, dropout_p):
        output = F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale
        )
        if query.device.type != "cpu" or query.requires_grad:
            return output
        # torch's CPU kernel loses NaN among fewer than 16 keys, and gives 0 if all scores are
        # -inf. This adds 0, or NaN if a query or its token's own key is not finite.
        own = key[:, :, key.shape[2] - query.shape[2] :]  # (B, H, T, D)
        return output + ((query + own) * 0).sum(dim=-1, keepdim=True)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    inputs = query, key, value, dropout_p, is_causal, scale
    output = _Attention.apply(*inputs)  # type: ignore[no-untyped-call]
    return output


def _is_ours(x: Tensor, p: float) -> bool:
    """Whether this module computes dropout for a tensor, rather than torch."""
    return 0 < p < 1 and x.device.type == "cpu" and os.environ.get(VARIABLE) != "0"


def _draw_kept(shape: torch.Size, p: float) -> Tensor:
    """Draw a boolean mask of the elements to keep: True with probability 1 - p."""
    n = math.prod(shape)
    # Each 64-bit random number is read as four 16-bit ones.
    bits = torch.empty(-(-n // 4), dtype=torch.int64).random_(-(2**63), None)
    return (bits.view(torch.int16)[:n] >= round(p * 2**16) - 2**15).view(shape)


class _Dropout(torch.autograd.Function):
    """Dropout that keeps its mask for the backward pass in one byte per element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        kept = _draw_kept(x.shape, p)
        ctx.save_for_backward(kept)
        ctx.scale = 1 / (1 - p)
        output: Tensor = (x * ctx.scale).mul_(kept)
        return output

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        (kept,) = ctx.saved_tensors
        return (output_grads[0] * ctx.scale).mul_(kept), None


class _Attention(torch.autograd.Function):
    """Attention that keeps only its mask; the backward pass computes the weights again."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, p: float, causal: bool, scale: float
    ) -> Tensor:
        weights = _attention_weights(q, k, causal, scale)  # (B, H, T, T)
        kept = _draw_kept(weights.shape, p)  # (B, H, T, T)
        ctx.save_for_backward(q, k, v, kept)
        ctx.causal, ctx.scale, ctx.kept_scale = causal, scale, 1 / (1 - p)
        output: Tensor = (weights * kept) @ (v * ctx.kept_scale)  # (B, H, T, D)
        return output

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, kept = ctx.saved_tensors
        weights = _attention_weights(q, k, ctx.causal, ctx.scale)  # (B, H, T, T)
        grad = output_grads[0].to(v.dtype) * ctx.kept_scale  # (B, H, T, D)
        v_grad = (weights * kept).transpose(-1, -2) @ grad
        weights_grad = (grad @ v.transpose(-1, -2)).mul_(kept)  # (B, H, T, T)
        scores_grad = torch.ops.aten._softmax_backward_data(
            weights_grad, weights, -1, weights.dtype
        )
        q_grad = (scores_grad @ k).mul_(ctx.scale)
        k_grad = scores_grad.transpose(-1, -2) @ (q * ctx.scale)
        return q_grad, k_grad, v_grad, None, None, None


def _attention_weights(q: Tensor, k: Tensor, causal: bool, scale: float) -> Tensor:
    """Return the attention weights, (B, H, T, S), in the dtype of the queries."""
    # Scores need float32: rounding a large one to bfloat16 would change it by up to 0.1.
    dtype = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast("cpu", enabled=False):
        scores = (q.to(dtype) * scale) @ k.to(dtype).transpose(-1, -2)  # (B, H, T, T)
    if causal:
        scores.masked_fill_(torch.ones(scores.shape[-2:], dtype=torch.bool).triu_(1), -math.inf)
    return scores.softmax(dim=-1).to(q.dtype)
