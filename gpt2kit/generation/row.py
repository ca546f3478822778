"""One token sequence that is being continued: its tokens, its random stream, and why it ended."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gpt2kit.config import GPT2Config
from gpt2kit.data.window import check_ids, check_length, fit
from gpt2kit.generation.request import FinishReason, Request
from gpt2kit.generation.sampling import (
    adjusted,
    full_distribution,
    log_probabilities,
    sample,
    sample_generator,
    top_log_probabilities,
)


class Chosen(NamedTuple):
    """A token that a step chose, or one of a prompt, with what the model thought of it."""

    token: int
    logprob: float | None = None  # natural logarithm of the model's own probability, if asked for
    top_logprobs: list[tuple[int, float]] | None = None  # the likeliest tokens with theirs, if too


class Checked(NamedTuple):
    """What became of a row's proposal in one step."""

    proposed: int  # tokens
    accepted: int  # of them, those that the model agreed with


class Row:
    """One token sequence being continued, as it would be if it were alone.

    Its next token depends on `history`, on `generator` and on the request, never on other rows.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        request: Request,
        config: GPT2Config,
        *,
        sample: int = 0,
        stop_id: int | None = None,
    ) -> None:
        """Begin after a prompt, with the random stream of (seed, sample), to end at `stop_id`.

        If prompt and new tokens outgrow the model's window, `request.overflow` decides. With
        `slide`, a prompt that is too long keeps its end, with a warning. `stop` raises
        ContextLengthError if the prompt alone does not fit, `error` also if the new tokens do not.
        """
        n_ctx = config.n_ctx
        check_ids(prompt, config.n_vocab, "the prompt")
        request.sampling.check_vocabulary(config.n_vocab)
        if request.overflow == "stop":
            check_length(len(prompt), n_ctx, "the prompt")
        elif request.overflow == "error":
            n = len(prompt) + request.max_tokens
            check_length(n, n_ctx, f"the prompt with {request.max_tokens:,} new tokens")
        shown = fit(prompt, n_ctx, request.overflow, what="the prompt", slides=False)
        self.request = request
        self.history = list(shown)  # the prompt, then what was chosen
        self.generated: Counter[int] = Counter()  # how often each token was chosen
        self.generator = sample_generator(request.drawn_seed, sample)
        self.new: list[Chosen] = []  # what the last step chose
        self.checked: Checked | None = None  # what became of its proposal, if it had one
        self.prompt_chosen: list[Chosen] = []  # the prompt's own tokens, if asked for, as read
        self.cached_tokens = 0  # tokens of the prompt that did not have to be read
        self.ahead: int | None = None  # tokens to propose in the next step; None: all that fit
        self.finish_reason: FinishReason | None = None  # None while it is running
        self._stop_id = stop_id
        self._left = request.max_tokens  # tokens that may still be chosen
        self._room = n_ctx if request.overflow != "slide" else None
        if not request.prompt_logprobs:  # otherwise the prompt has to be read at least
            self._finish_if_due()

    def take(self, chosen: Chosen) -> None:
        """Add a chosen token, and finish if it is the last."""
        self.add(chosen.token)
        self.new.append(chosen)
        self._left -= 1
        if chosen.token == self._stop_id:
            self.finish_reason = "end_of_text"
        else:
            self._finish_if_due()

    def add(self, token: int) -> None:
        """Add a token to the text, without asking whether it is the last."""
        self.history.append(token)
        self.generated[token] += 1

    def ends_with_its_prompt(self) -> bool:
        """Finish a row that may have no token after its prompt, and say whether it is one."""
        self._finish_if_due()
        return self.finish_reason is not None

    def _finish_if_due(self) -> None:
        if self._left <= 0:
            self.finish_reason = "max_tokens"
        elif self._room is not None and len(self.history) >= self._room:
            self.finish_reason = "context"

    @property
    def longest(self) -> int:
        """How many tokens it can have in the end."""
        return len(self.history) + self._left

    def copy(self) -> Row:
        """Return a row with the same tokens and the same random stream, to be continued apart."""
        other = copy.copy(self)
        other.history, other.new = list(self.history), []
        other.generated = self.generated.copy()
        return other


def choose(rows: Sequence[Row], logits: Tensor) -> list[int]:
    """Choose the next token of each row from its logits (B, V), as the row's request says."""
    sampling = rows[0].request.sampling
    if len(rows) > 1 and any(row.request.sampling is not sampling for row in rows):
        return [choose([row], logits[i : i + 1])[0] for i, row in enumerate(rows)]
    return sample(_adjusted(rows, logits), sampling, [row.generator for row in rows])


def distributions(rows: Sequence[Row], logits: Tensor) -> Tensor:
    """Return the probabilities with which `choose` takes each token: (B, V) -> (B, V)."""
    sampling = rows[0].request.sampling
    if len(rows) > 1 and any(row.request.sampling is not sampling for row in rows):
        return torch.cat([distributions([row], logits[i : i + 1]) for i, row in enumerate(rows)])
    return full_distribution(_adjusted(rows, logits), sampling)


def _adjusted(rows: Sequence[Row], logits: Tensor) -> Tensor:
    """Apply bias and penalties to the logits (B, V) of rows with one and the same sampling."""
    histories, generated = [row.history for row in rows], [row.generated for row in rows]
    return adjusted(logits, rows[0].request.sampling, histories, generated)


def take(rows: Sequence[Row], tokens: Sequence[int], logits: Tensor) -> None:
    """Add a token to each row, with the log-probabilities under logits (B, V) that it asks for."""
    asked = [row.request.logprobs for row in rows]
    ks = [row.request.top_logprobs for row in rows]
    own = log_probabilities(logits, tokens) if any(asked) else []
    top = top_log_probabilities(logits, max(ks)) if any(ks) else []
    for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
        logprob = own[i] if asked[i] else None
        row.take(Chosen(token, logprob, top[i][: ks[i]] if ks[i] else None))


def score(logits: Tensor, tokens: Sequence[int], top: int) -> list[Chosen]:
    """Return what logits (T, V) say of the tokens that follow in a text, and of the `top` best."""
    if not tokens:
        return []
    own = log_probabilities(logits, tokens)
    best = top_log_probabilities(logits, top) if top else [None] * len(tokens)
    return [Chosen(*each) for each in zip(tokens, own, best, strict=True)]
