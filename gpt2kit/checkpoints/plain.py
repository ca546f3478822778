"""A checkpoint brought to GPT-2's plain form, for formats that can say nothing else.

What such a format cannot say is folded into the weights if that is exact, and refused by name if
it is not: nothing is lost silently.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gpt2kit.checkpoints.stored import Checkpoint, StoredTensor
from gpt2kit.config import VARIED, GPT2Config
from gpt2kit.errors import ConfigError

# Biases that are not there are zeros in another form; the other fields of VARIED cannot be folded.
_NEEDED: dict[str, Any] = {
    name: value for name, value in VARIED.items() if name not in ("bias", "qkv_bias")
} | {"activation_function": "gelu_new"}
_QUERIES = ("attn.c_attn.weight", "attn.c_attn.bias")


def plain_gpt2(
    checkpoint: Checkpoint, program: str, **needed: Any
) -> tuple[GPT2Config, dict[str, StoredTensor]]:
    """Return a checkpoint's function as a configuration without flags, and its tensors.

    - another scale of attention, `scale_attn_weights` or `scale_attn_by_inverse_layer_idx`, becomes
      a factor of the queries
    - missing biases become zeros

    Raises ConfigError, which names every field that `program` cannot express: another activation,
    norm or MLP, and one that differs from `needed`.
    """
    config = checkpoint.config
    if config.inner_size == 4 * config.n_embd:
        config = replace(config, n_inner=None)
    wrong = [
        f"{name} {_shown(getattr(config, name))} (only {_shown(value)})"
        for name, value in {**_NEEDED, **needed}.items()
        if getattr(config, name) != value
    ]
    if checkpoint.class_head is not None:
        wrong.append("a head for labels")
    if wrong:
        raise ConfigError(
            f"{checkpoint.path}: {program} cannot express {', '.join(wrong)}; "
            "--format hf writes any model"
        )
    plain = replace(
        config,
        bias=True,
        qkv_bias=True,
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
    )
    shapes = plain.shapes()
    tensors = {
        name: _folded(name, config, checkpoint.tensors) or StoredTensor.zeros(shape)
        for name, shape in shapes.items()
    }
    return plain, tensors


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _folded(
    name: str, config: GPT2Config, tensors: Mapping[str, StoredTensor]
) -> StoredTensor | None:
    """Return a tensor with the factor of its queries, or None if the model does not have it."""
    stored = tensors.get(name)
    if stored is None or not name.endswith(_QUERIES):
        return stored
    # Scores of a plain GPT-2 are divided by the root of the head's width, and by nothing else.
    factor = 1.0 if config.scale_attn_weights else math.sqrt(config.head_size)
    if config.scale_attn_by_inverse_layer_idx:
        factor /= int(name.split(".")[1]) + 1
    if factor == 1:
        return stored

    def read(_: Tensor | None) -> Tensor:
        tensor = stored.read().float().clone()
        tensor[: config.n_embd] *= factor  # the rows of the queries come first
        return tensor

    return StoredTensor(stored.shape, torch.float32, read)
