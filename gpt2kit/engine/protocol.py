"""What an engine is: it reads new tokens into slots of a cache, and returns logits.

B slots, N nodes, V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from gpt2kit.cache import KVCache

# Tokens of which all logits are wanted and in memory at a time, which take 25 MB for GPT-2.
SCORED_AT_ONCE = 128


class NewTokens(NamedTuple):
    """Tokens to read after those that a slot of a cache holds."""

    slot: int
    tokens: Sequence[int]
    wanted: int = 1  # how many of the last tokens to return logits after


class Nodes(NamedTuple):
    """Tokens of rows some of which begin alike, so that one token may belong to several rows.

    Row b has slot b, and the rows of a token are adjacent: its own slot is the first of theirs.
    Nodes with the same own slot are adjacent, in the order of their positions.
    """

    tokens: Sequence[int]  # (N,)
    slots: Sequence[int]  # (N,) the own slot of each
    positions: Sequence[int]  # (N,)
    copies: Sequence[int]  # (N,) how many rows it belongs to

    def part(self, start: int, stop: int) -> Nodes:
        """Return the nodes `start` to `stop` - 1."""
        return Nodes(*(each[start:stop] for each in self))


class Engine(Protocol):
    """Computes what the model defines; engines differ in speed, and by rounding."""

    @property
    def name(self) -> str:
        """How tokens are read, for people: "torch", "native avx2", "cuda graph"."""

    def read(self, new: Sequence[NewTokens], cache: KVCache, *, most_likely: int = 0) -> Tensor:
        """Read new tokens into their slots, and return the logits after the wanted ones.

        They are (wanted in all, V), in the order of `new`, in float32 or wider. If only the
        `most_likely` largest logits of a row matter, the others may be minus infinity. The caller
        has checked the ids, and that the cache has room.
        """


def counts(new: Sequence[NewTokens], cache: KVCache) -> list[int]:
    """Return the number of new tokens of each slot of a cache, (B,)."""
    found = [0] * cache.batch_size
    for slot, tokens, _ in new:
        found[slot] += len(tokens)
    return found
