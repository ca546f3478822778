"""Dropout on a processor is torch's, but for the stream of random numbers."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2kit.dropout import dropout, scaled_dot_product_attention


def queries_keys_values(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn((2, 3, 5, 4), generator=generator, dtype=dtype).requires_grad_()
        for _ in range(3)
    ]


@pytest.mark.parametrize("p", [0.1, 0.25, 0.9])
def test_that_share_of_the_elements_becomes_zero_and_the_others_larger(p: float) -> None:
    torch.manual_seed(1)
    x = torch.full((1000, 1001), 3.0, requires_grad=True)
    y = dropout(x, p, True)
    y.sum().backward()  # type: ignore[no-untyped-call]
    assert float((y == 0).float().mean()) == pytest.approx(p, abs=0.002)
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 3 / (1 - p)))
    assert x.grad is not None
    torch.testing.assert_close(x.grad, (y != 0) / (1 - p))


def test_what_is_dropped_follows_torchs_random_stream_and_nothing_happens_outside_of_training() -> (
    None
):
    x = torch.ones(999)
    torch.manual_seed(5)
    first, second = dropout(x, 0.5, True), dropout(x, 0.5, True)
    torch.manual_seed(5)
    assert torch.equal(dropout(x, 0.5, True), first)
    assert not torch.equal(first, second)
    assert torch.equal(dropout(x, 0.5, False), x)
    assert torch.equal(dropout(x, 0.0, True), x)


def test_elements_are_dropped_independently_of_their_neighbours() -> None:
    torch.manual_seed(2)
    dropped = dropout(torch.ones(400_000), 0.3, True) == 0
    for distance in (1, 2, 3, 4, 8):  # four masks come from one random number
        both = (dropped[distance:] & dropped[:-distance]).float().mean()
        assert float(both) == pytest.approx(0.09, abs=0.003)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_and_its_gradients_are_those_of_the_same_steps_in_torch(
    causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = torch.rand((2, 3, 5, 5), generator=torch.Generator().manual_seed(3)) > 0.4
    monkeypatch.setattr(sys.modules["gpt2kit.dropout"], "_kept", lambda *_: kept)
    q, k, v = queries_keys_values()
    ours = scaled_dot_product_attention(
        q, k, v, attn_mask=None, dropout_p=0.4, is_causal=causal, scale=0.7
    )
    scores = q @ k.transpose(-1, -2) * 0.7
    if causal:
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


def test_attention_without_dropout_is_torchs_and_with_it_so_on_average() -> None:
    q, k, v = queries_keys_values(torch.float32)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5)
    assert torch.equal(
        scaled_dot_product_attention(
            q, k, v, attn_mask=None, dropout_p=0.0, is_causal=True, scale=0.5
        ),
        expected,
    )
    torch.manual_seed(4)
    mean = torch.stack(
        [
            scaled_dot_product_attention(
                q, k, v, attn_mask=None, dropout_p=0.2, is_causal=True, scale=0.5
            )
            for _ in range(4000)
        ]
    ).mean(dim=0)
    torch.testing.assert_close(mean, expected, atol=0.06, rtol=0)
