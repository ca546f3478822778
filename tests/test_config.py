"""The shape of a GPT-2: sizes, names, and refused values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpt2kit.config import (
    ACTIVATION_ALIASES,
    SIZES,
    GPT2Config,
)
from gpt2kit.errors import ConfigError
from gpt2kit.model import GPT2


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ("distilgpt2", 81_912_576),
        ("124M", 124_439_808),
        ("355M", 354_823_168),
        ("774M", 774_030_080),
        ("1558M", 1_557_611_200),
    ],
)
def test_published_sizes_have_their_published_number_of_parameters(
    size: str, parameters: int
) -> None:
    assert SIZES[size].n_params == parameters


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n_layer": 0},
        {"n_inner": 24, "tie_word_embeddings": False},
        {"bias": False, "qkv_bias": False},
        {"norm": "rmsnorm", "mlp": "swiglu", "positions": "sinusoidal"},
    ],
)
def test_the_shapes_are_those_of_the_module(
    tiny_config: GPT2Config, fields: dict[str, Any]
) -> None:
    config = replace(tiny_config, **fields)
    assert {
        name: tuple(parameter.shape) for name, parameter in GPT2(config).named_parameters()
    } == config.shapes()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_layer", -1),
        ("n_layer", 1001),
        ("n_layer", True),
        ("n_layer", 2.0),
        ("n_head", 0),
        ("n_head", 3),
        ("n_embd", "16"),
        ("n_vocab", 10**9),
        ("n_ctx", None),
        ("n_inner", 0),
        ("layer_norm_epsilon", 0),
        ("layer_norm_epsilon", float("nan")),
        ("attn_pdrop", 1.0),
        ("resid_pdrop", -0.1),
        ("qkv_bias", 1),
        ("activation_function", "gelu_10"),
        ("activation_function", 7),
        ("norm", "batchnorm"),
        ("mlp", "moe"),
        ("positions", "rotary"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(
    tiny_config: GPT2Config, field: str, value: Any
) -> None:
    with pytest.raises(ConfigError, match=field):
        replace(tiny_config, **{field: value})


def test_sinusoidal_positions_need_an_even_width() -> None:
    with pytest.raises(ConfigError, match="even width"):
        GPT2Config(n_embd=15, n_head=3, positions="sinusoidal")


def test_an_activation_is_known_by_its_other_names() -> None:
    others: Any = ACTIVATION_ALIASES.items()  # type checkers know the canonical names only
    for other, canonical in others:
        assert GPT2Config(activation_function=other).activation_function == canonical
