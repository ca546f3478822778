"""The loss of next-token prediction: cross entropy, computed in pieces if there are many logits.

With a vocabulary of 50,257 the logits are by far the largest tensor of a training step: 8 windows
of 256 tokens have 412 MB of them in float32, and plain cross entropy holds three such tensors.

    B windows in a batch, T tokens that a window predicts, N = B * T, C width, V vocabulary
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpt2kit.checkpoints.classifiers import class_head
from gpt2kit.data.example_rows import NOTHING
from gpt2kit.engine.torch_engine import precise
from gpt2kit.model import GPT2
from gpt2kit.training.config import Dtype
from gpt2kit.training.readings import Reading

PIECEWISE_VARIABLE = "GPT2KIT_PIECEWISE_LOSS"  # 0 turns the piecewise loss off

FEW_LOGITS = 2**22  # above this many logits, use the piecewise loss
LOGITS_AT_ONCE = 2**25  # logits in a piece
LOGITS_IN_CACHE = 2**19  # logits whose softmax a processor's cache holds
_TOKENS_AT_ONCE = 2**13  # rows of the head's gradient that are computed at once, in bfloat16
_NARROW = 128  # models below this width are not faster in bfloat16


class NextTokenLoss(nn.Module):
    """A model's mean loss, in nats per token, in predicting each token from those before it.

    Of examples, only the tokens that complete the prompts are predicted; or their labels, if the
    model has a head for these.
    """

    def __init__(self, model: GPT2, dtype: Dtype = "float32", checkpointing: bool = False) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype
        self.checkpointing = checkpointing

    def forward(self, batch: Tensor) -> Tensor:
        """Return the mean loss of windows, (B, T + 1) -> (), or of rows, (B, 3, T) -> ()."""
        reading = Reading.of(batch)
        targets = reading.targets.flatten()  # (N,)
        with (
            autocast(batch.device, self.dtype),
            _checkpointed(self.model, self.checkpointing and self.training),
        ):
            hidden = self.model.hidden(reading.ids, reading.cache).flatten(0, 1)  # (N, C)
            if reading.cache is not None:  # few of N: logits take much memory and time
                wanted = targets != NOTHING  # (N,)
                hidden, targets = hidden[wanted], targets[wanted]
            return self._cross_entropy(hidden, targets)

    def _cross_entropy(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross entropy: (N, C), (N,) -> ()."""
        model, config = self.model, self.model.config
        if (labels := class_head(model)) is not None:
            return F.cross_entropy(precise(labels(hidden)), targets)
        if config.head == "linear" and use_pieces(len(targets) * config.n_vocab):
            inputs: tuple[Tensor | None, ...]
            inputs = (hidden, model.head_weight, model.head_bias)  # (N, C), (V, C), (V,)
            if not torch.is_grad_enabled():  # an autograd function does not see that by itself
                inputs = tuple(x if x is None else x.detach() for x in inputs)
            return _PiecewiseLoss.apply(*inputs, targets, self.dtype)  # type: ignore[no-any-return, no-untyped-call]
        return F.cross_entropy(precise(model.head(hidden)), targets)


def use_pieces(n_logits: int) -> bool:
    """Return whether this many logits are computed in pieces."""
    return n_logits > FEW_LOGITS and os.environ.get(PIECEWISE_VARIABLE) != "0"


class _PiecewiseLoss(torch.autograd.Function):
    """Cross entropy after a linear layer, with one piece of the logits in memory at a time.

    The gradients are computed in the forward pass, from the logits at hand, and overwrite them.
    torch's F.linear_cross_entropy does the same; on a CPU it took four times as long.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, dtype: Dtype
    ) -> Tensor:
        """Return the mean loss: (N, C), (V, C), (V,), (N,) -> ()."""
        working = torch.bfloat16 if dtype == "bfloat16" else hidden.dtype
        h, w, n = hidden.to(working), weight.to(working), len(targets)  # (N, C), (V, C)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        hidden_grad = torch.empty_like(h) if wants_hidden else None  # (N, C)
        weight_grad = torch.empty_like(weight) if wants_weight else None  # (V, C)
        bias_grad = torch.zeros_like(bias) if bias is not None and wants_bias else None  # (V,)
        total = torch.zeros((), dtype=_precise_dtype(h), device=h.device)
        rows = max(1, LOGITS_AT_ONCE // len(w))  # R
        for start in range(0, n, rows):
            piece = slice(start, start + rows)
            logits = h[piece] @ w.T  # (R, V)
            if bias is not None:
                logits += bias
            total += _cross_entropy_(
                logits, targets[piece], n, with_gradient=any(ctx.needs_input_grad)
            )
            if hidden_grad is not None:
                hidden_grad[piece] = logits @ w  # (R, C)
            if weight_grad is not None:
                _add_product(weight_grad, logits, h[piece], is_first=start == 0)
            if bias_grad is not None:
                bias_grad += logits.sum(dim=0, dtype=bias_grad.dtype)
            del logits  # before the next piece is computed
        ctx.grads = hidden_grad, weight_grad, bias_grad
        ctx.hidden_dtype = hidden.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of hidden states, weight and bias: () -> (N, C), (V, C), (V,)."""
        hidden_grad, weight_grad, bias_grad = ctx.grads
        del ctx.grads  # scaled in place, so only once: memory use is at its peak here
        scale = output_grads[0]
        return (
            None if hidden_grad is None else (hidden_grad * scale).to(ctx.hidden_dtype),
            None if weight_grad is None else weight_grad.mul_(scale),
            None if bias_grad is None else bias_grad.mul_(scale),
            None,
            None,
        )


def _add_product(weight_grad: Tensor, logits_grad: Tensor, h: Tensor, *, is_first: bool) -> None:
    """Add logits_grad.T @ h to the gradient of the head: (V, C) += (V, R) @ (R, C).

    The first product overwrites what is there. In bfloat16 the product of a part at a time, so that
    only a part needs memory beside the sum.
    """
    parts = weight_grad.split(_TOKENS_AT_ONCE)  # type: ignore[no-untyped-call]
    columns = logits_grad.split(_TOKENS_AT_ONCE, dim=1)  # type: ignore[no-untyped-call]
    for part, column in zip(parts, columns, strict=True):
        product = column.T @ h  # (up to _TOKENS_AT_ONCE, C)
        if is_first:
            part.copy_(product)
        else:
            part += product


def _cross_entropy_(logits: Tensor, targets: Tensor, n: int, *, with_gradient: bool) -> Tensor:
    """Return the sum of the cross entropies divided by n: (R, V), (R,) -> ().

    With `with_gradient` the gradient overwrites the logits. The softmax is computed in float32, on
    a CPU for so few rows at once that they stay in its cache while they are read several times.
    """
    total = torch.zeros((), dtype=_precise_dtype(logits), device=logits.device)
    on_cpu = logits.device.type == "cpu"
    rows = max(1, LOGITS_IN_CACHE // logits.shape[1]) if on_cpu else len(logits)  # r
    for piece, target in zip(logits.split(rows), targets[:, None].split(rows), strict=True):  # type: ignore[no-untyped-call]
        logprobs = torch.log_softmax(piece, dim=-1, dtype=_precise_dtype(piece))  # (r, V)
        total -= logprobs.gather(1, target).sum()
        if not with_gradient:
            continue
        gradient = logprobs.exp_().div_(n)  # (r, V): the probabilities, minus 1 at the target
        gradient.scatter_add_(1, target, gradient.new_full(target.shape, -1 / n))
        piece.copy_(gradient)
    return total / n


def _precise_dtype(tensor: Tensor) -> torch.dtype:
    """Return float32, or the tensor's dtype if that is wider."""
    return torch.promote_types(tensor.dtype, torch.float32)


def autocast(device: torch.device, dtype: Dtype) -> torch.autocast | nullcontext[None]:
    """Return the context in which matrix products have this dtype."""
    return torch.autocast(device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext()


def best_dtype(device: torch.device, n_embd: int) -> Dtype:
    """Return bfloat16 if matrices of this width are multiplied faster in it, else float32."""
    if n_embd < _NARROW:
        return "float32"
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    fast = device.type == "cpu" and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )
    return "bfloat16" if fast else "float32"


@contextmanager
def _checkpointed(model: GPT2, wanted: bool) -> Iterator[None]:
    """Let the blocks keep only their inputs, and compute the rest again in the backward pass."""
    blocks: list[Any] = list(model.h) if wanted else []
    try:
        for block in blocks:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
        yield
    finally:
        for block in blocks:
            del block.forward  # the method of the class is visible again
