"""A trace as the numbers that TransformerLens has by default: with its norms folded, and centered.

TransformerLens's HookedTransformer (up to version 3, and version 4 in compatibility mode) changes
the weights when it loads them, so that the logits' differences stay but activations do not.

    B rows, T tokens, C width, H heads, D head size, V vocabulary
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gpt2kit.errors import ConfigError
from gpt2kit.inspection.hooks import zero_of_z

if TYPE_CHECKING:
    from gpt2kit.inspection.forward import LayerTrace, Trace
    from gpt2kit.model import GPT2


def folded(seen: Trace) -> dict[str, Tensor]:
    """Return a trace's activations by TransformerLens's names, with its default numbers.

    Its options fold_ln, center_writing_weights, center_unembed and fold_value_biases mean:

    - what is in the residual stream, or is added to it, has its mean over the width subtracted,
    - values and z lose the values of the norm's bias, which are in the bias of attention's output,
    - logits have their mean over the vocabulary subtracted.

    Scales, queries, keys, scores, weights and neurons are the same. Raises ConfigError for a model
    for which these changes of the weights are not possible without changing what it computes.
    """
    _check(seen.model)
    B = len(seen.ids)
    found = {
        "hook_embed": _centered(seen.token_embeddings),
        "hook_pos_embed": _centered(seen.position_embeddings).expand(B, -1, -1),
    }
    for number, layer in enumerate(seen.layers):
        for name, x in _layer(seen.model, number, layer).items():
            found[f"blocks.{number}.{name}"] = x
    scale = _scale(seen.model, seen.final)
    found["ln_final.hook_scale"] = scale
    found["ln_final.hook_normalized"] = _centered(seen.final) / scale
    found["logits"] = _centered(seen.logits)
    return found


def _check(model: GPT2) -> None:
    config = model.config
    if not (config.norm == "layernorm" and config.norm_first and config.residual):
        raise ConfigError(
            "TransformerLens's numbers need a model with LayerNorm before each part and residual "
            "connections, as GPT-2 has"
        )


def _layer(model: GPT2, number: int, layer: LayerTrace) -> dict[str, Tensor]:
    zero = zero_of_z(model, number)  # (H, D)
    scale = _scale(model, layer.before)
    found = {
        "hook_resid_pre": _centered(layer.before),
        "ln1.hook_scale": scale,
        "ln1.hook_normalized": _centered(layer.before) / scale,
        "attn.hook_q": layer.queries.transpose(1, 2),
        "attn.hook_k": layer.keys.transpose(1, 2),
        "attn.hook_v": layer.values.transpose(1, 2) - zero,
        "attn.hook_attn_scores": layer.masked_scores,
        "attn.hook_pattern": layer.weights,
        "attn.hook_z": layer.head_outputs.transpose(1, 2) - zero,
        "hook_attn_out": _centered(layer.attention_update),
        "hook_resid_post": _centered(layer.after),
    }
    if model.config.mlp == "none":
        return found
    scale = _scale(model, layer.middle)
    return found | {
        "hook_resid_mid": _centered(layer.middle),
        "ln2.hook_scale": scale,
        "ln2.hook_normalized": _centered(layer.middle) / scale,
        "mlp.hook_pre": layer.mlp_before,
        "mlp.hook_post": layer.mlp_after,
        "hook_mlp_out": _centered(layer.mlp_update),
    }


def _centered(x: Tensor) -> Tensor:
    return x - x.mean(dim=-1, keepdim=True)


def _scale(model: GPT2, x: Tensor) -> Tensor:
    """Return what LayerNorm divides by: (B, T, C) -> (B, T, 1)."""
    variance = x.var(dim=-1, keepdim=True, correction=0)
    return torch.sqrt(variance + model.config.layer_norm_epsilon)
