"""Which parts a process tries, and in which order: all, a share, or what torchrun's store gives.

Claims keep two processes from doing one part, whoever hands it out.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

_NAMESPACE = "gpt2kit/parts"
_POLL = 0.2  # seconds


@dataclass(frozen=True)
class Share:
    """The i-th of n shares of the parts, counted from 0."""

    index: int = 0
    of: int = 1

    def of_parts(self, todo: Sequence[int]) -> list[int]:
        """Return the parts that belong to this share, by their numbers."""
        return [number for number in todo if number % self.of == self.index]


def is_under_torchrun() -> bool:
    """Whether torchrun started this process together with others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "MASTER_ADDR" in os.environ


class Store:
    """torchrun's store as a counter that all its processes draw numbers from."""

    def __init__(self) -> None:
        # torch.distributed does not list these names, but documents them.
        distributed: Any = torch.distributed
        store, self.rank, self.world_size = next(distributed.rendezvous("env://"))
        # After a crash torchrun starts all processes again: the parts are counted anew.
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store: Any = distributed.PrefixStore(f"{_NAMESPACE}/{restart}", store)

    def draw(self, todo: Sequence[int]) -> Iterator[int]:
        """Yield parts of the list that process 0 gives, each to one process.

        If the store is lost, the rest of this process's own list follows: claims decide then.
        """
        numbers, index = list(todo), -1
        try:
            if self.rank == 0:
                self._store.set("todo", json.dumps(numbers))
            numbers = json.loads(self._store.get("todo"))
            while (index := self._store.add("next", 1) - 1) < len(numbers):
                yield numbers[index]
        except torch.distributed.DistError:
            yield from numbers[index + 1 :]

    def wait(self) -> None:
        """Wait until all processes are here: torchrun ends the others when one fails."""
        with contextlib.suppress(torch.distributed.DistError):
            self._store.add("ended", 1)
            while self._store.add("ended", 0) < self.world_size:
                time.sleep(_POLL)
            self._store.add("left", 1)
            # Process 0 may hold the store itself, if it was not torchrun who started it.
            while self.rank == 0 and self._store.add("left", 0) < self.world_size:
                time.sleep(_POLL)
