"""Attention with dropout for training on a CPU: what torch computes, a few heads at a time.

torch's own function keeps 13 bytes for each attention weight. Here a few heads have their weights
in memory at once, and the backward pass computes them again: only the mask is kept, one byte for
each weight. GPT2KIT_OWN_DROPOUT=0 selects torch's function, as for all dropout.

    B batch, T tokens, S keys, H heads, D head size, n heads at a time
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2kit.dropout import draw_kept, is_ours

WEIGHTS_AT_ONCE = 2**20  # attention weights that a processor's cache holds


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
    torch.nn.functional.scaled_dot_product_attention, which does the work except on a CPU
    with dropout. Values that are not finite stay so, also where torch loses them.
    """
    output: Tensor
    if is_ours(query, dropout_p) and _is_mask_of_rows(attn_mask):
        bias = _bias(query, key, attn_mask, is_causal)  # (B, T, S)
        scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        inputs = query, key, value, bias, dropout_p, scale
        output = _Attention.apply(*inputs)  # type: ignore[no-untyped-call]
        return output
    output = F.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale
    )
    if query.device.type != "cpu" or query.requires_grad:
        return output
    # torch's CPU kernel loses NaN among fewer than 16 keys, and gives 0 if all scores are
    # -inf. This adds 0, or NaN if a query or its token's own key is not finite.
    own = key[:, :, key.shape[2] - query.shape[2] :]  # (B, H, T, D)
    return output + ((query + own) * 0).sum(dim=-1, keepdim=True)


def _is_mask_of_rows(mask: Tensor | None) -> bool:
    """Whether a mask is none, or the same for all heads, as those of all models here are."""
    if mask is None:
        return True
    return mask.dtype == torch.bool and (mask.dim() == 2 or mask.shape[1] == 1)


class _Attention(torch.autograd.Function):
    """Attention that keeps no weights: the backward pass computes them again."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, p: float, scale: float
    ) -> Tensor:
        output = _heads_last(q, v.shape[-1])  # (B, H, T, D)
        masks = []
        for row, heads in _heads_at_once(q, k):
            weights = _attention_weights(
                q[row, heads], k[row, heads], bias[row], scale
            )  # (n, T, S)
            if p > 0:
                masks.append(draw_kept(weights.shape, p))  # (n, T, S)
                weights = weights.mul_(masks[-1])
            output[row, heads] = weights @ v[row, heads]
        ctx.save_for_backward(q, k, v, bias, *masks)
        ctx.scale, ctx.kept_scale = scale, 1 / (1 - p)
        return output.mul_(ctx.kept_scale)

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, *masks = ctx.saved_tensors
        # Of the kept weights, which are divided by the share that is kept: (B, H, T, D)
        output_grad = output_grads[0].to(v.dtype) * ctx.kept_scale
        q_grad, k_grad, v_grad = (_heads_last(x, x.shape[-1]) for x in (q, k, v))
        for (row, heads), kept in zip(_heads_at_once(q, k), masks, strict=True):
            weights = _attention_weights(
                q[row, heads], k[row, heads], bias[row], ctx.scale
            )  # (n, T, S)
            grad = output_grad[row, heads]  # (n, T, D)
            v_grad[row, heads] = (weights * kept).mT @ grad
            weights_grad = (grad @ v[row, heads].mT).mul_(kept)  # (n, T, S)
            scores_grad = torch.ops.aten._softmax_backward_data(
                weights_grad, weights, -1, weights.dtype
            )  # (n, T, S)
            q_grad[row, heads] = (scores_grad @ k[row, heads]).mul_(ctx.scale)
            k_grad[row, heads] = (scores_grad.mT @ q[row, heads]).mul_(ctx.scale)
        return q_grad, k_grad, v_grad, None, None, None


def _heads_at_once(q: Tensor, k: Tensor) -> Iterator[tuple[int, slice]]:
    """Yield the indices of a few heads of one row of the batch after the other."""
    B, H, T, _ = q.shape
    n = max(1, WEIGHTS_AT_ONCE // (T * k.shape[2]))
    for row in range(B):
        for head in range(0, H, n):
            yield row, slice(head, head + n)


def _heads_last(x: Tensor, size: int) -> Tensor:
    """Return an empty (B, H, T, size) tensor in whose memory the heads of a token are adjacent."""
    B, H, T, _ = x.shape
    return x.new_empty(B, T, H, size).transpose(1, 2)


def _bias(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Return what is added to the scores, (B, T, S): minus infinity where a query may not look.

    The mask is True where it may: (B, 1, T, S), or (T, S) for all rows.
    """
    B, _, T, _ = q.shape
    if mask is None:
        mask = torch.ones(T, k.shape[2], dtype=torch.bool)
        mask = mask.tril() if causal else mask
    mask = mask.view(-1, *mask.shape[-2:])  # (1 or B, T, S)
    dtype = torch.promote_types(q.dtype, torch.float32)
    bias = torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -torch.inf)
    return bias.expand(B, -1, -1)


def _attention_weights(q: Tensor, k: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Return softmax(q @ k.T * scale + bias): (n, T, D), (n, S, D), (T, S) -> (n, T, S).

    The scores are float32: rounding a large one to bfloat16 would change it by up to 0.1.
    """
    with torch.autocast("cpu", enabled=False):
        scores = torch.baddbmm(bias, q.to(bias.dtype), k.to(bias.dtype).mT, alpha=scale)
    return scores.softmax(dim=-1).to(q.dtype)
