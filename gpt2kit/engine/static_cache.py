"""A cache for one new token of every row, in shapes that do not change while the rows grow.

B batch, S keys that are looked at, H heads, D head size
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2kit.cache import KVCache


class StaticCache(KVCache):
    """The first `span` places of another cache, for one more token a row: what the model asks of a cache, and no more.

    How long the rows are is a tensor here, `places` (B,), which reading a token advances. So the same operations on tensors of
    the same shapes read any token, whatever the lengths: all S = `span` keys are looked at, and those to come are masked.
    """

    def __init__(self, cache: KVCache, span: int, places: Tensor) -> None:
        self.places = places
        self._span = span
        self._rows = torch.arange(len(places), device=places.device)  # (B,)
        # A view for each layer, made here: torch.compile would copy all layers for each that is written to.
        self._layers = list(
            zip(cache.keys[:, :, :, :span], cache.values[:, :, :, :span], strict=True)
        )  # (B, H, S, D) twice, n_layer times

    def positions(self, n: int) -> Tensor:
        """Positions of the new tokens: (B, 1)."""
        return self.places[:, None]

    def mask(self, n: int) -> Tensor:
        """Which of the S keys each new token may look at, True for yes: (B, 1, 1, S)."""
        keys = torch.arange(self._span, device=self.places.device)
        return (keys <= self.places[:, None])[:, None, None]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values (B, H, 1, D) and return S of that layer's, (B, H, S, D), in the dtype of the new ones."""
        stored_keys, stored_values = self._layers[layer]
        for stored, new in ((stored_keys, keys), (stored_values, values)):
            stored[self._rows, :, self.places] = new[:, :, 0].to(
                stored.dtype
            )  # indexed as (B, H, D)
        return stored_keys.to(keys.dtype), stored_values.to(values.dtype)

    def advance(self, n: object) -> None:
        """Count the new token as read in every row."""
        self.places.add_(1)
