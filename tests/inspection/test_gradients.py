"""Norms of gradients, beside differences of the NumPy reference's loss and torch's gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_model
from test_model import weights_of

from gpt2kit import reference
from gpt2kit.config import GPT2Config
from gpt2kit.errors import ConfigError
from gpt2kit.inspection import trace
from gpt2kit.inspection.gradients import gradient_norms
from gpt2kit.lora import add_adapters
from gpt2kit.model import GPT2

IDS = [72, 256, 10, 1, 300]
SMALL = GPT2Config(n_vocab=512, n_ctx=8, n_embd=8, n_head=2, n_layer=2)
VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "no residual": {"residual": False},
    "post-norm": {"norm_first": False, "norm": "rmsnorm"},
    "attention only": {"mlp": "none", "norm": "none", "tie_word_embeddings": False},
}


def loss_of(config: GPT2Config, weights: dict[str, Any]) -> float:
    """Return the mean loss of predicting IDS, from the reference."""
    logits = reference.logits(config, weights, IDS[:-1])  # (T, V)
    logprobs = np.log(reference.softmax(logits))
    return float(-logprobs[np.arange(len(logits)), IDS[1:]].mean())


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_the_gradient_at_the_start_is_how_the_references_loss_changes(
    fields: dict[str, Any],
) -> None:
    # The residual stream starts as the sum of the embeddings, so its gradient is that of wpe.
    model = make_model(replace(SMALL, **fields), dtype=torch.float64)
    found, step = gradient_norms(model, torch.tensor([IDS])), 1e-5
    for residual, norms in found.items():
        config, weights = replace(model.config, residual=residual), dict(weights_of(model))
        assert norms.loss == pytest.approx(loss_of(config, weights), rel=1e-9)
        gradient = np.zeros((len(IDS) - 1, SMALL.n_embd))
        for cell in np.ndindex(gradient.shape):
            losses = []
            for sign in (1, -1):
                moved = weights["wpe.weight"].copy()
                moved[cell] += sign * step
                losses.append(loss_of(config, {**weights, "wpe.weight": moved}))
            gradient[cell] = (losses[0] - losses[1]) / (2 * step)
        assert float(norms.stream[0]) == pytest.approx(np.linalg.norm(gradient), rel=1e-6)


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_gradients_of_weights_and_of_the_end_are_torchs(fields: dict[str, Any]) -> None:
    model = make_model(replace(SMALL, **fields), dtype=torch.float64)
    ids = torch.tensor([IDS])
    for residual, norms in gradient_norms(model, ids).items():
        other = GPT2(replace(model.config, residual=residual)).double().eval()
        other.load_state_dict(model.state_dict())
        F.cross_entropy(other(ids)[0, :-1], ids[0, 1:]).backward()  # type: ignore[no-untyped-call]
        for layer, block in enumerate(other.h):
            squares = [
                float(p.grad.square().sum()) for p in block.parameters() if p.grad is not None
            ]
            assert float(norms.weights[layer]) == pytest.approx(sum(squares) ** 0.5, rel=1e-9)
        final = trace(other, ids[:, :-1]).final.requires_grad_()
        loss = F.cross_entropy(other.head(other.ln_f(final))[0], ids[0, 1:])
        (gradient,) = torch.autograd.grad(loss, final)
        assert norms.stream.shape == (SMALL.n_layer + 1,)
        assert float(norms.stream[-1]) == pytest.approx(float(gradient.norm()), rel=1e-9)


def test_the_model_is_left_as_it_was_and_half_precision_is_widened() -> None:
    model = make_model(SMALL).bfloat16().train()
    with torch.no_grad():
        found = gradient_norms(model, torch.tensor([IDS]))
    assert found[True].stream.dtype == torch.float32
    assert model.training
    assert model.dtype == torch.bfloat16
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_large_vocabulary_has_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    # The loss in pieces gives its gradient once; it was asked for twice.
    model, ids = make_model(SMALL), torch.tensor([IDS])
    expected = gradient_norms(model, ids)[True]
    monkeypatch.setattr("gpt2kit.training.loss.FEW_LOGITS", 1)
    found = gradient_norms(model, ids)[True]
    torch.testing.assert_close(found.stream, expected.stream)
    torch.testing.assert_close(found.weights, expected.weights)


def test_a_model_or_text_without_gradients_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected 2 or more"):
        gradient_norms(make_model(SMALL), torch.tensor([IDS[:1]]))
    with pytest.raises(ConfigError, match="no layers"):
        gradient_norms(make_model(replace(SMALL, n_layer=0)), torch.tensor([IDS]))
    adapted = make_model(SMALL)
    add_adapters(adapted, 2)
    with pytest.raises(ConfigError, match="merge its adapters"):
        gradient_norms(adapted, torch.tensor([IDS]))
