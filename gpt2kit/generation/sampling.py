"""From one row of logits to one token.

The order is fixed: bias, repetition penalty, presence and frequency penalties, temperature, top-k,
top-p, min-p, typical-p, then one draw. Each step is a small pure function; `adjusted` puts those
together that change logits, and `sample` the others. Logits are computed with in float32, or in
float64 if they are float64. Processors and limits (see shaping/) come before.

    B batch, V vocabulary, K candidates: tokens that can still be drawn
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from gpt2kit.engine.torch_engine import precise
from gpt2kit.errors import GenerationError
from gpt2kit.generation.request import Sampling


def sample(logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> list[int]:
    """Choose one token for each row of (B, V) logits, to which `adjusted` was applied if need be.

    Row b draws one number from `generators[b]`, which live on the CPU, so its token depends on its
    own logits and its own random stream alone. Raises GenerationError if a row's logits hold NaN or
    infinity, or are all minus infinity; single minus infinities are tokens that cannot be drawn.
    """
    if sampling.temperature == 0:
        return _argmax(precise(logits))
    probabilities, ids = distribution(logits, sampling)  # (B, K), (B, K)
    ids = _start_copy(ids)
    columns = draw(probabilities, generators)
    return [int(row[column]) for row, column in zip(ids.numpy(), columns, strict=True)]


def _argmax(logits: Tensor) -> list[int]:
    """Return the most likely token of each row, the first among equals: (B, V) -> B ids."""
    if logits.device.type == "cpu":  # in NumPy, as in `draw`
        rows = logits.numpy()
        ids: list[int] = rows.argmax(axis=-1).tolist()
        _require_finite(all(math.isfinite(row[i]) for row, i in zip(rows, ids, strict=True)))
        return ids
    best = logits.max(dim=-1)
    indices = _start_copy(best.indices)
    _require_finite(all(map(math.isfinite, best.values.tolist())))
    return indices.tolist()


def _start_copy(numbers: Tensor) -> Tensor:
    """Start a copy to the CPU that is complete once any later, blocking copy is."""
    return numbers.to("cpu", non_blocking=numbers.is_cuda)


def distribution(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Return the unnormalized probabilities of the candidates, and their ids: (B, K) twice.

    At temperature 0 there is one candidate. A row with NaN or infinite logits, or with minus
    infinities only, has probabilities that are all NaN: the filters keep NaN.
    """
    top_k = 1 if sampling.temperature == 0 else sampling.top_k
    logits, ids = candidates(precise(logits), top_k, sorted_=sampling.top_p < 1)  # (B, K), (B, K)
    # The largest logit is subtracted first and the temperature bounded on both sides, so that a
    # tiny one gives neither infinities nor 0 / 0, and a huge one is not infinite in float32: it
    # would make NaN of a forbidden token.
    relative = logits - logits.amax(dim=-1, keepdim=True)  # (B, K)
    temperature = min(max(sampling.temperature, 1e-30), 1e30)
    probabilities = (relative / temperature).softmax(dim=-1)  # (B, K)
    if sampling.top_p < 1:
        probabilities = keep_top_p(probabilities, sampling.top_p)
    if sampling.min_p > 0:
        probabilities = keep_min_p(probabilities, sampling.min_p)
    if sampling.typical_p < 1:
        probabilities = keep_typical_p(probabilities, sampling.typical_p)
    return probabilities, ids


def full_distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return the probability with which `sample` takes each token: (B, V) -> (B, V), float64."""
    probabilities, ids = distribution(logits, sampling)  # (B, K), (B, K)
    dtype = torch.float32 if logits.device.type == "mps" else torch.float64  # MPS has no float64
    full = torch.zeros(logits.shape, dtype=dtype, device=logits.device)
    full = full.scatter(1, ids, probabilities.to(dtype))  # (B, V)
    return full / full.sum(dim=-1, keepdim=True)


def adjusted(
    logits: Tensor,
    sampling: Sampling,
    histories: Sequence[Sequence[int]],
    generated: Sequence[Mapping[int, int]],
) -> Tensor:
    """Apply bias and penalties to (B, V) logits, and return them in float32 or wider.

    histories[b] are the tokens of row b, its prompt included; generated[b] says how often each
    token was generated in it. All other values stay as they are, bit for bit. Raises ConfigError
    for a bias of an id that is not below V.
    """
    logits = precise(logits)
    if not sampling.adjusts_logits:
        return logits
    logits = logits.clone()
    if sampling.logit_bias:
        sampling.check_vocabulary(logits.shape[1])
        ids, values = zip(*sampling.logit_bias, strict=True)
        logits[:, _like(ids, logits, torch.long)] += _like(values, logits)
    if sampling.repetition_penalty != 1:
        at, _ = _entries([dict.fromkeys(history, 1) for history in histories], logits)
        logits[at] = repetition_penalized(logits[at], sampling.repetition_penalty)
    if sampling.presence_penalty or sampling.frequency_penalty:
        at, counts = _entries(generated, logits)
        logits[at] -= counts * sampling.frequency_penalty + sampling.presence_penalty
    return logits


def repetition_penalized(logits: Tensor, penalty: float) -> Tensor:
    """Lower logits of tokens that have occurred: divide those above 0, multiply the others.

    Any shape. As in Keskar et al. 2019, section 4.1, but for logits below 0, which a division would
    lift.
    """
    return torch.where(logits > 0, logits / penalty, logits * penalty)


def _entries(
    counts: Sequence[Mapping[int, int]], logits: Tensor
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Return rows and ids of the tokens that are counted, as indices of logits, and the counts.

    Without ids that (B, V) logits do not have: a prompt may hold padding of the embedding.
    """
    found = [
        (row, token, count)
        for row, own in enumerate(counts)
        for token, count in own.items()
        if token < logits.shape[1]
    ]
    rows, ids, numbers = zip(*found, strict=True) if found else ((), (), ())
    return (_like(rows, logits, torch.long), _like(ids, logits, torch.long)), _like(numbers, logits)


def _like(numbers: Sequence[float], logits: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return numbers as a tensor on the device of the logits, in their dtype unless one is given.

    To a GPU it is copied from pinned memory, so that the copy makes nobody wait.
    """
    made = torch.tensor(numbers, dtype=dtype or logits.dtype, pin_memory=logits.is_cuda)
    return made.to(logits.device, non_blocking=True)


def candidates(logits: Tensor, top_k: int, *, sorted_: bool) -> tuple[Tensor, Tensor]:
    """Return logits and ids of the k most likely tokens: (B, V) -> (B, K) twice.

    There are exactly k of them: the first ones among equals. With top_k 0 all tokens stay, in the
    vocabulary's order unless `sorted_` asks for the most likely first.
    """
    V = logits.shape[-1]
    if 0 < top_k < V:
        values, ids = logits.topk(top_k + 1, dim=-1)
        if _has_equals(values):
            return _first_among_equals(logits, values[:, :top_k])
        return values[:, :top_k], ids[:, :top_k]
    if sorted_:
        return logits.sort(dim=-1, descending=True, stable=True)
    return logits, torch.arange(V, device=logits.device).expand_as(logits)


def _first_among_equals(logits: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    """Return the `largest` K of (B, V) logits and their ids, the lower ids among equals: (B, K).

    Sorting only what is not less than the smallest of them takes a fraction of the time of sorting
    whole rows. Logits in bfloat16, which have few values, have equals in most rows.
    """
    B, K = largest.shape
    # Not `>=`, which would leave out NaN: that counts as larger than all other values.
    rows, ids = (~(logits < largest[:, -1:])).nonzero(as_tuple=True)  # (N,), (N,)
    order = logits[rows, ids].argsort(descending=True, stable=True)  # (N,)
    order = order[rows[order].argsort(stable=True)]  # (N,): row by row, the largest first
    first = rows.bincount(minlength=B).cumsum(0).roll(1)  # (B,): where each row begins
    first[0] = 0
    kept = order[first[:, None] + torch.arange(K)]  # (B, K)
    return logits[rows, ids][kept], ids[kept]


def _has_equals(values: Tensor) -> bool:
    """Return whether any neighbors are equal in rows sorted by topk: (B, K) -> bool.

    How topk orders equal logits, and which it leaves out, depends on all the other logits. On a
    CPU some of those may be missing (see engine/native); on other devices they never are, and
    asking would make this thread wait for the GPU.
    """
    if values.device.type != "cpu":
        return False
    numbers = values.numpy()
    return bool((numbers[:, 1:] == numbers[:, :-1]).any())


def keep_top_p(probabilities: Tensor, top_p: float) -> Tensor:
    """Zero all but the first tokens that together reach top_p, the one that crosses it included.

    Probabilities (B, K) must be in descending order. NaN stays, for `draw` to find.
    """
    return probabilities.masked_fill(_already_reached(probabilities, top_p), 0.0)


def _already_reached(ordered: Tensor, share: float) -> Tensor:
    """Return for each of (B, K) probabilities whether those before it reach a share together."""
    before = ordered.cumsum(dim=-1) - ordered  # (B, K)
    # A share below what the dtype can hold would be 0, and drop the first token too.
    return before >= max(share, torch.finfo(before.dtype).tiny)


def keep_min_p(probabilities: Tensor, min_p: float) -> Tensor:
    """Zero the tokens with less than min_p times the probability of the most likely one.

    (B, K) -> (B, K). NaN stays, for `draw` to find.
    """
    largest = probabilities.amax(dim=-1, keepdim=True)  # (B, 1)
    return probabilities.masked_fill(probabilities < min_p * largest, 0.0)


def keep_typical_p(probabilities: Tensor, typical_p: float) -> Tensor:
    """Zero all but the most typical tokens that together reach typical_p, as in `keep_top_p`.

    (B, K) -> (B, K), unnormalized. The most typical token is the one whose surprisal is nearest to
    the entropy, the expected surprisal of the tokens that are left (Meister et al. 2023, Locally
    Typical Sampling, section 4). NaN stays, for `draw` to find.
    """
    shares = probabilities / probabilities.sum(dim=-1, keepdim=True)  # (B, K)
    surprisals = -shares.log()  # (B, K), infinite for tokens that are gone
    entropy = torch.special.entr(shares).sum(dim=-1, keepdim=True)  # (B, 1)
    order = (surprisals - entropy).abs().argsort(dim=-1, stable=True)  # (B, K)
    dropped = _already_reached(shares.gather(1, order), typical_p)  # (B, K)
    return probabilities.masked_fill(dropped.scatter(1, order, dropped), 0.0)


def draw(probabilities: Tensor, generators: Sequence[torch.Generator]) -> list[int]:
    """Draw one column in each row of unnormalized probabilities (B, K).

    By inverting the running sum, in NumPy: after a step, torch's large code is out of the
    processor's caches. Raises GenerationError for a row whose sum is 0 or not finite.
    """
    sums = np.cumsum(probabilities.cpu().numpy(), axis=-1, dtype=np.float64)  # (B, K)
    totals: list[float] = sums[:, -1].tolist()
    _require_finite(all(0 < total < math.inf for total in totals))
    points = [point * total for point, total in zip(uniform(generators), totals, strict=True)]
    # From the right, so that a token of probability 0 is never drawn.
    columns = [
        int(row.searchsorted(point, side="right")) for row, point in zip(sums, points, strict=True)
    ]
    return [min(column, sums.shape[1] - 1) for column in columns]


def uniform(generators: Sequence[torch.Generator]) -> list[float]:
    """Return one number from 0 to 1, excluding 1, of each random stream."""
    return [
        torch.rand(1, generator=generator, dtype=torch.float64).item() for generator in generators
    ]


def log_probabilities(logits: Tensor, tokens: Sequence[int]) -> list[float]:
    """Return the natural logarithms of the probabilities that (B, V) logits give to B tokens."""
    chosen = torch.tensor(tokens, device=logits.device)[:, None]  # (B, 1)
    return _log_softmax(logits, chosen)[:, 0].tolist()


def top_log_probabilities(logits: Tensor, k: int) -> list[list[tuple[int, float]]]:
    """Return the k most likely tokens of each row of (B, V) logits, with their log-probabilities.

    The likeliest comes first, and the lower id among equals. For a token that `log_probabilities`
    is asked for too, both give the same float.
    """
    # On the CPU, where `candidates` orders equal logits by their ids.
    _, ids = candidates(precise(logits).cpu(), k, sorted_=True)  # (B, K)
    values = _log_softmax(logits, ids.to(logits.device))  # (B, K)
    rows = zip(ids.tolist(), values.tolist(), strict=True)
    return [list(zip(own_ids, own_values, strict=True)) for own_ids, own_values in rows]


def _log_softmax(logits: Tensor, ids: Tensor) -> Tensor:
    """Return log-probabilities under logits (B, V) of the tokens ids: (B, K) -> (B, K)."""
    logits = precise(logits)
    return logits.gather(1, ids) - logits.logsumexp(dim=-1, keepdim=True)


def _require_finite(finite: bool) -> None:
    """Raise GenerationError unless the logits were found to be finite."""
    if not finite:
        raise GenerationError(
            "the model's logits are not finite; its weights are damaged, or its dtype is too "
            "narrow: try --dtype float32"
        )


def sample_generator(seed: int, sample: int) -> torch.Generator:
    """Return the random stream of one sample: it depends on the seed and the sample's number."""
    state = np.random.SeedSequence(seed, spawn_key=(sample,)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
