"""How far the heap of a process grows: glibc's malloc, replayed for the tensors of a training.

A heap is larger than what is in use, because the holes that freed tensors leave do not suit the
next ones. In training they suit badly. Torch wants its tensors at multiples of 64 bytes; for that,
glibc looks for a hole with 96 bytes more than the tensor has, and gives back the remainders before
and behind it (GNU C library 2.36, malloc/malloc.c, _int_memalign). The small objects that torch
makes with each tensor take the remainder behind it, and keep it until the backward pass has taken
down what the forward pass built up by then. Meanwhile, the hole that the tensor leaves is too small
for the next tensor of the same size.
"""

from __future__ import annotations

import bisect
import heapq

_HEADER = 16  # bytes that malloc keeps with each allocation
_REMAINDER = 48  # bytes before an aligned allocation, and as many behind it


class Heap:
    """Tensors in use and the holes between them; a tensor gets the smallest hole that suffices."""

    def __init__(self) -> None:
        self.size = 0  # bytes from the beginning of the heap to the end of its last block
        self._used: dict[int, tuple[int, int]] = {}  # key -> start, bytes
        self._holes: list[tuple[int, int]] = []  # (bytes, start), sorted
        self._start_to_size: dict[int, int] = {}  # of holes
        self._end_to_start: dict[int, int] = {}  # of holes
        self._taken: list[tuple[int, int]] = []  # heapq of remainders: -(tensors before), start

    def allocate(self, key: int, n_bytes: int) -> None:
        """Find room for a tensor; the remainder behind it is taken."""
        depth = len(self._used)
        n_bytes += _HEADER
        start = self._take(n_bytes + 2 * _REMAINDER) + _REMAINDER
        self._used[key] = start, n_bytes
        self._give_back(start - _REMAINDER, _REMAINDER)
        heapq.heappush(self._taken, (-depth, start + n_bytes))

    def free(self, key: int) -> None:
        """Make a hole of a tensor's memory."""
        self._give_back(*self._used.pop(key))
        # The graph of a backward pass is a stack: what was built last is taken down first.
        while self._taken and -self._taken[0][0] > len(self._used):
            self._give_back(heapq.heappop(self._taken)[1], _REMAINDER)

    def _take(self, n_bytes: int) -> int:
        """Return the start of a free piece of memory; without a hole, the heap grows."""
        index = bisect.bisect_left(self._holes, (n_bytes, -1))
        if index < len(self._holes):
            size, start = self._holes[index]
            self._remove_hole(start, size)
            if size > n_bytes:
                self._add_hole(start + n_bytes, size - n_bytes)
            return start
        start = self._end_to_start.get(
            self.size, self.size
        )  # a hole at the end grows with the heap
        if start < self.size:
            self._remove_hole(start, self.size - start)
        self.size = start + n_bytes
        return start

    def _give_back(self, start: int, size: int) -> None:
        """Make a hole, together with those beside it."""
        if (behind := self._start_to_size.get(start + size)) is not None:
            self._remove_hole(start + size, behind)
            size += behind
        if (before := self._end_to_start.get(start)) is not None:
            self._remove_hole(before, start - before)
            start, size = before, size + start - before
        self._add_hole(start, size)

    def _add_hole(self, start: int, size: int) -> None:
        bisect.insort(self._holes, (size, start))
        self._start_to_size[start] = size
        self._end_to_start[start + size] = start

    def _remove_hole(self, start: int, size: int) -> None:
        del self._holes[bisect.bisect_left(self._holes, (size, start))]
        del self._start_to_size[start]
        del self._end_to_start[start + size]
