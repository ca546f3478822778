"""Sampling: each rule once more in Python's float64, on logits with equals and extremes.

V vocabulary
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from campaigns.number_cases import Different, Tally
from gpt2kit.errors import GenerationError
from gpt2kit.generation.request import Sampling
from gpt2kit.generation.sampling import (
    adjusted,
    full_distribution,
    log_probabilities,
    sample,
    sample_generator,
    top_log_probabilities,
)
from gpt2kit.generation.stop_texts import StopTexts

UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53, torch.bfloat16: 2.0**-24}


def logits_of(draw: random.Random, V: int, *, largest: float = 3e38) -> Tensor:
    """Draw the logits of one row, (V,)."""
    dtype = draw.choice((torch.float32, torch.float64, torch.bfloat16))
    rng = np.random.default_rng(draw.getrandbits(64))
    drawn = rng.standard_normal(V) * draw.choice((1e-4, 0.5, 3, 30, 1e4))
    kind = draw.choice(("plain", "equals", "all equal", "halves", "extremes"))
    if kind == "equals":
        drawn = rng.choice(drawn[: max(1, V // 3)], V)
    elif kind == "all equal":
        drawn[:] = drawn[0]
    elif kind == "halves":
        drawn = np.rint(drawn) / 2
    elif kind == "extremes":
        drawn[rng.integers(V, size=2)] = draw.choice((-largest, -1e30, 1e30, largest, 1e-40))
    if draw.random() < 0.3 and V > 1:
        drawn[rng.permutation(V)[: draw.randint(1, V - 1)]] = -math.inf
    if draw.random() < 0.03:
        drawn[rng.integers(V)] = draw.choice((math.nan, math.inf))
    return torch.from_numpy(drawn).to(dtype)


def sampling_of(draw: random.Random) -> Sampling:
    """Draw the options that decide from what a token is drawn."""
    return Sampling(
        temperature=draw.choice((0, 1e-40, 0.01, 0.5, 1, 1, 1.7, 50)),
        top_k=draw.choice((0, 0, 1, 2, 3, 5, 40, 1000)),
        top_p=draw.choice((1, 1, 1, 0.5, 0.9, 0.25, 0.75, 1e-9, draw.uniform(0.01, 1))),
        min_p=draw.choice((0, 0, 0, 0.05, 0.5, 1, draw.random())),
        typical_p=draw.choice((1, 1, 1, 0.5, 0.9, 1e-9, draw.uniform(0.01, 1))),
    )


class Restated:
    """The rules of a `Sampling`, on one row of logits.

    ids     the tokens that can be drawn, in the order in which the draw sees them
    shares  their probabilities
    sure    whether no decision was so near that the dtype's rounding could change it
    """

    def __init__(self, logits: list[float], sampling: Sampling, unit: float) -> None:
        self.near = unit * 64 * len(logits)
        self.sure = True
        V = len(logits)
        is_sorted = 0 < sampling.top_k < V or sampling.top_p < 1 or sampling.temperature == 0
        ids = sorted(range(V), key=lambda i: -logits[i]) if is_sorted else list(range(V))
        top_k = 1 if sampling.temperature == 0 else sampling.top_k
        self.ids = ids[:top_k] if top_k else ids
        largest = max(logits)
        temperature = max(sampling.temperature, 1e-30)
        weights = [math.exp((logits[i] - largest) / temperature) for i in self.ids]
        self.error = max(
            (
                abs(logits[i] - largest) / temperature * unit
                for i in self.ids
                if weights[i_of(self.ids, i)]
            ),
            default=0.0,
        )
        self.near += 4 * self.error
        self.shares = [weight / math.fsum(weights) for weight in weights]
        if sampling.top_p < 1:
            self._keep(self.ids, sampling.top_p)
        if sampling.min_p > 0:
            least = sampling.min_p * max(self.shares)
            self._ask(abs(share - least) / least for share in self.shares if sampling.min_p < 1)
            self.shares = [share if share >= least else 0.0 for share in self.shares]
        if sampling.typical_p < 1:
            self._keep_typical(sampling.typical_p)
        total = math.fsum(self.shares)
        self.shares = [share / total for share in self.shares]

    def _ask(self, distances: Any) -> None:
        """Note decisions by how far they are from the other outcome."""
        self.sure &= all(distance > self.near for distance in distances)

    def _keep(self, order: list[int], share: float) -> None:
        """Keep the first tokens in an order that together reach a share."""
        at = {token: i for i, token in enumerate(self.ids)}
        own = [self.shares[at[token]] for token in order]
        before = list(itertools.accumulate(own, initial=0.0))[:-1]
        self._ask(abs(each - share) for each in before[1:])
        for token, each in zip(order[1:], before[1:], strict=True):
            if each >= share:
                self.shares[at[token]] = 0.0

    def _keep_typical(self, typical_p: float) -> None:
        total = math.fsum(self.shares)
        self.shares = [share / total for share in self.shares]
        surprisal = [-math.log(share) if share else math.inf for share in self.shares]
        entropy = math.fsum(-share * math.log(share) for share in self.shares if share)
        off = [abs(each - entropy) for each in surprisal]
        order = sorted(range(len(off)), key=lambda i: off[i])
        neighbors = [(off[i], off[j]) for i, j in itertools.pairwise(order)]
        # Tokens with the same logit are equals in any precision.
        same = [self.shares[i] == self.shares[j] for i, j in itertools.pairwise(order)]
        self._ask(
            (b - a) / (1 + b)
            for (a, b), equal in zip(neighbors, same, strict=True)
            if not equal and b < math.inf
        )
        self._keep([self.ids[i] for i in order], typical_p)


def i_of(ids: list[int], token: int) -> int:
    """Return where a token is in a list."""
    return ids.index(token)


def distribution(draw: random.Random, tally: Tally) -> None:
    """Compare the distribution of a row, and a token drawn from it."""
    logits, sampling = logits_of(draw, draw.choice((1, 2, 5, 12, 60))), sampling_of(draw)
    tally.seen.append(f"{sampling} {logits.tolist()[:12]} {logits.dtype}")
    seed = draw.getrandbits(32)
    numbers = logits.double().tolist()
    if not math.isfinite(max(numbers)) or any(map(math.isnan, numbers)):
        try:
            sample(logits[None], sampling, [sample_generator(seed, 0)])
        except GenerationError:
            tally.refused = True
            tally.comparisons += 1
            return
        raise Different("a token was drawn from logits that are not finite")
    unit = UNIT[logits.dtype]
    expected = Restated(numbers, sampling, unit)
    full = full_distribution(logits[None], sampling)[0].tolist()
    wanted = dict(zip(expected.ids, expected.shares, strict=True))
    if expected.sure:
        tolerance = 64 * unit + 8 * expected.error
        for token, share in enumerate(full):
            own = wanted.get(token, 0.0)
            tiny = own < 1e-37  # may be 0 in float32
            holds = (tiny and share < 2e-37) or abs(share - own) <= tolerance * own + 1e-300
            tally.require(holds, f"token {token} has {share!r}, expected {own!r}")
    chosen = sample(logits[None], sampling, [sample_generator(seed, 0)])[0]
    tally.require(full[chosen] > 0, f"{chosen} was drawn, which cannot be")
    if expected.sure and sampling.temperature > 0:
        u = torch.rand(1, generator=sample_generator(seed, 0), dtype=torch.float64).item()
        ends = list(itertools.accumulate(expected.shares))
        at = expected.ids.index(chosen)
        near = 64 * unit * len(ends) + 8 * expected.error
        holds = ends[at] - expected.shares[at] - near <= u <= ends[at] + near
        tally.require(holds, f"{chosen} was drawn at {u}, expected from {ends[at]}")


def penalties(draw: random.Random, tally: Tally) -> None:
    """Compare bias and penalties; in float64 they are the same bits."""
    V = draw.choice((1, 3, 20))
    B = draw.randint(1, 3)
    rows = [logits_of(draw, V, largest=1e30) for _ in range(B)]
    dtype = draw.choice((torch.float32, torch.float64))
    logits = torch.stack([row.to(dtype) for row in rows])
    sampling = Sampling(
        logit_bias={i: draw.uniform(-100, 100) for i in range(V) if draw.random() < 0.3},  # type: ignore[arg-type]
        repetition_penalty=draw.choice((1, 1.3, 0.5, 1e6, 0.01)),
        presence_penalty=draw.choice((0, 2, -2, 0.3)),
        frequency_penalty=draw.choice((0, 0.7, -1)),
    )
    histories = [draw.choices(range(V + 3), k=draw.randint(0, 9)) for _ in range(B)]
    generated = [Counter(row[draw.randint(0, len(row)) :]) for row in histories]
    found = adjusted(logits, sampling, histories, generated)
    for b in range(B):
        expected, sizes = [], []
        for token, value in enumerate(logits[b].tolist()):
            size = abs(value)
            bias = dict(sampling.logit_bias).get(token, 0.0)
            value += bias
            size += abs(bias)
            if token in histories[b]:
                penalty = sampling.repetition_penalty
                value = value / penalty if value > 0 else value * penalty
                size *= max(penalty, 1 / penalty)
            if token in generated[b]:
                lower = generated[b][token] * sampling.frequency_penalty
                value -= lower + sampling.presence_penalty
                size += 40
            expected.append(value)
            sizes.append(size)
        own = found[b].double().numpy()
        if dtype == torch.float64:
            tally.same_bits(own, np.array(expected), f"{sampling} {histories[b]}")
            continue
        wanted = np.array(expected)
        wanted[~np.isfinite(own)] = np.where(np.isfinite(wanted), np.inf, wanted)[~np.isfinite(own)]
        steps = torch.finfo(dtype).tiny * torch.finfo(dtype).eps  # between numbers near 0
        tolerance = 4 * UNIT[dtype] * np.nan_to_num(np.array(sizes), posinf=0.0) + steps
        tally.close(own, wanted, tolerance, f"{sampling} {histories[b]}")


def logprobs(draw: random.Random, tally: Tally) -> None:
    """Compare log-probabilities, and which tokens are the likeliest."""
    V = draw.choice((1, 2, 20, 60))
    logits = logits_of(draw, V, largest=1e30)
    numbers = logits.double().tolist()
    if not math.isfinite(max(numbers)) or any(map(math.isnan, numbers)):
        return
    k, largest = draw.randint(1, V), max(numbers)
    total = largest + math.log(math.fsum(math.exp(each - largest) for each in numbers))
    found = top_log_probabilities(logits[None], k)[0]
    order = sorted(range(V), key=lambda i: -numbers[i])[:k]
    tally.equal([token for token, _ in found], order, f"the likeliest of {numbers}")
    for token, value in found:
        expected = numbers[token] - total
        tolerance = 8 * UNIT[logits.dtype] * (abs(numbers[token]) + abs(total) + 8)
        holds = value == expected or abs(value - expected) <= tolerance
        tally.require(holds, f"{token} has {value!r}, expected {expected!r}")
        tally.equal(log_probabilities(logits[None], [token]), [value], f"{token} alone")


def stops(draw: random.Random, tally: Tally) -> None:
    """Compare what is shown of a text, piece by piece, with a search in the whole of it."""
    alphabet = draw.choice(("ab", "abc", "aé \n"))
    stops = [
        "".join(draw.choices(alphabet, k=draw.randint(1, 4))) for _ in range(draw.randint(1, 3))
    ]
    shown, text, n_free = StopTexts(stops), "", draw.choice((0, 0, 2))
    out, expected = "", None
    for number in range(draw.randint(1, 12)):
        piece = "".join(draw.choices(alphabet, k=draw.randint(0, 3)))
        text, before = text + piece, len(text)
        may_stop = number >= n_free
        out += shown.feed(piece, may_stop=may_stop)
        starts = [
            start
            for stop in stops
            for start in range(len(text))
            if text.startswith(stop, start) and start + len(stop) > before
        ]
        tally.require(text.startswith(out), f"{out!r} is shown of {text!r}")
        tally.equal(shown.found, bool(starts and may_stop), f"{stops} in {text!r}")
        if shown.found:
            expected = text[: min(starts)]
            break
    out += shown.finish()
    tally.equal(out, text if expected is None else expected, f"{stops} in {text!r}")
