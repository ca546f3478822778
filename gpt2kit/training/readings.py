"""What training reads: windows of a text, or rows of examples that do not see each other.

B windows or rows, T tokens of each, H heads, D head size
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gpt2kit.data.example_rows import NOTHING


class Reading(NamedTuple):
    """Tokens to read, what each is followed by, and what separates examples."""

    ids: Tensor  # (B, T)
    targets: Tensor  # (B, T); NOTHING where nothing is predicted
    cache: PackedRows | None = None  # None for windows, in which everything is predicted

    @classmethod
    def of(cls, batch: Tensor) -> Reading:
        """Return what a batch holds: windows (B, T + 1), or rows (B, 3, T)."""
        if batch.dim() == 2:
            return cls(batch[:, :-1], batch[:, 1:])
        ids, targets, positions = batch.unbind(1)  # (B, T) each
        return cls(ids, targets, PackedRows(positions))


def blank_batch(n: int, block_size: int, predicted: int | None) -> Tensor:
    """Return n windows of zeros, or n rows with an example of which this many are predicted."""
    if predicted is None:
        return torch.zeros(n, block_size + 1, dtype=torch.long)  # (B, T + 1)
    rows = torch.zeros(n, 3, block_size, dtype=torch.long)  # (B, 3, T)
    rows[:, 1, : block_size - predicted] = NOTHING
    rows[:, 2] = torch.arange(block_size)
    return rows


def n_predicted(batch: Tensor) -> int:
    """Return how many tokens or labels of a batch are predicted."""
    return int((Reading.of(batch).targets != NOTHING).sum())


class PackedRows:
    """Stands for the cache of rows that hold several examples, each of which begins at position 0.

    It keeps nothing: it tells the model the positions, and hides the other examples.
    """

    def __init__(self, positions: Tensor) -> None:
        self._positions = positions  # (B, T)

    def positions(self, n: int) -> Tensor:
        """Return the position of each token in its example, (B, T)."""
        return self._positions

    def mask(self, n: int) -> Tensor:
        """Return which tokens each may look at, (B, 1, T, T): those before it in its example."""
        examples = (self._positions == 0).cumsum(1)  # (B, T), counted from 1
        return (examples[:, :, None] == examples[:, None, :]).tril()[:, None]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values as they are, (B, H, T, D)."""
        return keys, values

    def advance(self, n: int) -> None:
        """Count nothing."""
