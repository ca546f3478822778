"""Continue rows in the slots of a cache, step by step: read what is new, choose a token.

This is the loop of generation, and the only one. It knows ids only: text.py gives it prompts and
makes text of what it chooses. speculate.py lets a step choose several tokens.

    B batch: the running rows, T new tokens, V vocabulary
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2kit.engine.decoder import Decoder
from gpt2kit.generation.prompts import PromptReader, Read
from gpt2kit.generation.row import Checked, Row, choose, distributions, take
from gpt2kit.generation.speculate import Drafter, Proposal, keep_or_replace
from gpt2kit.model import GPT2


class Continuation:
    """Rows being continued in the slots of one cache, each as it would be if it were alone.

    Rows wait in a queue. As slots get free they join, the oldest first: their prompts are read, and
    from then on they run, which means that every step gives them a token. A row leaves after the
    step that finished it, or after its caller set its `finish_reason` or removed it.

    On a CPU with the native step no other row changes a bit of what a row gets, nor does it matter
    when it joined and which beginnings of its prompt were in the cache. Only ids below `n_vocab`
    are chosen: larger ones are padding of the embedding.

    Learned positions cannot be shifted inside a cache. So if a row that may `slide` outgrows the
    n_ctx positions of the model, the last half of its window is read again, from position 0.
    """

    def __init__(
        self,
        model: GPT2,
        *,
        slots: int,
        capacity: int | None = None,
        n_vocab: int | None = None,
        drafter: Drafter | None = None,
        compile: bool = False,
        pieces_per_step: int | None = None,
    ) -> None:
        """Make a cache of `slots` slots, each with room for `capacity` tokens, or n_ctx.

        A step reads at most `pieces_per_step` pieces of prompts, so that long prompts do not hold
        up the running rows; None reads all prompts that have a slot. It may be set between steps.
        """
        self.pieces_per_step = pieces_per_step
        self._decoder = Decoder(model, compile=compile)
        self._n_ctx = model.config.n_ctx
        self._n_vocab = n_vocab or model.config.n_vocab
        self._padding = model.config.n_vocab - self._n_vocab
        self._drafter = drafter
        self._cache = self._decoder.new_cache(slots, capacity or self._n_ctx)
        self._prompts = PromptReader(self._decoder, self._cache, n_vocab=self._n_vocab)
        self._slots: dict[Row, int] = {}  # the slots of the running rows, in ascending order
        self._most_likely = 0  # how many of the largest logits decide for every running row

    @property
    def running(self) -> list[Row]:
        """The rows whose prompts are read, and that get a token in every step."""
        return list(self._slots)

    @property
    def waiting(self) -> list[Row]:
        """The rows whose prompts are unread, or read in part; the oldest first."""
        return self._prompts.waiting

    @property
    def has_work(self) -> bool:
        """Whether there is anything to do in a step."""
        return self._prompts.has_work or any(row.finish_reason is None for row in self._slots)

    def add(self, row: Row) -> None:
        """Let a row wait for a slot; a row that has ended already is not taken."""
        if row.finish_reason is None:
            self._prompts.queue.append(row)

    def remove(self, row: Row) -> None:
        """Let a row leave at once, whether it waits or runs; its slot is free from now on.

        A row that is not here, because it has ended and left, is no error.
        """
        if row in self._slots:
            self._leave([row])
        else:
            self._prompts.remove(row)

    def step(self) -> list[Row]:
        """Choose the next token of every running row, then read prompts that wait.

        Returns the rows that got tokens, which are in `row.new`, and those that ended without one
        because only their prompts were to be read. With a drafter a row may get several tokens.
        A row gets its first token in the step that completes its prompt. There may be none of them
        while prompts are being read: `has_work` says whether to go on.
        """
        self._drop_finished()
        with torch.inference_mode():
            rows = self._decode() if self._slots else []
            self._make_room()
            if self._prompts.has_work:
                rows += self._read_prompts()
                self._make_room()  # a prompt may fill the whole window
        self._drop_finished()
        return rows

    # --- joining and leaving ----------------------------------------------------------------------

    def _join(self, read: Sequence[Read]) -> None:
        self._slots |= {row: slot for row, slot, _ in read}
        self._slots = dict(sorted(self._slots.items(), key=operator.itemgetter(1)))
        self._most_likely = self._logits_needed()

    def _leave(self, rows: Sequence[Row]) -> None:
        for row in rows:
            slot = self._slots.pop(row)
            if self._decoder.cut == 1:  # tokens that were chosen have the bits of a prompt's
                self._prompts.slots.note(slot, row.history[: self._cache.lengths[slot]])
            self._prompts.slots.give_back(slot)
        self._most_likely = self._logits_needed()

    def _drop_finished(self) -> None:
        """Let the rows that have ended leave."""
        if ended := [row for row in self._slots if row.finish_reason is not None]:
            self._leave(ended)
        for row in [row for row in self._prompts.waiting if row.finish_reason is not None]:
            self._prompts.remove(row)

    def _logits_needed(self) -> int:
        """Return how many of the largest logits decide for every row; 0 if all are needed."""
        needed = [row.request.most_likely for row in self._slots]
        # Padding of the embedding may be among the largest, and is cut off afterwards.
        return max(needed) + self._padding if all(needed) and needed else 0

    # --- one step ---------------------------------------------------------------------------------

    def _decode(self) -> list[Row]:
        """Read the newest token of every running row, and choose the next one."""
        rows = list(self._slots)
        for row in rows:
            row.new, row.checked = [], None
        if self._drafter:
            self._step_ahead(self._drafter, rows)
            return rows
        newest = [row.history[-1:] for row in rows]
        slots = list(self._slots.values())
        logits = self._decoder.read(
            newest, self._cache, slots=slots, most_likely=self._most_likely
        )  # (B, V)
        self._choose(rows, logits)
        return rows

    def _make_room(self) -> None:
        """Let rows with a full window read its last half again, but for the newest token."""
        lengths = self._cache.lengths
        full = [row for row, slot in self._slots.items() if lengths[slot] >= self._n_ctx]
        for row in [row for row in full if row.finish_reason is None]:
            row.history = row.history[-max(1, self._n_ctx // 2) :]
            self._prompts.read_window(row, self._slots.pop(row))

    def _read_prompts(self) -> list[Row]:
        """Read prompts, and choose the first token of the rows whose prompts are complete."""
        read = self._prompts.read(self.pieces_per_step)
        self._join(read)
        first = [one for one in read if one.logits is not None]
        ended = [one.row for one in first if one.row.ends_with_its_prompt()]
        first = [one for one in first if one.row.finish_reason is None]
        if first:
            logits = torch.stack([one.logits for one in first if one.logits is not None])  # (B, V)
            self._choose([one.row for one in first], logits)
        return [*(one.row for one in first), *ended]

    def _choose(self, rows: Sequence[Row], logits: Tensor) -> None:
        """Choose the next token of each row from its logits, (B, V)."""
        if self._padding:
            logits = logits[:, : self._n_vocab]
        with self._decoder.quiet():
            take(rows, choose(rows, logits), logits)

    def _step_ahead(self, drafter: Drafter, rows: Sequence[Row]) -> None:
        """Read every row's newest token and a proposal of what follows, and choose along it."""
        slots = [self._slots[row] for row in rows]
        last = [self._n_ctx if row.request.overflow == "slide" else self._n_ctx - 1 for row in rows]
        room = [n - len(row.history) for n, row in zip(last, rows, strict=True)]
        proposals = drafter.propose(rows, room)
        ids = [
            [row.history[-1], *proposal.tokens]
            for row, proposal in zip(rows, proposals, strict=True)
        ]
        found = self._decoder.read_each(ids, self._cache, slots=slots)  # (T, V) for each row
        checks = [
            _Check(row, proposal, logits[:, : self._n_vocab])
            for row, proposal, logits in zip(rows, proposals, found, strict=True)
        ]
        with self._decoder.quiet():
            _choose_along(checks)
        lengths = list(self._cache.lengths)
        for row, proposal, slot in zip(rows, proposals, slots, strict=True):
            row.checked = Checked(len(proposal.tokens), max(0, len(row.new) - 1))
            lengths[slot] = len(row.history) - 1
        self._cache.truncate(lengths)
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
