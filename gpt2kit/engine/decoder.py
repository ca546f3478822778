"""How generation reads tokens: the torch model, the native step where that can run it, or a CUDA graph.

The model's definition is model.py; a decoder only chooses who computes it, and no result depends on the choice beyond rounding.

    B batch, T new tokens, V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from gpt2kit.cache import KVCache
from gpt2kit.engine import native
from gpt2kit.engine.static_step import next_logits, rounded, steps_of
from gpt2kit.errors import ConfigError
from gpt2kit.model import GPT2, precise

# Tokens that are read at once: up to so many, the native step reads the weights once for all; beyond, torch's matrix products win.
MOST_TOKENS = 16
# int8 weights are always native work, a piece of the prompt at a time.
PIECE = 64
# Whether the model is still the one that the native step was told of takes a while to look up, and seldom changes within a text.
READS_BETWEEN_LOOKS = 8


class Decoder:
    """Reads tokens into a cache and gives the logits of the next ones.

    A model that changes meanwhile, its modules, hooks or where its weights lie, is seen to have changed a few tokens later; weights
    that change without torch's knowledge (`.data`, NumPy), by the next decoder.
    With `compile`, torch compiles what reads one new token of every row; ConfigError where the native step does that.
    """

    def __init__(self, model: GPT2, *, compile: bool = False) -> None:
        self.model = model
        self._level = native.level()
        self._description: native.Description | None = None
        self._read_natively = False
        self._reads = 0
        if compile and self._native(1):
            raise ConfigError(
                f"--compile is for torch, but here the native step reads the tokens; leave it out, or set {native.VARIABLE}=0, or use a GPU"
            )
        self._static = (
            steps_of(model, compiled=compile) if compile or model.device.type == "cuda" else None
        )

    def name(self, tokens: int = 1, *, ahead: bool = False) -> str:
        """Say who reads so many tokens at once, or with `ahead` by `read_each`: "torch", "native" and the instructions that it uses, …"""
        if self._native(tokens):
            return f"native {self._level}"
        return "torch" if self._static is None or ahead else self._static.name

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """Return an empty cache with room for so many tokens or, where steps are made for certain sizes, a few more."""
        return self.model.new_cache(
            batch_size, capacity=rounded(capacity) if self._static else capacity
        )

    def read(
        self, ids: Tensor | Sequence[Sequence[int]], cache: KVCache, *, most_likely: int = 0
    ) -> Tensor:
        """Read (B, T) ids, or B lists of T, after what the cache holds, and return the logits after the last of each row.

        They are (B, V), in float32 or more; where only the `most_likely` largest of a row are asked for, the others may be minus
        infinity. Raises ContextLengthError where the ids do not fit.
        """
        rows = ids.tolist() if isinstance(ids, Tensor) else ids
        B, T = len(rows), len(rows[0])
        description = self._native(B * T, cache)
        self._read_natively = description is not None
        if description is None:
            if T == 1 and self._static and self._static.takes(self.model, cache):
                self._reads += 1
                return self._static.read(
                    self.model,
                    self._checked(rows),
                    cache,
                    look=self._reads % READS_BETWEEN_LOOKS == 1,
                )
            return next_logits(self.model, self._tensor(ids), cache)
        cache.check_room(T)
        self._checked(rows)
        n = max(1, PIECE // B)
        pieces = [
            [(row, j) for row in range(B) for j in range(start, min(T, start + n))]
            for start in range(0, T, n)
        ]
        logits = [
            self._read_piece(
                description, rows, piece, cache, [j == T - 1 for _, j in piece], most_likely
            )
            for piece in pieces
        ][-1]
        cache.advance(T)
        return logits

    def read_each(self, rows: Sequence[Sequence[int]], cache: KVCache) -> list[Tensor]:
        """Read some ids of each row, of one row more than of another or none, and return the logits after each: (T, V) for a row.

        The native step gives the same numbers, bit for bit, as if the tokens were read one at a time. Raises ContextLengthError
        where they do not fit.
        """
        counts = [len(row) for row in rows]
        cache.check_room(counts)
        description = self._native(1, cache)
        self._read_natively = description is not None
        if description is None:
            return self._read_padded(rows, cache)
        self._checked(rows)
        places = [(row, j) for row, count in enumerate(counts) for j in range(count)]
        n = PIECE if self.model.is_quantized else MOST_TOKENS
        pieces = [places[start : start + n] for start in range(0, len(places), n)]
        found = [
            self._read_piece(description, rows, piece, cache, [True] * len(piece))
            for piece in pieces
        ]
        cache.advance(counts)
        return list(torch.split(found[0] if len(found) == 1 else torch.cat(found), counts))

    def reads_rows(self) -> bool:
        """Whether whole rows are better read by `read_rows` than by the torch model: int8 weights, as they are when it generates."""
        return self.model.is_quantized and self._native(1) is not None

    def read_rows(self, rows: Sequence[Sequence[int]], wanted: Sequence[int]) -> Iterator[Tensor]:
        """Read rows from their beginnings, and yield the logits after the last `wanted` tokens of each, row after row, (some, V) float32.

        Only where `reads_rows`. Rows may be of any lengths up to n_ctx; the logits of one piece are in memory at a time.
        """
        cache = self.model.new_cache(len(rows), capacity=max(map(len, rows)))
        description = self._native(1, cache)
        if description is None:
            raise ValueError("the native step cannot read this model; see reads_rows")
        self._checked(rows)
        places = [(row, j) for row, tokens in enumerate(rows) for j in range(len(tokens))]
        for piece in (places[start : start + PIECE] for start in range(0, len(places), PIECE)):
            logits = self._read_piece(
                description,
                rows,
                piece,
                cache,
                [j >= len(rows[row]) - wanted[row] for row, j in piece],
            )
            if len(logits):
                yield logits

    def _read_padded(self, rows: Sequence[Sequence[int]], cache: KVCache) -> list[Tensor]:
        """Let torch read rows of different lengths: all at once, the shorter ones filled up, or one by one where that has no room."""
        counts, T = [len(row) for row in rows], max(map(len, rows))
        ends = [length + count for length, count in zip(cache.lengths, counts, strict=True)]
        if max(cache.lengths) + T <= cache.capacity:
            ids = torch.tensor(
                [[*row, *[0] * (T - len(row))] for row in rows], device=self.model.device
            )  # (B, T)
            logits = self.model(ids, cache)  # (B, T, V)
            cache.truncate(ends)
            return [precise(logits[row, :count]) for row, count in enumerate(counts)]
        found = []
        for row, tokens in enumerate(rows):
            own = self.model.new_cache(1, capacity=ends[row])
            own.fill([0], cache, row)
            found.append(
                precise(
                    self.model(
                        torch.tensor([tokens], device=self.model.device, dtype=torch.long), own
                    )[0]
                )
            )
            cache.fill([row], own, 0)
        return found

    def _tensor(self, ids: Tensor | Sequence[Sequence[int]]) -> Tensor:
        return ids if isinstance(ids, Tensor) else torch.tensor(ids, device=self.model.device)

    def _checked(self, rows: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
        if not all(0 <= token < self.model.config.n_vocab for row in rows for token in row):
            raise IndexError(f"an id is outside of the vocabulary of {self.model.config.n_vocab:,}")
        return rows

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

    def _read_piece(
        self,
        description: native.Description,
        rows: Sequence[Sequence[int]],
        places: Sequence[tuple[int, int]],  # (row, number of the token in it)
        cache: KVCache,
        wanted: Sequence[bool],
        most_likely: int = 0,
    ) -> Tensor:
        """Read some of the tokens, and return the logits after those that are wanted."""
        return description.step(
            tokens=[rows[row][j] for row, j in places],
            slots=[row for row, _ in places],
            positions=[cache.lengths[row] + j for row, j in places],
            wanted=wanted,
            cache=cache,
            level=str(self._level),
            most_likely=most_likely,
        )

    def _native(self, tokens: int, cache: KVCache | None = None) -> native.Description | None:
        """Return what the native step needs to read so many tokens into a cache, or None where torch should."""
        if (
            self._level is None
            or self.model.training
            or (tokens > MOST_TOKENS and not self.model.is_quantized)
        ):
            return None
        if cache is not None and (
            torch.is_grad_enabled()
            or cache.keys.dtype not in native.CACHE_DTYPES
            or cache.keys.device.type != "cpu"
        ):
            return None
        if (cache is None or self._reads % READS_BETWEEN_LOOKS == 0) and not (
            self._description and self._description.is_current()
        ):
            self._description = native.describe(self.model)
        self._reads += cache is not None
        return self._description
