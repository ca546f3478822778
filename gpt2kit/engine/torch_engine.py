"""Tokens read by the torch model, on any device.

B rows, T new tokens, N wanted logits or nodes, C width, V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from gpt2kit.cache import Cache, KVCache
from gpt2kit.engine.protocol import SCORED_AT_ONCE, NewTokens, Nodes, counts
from gpt2kit.model import GPT2

# Rows of up to this many tokens take as long to read as one token, because the weights have to be
# fetched from memory either way: it pays to read several such rows at once, padded.
SHORT = 16


class TorchEngine:
    """Reads tokens with the model itself.

    On a CPU each row of more than `SHORT` tokens is read by itself, so that the result, bit for
    bit, does not depend on the rows beside it: torch may add up in another order for another
    shape. Elsewhere rows are read together as far as their shapes allow.
    """

    name = "torch"

    def __init__(self, model: GPT2) -> None:
        self._model = model

    def read(self, new: Sequence[NewTokens], cache: KVCache, *, most_likely: int = 0) -> Tensor:
        """See Engine.read."""
        return torch.cat([self._read(batch, cache) for batch in self._batches(new, cache)])

    def read_scored(self, new: NewTokens, cache: KVCache) -> Tensor:
        """Read a row, and return the logits after all of its tokens, (T, V).

        The last ones are computed as `read` does, for torch may add up in another order for
        another number of tokens.
        """
        ids = torch.tensor([new.tokens], device=self._model.device)  # (1, T)
        hidden = self._model.hidden(ids, cache.view(new.slot, new.slot + 1))[0]  # (T, C)
        cache.advance(counts([new], cache))
        last = self._model.head(hidden[None, -1])  # (1, V)
        return precise(torch.cat([self._model.head(hidden[:-1]), last]))

    def read_nodes(self, trees: Sequence[Nodes]) -> Iterator[Tensor]:
        """Read trees of nodes, each as one row; yield the logits after all nodes, (N, V) each."""
        cache = _NodesCache(trees, self._model.device)
        T = cache.positions(0).shape[1]
        ids = torch.tensor(
            [[*tree.tokens, *[0] * (T - len(tree.tokens))] for tree in trees],
            device=self._model.device,
        )  # (B, T)
        hidden = self._model.hidden(ids, cache)  # (B, T, C)
        wanted = torch.cat(
            [row[: len(tree.tokens)] for row, tree in zip(hidden, trees, strict=True)]
        )  # (N, C)
        for some in torch.split(wanted, SCORED_AT_ONCE):
            yield precise(self._model.head(some))

    def _batches(self, new: Sequence[NewTokens], cache: KVCache) -> list[list[NewTokens]]:
        """Split rows into those that are read together; these have consecutive slots.

        A few slots between those of short rows get no tokens, but padding.
        """
        batches: list[list[NewTokens]] = []
        for row in new:
            batch = batches[-1] if batches else []
            if batch and self._match(batch[-1], row):
                between = [NewTokens(slot, [], 0) for slot in range(batch[-1].slot + 1, row.slot)]
                if _fit_padded([*batch, *between, row], cache):
                    batch += [*between, row]
                    continue
            batches.append([row])
        return batches

    def _match(self, one: NewTokens, other: NewTokens) -> bool:
        """Whether two rows may be read together, the second in a later slot."""
        distance = other.slot - one.slot
        if max(len(one.tokens), len(other.tokens)) <= SHORT:
            return 0 < distance <= SHORT
        are_equal = len(one.tokens) == len(other.tokens)
        return distance == 1 and are_equal and self._model.device.type != "cpu"

    def _read(self, batch: Sequence[NewTokens], cache: KVCache) -> Tensor:
        """Read rows in consecutive slots at once, and return the logits after the wanted tokens."""
        T = max(len(row.tokens) for row in batch)
        ids = torch.tensor(
            [[*row.tokens, *[0] * (T - len(row.tokens))] for row in batch],
            device=self._model.device,
            dtype=torch.long,
        )  # (B, T), shorter rows padded at their end
        view = cache.view(batch[0].slot, batch[-1].slot + 1)
        if all(row.wanted == 1 and len(row.tokens) == T for row in batch):
            logits = next_logits(self._model, ids, view)  # (B, V)
        else:
            logits = self._wanted_logits(batch, ids, view)  # (N, V)
        cache.advance(counts(batch, cache))
        return logits

    def _wanted_logits(self, batch: Sequence[NewTokens], ids: Tensor, view: KVCache) -> Tensor:
        hidden = self._model.hidden(ids, view)  # (B, T, C)
        wanted = [
            row[len(new.tokens) - new.wanted : len(new.tokens)]
            for row, new in zip(hidden, batch, strict=True)
        ]  # (wanted, C) each
        return precise(self._model.head(torch.cat(wanted)))


class _NodesCache:
    """What a model needs to read trees of nodes as rows: see cache.Cache. It keeps no tokens."""

    def __init__(self, trees: Sequence[Nodes], device: torch.device) -> None:
        B, T = len(trees), max(len(tree.tokens) for tree in trees)
        positions = np.zeros((B, T), dtype=np.int64)
        visible = np.zeros((B, 1, T, T), dtype=bool)
        visible[:, 0] = np.eye(T, dtype=bool)  # padding sees itself, for softmax needs a key
        for row, tree in enumerate(trees):
            n = len(tree.tokens)
            positions[row, :n] = tree.positions
            visible[row, 0, :n, :n] = _visible(tree)
        self._positions = torch.from_numpy(positions).to(device)  # (B, T)
        self._visible = torch.from_numpy(visible).to(device)  # (B, 1, T, T)

    def positions(self, n: int) -> Tensor:
        """Return the position of each node in its rows, (B, T)."""
        return self._positions

    def mask(self, n: int) -> Tensor:
        """Return which nodes each node attends to, (B, 1, T, T)."""
        return self._visible

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the new keys and values, which are all there are."""
        return keys, values

    def advance(self, n: int) -> None:
        """Keep nothing."""


def _visible(tree: Nodes) -> np.ndarray:
    """Return which nodes each node attends to: those of its row up to its position, (N, N) bool."""
    slots, positions = np.array(tree.slots), np.array(tree.positions)
    ends = slots + np.array(tree.copies)
    visible: np.ndarray = (slots <= slots[:, None]) & (slots[:, None] < ends)
    visible &= positions <= positions[:, None]
    return visible


def next_logits(model: GPT2, ids: Tensor, cache: Cache) -> Tensor:
    """Read (B, T) ids and return the logits after each row's last, (B, V), in float32 or wider."""
    return precise(model.head(model.hidden(ids, cache)[:, -1]))


def precise(logits: Tensor) -> Tensor:
    """Return logits in the precision to sample from and score with: float32, or their float64."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def _fit_padded(batch: Sequence[NewTokens], cache: KVCache) -> bool:
    """Whether a cache has room for rows that are padded to the longest of them."""
    T = max(len(row.tokens) for row in batch)
    return all(cache.lengths[row.slot] + T <= cache.capacity for row in batch)
