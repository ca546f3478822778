"""Read prompts into the slots of a cache, piece by piece, and what they share only once.

V vocabulary
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from gpt2kit.cache import KVCache
from gpt2kit.engine.decoder import Decoder
from gpt2kit.generation.row import Chosen, Row, score
from gpt2kit.generation.slots import LEAST, Slots, common_length


class Read(NamedTuple):
    """A row whose prompt has been read."""

    row: Row
    slot: int
    logits: Tensor | None  # (V,) after the prompt's last token; None if they were not asked for


@dataclass(eq=False)
class _Prompt:
    """A prompt that is being read, for all rows that begin with it."""

    ids: list[int]
    rows: list[Row]
    slots: list[int]  # one for each row; the prompt is read into the first
    is_window: bool = False  # the rest of a full window, after which no logits are needed

    @property
    def is_scored(self) -> bool:
        """Whether the log-probabilities of its own tokens are asked for."""
        return self.rows[0].request.prompt_logprobs and not self.is_window


class PromptReader:
    """Reads the prompts of rows that wait for a slot, the oldest first.

    On a CPU a prompt is cut at multiples of `decoder.cut` only, so its bits do not depend on other
    rows, nor on how often or after what it was read. The beginning that a slot holds already is
    copied, and equal prompts are read once.
    """

    def __init__(self, decoder: Decoder, cache: KVCache, *, n_vocab: int) -> None:
        self.slots = Slots(cache.batch_size, cut=decoder.cut)
        self.queue: deque[Row] = deque()  # rows without a slot
        self._decoder = decoder
        self._cache = cache
        self._n_vocab = n_vocab
        self._unread: list[_Prompt] = []  # the oldest first
        self._same: dict[tuple[object, ...], _Prompt] = {}  # those that other rows can share

    @property
    def waiting(self) -> list[Row]:
        """The rows whose prompts are not read to the end, in the order in which they came."""
        return [*(row for prompt in self._unread for row in prompt.rows), *self.queue]

    @property
    def has_work(self) -> bool:
        """Whether a prompt is unread."""
        return bool(self._unread or self.queue)

    def remove(self, row: Row) -> None:
        """Drop a row if its prompt is unread; if it has a slot, that is free again."""
        if row in self.queue:
            self.queue.remove(row)
        for prompt in self._unread:
            if row in prompt.rows:
                self.slots.give_back(prompt.slots.pop())
                if len(prompt.rows) == 1:
                    self._drop(prompt)
                prompt.rows.remove(row)
                return

    def read_window(self, row: Row, slot: int) -> None:
        """Let a row that runs in a slot read the rest of its window again, before all others."""
        self._hold(slot, 0)
        self._unread.insert(0, _Prompt(row.history[:-1], [row], [slot], is_window=True))

    def read(self, pieces: int | None) -> list[Read]:
        """Read the tokens of this many pieces, or all; return the rows whose prompts are complete.

        They may be tokens of one prompt, or of several.
        """
        left = math.inf if pieces is None else pieces * self._decoder.piece
        found: list[Read] = []
        while batch := self._next(left):
            left -= sum(len(piece) for _, piece in batch)
            for prompt, logits in self._read(batch):
                if self._cache.lengths[prompt.slots[0]] == len(prompt.ids):
                    self._drop(prompt)
                    found += self._distribute(prompt, logits)
        return sorted(found, key=lambda read: read.slot)

    # --- which pieces -----------------------------------------------------------------------------

    def _next(self, left: float) -> list[tuple[_Prompt, list[int]]]:
        """Choose a piece of each prompt to read together, up to `left` tokens in all."""
        batch: list[tuple[_Prompt, list[int]]] = []
        being_read: list[list[int]] = []  # the beginnings of prompts that this batch reaches
        prompts = self._prompts()
        while left > 0 and (prompt := next(prompts, None)):
            piece = self._piece_of(prompt, being_read, left)
            if piece is None:
                continue
            if len(piece) > left:
                break
            left -= len(piece)
            batch.append((prompt, piece))
        return batch

    def _prompts(self) -> Iterator[_Prompt]:
        """Yield the prompts with a slot, then those that get one, as long as there are any."""
        self._join()
        yield from list(self._unread)
        while self.queue and self.slots.free:
            row = self.queue.popleft()
            slot, held = self.slots.take(() if row.request.prompt_logprobs else row.history)
            self._hold(slot, held)
            row.cached_tokens = held
            prompt = _Prompt(list(row.history), [row], [slot])
            self._unread.append(prompt)
            self._same[_key(row)] = prompt
            self._join()
            yield prompt

    def _join(self) -> None:
        """Let rows at the head of the queue share a prompt that is being read."""
        while self.queue and self.slots.free and (prompt := self._same.get(_key(self.queue[0]))):
            row = self.queue.popleft()
            slot, _ = self.slots.take()
            self._hold(slot, 0)
            row.cached_tokens = len(row.history)
            row.prompt_chosen = prompt.rows[0].prompt_chosen
            prompt.rows.append(row)
            prompt.slots.append(slot)

    def _piece_of(
        self, prompt: _Prompt, being_read: list[list[int]], left: float
    ) -> list[int] | None:
        """Return the next piece of a prompt that nobody else reads, after copying what is held.

        None if another prompt reads some of it right now: then it can be copied the next time.
        """
        ids, slot = prompt.ids, prompt.slots[0]
        start = self._cache.lengths[slot]
        # Logits are not kept: if they are asked for, every token is read.
        found = None if prompt.is_scored else self.slots.find(ids, start)
        holder, known = found or (slot, start)
        if not prompt.is_scored and self._will_be_held(ids, known, being_read):
            return None
        # Logits of scored tokens take memory; torch has to cut all prompts alike.
        small = prompt.is_scored or self._decoder.cut > 1
        end = int(min(known + (self._decoder.piece if small else left), len(ids)))
        being_read.append(ids[:end])
        if known > start:
            self._cache.fill([slot], self._cache, holder, known)
            self.slots.note(slot, ids[:known])
            if not prompt.is_window:
                prompt.rows[0].cached_tokens += known - start
        return ids[known:end]

    def _will_be_held(
        self, ids: Sequence[int], known: int, being_read: Sequence[Sequence[int]]
    ) -> bool:
        """Whether some of a prompt's next tokens are being read, enough to wait for them."""
        cut = self._decoder.cut
        shared = (min(common_length(ids, other), len(ids) - 1) // cut * cut for other in being_read)
        return any(n - known >= LEAST for n in shared)

    # --- reading them -----------------------------------------------------------------------------

    def _read(
        self, batch: Sequence[tuple[_Prompt, list[int]]]
    ) -> Iterator[tuple[_Prompt, Tensor | None]]:
        """Read pieces, and yield each prompt with the logits (V,) after its end, if it is there."""
        scored = [(prompt, piece) for prompt, piece in batch if prompt.is_scored]
        plain = [(prompt, piece) for prompt, piece in batch if not prompt.is_scored]
        for prompt, piece in scored:
            yield prompt, self._read_scored(prompt, piece)
        if not plain:
            return
        slots = [prompt.slots[0] for prompt, _ in plain]
        ends = [
            self._cache.lengths[slot] + len(piece) == len(prompt.ids) and not prompt.is_window
            for (prompt, piece), slot in zip(plain, slots, strict=True)
        ]
        logits = iter(
            self._decoder.read(
                [piece for _, piece in plain], self._cache, slots=slots, wanted=list(map(int, ends))
            )
        )
        for (prompt, _), slot, is_end in zip(plain, slots, ends, strict=True):
            self.slots.note(slot, prompt.ids[: self._cache.lengths[slot]])
            yield prompt, next(logits) if is_end else None

    def _read_scored(self, prompt: _Prompt, piece: list[int]) -> Tensor:
        """Read a piece and score its tokens' successors; return the logits (V,) after its last."""
        slot = prompt.slots[0]
        start = self._cache.lengths[slot]
        if start == 0:
            prompt.rows[0].prompt_chosen.append(Chosen(prompt.ids[0]))
        logits = self._decoder.read_scored(piece, self._cache, slot)  # (T, V)
        self.slots.note(slot, prompt.ids[: self._cache.lengths[slot]])
        following = prompt.ids[start + 1 : start + 1 + len(piece)]
        top = prompt.rows[0].request.top_logprobs
        logits[:, self._n_vocab :] = -math.inf  # padding of the embedding
        prompt.rows[0].prompt_chosen += score(logits[: len(following)], following, top)
        return logits[-1]

    def _distribute(self, prompt: _Prompt, logits: Tensor | None) -> list[Read]:
        """Give all rows of a prompt what was read for the first."""
        first, *others = prompt.slots
        if others:
            self._cache.fill(others, self._cache, first)
            for slot in others:
                self.slots.note(slot, prompt.ids)
        return [
            Read(row, slot, logits) for row, slot in zip(prompt.rows, prompt.slots, strict=True)
        ]

    def _hold(self, slot: int, length: int) -> None:
        """Keep only the first tokens of what a slot holds."""
        if self._cache.lengths[slot] != length:
            lengths = list(self._cache.lengths)
            lengths[slot] = length
            self._cache.truncate(lengths)
        self.slots.forget(slot, length)

    def _drop(self, prompt: _Prompt) -> None:
        self._unread.remove(prompt)
        if not prompt.is_window:
            del self._same[_key(prompt.rows[0])]


def _key(row: Row) -> tuple[object, ...]:
    """Return what must be equal for two rows to share the reading of their prompts."""
    request = row.request
    return tuple(row.history), request.prompt_logprobs and 1 + request.top_logprobs


def refill(decoder: Decoder, cache: KVCache, contents: Mapping[int, Sequence[int]]) -> None:
    """Replace what some slots of a cache hold by these tokens; equal ones are read once."""
    cache.truncate([0 if b in contents else length for b, length in enumerate(cache.lengths)])
    same: dict[tuple[int, ...], list[int]] = {}
    for slot, tokens in contents.items():
        same.setdefault(tuple(tokens), []).append(slot)
    same.pop((), None)
    decoder.read(list(same), cache, slots=[slots[0] for slots in same.values()], wanted=0)
    for first, *others in same.values():
        if others:
            cache.fill(others, cache, first)
