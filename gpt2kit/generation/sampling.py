"""From one row of logits to one token.

The order is fixed: repetition penalty, temperature, top-k, top-p, min-p, then one draw. Each step is a small pure function;
`sample` puts them together.

    B batch, V vocabulary, K candidates still in play
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpt2kit.errors import ConfigError, GenerationError
from gpt2kit.model import precise


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen; the defaults are OpenAI's. Raises ConfigError for a value that cannot be."""

    temperature: float = (
        1.0  # 0 always takes the most likely token; below 1 is safer, above 1 wilder
    )
    top_k: int = 40  # only the k most likely tokens; 0 keeps all
    top_p: float = (
        1.0  # only the most likely tokens that together reach this probability; 1 keeps all
    )
    min_p: float = 0.0  # only tokens with at least this share of the most likely one's probability; 0 keeps all
    repetition_penalty: float = 1.0  # above 1 makes tokens that have occurred less likely

    def __post_init__(self) -> None:
        def require(name: str, holds: bool, expected: str) -> None:
            if not holds:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected {expected}")

        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            value = getattr(self, name)
            require(
                name, type(value) in (int, float) and abs(value) < 1e300, "a number"
            )  # no nan, inf, True or endless int
        require("temperature", self.temperature >= 0, "0 or more")
        require("top_k", type(self.top_k) is int and self.top_k >= 0, "a whole number, 0 or more")
        require("top_p", 0 < self.top_p <= 1, "a probability above 0, at most 1")
        require("min_p", 0 <= self.min_p <= 1, "a probability from 0 to 1")
        require("repetition_penalty", 0.01 <= self.repetition_penalty <= 1e6, "0.01 or more")

    @property
    def most_likely(self) -> int:
        """How many of the largest logits decide, whatever the others are; 0 where all do."""
        if self.repetition_penalty != 1:
            return 0
        return 1 if self.temperature == 0 else self.top_k


def sample(
    logits: Tensor,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    seen: Tensor | None = None,
) -> list[int]:
    """Choose one token for each row of (B, V) logits.

    Row b draws one number from `generators[b]`, which live on the CPU, so that a row's choice depends on its logits and its own
    stream alone. `seen` (B, V) marks the tokens that the repetition penalty is for. Raises GenerationError for logits that are
    NaN or all minus infinity.
    """
    if sampling.temperature == 0:
        return _most_likely(penalized(logits, sampling, seen))
    probabilities, ids = distribution(logits, sampling, seen)  # (B, K), (B, K)
    ids = _sent(ids)
    places = draw(probabilities, generators)
    return [int(row[place]) for row, place in zip(ids.numpy(), places, strict=True)]


def _most_likely(logits: Tensor) -> list[int]:
    """Return the most likely token of each row, of equals the first: (B, V) -> B ids."""
    if logits.device.type == "cpu":  # in NumPy, as in `draw`
        rows = logits.numpy()
        ids: list[int] = rows.argmax(axis=-1).tolist()
        _require(all(math.isfinite(row[token]) for row, token in zip(rows, ids, strict=True)))
        return ids
    best = logits.max(dim=-1)
    sent = _sent(best.indices)
    _require(all(map(math.isfinite, best.values.tolist())))
    return sent.tolist()


def _sent(numbers: Tensor) -> Tensor:
    """Ask for numbers of a GPU without waiting for them: they are there once anything that is asked for later is."""
    return numbers.to("cpu", non_blocking=numbers.is_cuda)


def distribution(
    logits: Tensor, sampling: Sampling, seen: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return what `sample` draws from: the probabilities of the candidates, which need not sum to 1, and their ids, (B, K) twice.

    At temperature 0 that is one candidate. `seen` is that of `sample`.
    """
    top_k = 1 if sampling.temperature == 0 else sampling.top_k
    logits, ids = candidates(
        penalized(logits, sampling, seen), top_k, sorted_=sampling.top_p < 1
    )  # (B, K), (B, K)
    # The largest logit is taken off first, and the temperature bounded, so that a tiny one gives neither infinities nor 0 / 0.
    probabilities = (
        (logits - logits.amax(dim=-1, keepdim=True)) / max(sampling.temperature, 1e-30)
    ).softmax(dim=-1)
    if sampling.top_p < 1:
        probabilities = keep_top_p(probabilities, sampling.top_p)
    if sampling.min_p > 0:
        probabilities = keep_min_p(probabilities, sampling.min_p)
    return probabilities, ids


def full_distribution(logits: Tensor, sampling: Sampling, seen: Tensor | None = None) -> Tensor:
    """Return the probability with which `sample` takes each token of the vocabulary: (B, V) -> (B, V)."""
    probabilities, ids = distribution(logits, sampling, seen)
    full = torch.zeros(logits.shape, dtype=_precise(logits), device=logits.device).scatter(
        1, ids, probabilities.to(_precise(logits))
    )
    return full / full.sum(dim=-1, keepdim=True)


def seen_tokens(
    histories: Sequence[Sequence[int]], logits: Tensor, sampling: Sampling
) -> Tensor | None:
    """Return which tokens each row has had, (B, V), where the repetition penalty asks for it."""
    if sampling.repetition_penalty == 1:
        return None
    seen = torch.zeros(logits.shape, dtype=torch.bool)
    for row, history in enumerate(histories):
        seen[row, [token for token in history if token < logits.shape[1]]] = True
    return (
        seen.pin_memory().to(logits.device, non_blocking=True)
        if logits.is_cuda
        else seen.to(logits.device)
    )  # nobody waits


def penalized(logits: Tensor, sampling: Sampling, seen: Tensor | None) -> Tensor:
    """Return the logits in float32 or wider, those of seen tokens made less likely: positive ones divided by the penalty, negative ones multiplied.

    That is Keskar et al. 2019, section 4.1.
    """
    logits = precise(logits)
    if seen is None or sampling.repetition_penalty == 1:
        return logits
    penalty = sampling.repetition_penalty
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def candidates(logits: Tensor, top_k: int, *, sorted_: bool) -> tuple[Tensor, Tensor]:
    """Return the logits and ids of the k most likely tokens, exactly k even among equals: (B, V) -> (B, K) twice.

    With top_k 0 all stay, in the vocabulary's order unless `sorted_` asks for the most likely first.
    """
    V = logits.shape[-1]
    if 0 < top_k < V:
        values, ids = logits.topk(top_k + 1, dim=-1)
        if not _has_equals(values):
            return values[:, :top_k], ids[:, :top_k]
    if sorted_ or 0 < top_k < V:
        values, ids = logits.sort(dim=-1, descending=True, stable=True)
        return values[:, : top_k or V], ids[:, : top_k or V]
    return logits, torch.arange(V, device=logits.device).expand_as(logits)


def _has_equals(values: Tensor) -> bool:
    """Whether neighbours are equal: how topk orders these, and which it leaves out, depends on all the other logits.

    On a processor some of those may be missing (see native); elsewhere they never are, and a GPU is not waited for.
    """
    if values.device.type != "cpu":
        return False
    numbers = values.numpy()
    return bool((numbers[:, 1:] == numbers[:, :-1]).any())


def keep_top_p(probabilities: Tensor, top_p: float) -> Tensor:
    """Zero all but the first tokens that together reach top_p, the one that crosses it included.

    Probabilities (B, K) must be in descending order; NaN stays, for `draw` to find.
    """
    before = probabilities.cumsum(dim=-1) - probabilities  # (B, K): what the likelier tokens sum to
    return probabilities.masked_fill(before >= top_p, 0.0)


def keep_min_p(probabilities: Tensor, min_p: float) -> Tensor:
    """Zero the tokens with less than min_p times the probability of the most likely one.

    (B, K) -> (B, K); NaN stays, for `draw` to find.
    """
    largest = probabilities.amax(dim=-1, keepdim=True)  # (B, 1)
    return probabilities.masked_fill(probabilities < min_p * largest, 0.0)


def draw(probabilities: Tensor, generators: Sequence[torch.Generator]) -> list[int]:
    """Draw one column in each row of unnormalized probabilities (B, K), by inverting their running sum.

    In NumPy, because after a step torch's large code is out of the processor's caches. Raises GenerationError for a row whose sum
    is 0 or not finite: a NaN or infinite logit, or only minus infinities, make every probability of their row NaN.
    """
    sums = np.cumsum(probabilities.cpu().numpy(), axis=-1, dtype=np.float64)  # (B, K)
    totals: list[float] = sums[:, -1].tolist()
    _require(all(0 < total < math.inf for total in totals))
    points = [point * total for point, total in zip(uniform(generators), totals, strict=True)]
    # To the right: a token of probability 0 is never drawn.
    columns = [
        int(row.searchsorted(point, side="right")) for row, point in zip(sums, points, strict=True)
    ]
    return [min(column, sums.shape[1] - 1) for column in columns]


def uniform(generators: Sequence[torch.Generator]) -> list[float]:
    """Return one number from 0 to 1 of each stream."""
    return [
        torch.rand(1, generator=generator, dtype=torch.float64).item() for generator in generators
    ]


def _require(finite: bool) -> None:
    if not finite:
        raise GenerationError(
            "the model's logits are not finite; its weights are damaged, or its dtype is too narrow: try --dtype float32"
        )


def _precise(numbers: Tensor) -> torch.dtype:
    return torch.float32 if numbers.device.type == "mps" else torch.float64  # MPS has no float64


def sample_generator(seed: int, sample: int) -> torch.Generator:
    """Return the random stream of one sample, which depends on the seed and the sample's number and on nothing else."""
    state = np.random.SeedSequence(seed, spawn_key=(sample,)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
