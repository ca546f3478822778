"""What is inside a checkpoint: norms, counts and bytes against arithmetic done by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from builders import write_hub

from gpt2kit.checkpoints.load import open_checkpoint
from gpt2kit.config import SIZES
from gpt2kit.inspection import count_parameters, memory, summarize
from gpt2kit.model import GPT2


def test_every_tensor_is_described_in_the_order_of_the_forward_pass(
    tmp_path: Path, tiny_model: GPT2
) -> None:
    found = list(summarize(open_checkpoint(write_hub(tmp_path, tiny_model))))
    assert [tensor.name for tensor in found] == list(tiny_model.config.shapes())
    parameters = dict(tiny_model.named_parameters())
    for tensor in found:
        parameter = parameters[tensor.name].detach()
        assert tensor.shape == tuple(parameter.shape)
        assert tensor.dtype == "float32"
        assert tensor.norm == pytest.approx(float(parameter.square().sum().sqrt()), rel=1e-5)
        assert tensor.mean == pytest.approx(float(parameter.mean()), abs=1e-6)
        assert tensor.largest == pytest.approx(float(parameter.abs().max()))


def test_parts_add_up_and_are_gpt2s() -> None:
    counts = count_parameters(SIZES["124M"])
    assert sum(counts.values()) == 124_439_808
    assert counts == {
        "token embedding": 50257 * 768,
        "position embedding": 1024 * 768,
        "normalization": 25 * 2 * 768,
        "attention": 12 * (4 * 768 * 768 + 4 * 768),
        "MLP": 12 * (8 * 768 * 768 + 5 * 768),
    }


def test_an_untied_head_is_counted() -> None:
    tied, untied = SIZES["124M"], replace(SIZES["124M"], tie_word_embeddings=False)
    assert "head" not in count_parameters(tied)
    assert count_parameters(untied)["head"] == 50257 * 768


def test_memory_is_that_of_the_published_model() -> None:
    figures = memory(SIZES["124M"])
    assert figures["float32"] == (497_759_232, 73_728)
    assert figures["bfloat16"] == (497_759_232 // 2, 73_728 // 2)
