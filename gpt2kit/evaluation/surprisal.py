"""How much each token of a text surprises a model: minus the natural logarithm of the probability that it gave to it.

Everything that measures a model on text stands on this: perplexity, tasks, the ranking of sentences, the comparison of two models.

    B windows of a batch, T tokens that a window reads, N tokens that it is scored on, C width, V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2kit.engine.decoder import Decoder
from gpt2kit.errors import ConfigError, ContextLengthError, GenerationError
from gpt2kit.model import GPT2, precise

Progress = Callable[[int, int], None]  # is told how much is done, and how much there is

BATCH_SIZE = 8
# Logits that are in memory at once. Beyond 32 MiB of them the C library would fetch new pages for every piece.
LOGITS_AT_ONCE = 2**23


@dataclass(frozen=True)
class Window:
    """Some ids, of which the last `scored` are predicted, each from all before it; the model reads all but the last."""

    ids: Sequence[int] | Any  # or a NumPy array; n_ctx + 1 at most
    scored: int  # less than len(ids), for the first token has nothing to be predicted from


@dataclass(frozen=True)
class Surprisal:
    """What a model made of the scored tokens of a window."""

    nats: Tensor  # (N,) float32, or float64 for a model of that; on the CPU
    greedy: Tensor  # (N,) bool: whether the token is the one that the model held most likely


def ignore(done: int, of: int) -> None:
    """Be told about progress and do nothing."""


def windows(ids: Sequence[int] | Any, *, n_ctx: int, stride: int) -> Iterator[Window]:
    """Cut a text into windows that score every token but the first once, in order.

    A window reads n_ctx tokens and begins `stride` tokens after the one before it. It scores what those before it have not: the first
    one all, any other its last `stride` tokens, which have at least n_ctx - stride + 1 tokens before them. A stride of n_ctx is
    fastest, for no token is read twice; a smaller one gives every token more to be predicted from.
    """
    if not 1 <= stride <= n_ctx:
        raise ConfigError(
            f"stride is {stride}, expected from 1 to the {n_ctx:,} positions that the model has"
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
    """Yield what a model makes of each window, in order; `batch_size` are read at once, shorter ones padded behind their end.

    Attention looks back only, so padding changes nothing beyond rounding. Quantised models read as they do when they generate. Raises
    ContextLengthError for a window that is too long, GenerationError where the model's output is no number.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}, expected at least 1")
    decoder, rest = Decoder(model), iter(work)
    while some := list(islice(rest, batch_size)):
        for window in some:
            _check(window, model.config.n_ctx)
        with torch.inference_mode():
            pieces = [_score(logits, targets) for logits, targets in _logits(decoder, some)]
        nats, greedy = (torch.cat(parts).cpu() for parts in zip(*pieces, strict=True))
        if not torch.isfinite(nats).all():
            raise GenerationError(
                "the model's logits are not finite; are the weights damaged, or --dtype float16 too narrow for them?"
            )
        ends = [0, *torch.tensor([window.scored for window in some]).cumsum(0).tolist()]
        yield from (Surprisal(nats[start:end], greedy[start:end]) for start, end in pairwise(ends))


def by_length(
    model: GPT2,
    work: Sequence[Window],
    *,
    batch_size: int = BATCH_SIZE,
    progress: Progress = ignore,
) -> list[Surprisal]:
    """Return what a model makes of each window, in order; windows of like length are read together, so that little is padded."""
    order = sorted(
        range(len(work)), key=lambda place: -len(work[place].ids)
    )  # the longest first: what needs most memory fails at once
    found: dict[int, Surprisal] = {}
    for place, surprisal in zip(
        order,
        surprisals(model, (work[place] for place in order), batch_size=batch_size),
        strict=True,
    ):
        found[place] = surprisal
        progress(len(found), len(work))
    return [found[place] for place in range(len(work))]


def _check(window: Window, n_ctx: int) -> None:
    n = len(window.ids)
    if not 0 < window.scored < n:
        raise ConfigError(
            f"a window of {n} tokens is to be scored on {window.scored}; expected 1 to {n - 1}"
        )
    if n > n_ctx + 1:
        message = f"a window of {n:,} tokens, but the model reads at most {n_ctx:,} before the last"
        raise ContextLengthError(message, requested=n - 1, limit=n_ctx)


def _score(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the surprisals of (N,) targets, and whether each is the likeliest: (N, V) logits -> (N,), (N,)."""
    logits = precise(logits)
    # Not logsumexp, which takes torch five times as long on a processor.
    return F.cross_entropy(logits, targets, reduction="none"), logits.argmax(dim=-1) == targets


def _logits(decoder: Decoder, batch: Sequence[Window]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits (N, V) and the ids that come (N,), of the scored tokens of all windows in order, a piece at a time."""
    model = decoder.model
    rows = [list(map(int, window.ids)) for window in batch]
    targets = torch.tensor(
        [token for row, window in zip(rows, batch, strict=True) for token in row[-window.scored :]]
    )  # (N,)
    if decoder.reads_rows():
        for logits in decoder.read_rows(
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
