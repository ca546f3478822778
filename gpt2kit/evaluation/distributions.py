"""What a model expected at each token: surprisal, rank, entropy, and how likely a word ends there.

N tokens, V vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2kit.evaluation.word_options import Boundary
from gpt2kit.tokenizers import Tokenizer
from gpt2kit.tokenizers.listed import boundaries

_FIRST_BYTES = {"whitespace": b" \t\n\r\v\f", "space": b" "}


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
    begins: Tensor, *, renyi: float | None = None
) -> Callable[[Tensor, Tensor], Expected]:
    """Return a measure for `surprisal.measured`, given which tokens begin a word, (V,) bool.

    `renyi` is the order of the Rényi entropy; None leaves it NaN.
    """

    def measure(logits: Tensor, targets: Tensor) -> Expected:
        begin = begins.to(logits.device)
        logs = logits.log_softmax(dim=-1)  # (N, V)
        chosen = logs.gather(1, targets[:, None])  # (N, 1)
        terms = torch.special.entr(logs.exp())  # (N, V) -p log p
        alike = begin == begin[targets][:, None]  # (N, V)
        mass = logs.masked_fill(~alike, -math.inf).logsumexp(dim=-1)  # (N,)
        return Expected(
            nats=F.nll_loss(logs, targets, reduction="none"),
            rank=(logs > chosen).sum(dim=-1) + 1,
            entropy=terms.sum(dim=-1),
            entropy_word=(terms * alike).sum(dim=-1) / mass.exp() + mass,
            ending=-logs.masked_fill(~begin, -math.inf).logsumexp(dim=-1),
            renyi=_renyi(logs, renyi),
        )

    return measure


def _renyi(logs: Tensor, order: float | None) -> Tensor:
    """Return the Rényi entropy: (N, V) log probabilities -> (N,)."""
    if order is None:
        return torch.full_like(logs[:, 0], math.nan)
    return (order * logs).logsumexp(dim=-1) / (1 - order)
