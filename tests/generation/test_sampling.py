"""Choosing one token: each filter on four numbers, and the whole on many draws."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN

from gpt2kit.errors import ConfigError, GenerationError
from gpt2kit.generation.request import Sampling
from gpt2kit.generation.sampling import (
    adjusted,
    candidates,
    draw,
    full_distribution,
    keep_min_p,
    keep_top_p,
    log_probabilities,
    sample,
    sample_generator,
    top_log_probabilities,
)

LOGITS = torch.tensor([[0.5, 0.2, 0.25, 0.05]]).log()  # probabilities, as logits


def generators(n: int, seed: int = 0) -> list[torch.Generator]:
    return [sample_generator(seed, row) for row in range(n)]


def shares(logits: torch.Tensor, sampling: Sampling, n: int = 4000) -> list[float]:
    """Return how often each token of one row is chosen."""
    chosen = sample(logits.expand(n, -1), sampling, generators(n))
    return (torch.bincount(torch.tensor(chosen), minlength=logits.shape[1]) / n).tolist()


def test_temperature_zero_takes_the_most_likely_token() -> None:
    assert sample(
        torch.tensor([[1.0, 3.0, 2.0], [9.0, 3.0, 2.0]]), Sampling(temperature=0), generators(2)
    ) == [1, 0]


def test_a_tiny_temperature_is_greedy_and_not_a_nan() -> None:
    for temperature in (1e-38, 1e-46, 1e-320):  # float32 has no 1e-46: it divided 0 by 0
        assert sample(
            torch.tensor([[1.0, 3.0, 2.0]]), Sampling(temperature=temperature), generators(1)
        ) == [1]


@pytest.mark.parametrize("temperature", [1e39, 1e299])
def test_a_huge_temperature_is_uniform_and_never_draws_what_is_forbidden(
    temperature: float,
) -> None:
    """It was infinite in float32, a forbidden token became NaN, and one request ended a server."""
    logits = torch.tensor([[8.0, -math.inf, 0.0, -math.inf]])
    found = full_distribution(logits, Sampling(temperature=temperature, top_k=0))
    assert found.tolist() == [[0.5, 0.0, 0.5, 0.0]]


def test_without_filters_tokens_come_as_often_as_they_are_likely() -> None:
    np.testing.assert_allclose(shares(LOGITS, Sampling(top_k=0)), [0.5, 0.2, 0.25, 0.05], atol=0.03)


def test_temperature_sharpens_and_flattens() -> None:
    squared = np.array([0.5, 0.2, 0.25, 0.05]) ** 2
    np.testing.assert_allclose(
        shares(LOGITS, Sampling(top_k=0, temperature=0.5)), squared / squared.sum(), atol=0.03
    )


def test_top_k_keeps_exactly_k_even_among_equals() -> None:
    found = shares(torch.zeros(1, 6), Sampling(top_k=2))
    assert sum(share > 0 for share in found) == 2


def test_top_k_beyond_the_vocabulary_keeps_all() -> None:
    assert all(share > 0 for share in shares(LOGITS, Sampling(top_k=50)))


def test_top_p_keeps_the_token_that_crosses_p() -> None:
    # 0.5 alone does not reach 0.6; with 0.25 it is crossed.
    np.testing.assert_allclose(
        shares(LOGITS, Sampling(top_k=0, top_p=0.6)), [2 / 3, 0, 1 / 3, 0], atol=0.03
    )


@pytest.mark.parametrize("share", [1e-9, 1e-300])
def test_a_tiny_share_keeps_one_token(share: float) -> None:
    """A share that float32 rounds to 0 dropped all tokens: one request ended a whole server."""
    assert shares(LOGITS, Sampling(top_p=share)) == [1, 0, 0, 0]
    # The entropy is 1.17, and -log 0.25 is 1.39.
    assert shares(LOGITS, Sampling(typical_p=share)) == [0, 0, 1, 0]


def test_min_p_drops_what_is_unlikely_beside_the_most_likely() -> None:
    np.testing.assert_allclose(
        shares(LOGITS, Sampling(min_p=0.45)), [2 / 3, 0, 1 / 3, 0], atol=0.03
    )


def test_typical_p_keeps_the_tokens_nearest_to_the_entropy_as_numpy_finds_them() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (30, 20))
    for typical_p, top_k in itertools.product((0.2, 0.7, 0.95), (0, 6)):
        found = full_distribution(
            torch.tensor(logits), Sampling(top_k=top_k, typical_p=typical_p)
        ).numpy()
        for own, row in zip(found, logits, strict=True):
            p = np.exp(row) * (row >= np.sort(row)[-(top_k or 20)])
            p /= p.sum()
            kept = p[p > 0]
            entropy = -(kept * np.log(kept)).sum()
            expected = np.zeros(20)
            for token in np.argsort(np.abs(-np.log(np.where(p > 0, p, 1e-300)) - entropy)):
                if expected.sum() < typical_p:
                    expected[token] = p[token]
            np.testing.assert_allclose(own, expected / expected.sum(), atol=1e-12)


def test_filters_act_in_their_documented_order() -> None:
    # top-k first: of the two left, 0.5 is 2/3 and reaches top_p 0.6 alone. In the other order both
    # would stay.
    assert shares(LOGITS, Sampling(top_k=2, top_p=0.6)) == [1, 0, 0, 0]
    # temperature first: flattened to nearly equal shares, 0.6 needs three of the four.
    assert (
        sum(share > 0 for share in shares(LOGITS, Sampling(top_k=0, temperature=100.0, top_p=0.6)))
        == 3
    )


def test_the_repetition_penalty_pushes_seen_tokens_down_on_both_sides_of_zero() -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0]])
    found = adjusted(logits, Sampling(repetition_penalty=2.0), [[0, 1, 1]], [{}])
    assert found.tolist() == [[1.0, -4.0, 2.0]]


def test_presence_and_frequency_penalties_count_what_was_generated() -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0], [1.0, 1.0, 1.0]])
    sampling = Sampling(presence_penalty=0.25, frequency_penalty=0.5)
    found = adjusted(logits, sampling, [[2, 0, 1, 1], [1]], [{0: 1, 1: 2}, {}])
    assert found.tolist() == [[1.25, -3.25, 2.0], [1.0, 1.0, 1.0]]
    assert logits.tolist() == [[2.0, -2.0, 2.0], [1.0, 1.0, 1.0]]


def test_a_bias_lifts_and_bans_tokens_also_for_greedy_decoding() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    for bias, expected in (((0, 50),), 0), (((0, -50), (1, -100)), 2), (((1, -100), (2, -100)), 0):
        for temperature in (0, 1):
            sampling = Sampling(temperature=temperature, logit_bias=bias)
            changed = adjusted(logits, sampling, [[]], [{}])
            assert sample(changed, sampling, generators(1)) == [expected]


def test_bias_and_penalties_are_those_of_numpy_in_float64() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, (20, 50))
    prompts = rng.integers(0, 50, (20, 12)).tolist()
    new = rng.integers(0, 50, (20, 30)).tolist()
    bias = {int(token): float(rng.uniform(-100, 100)) for token in range(0, 50, 7)}
    for repetition, presence, frequency in itertools.product((1, 1.4), (0, -2, 0.3), (0, 2, -0.7)):
        sampling = Sampling(
            repetition_penalty=repetition,
            presence_penalty=presence,
            frequency_penalty=frequency,
            logit_bias=bias,  # type: ignore[arg-type]
        )
        expected = logits.copy()
        for row, token in np.ndindex(20, 50):
            value = logits[row, token] + bias.get(token, 0)
            if token in prompts[row] + new[row]:
                value = value / repetition if value > 0 else value * repetition
            times = new[row].count(token)
            expected[row, token] = value - times * frequency - (presence if times else 0)
        histories = [a + b for a, b in zip(prompts, new, strict=True)]
        counts = [Counter(row) for row in new]
        for dtype, tolerance in (torch.float64, 1e-13), (torch.float32, 1e-4):
            found = adjusted(torch.tensor(logits, dtype=dtype), sampling, histories, counts)
            np.testing.assert_allclose(found.numpy(), expected, atol=tolerance)


def test_a_bias_beyond_the_logits_is_refused_and_a_prompt_may_hold_padding() -> None:
    logits = torch.tensor([[1.0, 2.0]])
    with pytest.raises(ConfigError, match="expected ids from 0 to 1"):
        adjusted(logits, Sampling(logit_bias=((2, 1.0),)), [[0]], [{}])
    found = adjusted(logits, Sampling(repetition_penalty=2), [[0, 7]], [{}])
    assert found.tolist() == [[0.5, 2.0]]


def test_alternatives_are_those_of_a_softmax_in_numpy_with_lower_ids_first() -> None:
    logits = torch.randint(0, 9, (6, 40), generator=torch.Generator().manual_seed(0)).float()
    exact = logits.numpy().astype(np.float64)
    exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
    for k in (1, 5, 39, 40, 100):
        found = top_log_probabilities(logits, k)
        for row in range(6):
            ids = [token for token, _ in found[row]]
            assert ids == sorted(range(40), key=lambda token: (-logits[row, token], token))[:k]
            np.testing.assert_allclose([v for _, v in found[row]], exact[row, ids], atol=1e-5)
            for token, value in found[row]:
                assert log_probabilities(logits[row : row + 1], [token]) == [value]


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    probabilities = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0]]).expand(2000, -1)
    assert set(draw(probabilities, generators(2000))) == {1, 3}


def test_a_row_draws_from_its_own_stream_alone_or_beside_others() -> None:
    logits = torch.randn(8, 100, generator=torch.Generator().manual_seed(0))
    together = sample(logits, Sampling(), generators(8, seed=5))
    alone = [
        sample(logits[row : row + 1], Sampling(), [sample_generator(5, row)])[0] for row in range(8)
    ]
    assert together == alone


def test_samples_of_one_seed_differ_from_each_other() -> None:
    firsts = {
        torch.rand(1, generator=sample_generator(seed, row)).item()
        for seed in range(20)
        for row in range(20)
    }
    assert len(firsts) == 400


BROKEN = {
    "nan": [0.5, math.nan, 0.25],
    "nan first": [math.nan, 0.5, 0.25],
    "all nan": [math.nan] * 3,
    "all -inf": [-math.inf] * 3,
    "+inf": [0.5, 0.25, math.inf],
    "+inf beside -inf": [math.inf, -math.inf, -math.inf],
}
ADJUSTMENTS: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.5},
    {"frequency_penalty": 0.5, "logit_bias": {0: 100, 1: -100}},
]
COMBINATIONS = [
    Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, **adjustments)
    for temperature, top_k, top_p, min_p, adjustments in itertools.product(
        (0, 1, 1e-40), (0, 1, 2), (1.0, 0.9), (0.0, 0.1), ADJUSTMENTS
    )
]


@pytest.mark.parametrize("logits", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("broken_row", [0, 2])
def test_broken_logits_are_an_error_with_every_combination_of_options(
    logits: list[float], broken_row: int
) -> None:
    # A comparison with NaN is false, so top-p and min-p turned every probability of the row into 0,
    # and a token was drawn anyway.
    rows = [[1.0, 2.0, 3.0] for _ in range(3)]
    rows[broken_row] = logits
    for dtype in (torch.float32, torch.float64):
        for sampling in COMBINATIONS:
            changed = torch.tensor(rows, dtype=dtype)
            changed = adjusted(changed, sampling, [[0, 2]] * 3, [{2: 1}] * 3)
            with pytest.raises(GenerationError, match="not finite"):
                sample(changed, sampling, generators(3))


@pytest.mark.parametrize("total", [0.0, math.nan, math.inf])
def test_a_row_whose_sum_is_zero_or_not_finite_is_an_error(total: float) -> None:
    with pytest.raises(GenerationError, match="not finite"):
        draw(torch.tensor([[0.5, 0.5], [0.0, total]]), generators(2))


def test_float64_logits_are_not_narrowed() -> None:
    # They became float32, in which the first two are equal, so the first won, and the third is
    # infinite.
    logits = torch.tensor([[1.0, 1.0 + 1e-12, -1e300]], dtype=torch.float64)
    assert sample(logits, Sampling(temperature=0), generators(1)) == [1]
    changed = adjusted(logits, Sampling(repetition_penalty=1.5), [[2]], [{}])
    assert changed.dtype == torch.float64
    assert changed[0, 1] - changed[0, 0] > 0
    assert candidates(logits, 1, sorted_=False)[1].tolist() == [[1]]
    probabilities = full_distribution(logits, Sampling(top_k=0, temperature=1e-12))
    assert probabilities[0, 1] / probabilities[0, 0] == pytest.approx(math.e, rel=1e-3)


def test_top_k_keeps_the_first_of_equal_logits_whatever_the_others_are() -> None:
    logits = torch.randint(
        0, 60, (3, 5000), generator=torch.Generator().manual_seed(0)
    ).float()  # each value about 80 times
    values, ids = candidates(logits, 40, sorted_=False)
    for row in range(3):
        assert (
            ids[row].tolist()
            == sorted(range(5000), key=lambda token: (-logits[row, token], token))[:40]
        )
        without = logits[row].where(
            logits[row] >= values[row, -1], -torch.inf
        )  # as a step gives them that computes the largest only
        assert torch.equal(candidates(without[None], 40, sorted_=False)[1][0], ids[row])


def test_the_most_likely_tokens_are_those_of_a_stable_sort() -> None:
    rng = torch.Generator().manual_seed(1)
    for trial in range(60):
        B, V = (
            int(torch.randint(low, high, (1,), generator=rng)) for low, high in ((1, 5), (3, 60))
        )
        logits = torch.randint(-3, 3, (B, V), generator=rng).float()
        if trial % 3 == 0:
            logits[torch.rand(B, V, generator=rng) < 0.3] = -torch.inf
        if trial % 5 == 0:
            logits[0] = -torch.inf
        ordered = logits.sort(dim=-1, descending=True, stable=True)
        for k in range(1, V):
            values, ids = candidates(logits, k, sorted_=True)
            assert torch.equal(values, ordered.values[:, :k])
            assert torch.equal(ids, ordered.indices[:, :k])


def test_equal_logits_do_not_make_alternatives_slow() -> None:
    # Rows with equals among their largest, as bfloat16 has in most, were sorted as a whole: it took
    # 26 times as long, and made scoring a prompt with alternatives four times as slow as without.
    fine = torch.randn(64, 50_257, generator=torch.Generator().manual_seed(0))

    def seconds(logits: torch.Tensor) -> float:
        taken = []
        for _ in range(3):
            start = time.thread_time()
            top_log_probabilities(logits, 5)
            taken.append(time.thread_time() - start)
        return min(taken)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # all of the work is in the thread whose time is measured
    try:
        assert seconds(fine.bfloat16().float()) < 6 * seconds(fine)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("k", [1, 2, 5, 40, 50])
def test_top_k_keeps_openais_tokens_and_breaks_their_ties(k: int) -> None:
    answers = np.load(GOLDEN / "tf" / "sample-filters" / "reference.npz")
    logits = torch.from_numpy(answers["logits"])
    theirs = torch.from_numpy(answers[f"top_k_{k}"]) > -1e9
    ours = torch.zeros_like(theirs).scatter(1, candidates(logits, k, sorted_=False)[1], True)
    assert (ours.sum(dim=1) == k).all()
    assert not (ours & ~theirs).any()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.99])
def test_top_p_keeps_openais_tokens_and_the_one_that_crosses_p(p: float) -> None:
    answers = np.load(GOLDEN / "tf" / "sample-filters" / "reference.npz")
    logits = torch.from_numpy(answers["logits"])
    theirs = torch.from_numpy(answers[f"top_p_{p}"]) > -1e9
    ordered, ids = candidates(logits, 0, sorted_=True)
    ours = torch.zeros_like(theirs).scatter(1, ids, keep_top_p(ordered.softmax(dim=-1), p) > 0)
    smallest = logits.masked_fill(~ours, float("inf")).amin(dim=1, keepdim=True)
    assert ((ours & ~theirs).sum(dim=1) <= 1).all()
    assert (
        logits[theirs & ~ours] == smallest.expand_as(logits)[theirs & ~ours]
    ).all()  # theirs keeps all equals at the edge


def test_keep_min_p_never_drops_the_most_likely() -> None:
    assert (keep_min_p(torch.tensor([[0.25, 0.25, 0.5]]), 1.0) > 0).tolist() == [
        [False, False, True]
    ]
