"""One new token for each slot, in a step of fixed shapes: a CUDA graph, or compiled.

This has been tested only on a stand-in for CUDA, and never on a GPU.

A GPU finishes the few hundred operations of a token before Python has asked for them. A CUDA graph
records them once and then runs all of them at a single call, on the same addresses. So whatever
differs between tokens lies in tensors that stay where they are, and the step looks at a fixed
number of keys, those to come masked. torch.compile needs fixed shapes too, or it compiles for every
token.

    B slots, S keys looked at, H heads, D head size, V vocabulary
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gpt2kit.cache import KVCache
from gpt2kit.engine.protocol import NewTokens, counts
from gpt2kit.engine.snapshot import Snapshot
from gpt2kit.engine.torch_engine import next_logits
from gpt2kit.errors import Gpt2KitWarning
from gpt2kit.model import GPT2

SHORTEST = 128  # keys that a step looks at: this many, or twice, four times ... as many
WARM_UP = 3  # runs before a capture, as torch's documentation does: libraries set up at first use
MOST_STEPS = 8  # steps that are kept, each for one size and one cache


class GraphEngine:
    """Reads one new token for every slot of a cache at once.

    With `captures` as a CUDA graph, recorded when a step of its size is first needed; with
    `compiled` after torch.compile. If either does not work here, tokens are read without it, and
    `name` says so. One engine serves all texts of a model, for as long as the model exists.
    """

    def __init__(self, model: GPT2, *, captures: bool, compiled: bool) -> None:
        self._model = weakref.ref(model)
        self._captures = captures
        self._compiled = compiled
        self._compute: Callable[[GPT2, Tensor, _StaticCache], Tensor] = (
            torch.compile(next_logits) if compiled else next_logits
        )
        self._failure = ""  # why nothing is captured or compiled, if that failed
        self._snapshot = Snapshot(model)
        self._steps: dict[tuple[object, ...], _Step] = {}  # the last one used is at the end
        self._lock = threading.Lock()  # steps are shared by all texts of the model

    @property
    def name(self) -> str:
        """How tokens are read: "cuda graph", "torch compiled", or "torch" and what failed."""
        name = "torch compiled" if self._compiled else "torch"
        if self._captures:
            name = f"cuda graph of {name}" if self._compiled else "cuda graph"
        return f"{name} ({self._failure})" if self._failure else name

    def capacity(self, length: int) -> int:
        """Return the capacity of a cache for this many tokens: 128, 256, 512 ... or n_ctx."""
        return _rounded(length)

    def can_read(self, new: Sequence[NewTokens], cache: KVCache) -> bool:
        """Whether it is one token for each row, at inference, and the cache of a usual size."""
        model = self._found_model()
        return (
            all(len(row.tokens) == row.wanted == 1 for row in new)
            and cache.capacity == min(_rounded(cache.capacity), model.config.n_ctx)
            and not (model.training or torch.is_grad_enabled())
        )

    def read(self, new: Sequence[NewTokens], cache: KVCache, *, most_likely: int = 0) -> Tensor:
        """See Engine.read; only after `can_read`.

        Every step is for all slots. Those that have no new token get one that is not counted: it is
        written after what they hold, or over the last token of a slot that is full, which
        therefore must have no text that goes on.
        """
        model = self._found_model()
        with self._lock:
            current = self._snapshot.is_current()
            if not current:
                self._steps.clear()  # they hold addresses of weights
                self._snapshot = Snapshot(model)
                current = self._snapshot.is_current()  # false for a model with hooks
            step = self._step(cache)
            tokens = [0] * cache.batch_size
            for row in new:
                tokens[row.slot] = row.tokens[0]
            step.prepare(tokens, [min(length, step.span - 1) for length in cache.lengths])
            if self._captures and step.graph is None and current:
                self._capture(model, step, cache)
            if step.graph:
                logits = step.replay()
            else:  # what is compiled may not call hooks
                logits = self._computed(model, step, cache, compiled=current)
        cache.advance(counts(new, cache))
        slots = [row.slot for row in new]
        if slots == list(range(cache.batch_size)):
            return logits
        return torch.stack([logits[slot] for slot in slots])  # an index tensor would be waited for

    def _found_model(self) -> GPT2:
        model = self._model()
        assert model is not None  # who asks holds it
        return model

    def _step(self, cache: KVCache) -> _Step:
        """Return the step for a cache as it is now, a kept one or a new one."""
        span = min(_rounded(max(cache.lengths) + 1), cache.capacity)
        if self._compiled:  # compiling again takes far longer than looking at masked keys
            span = cache.capacity
        addresses = (cache.keys.data_ptr(), cache.values.data_ptr())
        key = (*addresses, cache.keys.shape, cache.keys.dtype, span)
        step = self._steps.pop(key, None) or _Step(cache.batch_size, span, cache.keys.device)
        self._steps[key] = step
        while len(self._steps) > MOST_STEPS:
            del self._steps[next(iter(self._steps))]
        return step

    def _computed(self, model: GPT2, step: _Step, cache: KVCache, *, compiled: bool) -> Tensor:
        static = _StaticCache(cache, step.span, step.positions)
        if not (compiled and self._compiled):
            return next_logits(model, step.ids, static)
        try:
            return self._compute(model, step.ids, static)
        except Exception as error:
            # If it is not the compiler that fails, this fails too, and says why.
            logits = next_logits(model, step.ids, static)
            message = f"torch cannot compile here ({_first_line(error)}): continuing without"
            warnings.warn(message, Gpt2KitWarning, stacklevel=2)
            self._compute, self._compiled = next_logits, False
            self._failure = "it could not be compiled"
            return logits

    def _capture(self, model: GPT2, step: _Step, cache: KVCache) -> None:
        """Record a step; runs before that write what the first replay writes again."""
        device = step.ids.device
        here, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        graph = torch.cuda.CUDAGraph()
        side.wait_stream(here)
        try:
            with torch.cuda.stream(side):  # also puts `here` back after a capture that fails
                for _ in range(WARM_UP):
                    self._computed(model, step, cache, compiled=True)
                # thread_local: what other threads do meanwhile is no error, here or there
                with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                    # Made in here, because its tensors must live as long as the graph.
                    static = _StaticCache(cache, step.span, step.positions)
                    step.logits = self._compute(model, step.ids, static)
        except RuntimeError as error:
            self._captures, self._failure = False, f"no cuda graph: {_first_line(error)}"
            self._steps.clear()
        else:
            step.graph = graph
        here.wait_stream(side)


class _Step:
    """Inputs and outputs of a step for B slots and S = `span` keys, and its graph, if captured."""

    def __init__(self, batch_size: int, span: int, device: torch.device) -> None:
        self.span = span
        with torch.inference_mode(False):  # inference tensors could not be written to elsewhere
            self._inputs = torch.zeros((2, batch_size), dtype=torch.long, device=device)
        self.ids = self._inputs[0, :, None]  # (B, 1)
        self.positions = self._inputs[1]  # (B,)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.logits: Tensor | None = None  # (B, V), where the graph leaves them

    def prepare(self, tokens: Sequence[int], lengths: Sequence[int]) -> None:
        """Put one token for each slot, and the slots' lengths, where the step reads them."""
        # A GPU fetches them from pinned memory when it gets there, and nobody waits.
        inputs = torch.tensor([tokens, lengths], pin_memory=self._inputs.is_cuda)
        self._inputs.copy_(inputs, non_blocking=True)

    def replay(self) -> Tensor:
        assert self.graph is not None
        assert self.logits is not None
        self.graph.replay()
        return self.logits.clone()  # the next replay writes there again


class _StaticCache:
    """The first `span` positions of a cache, for one new token at `positions` (B,) of each slot."""

    def __init__(self, cache: KVCache, span: int, positions: Tensor) -> None:
        self._positions = positions
        self._span = span
        self._slots = torch.arange(len(positions), device=positions.device)  # (B,)
        # A view for each layer, made here: torch.compile would copy all layers for each write.
        keys, values = cache.keys[:, :, :, :span], cache.values[:, :, :, :span]
        self._layers = list(zip(keys, values, strict=True))  # (B, H, S, D) twice, n_layer times

    def positions(self, n: int) -> Tensor:
        """See Cache: (B, 1)."""
        return self._positions[:, None]

    def mask(self, n: int) -> Tensor:
        """See Cache: (B, 1, 1, S)."""
        keys = torch.arange(self._span, device=self._positions.device)  # (S,)
        return (keys <= self._positions[:, None])[:, None, None]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See Cache: (B, H, 1, D) twice -> (B, H, S, D) twice."""
        stored_keys, stored_values = self._layers[layer]
        for stored, new in ((stored_keys, keys), (stored_values, values)):
            stored[self._slots, :, self._positions] = new[:, :, 0].to(stored.dtype)  # (B, H, D)
        return stored_keys.to(keys.dtype), stored_values.to(values.dtype)

    def advance(self, n: int) -> None:
        """Do nothing: the positions of a token are given with it."""


_ENGINES: weakref.WeakKeyDictionary[GPT2, dict[object, GraphEngine]] = weakref.WeakKeyDictionary()


def graph_engine(model: GPT2, *, compiled: bool) -> GraphEngine:
    """Return the engine of a model, the same at every call, so that what was captured is reused."""
    engines = _ENGINES.setdefault(model, {})
    key = (model.device, compiled)
    if key not in engines:
        captures = model.device.type == "cuda"
        engines[key] = GraphEngine(model, captures=captures, compiled=compiled)
    return engines[key]


def _rounded(length: int) -> int:
    """Return the smallest of 128, 256, 512 ... that is not less."""
    size = SHORTEST
    while size < length:
        size *= 2
    return size


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
