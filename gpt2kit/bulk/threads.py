"""Threads that measure groups of rows at the same time, each with one thread of torch.

With several threads for one product torch rounds differently, depending on their number. This way
the results are the same for any number of threads, and the weights are in memory once.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


class Threads:
    """A pool of threads that a signal's exception can leave at once.

    They are daemons: those of concurrent.futures would keep the process until their group of rows
    is measured, which takes minutes for long texts. They end when nobody has the pool any more.
    """

    def __init__(self, n: int) -> None:
        self._tasks: SimpleQueue[Any] = SimpleQueue()
        self._n = n if n > 1 else 0
        for _ in range(self._n):
            threading.Thread(target=_work, args=(self._tasks,), daemon=True).start()
        weakref.finalize(self, _end, self._tasks, self._n)

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Return the function of each item, in order; raises what the first to fail raised."""
        if not self._n:
            return [function(item) for item in items]
        answers: SimpleQueue[Any] = SimpleQueue()
        for index, item in enumerate(items):
            self._tasks.put((function, item, index, answers))
        found: dict[int, R] = {}
        for _ in items:
            index, result, error = answers.get()
            if error is not None:
                raise error
            found[index] = result
        return [found[index] for index in range(len(items))]


def _work(tasks: SimpleQueue[Any]) -> None:
    """Be a thread of a pool, without keeping the pool, or the last task, in memory."""
    torch.set_num_threads(1)
    while (task := tasks.get()) is not None:
        function, item, index, answers = task
        try:
            answers.put((index, function(item), None))
        except BaseException as error:
            answers.put((index, None, error))
        del task, function, item, answers


def _end(tasks: SimpleQueue[Any], n: int) -> None:
    """Let the threads of a pool end."""
    for _ in range(n):
        tasks.put(None)


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Let torch compute with one thread in this block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
