"""Criteria of whole texts: perplexity, ranks, entropy, curvature and their relatives.

    options = CriteriaOptions(criteria="perplexity,curvature")
    for figures in measure(model, tokenizer, ["The dog barks."], options):
        print(figures["perplexity"], figures["curvature"])

With p the model's probabilities at a position, x the token that came, and r its rank from 1:

    nll         sum of -log p(x);  perplexity  e to its mean
    rank        mean of r;  log_rank  mean of log r;  top10  share of r <= 10
    fracprob    mean of p(x) / max p
    entropy     mean of -sum p log p, over the vocabulary
    lrr         sum of -log p(x) / sum of log r
    curvature   (sum of log p(x) - sum of m) / root of the sum of v,
                m = sum q log p, v = sum q (log p - m)^2, with q = p; cross_curvature has the
                observer's probabilities as q
    binoculars  mean of -log p(x) / mean of -sum q log p, with q the observer's probabilities

Sources: Gehrmann, Strobelt and Rush 2019 (GLTR: top10 …, fracprob); Su et al. 2023 (LRR); Bao et
al. 2024 (Fast-DetectGPT: curvature, and the definitions of rank, log_rank and entropy); Hans et al.
2024 (Binoculars). DetectGPT's perturbation: see rewritings.py.

    N tokens, V vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2kit.errors import ConfigError, TokenizerError
from gpt2kit.evaluation.criteria_options import (
    CRITERIA,
    PERTURBATION,
    CriteriaOptions,
    First,
    contexts,
)
from gpt2kit.evaluation.perplexity import default_stride
from gpt2kit.evaluation.rewritings import z_scores
from gpt2kit.evaluation.surprisal import (
    BATCH_SIZE,
    Progress,
    Window,
    exponential,
    ignore,
    measured_by_length,
    windows,
)
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import Tokenizer, identity, require_tokenizer
from gpt2kit.tokenizers.listed import start_of_text

TEXTS_AT_ONCE = 512  # of which those of similar length share a batch

# Criteria that need the surprisals of the tokens and nothing else
_OF_LIKELIHOOD = frozenset(("nll", "perplexity", "bits_per_byte"))


class Seen(NamedTuple):
    """What a model expected at N tokens, in nats."""

    nats: Tensor  # (N,) surprisal
    rank: Tensor  # (N,) from 1
    mean: Tensor  # (N,) of log p under p: minus the entropy
    variance: Tensor  # (N,) of log p under p
    # (N,) the same under the observer's probabilities; without an observer those of p again
    cross_mean: Tensor
    cross_variance: Tensor
    fraction: Tensor  # (N,) probability over that of the likeliest token


def look(logits: Tensor, targets: Tensor, observer: Tensor | None = None) -> tuple[Tensor, ...]:
    """Return what `Seen` has, given logits (N, V), the tokens that came (N,), and the observer's.

    It is a measure for `surprisal.measured`.
    """
    logs = logits.log_softmax(dim=-1)  # (N, V)
    chosen = logs.gather(1, targets[:, None])  # (N, 1)
    # As uint8, which torch adds up ten times as fast as bool.
    above = (logs > chosen).view(torch.uint8).sum(dim=-1, dtype=torch.int32)  # (N,)
    own = _moments(logs.exp(), logs)
    theirs = own if observer is None else _moments(observer.softmax(dim=-1), logs)
    fraction = (chosen[:, 0] - logs.amax(dim=-1)).exp()  # (N,)
    return Seen(-chosen[:, 0], above + 1, *own, *theirs, fraction)


def look_at_likelihood(logits: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """Return what `Seen` has, with surprisals alone: for criteria that need no more.

    It takes a fifth of the time of `look`.
    """
    nats = F.cross_entropy(logits, targets, reduction="none")  # (N,)
    none = torch.zeros_like(nats)
    return Seen(nats, none + 1, none, none, none, none, none)


def _moments(weights: Tensor, logs: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of (N, V) log probabilities under (N, V) weights: (N,) each."""
    mean = (weights * logs).sum(dim=-1)
    # Around the mean: the difference of two large sums would lose what is small.
    return mean, (logs - mean[:, None]).square_().mul_(weights).sum(dim=-1)


def measure(
    model: GPT2,
    tokenizer: Tokenizer | None,
    texts: Sequence[str],
    options: CriteriaOptions,
    *,
    observer: GPT2 | None = None,
    rewritings: Sequence[Sequence[str]] = (),
    batch_size: int = BATCH_SIZE,
    progress: Progress = ignore,
) -> Iterator[dict[str, Any]]:
    """Yield the criteria of each text, by name, and under "error" why there are none, else None.

    Each text is read by itself, `batch_size` windows at once. A figure is None if the text has too
    few tokens for it. The observer has the model's vocabulary: see `check_observer`.
    `rewritings` are those of each text, if there are `options.rewritings`.
    """
    tokenizer = require_tokenizer(tokenizer, "the model")
    names = options.names(observed=observer is not None)
    rest, done = iter(texts), 0
    while some := list(islice(rest, TEXTS_AT_ONCE)):
        read = [_encoded(text, tokenizer) for text in some]
        found: list[dict[str, Any]] = [dict.fromkeys(names) for _ in some]
        by_reading = contexts(options, [name for name in names if name != PERTURBATION])
        for first, wanted in by_reading.items():
            plans = [_plan(each, first, model, tokenizer, options) for each in read]
            work = [window for plan in plans for window in plan.windows]
            beside = observer if any(CRITERIA[name].by_two for name in wanted) else None
            enough = _OF_LIKELIHOOD.issuperset(wanted)
            parts = iter(
                measured_by_length(
                    model,
                    work,
                    look_at_likelihood if enough else look,
                    batch_size=batch_size,
                    beside=beside,
                )
            )
            for plan, figures in zip(plans, found, strict=True):
                seen = [Seen(*next(parts)) for _ in plan.windows]
                if plan.predicted:
                    every = _figures(plan, _joined(seen), options)
                    figures.update((name, every[name]) for name in wanted)
        if PERTURBATION in names:
            lists = rewritings[done : done + len(some)]
            scores = _perturbation(model, tokenizer, some, lists, options, batch_size)
            for figures, score in zip(found, scores, strict=True):
                figures[PERTURBATION] = score
        for each, figures in zip(read, found, strict=True):
            figures["error"] = each.error or _too_short(each.ids, names, tokenizer, options)
            if "tokens" in figures and not each.error:
                figures["tokens"] = len(each.ids)
            yield figures
        done += len(some)
        progress(done, len(texts))


def _perturbation(
    model: GPT2,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    rewritings: Sequence[Sequence[str]],
    options: CriteriaOptions,
    batch_size: int,
) -> Iterator[float | None]:
    """Yield DetectGPT's criterion of each text."""
    own = CriteriaOptions(
        criteria="perplexity", first=options.first_of(PERTURBATION), stride=options.stride
    )
    every = [text for one, others in zip(texts, rewritings, strict=True) for text in (one, *others)]
    measured = measure(model, tokenizer, every, own, batch_size=batch_size)
    return z_scores([each["perplexity"] for each in measured], [*map(len, rewritings)])


def check_observer(
    model: GPT2, tokenizer: Tokenizer | None, observer: GPT2, their_tokenizer: Tokenizer | None
) -> None:
    """Raise ConfigError unless two models give probabilities to the same tokens."""
    same = (
        tokenizer is not None
        and their_tokenizer is not None
        and identity(tokenizer) == identity(their_tokenizer)
        and model.config.n_vocab == observer.config.n_vocab
    )
    if not same:
        raise ConfigError(
            "the observer has another vocabulary than the model, so their probabilities cannot be "
            "compared; expected two models of one vocabulary, such as 124M and 355M"
        )


# --- one text -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Encoded:
    """The tokens of a text, and how many bytes each stands for; or why it has none."""

    ids: list[int]
    sizes: list[int]
    error: str | None = None


def _encoded(text: str, tokenizer: Tokenizer) -> _Encoded:
    try:
        ids = tokenizer.encode(text)
    except TokenizerError as error:
        return _Encoded([], [], str(error))
    if not ids:
        return _Encoded([], [], "the text is empty")
    return _Encoded(ids, [len(tokenizer.token_bytes(token)) for token in ids])


def _too_short(
    ids: Sequence[int], names: Sequence[str], tokenizer: Tokenizer, options: CriteriaOptions
) -> str | None:
    """Say that a text is too short for all criteria, or return None."""
    firsts = {options.first_of(name) for name in names if name != "tokens"}
    if len(ids) > 1 or not firsts or ("bos" in firsts and start_of_text(tokenizer)):
        return None
    return "the text has one token, and nothing before it"


@dataclass(frozen=True)
class _Plan:
    """What is read of a text."""

    windows: list[Window]
    predicted: int  # tokens of the text; what the windows score after them is left out but for code
    bytes: int  # of the predicted tokens


def _plan(
    text: _Encoded, first: First, model: GPT2, tokenizer: Tokenizer, options: CriteriaOptions
) -> _Plan:
    if not text.ids:
        return _Plan([], 0, 0)
    start = start_of_text(tokenizer) if first == "bos" else []
    unseen = 0 if start else 1
    # The authors of Binoculars average over one position more, after the text.
    after = [0] if options.binoculars == "code" else []
    n_ctx = model.config.n_ctx
    stride = default_stride(n_ctx) if options.stride is None else options.stride
    ids = [*start, *text.ids, *after]
    predicted = len(text.ids) - unseen
    if not predicted:
        return _Plan([], 0, 0)
    cut = list(windows(ids, n_ctx=n_ctx, stride=stride))
    return _Plan(cut, predicted, sum(text.sizes[unseen:]))


def _joined(parts: Sequence[Seen]) -> Seen:
    return Seen(*(torch.cat(each).double() for each in zip(*parts, strict=True)))


def _figures(plan: _Plan, everything: Seen, options: CriteriaOptions) -> dict[str, Any]:
    """Return all criteria of a text whose tokens were seen so."""
    n = plan.predicted
    extra = len(everything.nats) - n  # tokens of a start that has several, or the one after the end
    after = 1 if options.binoculars == "code" else 0
    seen = Seen(*(each[extra - after : len(each) - after] for each in everything))
    total = float(seen.nats.sum())
    log_ranks = float(seen.rank.log().sum())
    cross = everything.cross_mean[extra - after :] if after else seen.cross_mean
    return {
        "nll": total,
        "perplexity": exponential(total / n),
        "bits_per_byte": total / math.log(2) / plan.bytes if plan.bytes else None,
        **{f"top{k}": float((seen.rank <= k).double().mean()) for k in (10, 100, 1000)},
        "fracprob": float(seen.fraction.mean()),
        "rank": float(seen.rank.mean()),
        "log_rank": log_ranks / n,
        "entropy": -float(seen.mean.mean()),
        "lrr": total / log_ranks if log_ranks else None,
        "curvature": _curvature(seen.nats, seen.mean, seen.variance),
        "binoculars": _ratio(total / n, -float(cross.mean())),
        "cross_curvature": _curvature(seen.nats, seen.cross_mean, seen.cross_variance),
    }


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None


def _curvature(nats: Tensor, mean: Tensor, variance: Tensor) -> float | None:
    """Return how many standard deviations a text's log probability lies above the expected one."""
    spread = math.sqrt(float(variance.sum()))
    return float(-nats.sum() - mean.sum()) / spread if spread else None
