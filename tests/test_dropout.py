"""Our dropout on a CPU computes what torch's does, with another stream of random numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2kit.dropout import dropout, scaled_dot_product_attention


def queries_keys_values(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Return three random tensors of shape (2, 3, 5, 4) that require gradients."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn((2, 3, 5, 4), generator=generator, dtype=dtype).requires_grad_()
        for _ in range(3)
    ]


def mask_of_attention(p: float, seed: int) -> Tensor:
    """Return the (2, 3, 5, 5) mask that attention draws after this seed, read off its output."""
    q = torch.zeros(2, 3, 5, 5, dtype=torch.float64)  # equal scores, so all weights are 1 / 5
    values = torch.eye(5, dtype=torch.float64).expand(2, 3, 5, 5)  # the output is the weights
    torch.manual_seed(seed)
    return scaled_dot_product_attention(q, q, values, dropout_p=p) > 0


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


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("scale", [0.7, None])
def test_attention_and_its_gradients_are_those_of_the_same_steps_in_torch(
    is_causal: bool, scale: float | None
) -> None:
    kept = mask_of_attention(0.4, seed=3)
    q, k, v = queries_keys_values()
    torch.manual_seed(3)
    ours = scaled_dot_product_attention(q, k, v, dropout_p=0.4, is_causal=is_causal, scale=scale)
    scores = q @ k.transpose(-1, -2) * (1 / math.sqrt(4) if scale is None else scale)
    if is_causal:
        scores = scores.masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -torch.inf)
    theirs = (scores.softmax(-1) * kept / 0.6) @ v
    torch.testing.assert_close(ours, theirs)
    weights: Any = torch.linspace(-1, 1, ours.numel(), dtype=ours.dtype).view(ours.shape)
    for our_grad, their_grad in zip(
        torch.autograd.grad((ours * weights).sum(), (q, k, v)),
        torch.autograd.grad((theirs * weights).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(our_grad, their_grad)


def test_attention_without_dropout_is_torchs_and_with_dropout_has_the_same_mean() -> None:
    q, k, v = queries_keys_values(torch.float32)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5)
    assert torch.equal(scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5), expected)
    torch.manual_seed(4)
    mean = torch.stack(
        [
            scaled_dot_product_attention(q, k, v, dropout_p=0.2, is_causal=True, scale=0.5)
            for _ in range(4000)
        ]
    ).mean(dim=0)
    torch.testing.assert_close(mean, expected, atol=0.06, rtol=0)


def test_a_variable_of_the_environment_brings_torchs_own_dropout_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def draw() -> tuple[Tensor, Tensor]:
        q, k, v = queries_keys_values()
        torch.manual_seed(6)
        x = dropout(torch.ones(999), 0.5, True)
        return x, scaled_dot_product_attention(q, k, v, dropout_p=0.5)

    ours = draw()
    monkeypatch.setenv("GPT2KIT_OWN_DROPOUT", "0")
    theirs = draw()
    q, k, v = queries_keys_values()
    torch.manual_seed(6)
    assert torch.equal(theirs[0], F.dropout(torch.ones(999), 0.5, True))
    assert torch.equal(theirs[1], F.scaled_dot_product_attention(q, k, v, dropout_p=0.5))
    assert not torch.equal(ours[0], theirs[0])
    assert not torch.equal(ours[1], theirs[1])
