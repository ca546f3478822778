"""Our attention on a CPU computes what torch's does, with another stream of random numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2kit import attention
from gpt2kit.attention import scaled_dot_product_attention


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


@pytest.mark.parametrize("shape", [(2, 1, 5, 5), (5, 5)])
def test_a_mask_hides_keys_from_queries(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5
    mask |= torch.eye(5, dtype=torch.bool)  # each token sees itself
    kept = mask_of_attention(0.4, seed=3)
    q, k, v = queries_keys_values()
    torch.manual_seed(3)
    ours = scaled_dot_product_attention(q, k, v, mask, dropout_p=0.4)
    scores = (q @ k.mT / math.sqrt(4)).masked_fill(~mask, -torch.inf)
    theirs = (scores.softmax(-1) * kept / 0.6) @ v
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours.square().sum(), (q, k, v)),
        torch.autograd.grad(theirs.square().sum(), (q, k, v)),
    )


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


def test_a_few_heads_at_a_time_give_the_same_as_all_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = []
    for heads in (1, 2, 3):
        monkeypatch.setattr(attention, "WEIGHTS_AT_ONCE", heads * 5 * 5)
        q, k, v = queries_keys_values()
        y = scaled_dot_product_attention(q, k, v, dropout_p=1e-9, is_causal=True)
        results.append([y, *torch.autograd.grad(y.square().sum(), (q, k, v))])
    for others in results[1:]:
        torch.testing.assert_close(others, results[0])


@pytest.mark.parametrize("size", [1, 3])  # of queries and keys: small and large scores
def test_attention_in_bfloat16_is_as_exact_as_torchs(size: float) -> None:
    generator = torch.Generator().manual_seed(7)
    rounded = [
        (torch.randn((2, 2, 70, 16), generator=generator) * each).bfloat16()
        for each in (size, size, 1)
    ]
    weights = torch.randn((2, 2, 70, 16), generator=generator).bfloat16()

    def results(attend: Any, dtype: torch.dtype, **dropout: float) -> list[Tensor]:
        """Return the output and the gradients, in float64."""
        inputs = [x.to(dtype).requires_grad_() for x in rounded]
        y = attend(*inputs, is_causal=True, **dropout)
        grads = torch.autograd.grad((y * weights.to(dtype)).sum(), inputs)
        return [x.detach().double() for x in (y, *grads)]

    exact = results(F.scaled_dot_product_attention, torch.float64)
    ours = results(scaled_dot_product_attention, torch.bfloat16, dropout_p=1e-9)  # drops nothing
    torchs = results(F.scaled_dot_product_attention, torch.bfloat16)
    assert not torch.equal(ours[0], torchs[0])  # it is not torch's function that was called
    for our, their, right in zip(ours, torchs, exact, strict=True):
        assert (our - right).norm() < 1.4 * (their - right).norm()


def test_a_variable_of_the_environment_brings_torchs_own_attention_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def draw(attend: Any) -> Tensor:
        q, k, v = queries_keys_values()
        torch.manual_seed(6)
        return attend(q, k, v, dropout_p=0.5)  # type: ignore[no-any-return]

    ours = draw(scaled_dot_product_attention)
    monkeypatch.setenv("GPT2KIT_OWN_DROPOUT", "0")
    theirs = draw(scaled_dot_product_attention)
    assert torch.equal(theirs, draw(F.scaled_dot_product_attention))
    assert not torch.equal(ours, theirs)
