"""Tokens read by the step in C (engine/native), on a CPU, if it can run the model.

N wanted logits, V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gpt2kit.cache import KVCache
from gpt2kit.engine import native
from gpt2kit.engine.protocol import SCORED_AT_ONCE, NewTokens, Nodes, counts
from gpt2kit.model import GPT2

# Tokens that one step reads: the weights are fetched from memory once for all of them.
TOKENS_AT_ONCE = 256


class NativeEngine:
    """Reads tokens with the native step.

    A token gets the same logits, bit for bit, whatever is read with it: alone, with other rows, or
    with the tokens before it.
    """

    def __init__(self, model: GPT2, level: str) -> None:
        self._model = model
        self._level = level
        self._description: native.Description | None = None

    @property
    def name(self) -> str:
        """The instructions that it uses, such as "native avx2"."""
        return f"native {self._level}"

    def can_read(self, cache: KVCache | None = None) -> bool:
        """Whether it can run the model as it is now, and read into this cache.

        The model may have changed since the last token: its modules, its weights or where they
        lie, its hooks.
        """
        if self._model.training:
            return False
        if cache is not None and not _can_use(cache):
            return False
        if self._description is None or not self._description.is_current():
            self._description = native.describe(self._model)
        return self._description is not None

    def read(self, new: Sequence[NewTokens], cache: KVCache, *, most_likely: int = 0) -> Tensor:
        """See Engine.read; only after `can_read`."""
        pieces = list(self._read(new, cache, TOKENS_AT_ONCE, most_likely))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def read_in_pieces(self, new: Sequence[NewTokens], cache: KVCache) -> Iterator[Tensor]:
        """Do what `read` does, and yield the logits of up to 128 tokens at a time, (N, V) each."""
        return self._read(new, cache, SCORED_AT_ONCE, most_likely=0)

    def _read(
        self, new: Sequence[NewTokens], cache: KVCache, at_once: int, most_likely: int
    ) -> Iterator[Tensor]:
        """Read tokens in order, `at_once` in a step, and yield the logits of each step."""
        tokens: list[int] = []
        slots: list[int] = []
        positions: list[int] = []
        wanted: list[bool] = []
        for slot, row, n_wanted in new:
            n, start = len(row), cache.lengths[slot]
            tokens += row
            slots += [slot] * n
            positions += range(start, start + n)
            wanted += [False] * (n - n_wanted) + [True] * n_wanted
        nodes = Nodes(tokens, slots, positions, [1] * len(tokens))
        yield from self._steps(nodes, wanted, cache, at_once, most_likely)
        cache.advance(counts(new, cache))

    def read_nodes(self, nodes: Nodes, cache: KVCache) -> Iterator[Tensor]:
        """Read nodes into a cache; yield the logits after up to 128 of them at a time, (N, V) each.

        Only after `can_read`. What the cache holds is overwritten, and its lengths stay as they
        are: it serves for nothing else.
        """
        wanted = [True] * len(nodes.tokens)
        return self._steps(nodes, wanted, cache, SCORED_AT_ONCE, most_likely=0)

    def _steps(
        self, nodes: Nodes, wanted: list[bool], cache: KVCache, at_once: int, most_likely: int
    ) -> Iterator[Tensor]:
        """Read nodes in order, `at_once` in a step, and yield the logits of each step."""
        if self._description is None:
            raise RuntimeError("the native step cannot run this model; see can_read")
        for i in range(0, len(wanted), at_once):
            yield self._description.step(
                nodes.part(i, i + at_once),
                wanted[i : i + at_once],
                cache=cache,
                level=self._level,
                most_likely=most_likely,
            )


def _can_use(cache: KVCache) -> bool:
    return (
        cache.keys.dtype in native.CACHE_DTYPES
        and cache.keys.device.type == "cpu"
        and not torch.is_grad_enabled()  # it computes no gradients
    )
