"""The numbers behind pictures, beside NumPy float64 on the reference's own forward pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_model
from test_model import VARIANTS, weights_of

from gpt2kit import reference
from gpt2kit.config import GPT2Config
from gpt2kit.errors import ConfigError
from gpt2kit.inspection import Trace, trace
from gpt2kit.inspection.measures import active_shares, mlp_input, norms_of, score_spreads

T = 9
WITH_BLOCKS = {name: fields for name, fields in VARIANTS.items() if fields.get("n_layer", 1)}


def observe(config: GPT2Config, **fields: Any) -> tuple[Trace, reference.Notes]:
    """Return the trace of a model in float64, and what the reference notes for the same ids."""
    model = make_model(replace(config, **fields), dtype=torch.float64)
    ids = torch.randint(0, 512, (1, T), generator=torch.Generator().manual_seed(1))
    notes: reference.Notes = {}
    reference.logits(model.config, weights_of(model), ids[0].tolist(), notes)
    return trace(model, ids), notes


@pytest.mark.parametrize("fields", WITH_BLOCKS.values(), ids=WITH_BLOCKS)
def test_norms_equal_the_reference(tiny_config: GPT2Config, fields: dict[str, Any]) -> None:
    seen, notes = observe(tiny_config, **fields)
    config, weights = seen.model.config, weights_of(seen.model)
    for layer in range(config.n_layer):
        if config.norm == "none":
            with pytest.raises(ConfigError, match="does not normalize"):
                norms_of(seen, layer)
            continue
        read = what_norms_read(config, notes, layer)
        found = norms_of(seen, layer)
        assert found.keys() == read.keys()
        for name, norm in found.items():
            x = read[name]
            np.testing.assert_allclose(norm.before[0], x, atol=1e-9)
            expected = reference.norm(config, weights, f"h.{layer}.{name}", x)
            np.testing.assert_allclose(norm.after[0], expected, atol=1e-9)
            centered = x - (x.mean(axis=1, keepdims=True) if config.norm == "layernorm" else 0)
            rooted = np.sqrt((centered**2).mean(axis=1, keepdims=True) + config.layer_norm_epsilon)
            np.testing.assert_allclose(norm.normalized[0], centered / rooted, atol=1e-9)


def what_norms_read(
    config: GPT2Config, notes: reference.Notes, layer: int
) -> dict[str, reference.Array]:
    """Return what the norms of a layer read, (T, C) each, from what the reference noted."""
    of_layer = {name: notes[f"{layer}.{name}"] for name in ("before", "middle", "attention_update")}
    read = {"ln_1": of_layer["before"], "ln_2": of_layer["middle"]}
    if not config.norm_first:
        updates = {"ln_1": of_layer["attention_update"], "ln_2": notes[f"{layer}.mlp_update"]}
        read = {name: read[name] * config.residual + updates[name] for name in read}
    return {name: x for name, x in read.items() if name == "ln_1" or config.mlp != "none"}


@pytest.mark.parametrize("name", ["gpt2", "post-norm", "no norm", "no residual", "attention only"])
def test_what_an_mlp_reads_equals_the_reference(tiny_config: GPT2Config, name: str) -> None:
    seen, notes = observe(tiny_config, **VARIANTS[name])
    config, weights = seen.model.config, weights_of(seen.model)
    for layer in range(config.n_layer):
        if config.mlp == "none":
            with pytest.raises(ConfigError, match="no MLP"):
                mlp_input(seen, layer)
            continue
        middle = notes[f"{layer}.middle"]
        normalizes = config.norm_first and config.norm != "none"
        expected = (
            reference.norm(config, weights, f"h.{layer}.ln_2", middle) if normalizes else middle
        )
        np.testing.assert_allclose(mlp_input(seen, layer)[0], expected, atol=1e-9)


@pytest.mark.parametrize("name", ["gpt2", "swiglu", "narrow mlp"])
def test_active_shares_count_positions_above_zero(tiny_config: GPT2Config, name: str) -> None:
    seen, notes = observe(tiny_config, **VARIANTS[name])
    before = np.stack([notes[f"{n}.mlp_before"] for n in range(len(seen.layers))])  # (L, T, I)
    np.testing.assert_allclose(active_shares(seen), (before > 0).mean(axis=1), rtol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "unscaled", "scaled by layer", "one head"])
def test_scores_are_spread_as_their_definition_says(tiny_config: GPT2Config, name: str) -> None:
    seen, notes = observe(tiny_config, **VARIANTS[name])
    found, D = score_spreads(seen), seen.model.config.head_size
    visible = np.tril(np.ones((T, T), dtype=bool))
    for layer in range(len(seen.layers)):
        for head in range(seen.model.config.n_head):
            q, k = (notes[f"{layer}.{part}"][head] for part in ("queries", "keys"))
            own = notes[f"{layer}.scores"][head]
            for which, scores in (("plain", q @ k.T), ("divided", q @ k.T / D**0.5), ("own", own)):
                variance = float(found[which].variance[layer, head])
                assert variance == pytest.approx(scores[visible].var(), rel=1e-9)
                weights = reference.softmax(np.where(visible, scores, -np.inf))
                largest = float(found[which].largest[layer, head])
                assert largest == pytest.approx(weights[1:].max(axis=1).mean(), rel=1e-9)
    ratio = found["plain"].variance / found["divided"].variance
    np.testing.assert_allclose(ratio, D)  # the root of D divides the variance by D


def test_a_measurement_leaves_the_model_as_it_was(tiny_config: GPT2Config) -> None:
    seen, _ = observe(tiny_config)
    seen.model.train()
    before = mlp_input(seen, 0)
    assert torch.equal(before, mlp_input(seen, 0))  # dropout was off
    assert seen.model.training
    assert not any(module._forward_pre_hooks for module in seen.model.modules())


def test_what_a_model_does_not_have_is_named(tiny_config: GPT2Config) -> None:
    seen, _ = observe(tiny_config)
    n = tiny_config.n_layer
    for measure in (norms_of, mlp_input):
        with pytest.raises(ConfigError, match=f"layer is {n}, expected 0 to {n - 1}"):
            measure(seen, n)
    with pytest.raises(ConfigError, match="the text has 1 token"):
        score_spreads(trace(seen.model, torch.zeros(1, 1, dtype=torch.long)))
    empty, _ = observe(tiny_config, n_layer=0)
    for measure_all in (active_shares, score_spreads):
        with pytest.raises(ConfigError, match="no layers"):
            measure_all(empty)
