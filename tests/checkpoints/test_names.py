"""Names: the table is one to one, and prefixes come off without guessing."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2kit.checkpoints.names import OPENAI, is_transposed, openai_names, plain_names
from gpt2kit.config import SIZES, GPT2Config
from gpt2kit.errors import CheckpointFormatError


def test_the_table_is_a_bijection_onto_the_models_parameters() -> None:
    config = GPT2Config(n_layer=12)
    assert len(set(OPENAI.values())) == len(OPENAI)
    assert sorted(openai_names(config).values()) == sorted(config.shapes())


@pytest.mark.parametrize(
    ("size", "variables"), [("124M", 148), ("355M", 292), ("774M", 436), ("1558M", 580)]
)
def test_published_checkpoints_have_their_number_of_variables(size: str, variables: int) -> None:
    assert len(openai_names(SIZES[size])) == variables


def test_exactly_the_four_matrices_of_a_block_are_transposed() -> None:
    names = [name for name in GPT2Config(n_layer=1).shapes() if is_transposed(name)]
    assert names == [
        "h.0.attn.c_attn.weight",
        "h.0.attn.c_proj.weight",
        "h.0.mlp.c_fc.weight",
        "h.0.mlp.c_proj.weight",
    ]


def test_prefixes_come_off_in_any_order_and_buffers_are_left_out() -> None:
    theirs = [
        "module._orig_mod.transformer.h.0.ln_1.bias",
        "transformer.h.0.attn.bias",
        "h.0.attn.masked_bias",
        "h.0.attn.c_attn.bias",
        "lm_head.weight",
    ]
    assert plain_names(theirs, Path("x")) == {
        "h.0.ln_1.bias": "module._orig_mod.transformer.h.0.ln_1.bias",
        "h.0.attn.c_attn.bias": "h.0.attn.c_attn.bias",
        "lm_head.weight": "lm_head.weight",
    }


def test_one_parameter_under_two_names_is_refused() -> None:
    with pytest.raises(
        CheckpointFormatError,
        match=r"wte\.weight and transformer\.wte\.weight are the same parameter",
    ):
        plain_names(["wte.weight", "transformer.wte.weight"], Path("x"))
