"""Our dropout on a CPU computes what torch's does, with another stream of random numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2kit.dropout import dropout


@pytest.mark.parametrize("p", [0.1, 0.25, 0.9])
def test_a_share_p_of_the_elements_becomes_zero_and_the_others_grow(p: float) -> None:
    torch.manual_seed(1)
    x = torch.full((1000, 1001), 3.0, requires_grad=True)
    y = dropout(x, p, True)
    y.sum().backward()  # type: ignore[no-untyped-call]
    assert float((y == 0).float().mean()) == pytest.approx(p, abs=0.002)
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 3 / (1 - p)))
    assert x.grad is not None
    torch.testing.assert_close(x.grad, (y != 0) / (1 - p))


def test_torchs_seed_decides_what_is_dropped() -> None:
    x = torch.ones(999)
    torch.manual_seed(5)
    first, second = dropout(x, 0.5, True), dropout(x, 0.5, True)
    torch.manual_seed(5)
    assert torch.equal(dropout(x, 0.5, True), first)
    assert not torch.equal(first, second)


def test_nothing_is_dropped_outside_training_or_with_probability_zero() -> None:
    x = torch.ones(999)
    assert torch.equal(dropout(x, 0.5, False), x)
    assert torch.equal(dropout(x, 0.0, True), x)


def test_neighboring_elements_are_dropped_independently() -> None:
    torch.manual_seed(2)
    dropped = dropout(torch.ones(400_000), 0.3, True) == 0
    for distance in (1, 2, 3, 4, 8):  # four elements share one 64-bit random number
        both = (dropped[distance:] & dropped[:-distance]).float().mean()
        assert float(both) == pytest.approx(0.09, abs=0.003)


def test_a_variable_of_the_environment_brings_torchs_own_dropout_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def draw() -> Tensor:
        torch.manual_seed(6)
        return dropout(torch.ones(999), 0.5, True)

    ours = draw()
    monkeypatch.setenv("GPT2KIT_OWN_DROPOUT", "0")
    theirs = draw()
    torch.manual_seed(6)
    assert torch.equal(theirs, F.dropout(torch.ones(999), 0.5, True))
    assert not torch.equal(ours, theirs)
