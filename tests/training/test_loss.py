"""The loss: TensorFlow's values and gradients, in one piece or in several."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from training_builders import small_model

from gpt2kit.checkpoints.load import build_model, open_checkpoint
from gpt2kit.training import loss as loss_module
from gpt2kit.training.loss import PIECEWISE_VARIABLE, NextTokenLoss

GOLDEN = Path(__file__).parents[1] / "golden" / "tf"


def test_the_loss_before_the_first_step_is_that_of_tensorflow() -> None:
    folder = GOLDEN / "micro-adam"
    reference = np.load(folder / "reference.npz")
    initial = np.load(initial_weights())
    model = build_model(open_checkpoint(folder))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensorflow_weight(initial, name, parameter))
    loss = NextTokenLoss(model)(torch.from_numpy(reference["adam_batches"][0]).long())
    assert loss.item() == pytest.approx(float(reference["adam_losses"][0]), abs=2e-5)


def initial_weights() -> Path:
    """Return where the weights before the first step are; they are among the test data only."""
    path = (
        Path(os.environ.get("GPT2KIT_TEST_DATA", "/nowhere"))
        / "tf"
        / "micro-adam"
        / "initial_weights.npz"
    )
    if not path.exists():
        pytest.skip("needs the weights before the first step; set GPT2KIT_TEST_DATA")
    return path


def tensorflow_weight(initial: Any, name: str, like: torch.Tensor) -> torch.Tensor:
    module, _, kind = name.rpartition(".")
    ending = {"wte": "", "wpe": ""}.get(
        module, "/b" if kind == "bias" else "/g" if "ln_" in module else "/w"
    )
    tensor = torch.from_numpy(
        initial[f"model/{module.replace('h.', 'h', 1).replace('.', '/')}{ending}"]
    )
    return tensor.reshape(like.shape) if ending != "/w" else tensor.reshape(tensor.shape[-2:]).T


def test_the_gradients_are_those_of_tensorflow() -> None:
    folder = GOLDEN / "micro-a"
    reference, expected = np.load(folder / "reference.npz"), np.load(folder / "gradients.npz")
    model = build_model(open_checkpoint(folder))
    NextTokenLoss(model)(torch.from_numpy(reference["tokens_ctx"]).long()).backward()
    for name, parameter in model.named_parameters():
        theirs = tensorflow_weight(expected, name, parameter)
        assert parameter.grad is not None
        assert torch.linalg.vector_norm(parameter.grad - theirs) <= 1e-5 * torch.linalg.vector_norm(
            theirs
        ), name


def test_many_logits_are_gone_through_in_pieces_with_the_same_loss_and_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = torch.randint(37, (3, 9), generator=torch.Generator().manual_seed(1))
    found = []
    for few, at_once in ((2**22, 2**26), (1, 100)):
        monkeypatch.setattr(loss_module, "FEW_LOGITS", few)
        monkeypatch.setattr(loss_module, "LOGITS_AT_ONCE", at_once)
        monkeypatch.setattr(loss_module, "LOGITS_IN_CACHE", at_once // 2)
        model = small_model().eval()
        loss = NextTokenLoss(model)(ids)
        loss.backward()
        found.append((loss.detach(), [parameter.grad for parameter in model.parameters()]))
    assert float(found[0][0]) == pytest.approx(float(found[1][0]), abs=1e-6)
    for whole, pieces in zip(found[0][1], found[1][1], strict=True):
        assert whole is not None
        assert pieces is not None
        torch.testing.assert_close(whole, pieces, atol=1e-6, rtol=1e-5)


def test_the_loss_is_the_mean_of_predicting_each_token_from_those_before() -> None:
    model, ids = small_model().eval(), torch.tensor([[3, 1, 4, 1, 5]])
    logits = model(ids[:, :-1])
    by_hand = (
        -sum(
            F.log_softmax(logits[0, position], dim=-1)[ids[0, position + 1]].item()
            for position in range(4)
        )
        / 4
    )
    assert NextTokenLoss(model)(ids).item() == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize("few", [2**22, 1], ids=["whole", "in pieces"])
def test_the_loss_of_a_float64_model_is_float64(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # The logits were rounded to float32.
    monkeypatch.setattr(loss_module, "FEW_LOGITS", few)
    model, ids = small_model().double().eval(), torch.tensor([[3, 1, 4, 1, 5]])
    logprobs = F.log_softmax(model(ids[:, :-1]), dim=-1)  # (1, 4, V)
    expected = -logprobs[0, range(4), ids[0, 1:]].mean()
    loss = NextTokenLoss(model)(ids)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(expected.item(), abs=1e-14)


def test_a_variable_turns_the_piecewise_loss_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_piecewise() -> bool:
        loss = NextTokenLoss(small_model())(torch.tensor([[3, 1, 4]]))
        return "PiecewiseLoss" in type(loss.grad_fn).__name__

    assert not is_piecewise()
    monkeypatch.setattr(loss_module, "FEW_LOGITS", 1)
    assert is_piecewise()
    monkeypatch.setenv(PIECEWISE_VARIABLE, "0")
    assert not is_piecewise()
