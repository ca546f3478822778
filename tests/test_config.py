"""The shape of a GPT-2: sizes, names, and what cannot be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpt2kit.config import (
    ACTIVATION_ALIASES,
    ALIASES,
    SIZES,
    GPT2Config,
    canonical_size,
    nearest_size,
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


def test_aliases_lead_to_sizes_in_any_case() -> None:
    assert set(ALIASES.values()) <= SIZES.keys()
    assert canonical_size("GPT2-XL") == canonical_size("1.5b") == canonical_size("1558m") == "1558M"
    assert canonical_size("gpt3") is None


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("125M", "124M"),
        ("350M", "355M"),
        ("770M", "774M"),
        ("1500M", "1558M"),
        ("gpt2-mediun", "355M"),
        ("distilgpt", "distilgpt2"),
        ("1.6B", "1558M"),
        ("124", "124M"),
        ("7B", None),
        ("llama", None),
        ("my-novel", None),
        ("0", None),
        ("run-2024", None),  # it has digits, and was taken for a number of parameters
    ],
)
def test_a_mistyped_size_leads_to_the_nearest_and_another_name_to_none(
    typed: str, meant: str | None
) -> None:
    assert canonical_size(typed) is None
    assert nearest_size(typed) == meant
