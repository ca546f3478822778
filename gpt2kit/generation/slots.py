"""Which slots of a cache are free, and which beginnings of texts they hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# A shorter beginning is read again: it is hardly worth taking the slot that another text left.
LEAST = 16


class Slots:
    """The slots of a cache: free or taken, and the tokens that each one holds.

    A slot keeps what it holds after it was given back, until another text takes it. Only tokens are
    known here that would have the same bits if they were read again in a new prompt: what was read
    up to a multiple of `cut`. Beginnings of fewer than `least` tokens are not looked for.
    """

    def __init__(self, n: int, *, cut: int, least: int = LEAST) -> None:
        self._cut = cut
        self._least = least
        self._free = dict.fromkeys(range(n))  # the one that was given back first comes first
        self._held: list[list[int]] = [[] for _ in range(n)]

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
        slot, length = self._best(ids, self._free, 0) or (next(iter(self._free)), 0)
        del self._free[slot]
        self.forget(slot, length)
        return slot, length

    def give_back(self, slot: int) -> None:
        """Let another text take a slot."""
        self._free[slot] = None

    def find(self, ids: Sequence[int], known: int) -> tuple[int, int] | None:
        """Return a slot that holds more than `known` tokens of a prompt, and how many.

        Among several it is one that holds the most.
        """
        return self._best(ids, range(len(self._held)), known)

    def note(self, slot: int, ids: Sequence[int]) -> None:
        """Note that a slot holds these tokens, the beginning of a text."""
        end = len(ids) // self._cut * self._cut
        if end > len(self._held[slot]):
            self._held[slot] = list(ids[:end])

    def forget(self, slot: int, length: int = 0) -> None:
        """Note that a slot holds no more than its first `length` tokens."""
        del self._held[slot][length // self._cut * self._cut :]

    def _best(self, ids: Sequence[int], slots: Iterable[int], known: int) -> tuple[int, int] | None:
        """Return the first of the slots that hold most of a prompt, beyond `known`, if any does.

        The last token of the prompt does not count: it has to be read for its logits.
        """
        found, most = None, max(known, self._least - 1)
        if len(ids) - 1 <= most:
            return None
        for slot in sorted(slots):
            if len(self._held[slot]) <= most:  # else a large batch is compared row by row
                continue
            shared = min(common_length(self._held[slot], ids), len(ids) - 1)
            if (length := shared // self._cut * self._cut) > most:
                found, most = (slot, length), length
        return found


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many tokens two sequences have in common at their beginning."""
    return next(
        (i for i, (one, other) in enumerate(zip(a, b, strict=False)) if one != other),
        min(len(a), len(b)),
    )
