"""How the gradient of the loss changes on its way back, with and without residual connections.

B batch, T tokens, C width, L layers
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpt2kit.errors import ConfigError
from gpt2kit.inspection.measures import check_layer, reading
from gpt2kit.model import GPT2
from gpt2kit.training.loss import NextTokenLoss


@dataclass(frozen=True)
class GradientNorms:
    """Euclidean norms of the gradient of the mean loss in predicting a text."""

    loss: float  # nats per token
    stream: Tensor  # (L + 1,) of the residual stream before each layer, and after the last
    weights: Tensor  # (L,) of all weights of each layer together


def gradient_norms(model: GPT2, ids: Tensor) -> dict[bool, GradientNorms]:
    """Return the norms for (B, T) ids, with (True) and without (False) residual connections.

    Both models have the weights of `model`, which is not changed. Raises ConfigError for a model
    without layers or with weights of another form (int8, adapters), and for fewer than two tokens.
    """
    check_layer(model, 0)
    if ids.shape[1] < 2:
        raise ConfigError("the text has 1 token; expected 2 or more, since the loss is in the next")
    return {
        residual: _norms(_copy(model, residual), ids.to(model.device)) for residual in (True, False)
    }


def _copy(model: GPT2, residual: bool) -> GPT2:
    """Return a model with the same weights, in float32 at least, with or without residuals."""
    with torch.device("meta"):
        copy = GPT2(replace(model.config, residual=residual))
    weights = {
        name: tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        for name, tensor in model.state_dict().items()
    }
    if model.is_quantized or weights.keys() != copy.state_dict().keys():
        raise ConfigError(
            "gradients are computed of plain weights; load the model without --quantize, and merge "
            "its adapters first"
        )
    copy.load_state_dict(weights, assign=True)
    return copy


def _norms(model: GPT2, ids: Tensor) -> GradientNorms:
    blocks = [f"h.{layer}" for layer in range(model.config.n_layer)]
    with torch.enable_grad(), reading(model, [*blocks, "ln_f"]) as read:
        loss = NextTokenLoss(model)(ids)
    weights = [[*block.parameters()] for block in model.h]
    flat = [parameter for block in weights for parameter in block]
    gradients = iter(torch.autograd.grad(loss, [*read.values(), *flat]))
    return GradientNorms(
        float(loss.detach()),
        torch.stack([_norm_of([next(gradients)]) for _ in read]),
        torch.stack([_norm_of([next(gradients) for _ in block]) for block in weights]),
    )


def _norm_of(tensors: Iterable[Tensor]) -> Tensor:
    """Return the Euclidean norm of all numbers of some tensors together: ()."""
    return torch.stack([tensor.square().sum() for tensor in tensors]).sum().sqrt()
