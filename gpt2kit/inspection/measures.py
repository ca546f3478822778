"""What pictures show of a trace beside its own numbers: norms, what MLPs read, neurons, scores.

B batch, T tokens, C width, H heads, D head size, I width of the MLP's hidden layer, L layers
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2kit.errors import ConfigError
from gpt2kit.inspection.forward import Trace
from gpt2kit.model import GPT2


@dataclass(frozen=True)
class NormTrace:
    """What one LayerNorm or RMSNorm makes of the numbers that it reads."""

    before: Tensor  # (B, T, C)
    normalized: Tensor  # (B, T, C) before the learned weight and bias are applied
    after: Tensor  # (B, T, C)


@dataclass(frozen=True)
class ScoreSpread:
    """How attention scores are spread in every head, for one factor of the scores."""

    factor: tuple[float, ...]  # of each layer: what query times key is multiplied by
    variance: Tensor  # (L, H) over all pairs of a query and a key that it may look at
    largest: Tensor  # (L, H) the largest weight of a query, on average; the first has one key only


# --- what modules read ----------------------------------------------------------------------------


@contextlib.contextmanager
def reading(model: GPT2, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Meanwhile note what each of the named modules reads, by name; dropout is off."""
    read: dict[str, Tensor] = {}
    was_training = model.training
    with contextlib.ExitStack() as stack:
        for name in names:

            def note(module: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
                read[name] = args[0]

            stack.callback(model.get_submodule(name).register_forward_pre_hook(note).remove)
        stack.callback(model.train, was_training)
        model.eval()
        yield read


def check_layer(model: GPT2, layer: int) -> None:
    """Raise ConfigError unless the model has this layer, which counts from 0."""
    n = model.config.n_layer
    if not n:
        raise ConfigError("this model has no layers, so there is nothing to draw")
    if not 0 <= layer < n:
        raise ConfigError(f"layer is {layer}, expected {f'0 to {n - 1}' if n > 1 else '0 alone'}")


def has_mlp(model: GPT2) -> bool:
    """Return whether the layers have an MLP, and not attention alone."""
    return model.config.mlp != "none"


def check_mlp(model: GPT2, layer: int) -> None:
    """Raise ConfigError unless the model has this layer, with an MLP in it."""
    check_layer(model, layer)
    if not has_mlp(model):
        raise ConfigError("this model has no MLP, so there is nothing to draw")


def norms_of(seen: Trace, layer: int) -> dict[str, NormTrace]:
    """Return what the norms of one layer do, by their names in the model: ln_1 and ln_2.

    Raises ConfigError for a layer that the model does not have, and for a model without norms.
    """
    check_layer(seen.model, layer)
    norms = {
        name: module
        for name, module in seen.model.h[layer].named_children()
        if isinstance(module, nn.LayerNorm | nn.RMSNorm)
    }
    if not norms:
        raise ConfigError("this model does not normalize, so there is nothing to draw")
    names = {name: f"h.{layer}.{name}" for name in norms}
    with torch.no_grad(), reading(seen.model, names.values()) as read:
        seen.model.hidden(seen.ids)
        return {
            name: NormTrace(before, _plain(norm, before), norm(before))
            for name, norm in norms.items()
            for before in [read[names[name]]]
        }


def _plain(norm: nn.LayerNorm | nn.RMSNorm, x: Tensor) -> Tensor:
    """Normalize as a norm does, without its weight and bias: (…, C) -> (…, C)."""
    if isinstance(norm, nn.LayerNorm):
        return F.layer_norm(x, norm.normalized_shape, eps=norm.eps)
    return F.rms_norm(x, list(norm.normalized_shape), eps=norm.eps)


def mlp_input(seen: Trace, layer: int) -> Tensor:
    """Return what the MLP of a layer reads, (B, T, C).

    Raises ConfigError for a layer that the model does not have, and for a model without MLPs.
    """
    check_mlp(seen.model, layer)
    name = f"h.{layer}.mlp"
    with torch.no_grad(), reading(seen.model, [name]) as read:
        seen.model.hidden(seen.ids)
    return read[name]


# --- neurons --------------------------------------------------------------------------------------


def active_shares(seen: Trace) -> Tensor:
    """Return the share of the positions at which each neuron is active: (L, I).

    A neuron is active if its input to the activation function is above 0. Raises ConfigError for a
    model without layers or without MLPs.
    """
    check_mlp(seen.model, 0)
    return torch.stack(
        [(layer.mlp_before > 0).float().mean(dim=(0, 1)) for layer in seen.layers]
    )  # (L, I)


# --- attention scores -----------------------------------------------------------------------------


def score_spreads(seen: Trace) -> dict[str, ScoreSpread]:
    """Return the spread of the scores without a factor, divided by the root of D, and the model's.

    The keys are "plain", "divided" and "own". Raises ConfigError for a model without layers and for
    a single token, which has only one score.
    """
    config = seen.model.config
    check_layer(seen.model, 0)
    if seen.ids.shape[1] < 2:
        raise ConfigError(
            "the text has 1 token, which looks at itself alone; expected 2 or more, whose scores "
            "can differ"
        )
    factors = {
        "plain": (1.0,) * config.n_layer,
        "divided": (1 / math.sqrt(config.head_size),) * config.n_layer,
        "own": tuple(layer.scale for layer in seen.layers),
    }
    found = {factor: _spread(seen, factor) for factor in set(factors.values())}
    return {name: found[factor] for name, factor in factors.items()}


def _spread(seen: Trace, factor: tuple[float, ...]) -> ScoreSpread:
    T = seen.ids.shape[1]
    visible = torch.ones(T, T, dtype=torch.bool, device=seen.ids.device).tril()
    variances, largest = [], []
    for layer, each in zip(seen.layers, factor, strict=True):
        scores = layer.scores * (each / layer.scale)  # (B, H, T, T)
        variances.append(scores[..., visible].var(dim=-1, correction=0).mean(dim=0))  # (H,)
        weights = scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)  # (B, H, T, T)
        largest.append(weights[..., 1:, :].amax(dim=-1).mean(dim=(0, 2)))  # (H,)
    return ScoreSpread(factor, torch.stack(variances), torch.stack(largest))
