"""The observed forward pass: equal to the NumPy reference in every part; no hooks remain."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN, make_model
from test_model import VARIANTS, weights_of

from gpt2kit import reference
from gpt2kit.checkpoints.load import build_model, open_checkpoint
from gpt2kit.config import GPT2Config
from gpt2kit.errors import ConfigError, ContextLengthError
from gpt2kit.inspection import LayerTrace, Trace, trace
from gpt2kit.lora import add_adapters
from gpt2kit.model import GPT2
from gpt2kit.quantize import Int8GPT2, quantized_state

OF_A_LAYER = [
    field.name for field in fields(LayerTrace) if field.name not in ("scale", "edited")
] + [
    "scores",
    "masked_scores",
    "weights",
]


def seen_in(found: Trace, row: int) -> dict[str, Any]:
    """Return one row of a trace under the reference's names."""
    seen = {
        name: getattr(found, name)[row]
        for name in ("token_embeddings", "embeddings", "final", "normalized")
    }
    seen["position_embeddings"] = found.position_embeddings
    return seen | {
        f"{n}.{name}": getattr(layer, name)[row]
        for n, layer in enumerate(found.layers)
        for name in OF_A_LAYER
    }


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_part_equals_the_numpy_reference(
    tiny_config: GPT2Config, variant: dict[str, Any], dtype: torch.dtype
) -> None:
    model = make_model(replace(tiny_config, **variant), dtype=dtype)
    ids = torch.randint(0, 512, (2, 9), generator=torch.Generator().manual_seed(1))
    found = trace(model, ids)
    for row in range(2):
        notes: reference.Notes = {}
        logits = reference.logits(model.config, weights_of(model), ids[row].tolist(), notes)
        seen = seen_in(found, row)
        assert seen.keys() == notes.keys()
        for name, expected in notes.items():
            largest = np.abs(expected[np.isfinite(expected)]).max(initial=1.0)
            np.testing.assert_allclose(
                seen[name],
                expected,
                rtol=0,
                atol=(1e-5 if dtype == torch.float32 else 1e-9) * largest,
                err_msg=name,
            )
        largest = np.abs(logits).max(initial=1.0)
        bound = 1e-5 if dtype == torch.float32 else 1e-9
        np.testing.assert_allclose(found.logits[row], logits, rtol=0, atol=bound * largest)


@pytest.mark.parametrize("name", ["micro-a", "micro-deep"])
def test_keys_and_values_are_those_of_openais_program(name: str) -> None:
    folder = GOLDEN / "tf" / name
    answers = np.load(folder / "reference.npz")
    found = trace(
        build_model(open_checkpoint(folder)), torch.from_numpy(answers["tokens_7"]).long()
    )
    present = answers["present_7"]  # (B, layers, 2, H, T, D)
    for number, layer in enumerate(found.layers):
        np.testing.assert_allclose(layer.keys, present[:, number, 0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(layer.values, present[:, number, 1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.logits, answers["logits_7"], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "name", ["gpt2", "upcast", "unscaled", "scaled by layer", "post-norm", "one head"]
)
def test_weights_times_values_are_the_head_outputs_that_the_model_passed_on(
    tiny_config: GPT2Config, name: str
) -> None:
    for layer in trace(
        make_model(replace(tiny_config, **VARIANTS[name])), torch.arange(32)[None]
    ).layers:
        torch.testing.assert_close(
            layer.weights @ layer.values, layer.head_outputs, rtol=0, atol=1e-5
        )
        torch.testing.assert_close(
            layer.weights.sum(dim=-1), torch.ones(1, layer.weights.shape[1], 32)
        )
        assert not layer.weights.triu(1).any()


def test_a_trace_changes_nothing_and_leaves_nothing_behind(tiny_model: GPT2) -> None:
    ids = torch.arange(20)[None]
    tiny_model.train()
    with torch.no_grad():
        tiny_model.eval()
        expected = tiny_model(ids)
        tiny_model.train()
    assert torch.equal(trace(tiny_model, ids).logits, expected)  # dropout was off
    assert tiny_model.training
    with pytest.raises(ContextLengthError):
        trace(tiny_model, torch.zeros(1, 33, dtype=torch.long))
    with pytest.raises(ConfigError, match=r"found the shape \(3,\)"):
        trace(tiny_model, torch.arange(3))
    assert not any(module._forward_hooks for module in tiny_model.modules())


def test_the_neurons_can_be_left_out(tiny_model: GPT2) -> None:
    ids = torch.arange(5)[None]
    whole, part = trace(tiny_model, ids), trace(tiny_model, ids, neurons=False)
    assert part.layers[0].mlp_before.shape == part.layers[0].mlp_after.shape == (1, 5, 0)
    assert torch.equal(part.layers[1].mlp_update, whole.layers[1].mlp_update)


def test_half_precision_and_int8_and_adapted_models_can_be_traced(tiny_model: GPT2) -> None:
    ids = torch.arange(9)[None]
    whole = trace(tiny_model, ids)
    int8 = Int8GPT2(tiny_model.config).eval()
    int8.load_state_dict(
        dict(quantized_state(tiny_model.config, tiny_model.state_dict().__getitem__)), assign=True
    )
    half = make_model(
        replace(tiny_model.config, reorder_and_upcast_attn=True), dtype=torch.bfloat16
    )
    adapted = make_model(tiny_model.config)
    add_adapters(adapted, 2)
    for model, bound in ((int8, 0.1), (half, 0.1), (adapted, 1e-6)):
        found = trace(model, ids).layers[1]
        assert found.weights.dtype == torch.float32
        torch.testing.assert_close(found.weights, whole.layers[1].weights, rtol=0, atol=bound)
