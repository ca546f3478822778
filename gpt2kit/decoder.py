"""How generation reads tokens: the torch model, or the native step where that can run it.

The model's definition is model.py; a decoder only chooses who computes it, and no result depends on the choice beyond rounding.

    B batch, T new tokens, V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from gpt2kit import native
from gpt2kit.cache import KVCache
from gpt2kit.model import GPT2

# Tokens that are read at once: up to so many, the native step reads the weights once for all; beyond, torch's matrix products win.
MOST_TOKENS = 16
# int8 weights are always native work, a piece of the prompt at a time.
PIECE = 64


class Decoder:
    """Reads tokens into a cache and gives the logits of the next ones."""

    def __init__(self, model: GPT2) -> None:
        self.model = model
        self._level = native.level()
        self._description: native.Description | None = None
        self._read_natively = False

    def name(self, tokens: int = 1) -> str:
        """Say who reads so many tokens at once: "torch", or "native" and the instructions that it uses."""
        return f"native {self._level}" if self._native(tokens) else "torch"

    def read(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Read (B, T) ids after what the cache holds, and return the logits after the last of each row, (B, V), in float32 or more.

        Raises ContextLengthError where they do not fit.
        """
        description = self._native(ids.numel())
        in_torch = torch.is_grad_enabled() or cache.keys.dtype not in native.CACHE_DTYPES or cache.keys.device.type != "cpu"
        self._read_natively = not (description is None or in_torch)
        if description is None or in_torch:
            logits = self.model.head(self.model.hidden(ids, cache)[:, -1])
            return logits.to(torch.promote_types(logits.dtype, torch.float32))
        B, T = ids.shape
        cache.check_room(T)
        rows = ids.tolist()
        if not all(0 <= token < self.model.config.n_vocab for row in rows for token in row):
            raise IndexError(f"an id is outside of the vocabulary of {self.model.config.n_vocab:,}")
        n = max(1, PIECE // B)
        pieces = [self._read_piece(description, rows, start, min(T, start + n), cache) for start in range(0, T, n)]
        cache.advance(T)
        return pieces[-1]

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Keep torch to one thread meanwhile, if the native step read last and will again.

        Whatever torch does with several threads, be it over in microseconds, leaves them looking for more work for milliseconds, on
        the very cores that the next step needs.
        """
        threads = torch.get_num_threads()
        if self._read_natively:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def _read_piece(self, description: native.Description, rows: list[list[int]], start: int, end: int, cache: KVCache) -> Tensor:
        """Read the tokens `start` to `end` of every row."""
        places = [(slot, j) for slot in range(len(rows)) for j in range(start, end)]
        last = len(rows[0]) - 1
        return description.step(
            tokens=[rows[slot][j] for slot, j in places],
            slots=[slot for slot, _ in places],
            positions=[cache.lengths[slot] + j for slot, j in places],
            wanted=[j == last for _, j in places],
            cache=cache,
            level=str(self._level),
        )

    def _native(self, tokens: int) -> native.Description | None:
        """Return what the native step needs to read so many tokens, or None where torch should."""
        if self._level is None or self.model.training or (tokens > MOST_TOKENS and not self.model.is_quantised):
            return None
        if self._description is None or not self._description.is_current():
            self._description = native.describe(self.model)
        return self._description
