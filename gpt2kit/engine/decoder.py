"""Who reads which tokens: the native step, a CUDA graph, or torch.

The model's definition is model.py. A decoder only chooses who computes it, and no result depends
on the choice beyond rounding.

    B rows, T new tokens, V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor

from gpt2kit.cache import KVCache
from gpt2kit.engine import native
from gpt2kit.engine.graph_engine import graph_engine
from gpt2kit.engine.native_engine import NativeEngine
from gpt2kit.engine.protocol import Engine, NewTokens, Nodes, counts
from gpt2kit.engine.torch_engine import SHORT, TorchEngine
from gpt2kit.errors import ConfigError, ContextLengthError
from gpt2kit.model import GPT2

# Tokens of prompts that are read between two tokens of other rows. Fewer would take more time in
# all, and for more the other rows would wait longer: on two cores, less than 0.1 s for 124M.
# Torch may add up in another order for another number of tokens. So on a CPU it always reads long
# rows in pieces that end at multiples of this position: a piece has the same bits in every row.
PIECE = 64
GPU_PIECE = 256  # on other devices, where no bits are promised
# Capacities are multiples of this, so that every slot's keys are aligned alike in memory.
ALIGNMENT = 16


class Decoder:
    """Reads tokens into a cache and gives the logits of the next ones.

    On a CPU whose native step can run the model, what a row gives does not depend, bit for bit, on
    the rows that are read with it. A model that changes (its modules, its hooks, where its weights
    lie) is read as it is then from the next token on.

    With `compile`, torch compiles what reads one new token of every row; raises ConfigError if the
    native step does that.
    """

    def __init__(self, model: GPT2, *, compile: bool = False) -> None:
        self.model = model
        level = native.level()
        self._native = None if level is None else NativeEngine(model, level)
        if compile and self._native and self._native.can_read():
            raise ConfigError(
                "--compile is for torch, but here the native step reads the tokens; "
                f"leave it out, or set {native.VARIABLE}=0, or use a GPU"
            )
        on_cuda = model.device.type == "cuda"
        self._graph = graph_engine(model, compiled=compile) if compile or on_cuda else None
        self._torch = TorchEngine(model)
        self._read_natively = False  # whether the native step read last

    def _engine_for(self, *, native: NativeEngine | None, one_for_each: bool) -> Engine:
        """Say who reads new tokens, given the native step if it can run this model.

        No rule looks at other rows, so that company changes no bits. (On a GPU it may:
        `one_for_each` asks whether every row has one new token.)
        """
        # The native step reads all that it can read.
        if native:
            return native
        # On a GPU, or compiled, one new token of every row is read in a single call.
        if self._graph and one_for_each:
            return self._graph
        # All other tokens are torch's.
        return self._torch

    @property
    def piece(self) -> int:
        """How many tokens of prompts are read between two tokens of other rows."""
        return PIECE if self.model.device.type == "cpu" else GPU_PIECE

    @property
    def cut(self) -> int:
        """Prompts may be cut at multiples of this, without any change of their bits."""
        if self._native and self._native.can_read():
            return 1  # the native step adds up in one order
        return PIECE if self.model.device.type == "cpu" else GPU_PIECE

    def name(self, tokens: int = 1) -> str:
        """Name who reads this many new tokens of each row at once: "torch", "native avx2" ..."""
        native = self._native if self._native and self._native.can_read() else None
        return self._engine_for(native=native, one_for_each=tokens == 1).name

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """Return an empty cache with room for `capacity` tokens in each slot, or some more."""
        capacity = -(-capacity // ALIGNMENT) * ALIGNMENT  # rounded up
        if self._graph:
            capacity = self._graph.capacity(capacity)
        return self.model.new_cache(batch_size, capacity=capacity)

    def read(
        self,
        rows: Tensor | Sequence[Sequence[int]],
        cache: KVCache,
        *,
        slots: Sequence[int] | None = None,
        wanted: int | Sequence[int] = 1,
        most_likely: int = 0,
    ) -> Tensor:
        """Read new tokens into slots of a cache; return the logits after each row's last, (B, V).

        `rows` are (B, T) ids, or B lists of them, of any lengths; row b is read into slots[b], or
        into slot b. With wanted=0, or wanted[b] = 0, there are no logits of the rows, or of row b.
        Logits are in float32 or wider. If only the `most_likely` largest of a row matter, the
        others may be minus infinity.

        Raises ContextLengthError if the tokens do not fit, IndexError for an unknown id.
        """
        lists = rows.tolist() if isinstance(rows, Tensor) else rows
        slots = range(len(lists)) if slots is None else slots
        each = [wanted] * len(lists) if isinstance(wanted, int) else wanted
        new = [NewTokens(*row) for row in zip(slots, lists, each, strict=True)]
        return self._read(new, cache, most_likely)

    def read_each(
        self,
        rows: Sequence[Sequence[int]],
        cache: KVCache,
        *,
        slots: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Read new tokens, and return the logits after each of them: (T, V) for a row.

        A row may have no tokens. The native step gives the same numbers, bit for bit, as if the
        tokens were read one at a time. Raises the errors of `read`.
        """
        slots = range(len(rows)) if slots is None else slots
        lengths = [len(row) for row in rows]
        new = [NewTokens(*row) for row in zip(slots, rows, lengths, strict=True)]
        return list(torch.split(self._read(new, cache), lengths))

    def read_scored(self, tokens: Sequence[int], cache: KVCache, slot: int) -> Tensor:
        """Read a piece of a prompt, and return the logits after each of its tokens, (T, V).

        Whoever reads such a piece without its logits reads it here: what the cache gets and the
        last logits are the same, bit for bit, as those of `read`.
        """
        new = NewTokens(slot, tokens)
        self._check([new], cache)
        native = self._native if self._native and self._native.can_read(cache) else None
        self._read_natively = native is not None
        if native is None:
            return self._torch.read_scored(new, cache)
        return native.read([new._replace(wanted=len(tokens))], cache)

    def scores_natively(self) -> bool:
        """Whether `score` can be used, that is, whether the native step can read the model."""
        return self._native is not None and self._native.can_read()

    def score(self, rows: Sequence[Sequence[int]], wanted: Sequence[int]) -> Iterator[Tensor]:
        """Read rows from their beginnings; yield the logits after the last wanted[b] of row b.

        They come in order, as (N, V) float32: those of one piece are in memory at a time. Only if
        `scores_natively`; rows may be up to n_ctx long.
        """
        cache = self.new_cache(len(rows), max(map(len, rows)))
        if self._native is None or not self._native.can_read(cache):
            raise RuntimeError("the native step cannot read this model; see scores_natively")
        new = [NewTokens(*row) for row in zip(range(len(rows)), rows, wanted, strict=True)]
        self._check(new, cache)
        for logits in self._native.read_in_pieces(new, cache):
            if len(logits):
                yield logits

    def score_nodes(self, trees: Sequence[Nodes]) -> Iterator[Tensor]:
        """Read trees of nodes; yield the logits after all nodes, tree after tree, (N, V) each.

        Logits are in float32 or wider, and those of one piece are in memory at a time. Raises
        ContextLengthError or IndexError for what the model cannot read.
        """
        config = self.model.config
        positions = max(max(tree.positions) for tree in trees) + 1
        if positions > config.n_ctx:
            message = f"a row has {positions:,} tokens; expected at most {config.n_ctx:,}"
            raise ContextLengthError(message, requested=positions, limit=config.n_ctx)
        for tree in trees:
            _check_ids(tree.tokens, config.n_vocab)
        if self._native is None or not self._native.can_read():
            yield from self._torch.read_nodes(trees)
            return
        slots = max(max(map(int.__add__, tree.slots, tree.copies)) for tree in trees)
        cache = self.new_cache(slots, positions)
        for tree in trees:
            yield from self._native.read_nodes(tree, cache)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Keep torch to one thread meanwhile, if the native step read last and will read next.

        After anything that torch does with several threads, even in microseconds, they look for
        more work for milliseconds, on the very cores that the next native step needs.
        """
        threads = torch.get_num_threads()
        if self._read_natively:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def _read(self, new: Sequence[NewTokens], cache: KVCache, most_likely: int = 0) -> Tensor:
        """Read rows of any lengths, and return the logits after the wanted tokens of each."""
        self._check(new, cache)
        new = [row for row in new if row.tokens]
        if not new:
            return torch.empty((0, self.model.config.n_vocab), device=self.model.device)
        native = self._native if self._native and self._native.can_read(cache) else None
        one_for_each = self._graph is not None and self._graph.can_read(new, cache)
        self._read_natively = native is not None
        engine = self._engine_for(native=native, one_for_each=one_for_each)
        if engine is self._torch and self.model.device.type == "cpu":
            pieces = [_pieces(row, cache.lengths[row.slot]) for row in new]
            for before in pieces:
                for piece in before[:-1]:
                    engine.read([piece], cache)
            new = [before[-1] for before in pieces]
        return engine.read(new, cache, most_likely=most_likely)

    def _check(self, new: Sequence[NewTokens], cache: KVCache) -> None:
        """Refuse what no engine could read: engines trust the ids and the room."""
        n_vocab = self.model.config.n_vocab
        for _, tokens, wanted in new:
            _check_ids(tokens, n_vocab)
            if len(tokens) < wanted:
                raise ValueError("a row has fewer new tokens than logits are wanted for")
        cache.check_room(counts(new, cache))


def _check_ids(tokens: Sequence[int], n_vocab: int) -> None:
    if any(not 0 <= token < n_vocab for token in tokens):
        raise IndexError(f"an id is outside of the vocabulary of {n_vocab:,}")


def _pieces(row: NewTokens, start: int) -> list[NewTokens]:
    """Cut a long row, read from position `start` on; logits are wanted after its last piece."""
    slot, tokens, wanted = row
    n = len(tokens)
    if n <= SHORT or wanted > 1:
        return [row]
    cuts = [0, *range(PIECE - start % PIECE, n, PIECE), n]
    pieces = [NewTokens(slot, tokens[i:j], 0) for i, j in pairwise(cuts)]
    return [*pieces[:-1], pieces[-1]._replace(wanted=wanted)]
