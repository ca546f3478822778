"""Continue a batch of rows, one step at a time: read what is new, choose a token.

This is the loop of generation, and the only one. It knows ids only: text.py gives it prompts and
makes text of what it chooses. speculate.py lets a step choose several tokens.

    B batch: the rows still running, T new tokens, V vocabulary
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2kit.engine.decoder import Decoder
from gpt2kit.generation.prompts import read_prompts, refill
from gpt2kit.generation.row import Checked, Row, choose, distributions, take
from gpt2kit.generation.speculate import Drafter, Proposal, keep_or_replace
from gpt2kit.model import GPT2


class Continuation:
    """A batch of rows being continued, each as it would be if it were alone.

    `rows` are those still running: rows[i] has slot i of the cache. A row leaves the batch after
    the step that finished it, or after its caller set its `finish_reason`, and from then on costs
    nothing. Only ids below `n_vocab` are chosen: larger ones are padding of the embedding.

    Learned positions cannot be shifted inside a cache. So if a row that may `slide` outgrows the
    n_ctx positions of the model, the last half of its window is read again, from position 0.
    """

    def __init__(
        self,
        model: GPT2,
        rows: Sequence[Row],
        *,
        n_vocab: int | None = None,
        drafter: Drafter | None = None,
        compile: bool = False,
    ) -> None:
        self.rows = list(rows)
        self._decoder = Decoder(model, compile=compile)
        self._n_ctx = model.config.n_ctx
        self._n_vocab = n_vocab or model.config.n_vocab
        self._padding = model.config.n_vocab - self._n_vocab
        self._drafter = drafter
        capacity = max(row.longest for row in rows) + (drafter.most if drafter else 0)
        self._cache = self._decoder.new_cache(len(rows), capacity)
        self._prompts_read = False
        self._most_likely = self._logits_needed()

    def step(self) -> list[Row]:
        """Choose the next token of every running row, with a drafter perhaps several.

        Returns those rows; `row.new` holds what was chosen. Returns no rows once all have ended.
        """
        self._drop_finished()
        rows = self.rows
        for row in rows:
            row.new, row.checked = [], None
        with torch.inference_mode():
            if not rows:
                return []
            if not self._prompts_read:
                logits = self._read_prompts()  # (B, V)
            else:
                self._make_room()
                if self._drafter:
                    self._step_ahead(self._drafter)
                    return rows
                newest = [row.history[-1:] for row in rows]
                logits = self._decoder.read(newest, self._cache, most_likely=self._most_likely)
            if self._padding:
                logits = logits[:, : self._n_vocab]
            with self._decoder.quiet():
                take(rows, choose(rows, logits), logits)
        return rows

    def _drop_finished(self) -> None:
        """Let the rows that have ended leave the batch."""
        running = [slot for slot, row in enumerate(self.rows) if row.finish_reason is None]
        if len(running) == len(self.rows):
            return
        if running:
            self._cache.keep(running)
            if self._drafter:
                self._drafter.keep(running)
        self.rows = [self.rows[slot] for slot in running]
        self._most_likely = self._logits_needed()

    def _logits_needed(self) -> int:
        """Return how many of the largest logits decide for every row; 0 if all are needed."""
        needed = [row.request.most_likely for row in self.rows]
        # Padding of the embedding may be among the largest, and is cut off afterwards.
        return max(needed) + self._padding if all(needed) and needed else 0

    def _read_prompts(self) -> Tensor:
        self._prompts_read = True
        prompts = [row.history for row in self.rows]
        return read_prompts(self._decoder, prompts, self._cache, range(len(prompts)))  # (B, V)

    def _make_room(self) -> None:
        """Read again the last half of every window that is full, but for the newest token."""
        for slot, length in enumerate(self._cache.lengths):
            if length >= self._n_ctx:
                row = self.rows[slot]
                row.history = row.history[-max(1, self._n_ctx // 2) :]
                refill(self._decoder, self._cache, {slot: row.history[:-1]})

    def _step_ahead(self, drafter: Drafter) -> None:
        """Read every row's newest token and a proposal of what follows, and choose along it."""
        rows = self.rows
        last = [self._n_ctx if row.request.overflow == "slide" else self._n_ctx - 1 for row in rows]
        room = [n - len(row.history) for n, row in zip(last, rows, strict=True)]
        proposals = drafter.propose(rows, room)
        ids = [
            [row.history[-1], *proposal.tokens]
            for row, proposal in zip(rows, proposals, strict=True)
        ]
        found = self._decoder.read_each(ids, self._cache)  # (T, V) for each row
        checks = [
            _Check(row, proposal, logits[:, : self._n_vocab])
            for row, proposal, logits in zip(rows, proposals, found, strict=True)
        ]
        with self._decoder.quiet():
            _choose_along(checks)
        self._cache.truncate([len(row.history) - 1 for row in rows])
        for row, proposal in zip(rows, proposals, strict=True):
            row.checked = Checked(len(proposal.tokens), len(row.new) - 1)
        drafter.learn(rows)


@dataclass
class _Check:
    """A row whose proposal is being checked."""

    row: Row
    proposal: Proposal
    logits: Tensor  # (T, V): logits[i] follow the row's newest token and i proposed ones

    def was_drawn(self, i: int) -> bool:
        """Return whether token i of the proposal was drawn from a distribution of the draft's."""
        return i < len(self.proposal.drawn_from)

    def holds(self, i: int) -> bool:
        """Return whether the row goes on, and with token i of the proposal as its newest token."""
        tokens, row = self.proposal.tokens, self.row
        return row.finish_reason is None and i < len(tokens) and tokens[i] == row.history[-1]


def _choose_along(checks: list[_Check]) -> None:
    """Choose tokens for each row as long as its proposal holds, and one more."""
    for i in itertools.count():
        drawn = [check for check in checks if check.was_drawn(i)]
        compared = [check for check in checks if not check.was_drawn(i)]
        if compared:
            rows = [check.row for check in compared]
            logits = torch.stack([check.logits[i] for check in compared])  # (compared, V)
            take(rows, choose(rows, logits), logits)
        if drawn:
            rows = [check.row for check in drawn]
            logits = torch.stack([check.logits[i] for check in drawn])  # (drawn, V)
            p = distributions(rows, logits)  # (drawn, V)
            q = torch.stack([check.proposal.drawn_from[i] for check in drawn]).to(p)
            proposed = [check.proposal.tokens[i] for check in drawn]
            tokens = keep_or_replace(p, q, proposed, [row.generator for row in rows])
            take(rows, tokens, logits)
        checks = [check for check in checks if check.holds(i)]
        if not checks:
            return
