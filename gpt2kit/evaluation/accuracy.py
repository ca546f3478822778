"""How often a model was right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gpt2kit.evaluation.surprisal import standard_error


@dataclass(frozen=True)
class Accuracy:
    """The share of items on which a model was right."""

    items: int
    accuracy: float | None  # None without an item
    accuracy_standard_error: float | None  # None for a single item


def accuracy(right: Sequence[bool]) -> Accuracy:
    """Return the accuracy over some items, and its standard error."""
    if not right:
        return Accuracy(0, None, None)
    values = torch.tensor(right, dtype=torch.float64)  # (items,)
    return Accuracy(len(right), float(values.mean()), standard_error(values))
