"""One token sequence that is being continued: its tokens, its random stream, and why it ended."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gpt2kit.config import GPT2Config
from gpt2kit.data.window import check_ids, check_length, fit
from gpt2kit.generation.request import FinishReason, Request
from gpt2kit.generation.sampling import full_distribution, sample, sample_generator, seen_tokens


class Chosen(NamedTuple):
    """A token that a step chose."""

    token: int
    logprob: float | None  # natural logarithm of the model's own probability, if asked for


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
        if request.overflow == "stop":
            check_length(len(prompt), n_ctx, "the prompt")
        elif request.overflow == "error":
            n = len(prompt) + request.max_tokens
            check_length(n, n_ctx, f"the prompt with {request.max_tokens:,} new tokens")
        shown = fit(prompt, n_ctx, request.overflow, what="the prompt", slides=False)
        self.request = request
        self.history = list(shown)  # the prompt, then what was chosen
        self.generator = sample_generator(request.drawn_seed, sample)
        self.new: list[Chosen] = []  # what the last step chose
        self.checked: Checked | None = None  # what became of its proposal, if it had one
        self.ahead: int | None = None  # tokens to propose in the next step; None: all that fit
        self.finish_reason: FinishReason | None = None  # None while it is running
        self._stop_id = stop_id
        self._left = request.max_tokens  # tokens that may still be chosen
        self._room = n_ctx if request.overflow != "slide" else None
        self._finish_if_due()

    def take(self, token: int, logprob: float | None = None) -> None:
        """Add a chosen token, and finish if it is the last."""
        self.history.append(token)
        self.new.append(Chosen(token, logprob))
        self._left -= 1
        if token == self._stop_id:
            self.finish_reason = "end_of_text"
        else:
            self._finish_if_due()

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
        return other


def choose(rows: Sequence[Row], logits: Tensor) -> list[int]:
    """Choose the next token of each row from its logits (B, V), as the row's request says."""
    sampling = rows[0].request.sampling
    if len(rows) > 1 and any(row.request.sampling is not sampling for row in rows):
        return [choose([row], logits[i : i + 1])[0] for i, row in enumerate(rows)]
    seen = seen_tokens([row.history for row in rows], logits, sampling)
    return sample(logits, sampling, [row.generator for row in rows], seen)


def distributions(rows: Sequence[Row], logits: Tensor) -> Tensor:
    """Return the probabilities with which `choose` takes each token: (B, V) -> (B, V)."""
    sampling = rows[0].request.sampling
    if len(rows) > 1 and any(row.request.sampling is not sampling for row in rows):
        return torch.cat([distributions([row], logits[i : i + 1]) for i, row in enumerate(rows)])
    seen = seen_tokens([row.history for row in rows], logits, sampling)
    return full_distribution(logits, sampling, seen)
