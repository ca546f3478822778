"""Models drawn at random: small ones of every shape, with ordinary or strange weights."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import torch
from engine_builders import int8_of

from campaigns.number_cases import Floats
from gpt2kit.config import ACTIVATIONS, GPT2Config
from gpt2kit.model import GPT2

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32}
HEAD_SIZES = (1, 2, 3, 4, 7, 8, 12, 15, 16, 17, 20, 24, 31, 32, 33, 48, 64, 65)
VALUES = (math.nan, math.inf, -math.inf, 1e38, -1e38, 3e38, 1e20, 1e-38, 1e-42, 0.0)
# What all weights of one parameter are multiplied with.
FACTORS = (0.0, 1e-45, 1e-38, 1e-20, 1e-6, 100.0, 1e4)


def config_of(draw: random.Random, *, varied: bool = False) -> GPT2Config:
    """Draw a shape; `varied` ones have parts that GPT-2 does not have."""
    head_size, n_head = draw.choice(HEAD_SIZES), draw.choice((1, 1, 2, 3, 5))
    while head_size * n_head > 130:
        n_head -= 1
    fields: dict[str, Any] = {
        "n_vocab": draw.choice((1, 2, 17, 50, 67, 130)),
        "n_ctx": draw.choice((3, 8, 13, 24, 70)),
        "n_embd": head_size * n_head,
        "n_head": n_head,
        "n_layer": draw.choice((0, 1, 1, 2, 3)),
        "n_inner": draw.choice((None, 1, 5, 16, 37, 65, 200)),
        "activation_function": draw.choice(ACTIVATIONS),
        "layer_norm_epsilon": draw.choice((1e-5, 1e-6, 1e-12, 1e-3, 0.1)),
        "scale_attn_weights": draw.random() < 0.8,
        "scale_attn_by_inverse_layer_idx": draw.random() < 0.2,
        "reorder_and_upcast_attn": draw.random() < 0.2,
        "tie_word_embeddings": draw.random() < 0.7,
        "qkv_bias": draw.random() < 0.8,
        "bias": draw.random() < 0.8,
    }
    if varied:
        fields |= _varied(draw, fields)
    return GPT2Config(**fields)


def _varied(draw: random.Random, fields: dict[str, Any]) -> dict[str, Any]:
    """Draw parts that GPT-2 does not have, of which most models have some."""
    even = fields["n_embd"] % 2 == 0
    headless = draw.random() < 0.15
    return {
        "norm": draw.choice(("layernorm", "rmsnorm", "none")),
        "norm_first": draw.random() < 0.6,
        "mlp": draw.choice(("plain", "swiglu", "none")),
        "residual": draw.random() < 0.7,
        "positions": draw.choice(("learned", "sinusoidal" if even else "none", "none")),
        "head": "none" if headless else "linear",
        "head_bias": not headless and draw.random() < 0.4,
        "n_vocab": fields["n_embd"] if headless else fields["n_vocab"],
    }


def weights_of(draw: random.Random, config: GPT2Config) -> tuple[dict[str, Floats], str]:
    """Draw the weights of a shape in float32, and what is strange about them in a few words."""
    rng = np.random.default_rng(draw.getrandbits(64))
    size = draw.choice((0.02, 0.15, 0.15, 0.5))
    weights: dict[str, Floats] = {}
    for name, shape in config.shapes().items():
        drawn = rng.standard_normal(shape) * (size if len(shape) == 2 else 0.3)
        is_norm = "ln_" in name and name.endswith("weight")
        weights[name] = (drawn + is_norm).astype(np.float32)
    kind = draw.choice(("ordinary", "ordinary", "outlier", "value", "factor"))
    name = draw.choice(sorted(weights))
    own = weights[name].reshape(-1)
    at = draw.randrange(own.size)
    if kind == "outlier":
        own[at] = draw.choice((30.0, -300.0))
        kind = f"{name}[{at}] is {own[at]}"
    elif kind == "value":
        own[at] = draw.choice(VALUES)
        kind = f"{name}[{at}] is {own[at]}"
    elif kind == "factor":
        factor = draw.choice(FACTORS)
        own *= np.float32(factor)
        kind = f"{name} times {factor}"
    return weights, kind


def model_of(config: GPT2Config, weights: dict[str, Floats], dtype: str) -> GPT2:
    """Return a model of these weights; `dtype` may be int8."""
    model = GPT2(config)
    model.load_state_dict({name: torch.from_numpy(each) for name, each in weights.items()})
    model = model.to(DTYPES[dtype]).eval()
    return int8_of(model) if dtype == "int8" else model


def weights_in(model: GPT2) -> dict[str, Floats]:
    """Return the weights that a model really has, in float64."""
    state = dict(model.named_parameters())
    found: dict[str, Floats] = {}
    for name in model.config.shapes():
        weight = state[name].detach().double()
        if state[name].dtype == torch.int8:
            weight *= state[name.replace("weight", "scales")].detach().double()[:, None]
        found[name] = weight.numpy()
    return found
