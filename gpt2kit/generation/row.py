"""One token sequence that is being continued: its tokens, its random stream, and why it ended."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gpt2kit.config import GPT2Config
from gpt2kit.data.window import check_ids, check_length, fit
from gpt2kit.engine.torch_engine import precise
from gpt2kit.errors import ConfigError, GenerationError
from gpt2kit.generation.constraints.constraint import Progress
from gpt2kit.generation.request import FinishReason, Request
from gpt2kit.generation.sampling import (
    adjusted,
    full_distribution,
    log_probabilities,
    sample,
    sample_generator,
    top_log_probabilities,
)
from gpt2kit.generation.shaping.forbidding import Limit, left_without_a_token
from gpt2kit.generation.shaping.processors import RowView, processed


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
        limits: Sequence[Limit] = (),
        progress: Progress | None = None,
    ) -> None:
        """Begin after a prompt, with the random stream of (seed, sample), to end at `stop_id`.

        `limits` are those of `limits_for`; the request alone does not limit a row. `progress` is
        where the row begins in the request's constraints, if it has some.

        If prompt and new tokens outgrow the model's window, `request.overflow` decides. With
        `slide`, a prompt that is too long keeps its end, with a warning. `stop` raises
        ContextLengthError if the prompt alone does not fit, `error` also if the new tokens do not.
        """
        n_ctx = config.n_ctx
        check_ids(prompt, config.n_vocab, "the prompt")
        request.sampling.check_vocabulary(config.n_vocab)
        if request.constraints and progress is None:
            raise ConfigError(
                f"{request.constraints} needs a vocabulary; use stream, complete or generate"
            )
        if request.overflow == "stop":
            check_length(len(prompt), n_ctx, "the prompt")
        elif request.overflow == "error":
            n = len(prompt) + request.max_tokens
            check_length(n, n_ctx, f"the prompt with {request.max_tokens:,} new tokens")
        shown = fit(prompt, n_ctx, request.overflow, what="the prompt", slides=False)
        self.request = request
        self.history = list(shown)  # what the model reads: the prompt, then what was chosen
        self.tokens = list(shown)  # the same, but from the beginning after the window has slid
        self.prompt_length = len(shown)
        self.sample = sample
        self.memory: dict[Any, Any] = {}  # see RowView
        self.generated: Counter[int] = Counter()  # how often each token was chosen
        self.generator = sample_generator(request.drawn_seed, sample)
        self.new: list[Chosen] = []  # what the last step chose
        self.checked: Checked | None = None  # what became of its proposal, if it had one
        self.prompt_chosen: list[Chosen] = []  # the prompt's own tokens, if asked for, as read
        self.cached_tokens = 0  # tokens of the prompt that did not have to be read
        self.ahead: int | None = None  # tokens to propose in the next step; None: all that fit
        self.finish_reason: FinishReason | None = None  # None while it is running
        self.error: GenerationError | None = None  # why it cannot go on, if its limits end it
        self.progress = progress  # in the constraints
        self._limits = tuple(limits)
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
        self.tokens.append(token)
        self.generated[token] += 1
        if self.progress is not None:
            self.progress = self.progress.after(token)

    @property
    def limits(self) -> tuple[Limit, ...]:
        """What limits its next token: its constraints, then the others."""
        return self._limits if self.progress is None else (self.progress, *self._limits)

    def view(self) -> RowView:
        """Return what limits and logits processors are told about the row."""
        return RowView(tuple(self.tokens), self.prompt_length, self.sample, self.memory)

    def ends_with_its_prompt(self) -> bool:
        """Finish a row that may have no token after its prompt, and say whether it is one."""
        self._finish_if_due()
        return self.finish_reason is not None

    @property
    def matches(self) -> bool | None:
        """Whether its text is complete by the request's constraints; None without any."""
        return None if self.progress is None else self.progress.may_end

    def _finish_if_due(self) -> None:
        if self.progress is not None and self.progress.must_end:
            self.finish_reason = "constraint"
        elif self._left <= 0:
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
        other.tokens, other.memory = list(self.tokens), dict(self.memory)
        other.generated = self.generated.copy()
        return other


def choose(rows: Sequence[Row], logits: Tensor) -> list[int]:
    """Choose the next token of each row from its logits (B, V), as the row's request says."""
    tokens = [0] * len(rows)
    for at in _asked_alike(rows):
        own = [rows[i] for i in at]
        found = logits if len(at) == len(rows) else logits[at]  # (own, V)
        generators = [row.generator for row in own]
        chosen = sample(_adjusted(own, found), own[0].request.sampling, generators)
        for i, token in zip(at, chosen, strict=True):
            tokens[i] = token
    return tokens


def distributions(rows: Sequence[Row], logits: Tensor) -> Tensor:
    """Return the probabilities with which `choose` takes each token: (B, V) -> (B, V)."""
    found: dict[int, Tensor] = {}
    for at in _asked_alike(rows):
        own = [rows[i] for i in at]
        shares = full_distribution(_adjusted(own, logits[at]), own[0].request.sampling)  # (own, V)
        found |= dict(zip(at, shares, strict=True))
    return torch.stack([found[i] for i in range(len(rows))])


def _asked_alike(rows: Sequence[Row]) -> Collection[list[int]]:
    """Return groups of rows that choose a token in the same way, so that one call does for each."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, row in enumerate(rows):
        processors = map(id, row.request.logits_processors)  # they need not be hashable
        groups.setdefault((row.request.sampling, *processors), []).append(i)
    return groups.values()


def _adjusted(rows: Sequence[Row], logits: Tensor) -> Tensor:
    """Apply all that changes the logits (B, V) of rows that are asked for in one way, in order.

    First come the caller's processors, then the limits of each row, then bias and penalties.
    """
    processors = rows[0].request.logits_processors
    if processors or any(row.limits for row in rows):
        views = [row.view() for row in rows]
        logits = processed(precise(logits), processors, views)
        logits = _limited(rows, logits, views)
    histories, generated = [row.history for row in rows], [row.generated for row in rows]
    return adjusted(logits, rows[0].request.sampling, histories, generated)


def _limited(rows: Sequence[Row], logits: Tensor, views: Sequence[RowView]) -> Tensor:
    """Apply its limits to each row of logits (B, V).

    A row that has no token left gets an error and its unlimited logits: what is chosen is dropped.
    """
    limited = logits.clone()
    for i, (row, view) in enumerate(zip(rows, views, strict=True)):
        for limit in row.limits:
            limit.forbid(limited[i], view)
        if row.limits and limited[i].amax().item() == -math.inf:
            n_new = len(view.tokens) - view.prompt_length
            row.error = GenerationError(left_without_a_token(row.limits, n_new))
            limited[i] = logits[i]
    return limited


def take(rows: Sequence[Row], tokens: Sequence[int], logits: Tensor) -> None:
    """Add a token to each row, with the log-probabilities under logits (B, V) that it asks for.

    A row with an error gets none, and has ended.
    """
    asked = [row.request.logprobs for row in rows]
    ks = [row.request.top_logprobs for row in rows]
    own = log_probabilities(logits, tokens) if any(asked) else []
    top = top_log_probabilities(logits, max(ks)) if any(ks) else []
    for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
        if row.error is not None:
            row.finish_reason = "dead_end"
            continue
        logprob = own[i] if asked[i] else None
        row.take(Chosen(token, logprob, top[i][: ks[i]] if ks[i] else None))


def score(logits: Tensor, tokens: Sequence[int], top: int) -> list[Chosen]:
    """Return what logits (T, V) say of the tokens that follow in a text, and of the `top` best."""
    if not tokens:
        return []
    own = log_probabilities(logits, tokens)
    best = top_log_probabilities(logits, top) if top else [None] * len(tokens)
    return [Chosen(*each) for each in zip(tokens, own, best, strict=True)]
