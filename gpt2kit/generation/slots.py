"""Which slots of a cache are free, and which beginnings of texts they hold."""

from __future__ import annotations

from collections.abc import Sequence

Ids = tuple[int, ...]


class Slots:
    """The slots of a cache: free or taken, and the whole pieces of prompts that each one holds.

    A slot keeps what it holds after it was given back, until another text takes it. Only what was
    read as a prompt, in pieces cut at multiples of `piece` tokens, is known here: read again in a
    new prompt it would have the same bits. Tokens that were chosen one at a time would not.
    """

    def __init__(self, n: int, piece: int) -> None:
        self._piece = piece
        self._free = dict.fromkeys(range(n))  # the one that was given back first comes first
        self._held: list[list[Ids]] = [[] for _ in range(n)]  # beginnings, the shortest first
        self._holders: dict[Ids, set[int]] = {}  # the slots that hold a beginning

    def __len__(self) -> int:
        return len(self._held)

    @property
    def free(self) -> int:
        """The number of free slots."""
        return len(self._free)

    def take(self, ids: Sequence[int] = ()) -> tuple[int, int]:
        """Take a free slot; return it, and how many tokens of the prompt `ids` it holds.

        It is the one that holds the longest beginning of the prompt; if no free one holds any, the
        one that was not used for the longest time.
        """
        slot, length = next(iter(self._free)), 0
        for beginning in self._beginnings(ids, 0):
            if free := self._holders[beginning] & self._free.keys():
                slot, length = min(free), len(beginning)
        del self._free[slot]
        self.forget(slot, length)
        return slot, length

    def give_back(self, slot: int) -> None:
        """Let another text take a slot."""
        self._free[slot] = None

    def find(self, ids: Sequence[int], known: int) -> tuple[int, int] | None:
        """Return a slot that holds more than `known` tokens of a prompt, and how many.

        Among several it is one that holds the most. `known` is a multiple of the piece.
        """
        found = None
        for beginning in self._beginnings(ids, known):
            found = min(self._holders[beginning]), len(beginning)
        return found

    def note(self, slot: int, ids: Sequence[int]) -> None:
        """Note that a slot holds these tokens, the beginning of a prompt, read in pieces."""
        held = self._held[slot]
        for end in range((len(held) + 1) * self._piece, len(ids) + 1, self._piece):
            held.append(tuple(ids[:end]))
            self._holders.setdefault(held[-1], set()).add(slot)

    def forget(self, slot: int, length: int = 0) -> None:
        """Note that a slot holds no more than its first `length` tokens."""
        held = self._held[slot]
        while held and len(held[-1]) > length:
            beginning = held.pop()
            holders = self._holders[beginning]
            holders.remove(slot)
            if not holders:
                del self._holders[beginning]

    def _beginnings(self, ids: Sequence[int], known: int) -> list[Ids]:
        """Return the beginnings of a prompt, longer than `known`, that some slot holds.

        The last token of the prompt is in none of them: it has to be read for its logits.
        """
        found: list[Ids] = []
        for end in range(known + self._piece, len(ids), self._piece):
            beginning = tuple(ids[:end])
            if beginning not in self._holders:
                break
            found.append(beginning)
        return found
