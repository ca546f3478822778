"""The surprisal of each token of a text: minus the log probability that the model gave to it.

Perplexity, tasks, the ranking of sentences and the comparison of two models are all computed from
it.

    B windows of a batch, T tokens that a window reads, N tokens that are scored,
    C width, V vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2kit.engine.decoder import Decoder
from gpt2kit.engine.torch_engine import precise
from gpt2kit.errors import ConfigError, ContextLengthError, GenerationError
from gpt2kit.model import GPT2

Progress = Callable[[int, int], None]  # called with what is done and the total
# Called with logits (N, V) and the tokens that came (N,), and with the logits (N, V) of a second
# model if there is one; returns tensors (N, …) about each of them, of which the first are the
# surprisals in nats.
Measure = Callable[..., tuple[Tensor, ...]]

BATCH_SIZE = 8
# Short windows are read together up to this many tokens, also beyond the size of a batch.
TOKENS_AT_ONCE = 512
# Logits in memory at once: beyond 32 MiB the C library would map new pages for every piece.
LOGITS_AT_ONCE = 2**23


_LARGEST_EXPONENT = 700.0  # e to this power is still a finite float64


@dataclass(frozen=True)
class Window:
    """Ids of which the last `scored` are predicted, each from all ids before it."""

    ids: Sequence[int] | Any  # or a NumPy array; at most n_ctx + 1, as the last one is not read
    scored: int  # less than len(ids): nothing comes before the first id


@dataclass(frozen=True)
class Surprisal:
    """How a model predicted the scored tokens of a window."""

    nats: Tensor  # (N,) surprisals on the CPU, float32 or, for a float64 model, float64
    greedy: Tensor  # (N,) bool: the token is the most likely one


def check_finite(nats: Tensor) -> None:
    """Raise GenerationError for surprisals that are not finite."""
    if not torch.isfinite(nats).all():
        raise GenerationError(
            "the model's logits are not finite: its weights are damaged, or too large for "
            "--dtype float16"
        )


def ignore(done: int, of: int) -> None:
    """Ignore progress."""


def windows(ids: Sequence[int] | Any, *, n_ctx: int, stride: int) -> Iterator[Window]:
    """Cut a text into overlapping windows that score every token but the first once, in order.

    Each window reads n_ctx tokens and begins `stride` tokens after the previous one. It scores the
    tokens that no window before it has scored: from the second window on its last `stride` tokens,
    each of which is predicted from at least n_ctx - stride + 1 tokens. A stride of n_ctx reads
    every token once and is fastest; a smaller one gives every token more context.
    """
    if not 1 <= stride <= n_ctx:
        raise ConfigError(
            f"stride is {stride}, expected from 1 to {n_ctx:,}, the model's positions"
        )
    done = 1  # the first token is never scored
    for start in range(0, len(ids), stride):
        end = min(start + n_ctx + 1, len(ids))
        if end <= done:
            return
        yield Window(ids[start:end], end - done)
        done = end


def surprisals(
    model: GPT2, work: Iterable[Window], *, batch_size: int = BATCH_SIZE
) -> Iterator[Surprisal]:
    """Yield the surprisal of each window, in order, with `batch_size` windows in a batch.

    Raises the errors of `measured`.
    """
    for nats, greedy in measured(model, work, _score, batch_size=batch_size):
        yield Surprisal(nats, greedy)


def measured(
    model: GPT2,
    work: Iterable[Window],
    measure: Measure,
    *,
    batch_size: int = BATCH_SIZE,
    beside: GPT2 | None = None,
) -> Iterator[tuple[Tensor, ...]]:
    """Yield what `measure` returns about the scored tokens of each window, on the CPU, in order.

    Shorter windows are padded at their end; attention looks back only, so that this changes nothing
    beyond rounding. Quantized models read as they do when they generate. A second model `beside`
    the first reads the same tokens, and `measure` gets its logits too. Raises ContextLengthError
    for a window that is too long, GenerationError for logits that are not finite.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}, expected at least 1")
    decoders = [Decoder(each) for each in (model, beside) if each]
    for some in _batches(work, batch_size):
        for window in some:
            for decoder in decoders:
                _check(window, decoder.model.config.n_ctx)
        with torch.inference_mode():
            pieces = [measure(*block) for block in _blocks(decoders, some)]
        found = [torch.cat(parts).cpu() for parts in zip(*pieces, strict=True)]
        check_finite(found[0])
        ends = [0, *torch.tensor([window.scored for window in some]).cumsum(0).tolist()]
        yield from (tuple(each[start:end] for each in found) for start, end in pairwise(ends))


def _batches(work: Iterable[Window], batch_size: int) -> Iterator[list[Window]]:
    """Yield windows that are read at once: more of them if they are short."""
    some: list[Window] = []
    longest = 0
    for window in work:
        longest = max(longest, len(window.ids))
        if len(some) >= batch_size and (len(some) + 1) * longest > TOKENS_AT_ONCE:
            yield some
            some, longest = [], len(window.ids)
        some.append(window)
    if some:
        yield some


def by_length(
    model: GPT2,
    work: Sequence[Window],
    *,
    batch_size: int = BATCH_SIZE,
    progress: Progress = ignore,
) -> list[Surprisal]:
    """Return the surprisal of each window, in order; windows of similar length share a batch."""
    found = measured_by_length(model, work, _score, batch_size=batch_size, progress=progress)
    return [Surprisal(nats, greedy) for nats, greedy in found]


def measured_by_length(
    model: GPT2,
    work: Sequence[Window],
    measure: Measure,
    *,
    batch_size: int = BATCH_SIZE,
    beside: GPT2 | None = None,
    progress: Progress = ignore,
) -> list[tuple[Tensor, ...]]:
    """Return what `measured` yields, in order; windows of similar length share a batch."""
    # The longest first: if memory does not suffice, that shows at once.
    order = sorted(range(len(work)), key=lambda index: -len(work[index].ids))
    in_order = measured(
        model, (work[index] for index in order), measure, batch_size=batch_size, beside=beside
    )
    found: dict[int, tuple[Tensor, ...]] = {}
    for index, each in zip(order, in_order, strict=True):
        found[index] = each
        progress(len(found), len(work))
    return [found[index] for index in range(len(work))]


def standard_error(values: Tensor) -> float | None:
    """Return the standard error of the mean of some values, or None for a single value."""
    return float(values.double().std()) / math.sqrt(len(values)) if len(values) > 1 else None


def exponential(x: float) -> float:
    """Return e to the x, or the largest finite result if x is too large for one."""
    return math.exp(min(x, _LARGEST_EXPONENT))


def _check(window: Window, n_ctx: int) -> None:
    n = len(window.ids)
    if not 0 < window.scored < n:
        raise ConfigError(
            f"a window of {n} tokens scores {window.scored}; expected from 1 to {n - 1}"
        )
    if n > n_ctx + 1:
        most = n_ctx + 1
        message = (
            f"a window has {n:,} tokens; the model reads {n_ctx:,}, so expected at most {most:,}"
        )
        raise ContextLengthError(message, requested=n - 1, limit=n_ctx)


def _score(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the targets' surprisals and which are the most likely: (N, V), (N,) -> (N,), (N,)."""
    # Not logsumexp: it takes torch five times as long on a CPU.
    return F.cross_entropy(logits, targets, reduction="none"), logits.argmax(dim=-1) == targets


def _blocks(decoders: Sequence[Decoder], batch: Sequence[Window]) -> Iterator[tuple[Tensor, ...]]:
    """Yield the arguments of a measure for all scored tokens of a batch, in order, in pieces."""
    first = _logits(decoders[0], batch)
    if len(decoders) == 1:
        for logits, targets in first:
            yield precise(logits), targets
        return
    # Two engines may cut the tokens in different places: each piece ends where one of them does.
    second = _logits(decoders[1], batch)
    theirs = torch.empty(0)
    for logits, targets in first:
        while len(logits):
            if not len(theirs):
                theirs, _ = next(second)
            n = min(len(logits), len(theirs))
            yield precise(logits[:n]), targets[:n], precise(theirs[:n]).to(logits.device)
            logits, targets, theirs = logits[n:], targets[n:], theirs[n:]


def _logits(decoder: Decoder, batch: Sequence[Window]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits (n, V) and targets (n,) of all scored tokens of a batch, in order, in pieces."""
    model = decoder.model
    rows = [list(map(int, window.ids)) for window in batch]
    targets = torch.tensor(
        [token for row, window in zip(rows, batch, strict=True) for token in row[-window.scored :]]
    )  # (N,)
    if decoder.scores_natively():
        for logits in decoder.score(
            [row[:-1] for row in rows], [window.scored for window in batch]
        ):
            yield logits, targets[: len(logits)]
            targets = targets[len(logits) :]
        return
    longest = max(map(len, rows)) - 1
    ids = torch.tensor(
        [row[:-1] + [0] * (longest + 1 - len(row)) for row in rows], device=model.device
    )  # (B, T)
    hidden = model.hidden(ids)  # (B, T, C)
    ends = [len(row) - 1 for row in rows]
    wanted = torch.cat(
        [
            row[end - window.scored : end]
            for row, end, window in zip(hidden, ends, batch, strict=True)
        ]
    )  # (N, C)
    targets = targets.to(model.device)
    n = max(1, LOGITS_AT_ONCE // model.config.n_vocab)
    for some in (slice(start, start + n) for start in range(0, len(targets), n)):
        yield model.head(wanted[some]), targets[some]
