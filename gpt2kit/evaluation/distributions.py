"""What a model expected at each token: surprisal, rank, entropy, and how likely a word ends there.

N tokens, V vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gpt2kit.evaluation.word_options import Boundary
from gpt2kit.tokenizers import Tokenizer
from gpt2kit.tokenizers.listed import boundaries

_FIRST_BYTES = {"whitespace": b" \t\n\r\v\f", "space": b" "}
_NEAR_ONE = 0.1  # how far from 1 the order of a Rényi entropy is computed in another way


class Expected(NamedTuple):
    """What a model expected at N tokens; logarithms are natural."""

    nats: Tensor  # (N,) surprisal
    rank: Tensor  # (N,) int64, 1 for the most likely token
    entropy: Tensor  # (N,) over all tokens, in nats
    # (N,) in nats, over the tokens alone that begin a word, or over all others, as the token that
    # came is one or the other
    entropy_word: Tensor
    # (N,) minus the log probability that the next token begins a word, so that a word ends here
    ending: Tensor
    renyi: Tensor  # (N,) Rényi entropy over all tokens, in nats
    top: Tensor  # (N, K) int64, the likeliest tokens, the likeliest first
    top_nats: Tensor  # (N, K) their surprisals


def word_beginnings(tokenizer: Tokenizer, n_vocab: int, boundary: Boundary) -> Tensor:
    """Return which tokens begin a new word, and so end the one before: (V,) bool.

    They are the tokens whose text starts with a space; with "whitespace" also those that start with
    a line break or a tab, and the marks between documents. Ids from the tokenizer's n_vocab on are
    padding of the head.
    """
    begins = torch.zeros(n_vocab, dtype=torch.bool)
    first = _FIRST_BYTES[boundary]
    for token in range(min(n_vocab, tokenizer.n_vocab)):
        start = tokenizer.token_bytes(token)[:1]
        begins[token] = bool(start) and start in first
    marks = boundaries(tokenizer)
    begins[[token for token in marks if token < n_vocab]] = boundary == "whitespace"
    return begins


def expectation(
    begins: Tensor, *, renyi: float | None = None, top: int = 0
) -> Callable[[Tensor, Tensor], Expected]:
    """Return a measure for `surprisal.measured`, given which tokens begin a word, (V,) bool.

    `renyi` is the order of the Rényi entropy; None leaves it NaN. `top` is how many of the
    likeliest tokens are listed.
    """
    groups = torch.stack([begins, ~begins], dim=1)  # (V, 2)

    def measure(logits: Tensor, targets: Tensor) -> Expected:
        logs = logits.log_softmax(dim=-1)  # (N, V)
        chosen = logs.gather(1, targets[:, None])  # (N, 1)
        # As uint8, which torch adds up ten times as fast as bool.
        rank = (logs > chosen).view(torch.uint8).sum(dim=-1, dtype=torch.int32) + 1
        best = logs.topk(top)
        mass, within, entropy = _of_groups(logs, groups.to(logs.device))
        which = (~begins.to(targets.device)[targets]).long()[:, None]  # (N, 1) the token's group
        return Expected(
            nats=-chosen[:, 0],
            rank=rank.long(),
            entropy=entropy,
            entropy_word=within.gather(1, which)[:, 0],
            ending=-mass[:, 0],
            renyi=_renyi(logs, renyi),
            top=best.indices,
            top_nats=-best.values,
        )

    return measure


def _of_groups(logs: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log probability of each group of tokens, the entropy within it, and of all tokens.

    Log probabilities (N, V) and which tokens each group has, (V, G) bool -> (N, G), (N, G), (N,).
    """
    member = groups.T.to(logs.dtype)  # (G, V)

    def summed(values: Tensor) -> Tensor:  # (N, V) -> (N, G)
        # Not a matrix product: it adds up in order, and loses tens of thousands of small terms.
        return torch.stack([(values * group).sum(dim=-1) for group in member], dim=-1)

    chances = logs.exp()  # (N, V)
    mass = summed(chances)
    terms = summed(chances.mul_(logs))  # sums of p log p
    logs_of_mass = mass.log()
    within = logs_of_mass - terms / mass
    for row, group in (mass < 1e-30).nonzero().tolist():  # too small for float32
        own = logs[row, groups[:, group]].double()
        logs_of_mass[row, group] = own.logsumexp(dim=0)
        within[row, group] = torch.special.entr(own.softmax(dim=0)).sum()
    return logs_of_mass, within, -terms.sum(dim=-1)


def _renyi(logs: Tensor, order: float | None) -> Tensor:
    """Return the Rényi entropy: (N, V) log probabilities -> (N,)."""
    if order is None:
        return torch.full_like(logs[:, 0], math.nan)
    if abs(order - 1) < _NEAR_ONE:  # where the sum of p^order is nearly 1, and its log nearly 0
        more = (logs.exp() * ((order - 1) * logs).expm1()).sum(dim=-1)  # sum of p^order, minus 1
        return more.log1p() / (1 - order)
    return (order * logs).logsumexp(dim=-1) / (1 - order)
