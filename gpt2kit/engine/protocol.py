"""What an engine is: it reads new tokens into slots of a cache, and returns logits.

B slots, V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from gpt2kit.cache import KVCache


class NewTokens(NamedTuple):
    """Tokens to read after those that a slot of a cache holds."""

    slot: int
    tokens: Sequence[int]
    wanted: int = 1  # how many of the last tokens to return logits after


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
