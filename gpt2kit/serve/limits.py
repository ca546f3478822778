"""How much work is accepted: requests and tokens are reserved before anything is done for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gpt2kit.generation.constraints.constraint import Constraint
from gpt2kit.serve.completions import CompletionRequest, Prompt
from gpt2kit.serve.errors import Refusal
from gpt2kit.serve.metrics import Metrics
from gpt2kit.serve.settings import TABLE_BYTES, Settings

_MOST_SECONDS = 60  # that a refused client is asked to wait


class Reservation:
    """The share of one request in what the server has accepted."""

    def __init__(self, tokens: int, logprobs: int) -> None:
        self.tokens = tokens
        self.logprobs = logprobs  # alternatives that its log-probabilities name
        self.constraints: set[Constraint] = set()  # of its rows


class Limits:
    """Counts the requests and tokens that were accepted and have not ended.

    As many requests as there are slots can be worked on, and `queue` more can wait.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._accepted: set[Reservation] = set()

    @property
    def requests(self) -> int:
        """How many requests were accepted and have not ended."""
        return len(self._accepted)

    @contextmanager
    def reserve(self, asked: CompletionRequest, n_ctx: int) -> Iterator[Reservation]:
        """Count a request as accepted meanwhile; raises Refusal if there is no room for it."""
        settings = self._settings
        if asked.rows > settings.max_rows:
            raise Refusal(
                400,
                f"the request asks for {asked.rows:,} texts ({len(asked.prompt):,} prompts times "
                f"{asked.samples:,}), but at most {settings.max_rows:,} are written at once; "
                "send several requests",
                param="prompt" if len(asked.prompt) > 1 else "n",
            )
        read = sum(_most_tokens(prompt, n_ctx) for prompt in asked.prompt)
        new = asked.rows * asked.most_new_tokens(n_ctx)
        tokens = read * asked.samples + new
        if tokens > settings.queue_tokens:
            raise Refusal(
                400,
                f"the request may need {tokens:,} tokens, but at most {settings.queue_tokens:,} "
                "are accepted at once; send several requests, or lower max_tokens",
                param="max_tokens",
            )
        # What is streamed is not kept. The other answers have a prompt's in each of its choices.
        kept = 0 if asked.stream else new
        of_prompts = read * asked.scores_prompts * (1 if asked.stream else asked.n)
        logprobs = (asked.logprobs or 0) * (kept + of_prompts)
        if logprobs > settings.queue_logprobs:
            raise Refusal(
                400,
                f"the log-probabilities of the request may name {logprobs:,} alternatives, but at "
                f"most {settings.queue_logprobs:,} are accepted at once; lower logprobs or "
                "max_tokens, or send several requests",
                param="logprobs",
            )
        with self._counted(Reservation(tokens, logprobs)) as reservation:
            yield reservation

    def hold(self, reservation: Reservation, constraint: Constraint) -> None:
        """Count the tables of a constraint; raises Refusal if those of all requests are too large.

        Requests with the same constraint share its tables. May be called from any thread.
        """
        reservation.constraints.add(constraint)
        held = set().union(*(each.constraints for each in list(self._accepted)))
        if sum(each.nbytes for each in held) <= TABLE_BYTES:
            return
        if sum(each.nbytes for each in reservation.constraints) > TABLE_BYTES:
            raise Refusal(
                400,
                "the tables for regex, allow and forbid are too large, as each of several prompts "
                "needs its own; send several requests",
                param="prompt",
            )
        raise self._full("tables", "requests with large regex, allow or forbid are ahead")

    @contextmanager
    def _counted(self, reservation: Reservation) -> Iterator[Reservation]:
        settings = self._settings
        if len(self._accepted) >= settings.parallel + settings.queue:
            raise self._full("queue", f"{len(self._accepted)} requests are being answered already")
        held = sum(each.tokens for each in self._accepted)
        if held + reservation.tokens > settings.queue_tokens:
            raise self._full("queue_tokens", f"requests for {held:,} tokens are ahead of this one")
        held = sum(each.logprobs for each in self._accepted)
        if held + reservation.logprobs > settings.queue_logprobs:
            raise self._full(
                "queue_logprobs", f"requests for {held:,} alternatives are ahead of this one"
            )
        self._accepted.add(reservation)
        try:
            yield reservation
        finally:
            self._accepted.discard(reservation)

    def _full(self, reason: str, why: str) -> Refusal:
        self._metrics.refused.add(reason=reason)
        # About as long as the requests ahead take.
        rounds = 1 + len(self._accepted) // self._settings.parallel
        seconds = min(_MOST_SECONDS, max(1, round(self._metrics.request.mean * rounds)))
        return Refusal(
            429, f"the server is busy: {why}; try again", code="queue_full", retry_after=seconds
        )


def _most_tokens(prompt: Prompt, n_ctx: int) -> int:
    """Return how many tokens a prompt can have at most, without encoding it."""
    # A token stands for one byte of a text at least; more than the window holds are never read.
    return min(n_ctx, len(prompt.encode()) if isinstance(prompt, str) else len(prompt)) or 1
