"""One new token for every row, in steps that are all alike: as a CUDA graph, compiled, or as they are.

A GPU is done with most of a token's few hundred operations before Python has asked for the next one. A CUDA graph is the record of
all of them: captured once, it runs again at a single call, reading and writing at the addresses of then. So everything that differs
from token to token lies in tensors that stay where they are (see static_cache.py), and a graph is good for every cache that
lies where the captured one did. torch.compile needs the same, or it would compile again for every token.

    B batch, S keys that are looked at, V vocabulary
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gpt2kit.cache import KVCache
from gpt2kit.engine.snapshot import Snapshot
from gpt2kit.engine.static_cache import StaticCache
from gpt2kit.errors import Gpt2KitWarning
from gpt2kit.model import GPT2, precise

SHORTEST = 128  # keys that a step looks at: so many, or twice, four times ... as many
WARM_UP = 2  # tokens read before a capture: libraries set themselves up when they are first used, which no graph can hold
MOST_STEPS = 8  # of different sizes or caches, that are remembered


def rounded(length: int) -> int:
    """Return the smallest of 128, 256, 512 ... that is not less."""
    size = SHORTEST
    while size < length:
        size *= 2
    return size


def next_logits(model: GPT2, ids: Tensor, cache: KVCache) -> Tensor:
    """Read (B, T) ids and return the logits after the last of each row, (B, V), in float32 or more."""
    return precise(model.head(model.hidden(ids, cache)[:, -1]))


class StaticSteps:
    """Reads tokens of one model, one for every row at a time, and remembers what it captured.

    With `capture` the device must be CUDA. Where a capture fails, it goes on without, and `name` says so; where torch cannot
    compile, it warns and goes on without.
    """

    def __init__(self, *, capture: bool, compiled: bool) -> None:
        self._captures = capture
        self._compiled = compiled
        self._compute: Callable[[GPT2, Tensor, StaticCache], Tensor] = (
            torch.compile(next_logits) if compiled else next_logits
        )
        self._failure = ""  # why nothing is captured or compiled, where it should be
        self._steps: dict[
            tuple[object, ...], _Step
        ] = {}  # the one that was used last is at the end
        self._snapshot: Snapshot | None = None
        self._lock = threading.Lock()  # graphs of one model share memory: they take turns
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    @property
    def name(self) -> str:
        """How tokens are read: "cuda graph", "torch compiled" or "torch"."""
        made = "torch compiled" if self._compiled else "torch"
        made = (
            f"cuda graph of {made}"
            if self._captures and self._compiled
            else "cuda graph"
            if self._captures
            else made
        )
        return f"{made} ({self._failure})" if self._failure else made

    def takes(self, model: GPT2, cache: KVCache) -> bool:
        """Whether `read` is for this: inference, and a cache of a usual size, for each needs a graph of its own."""
        is_usual = cache.capacity == min(rounded(cache.capacity), model.config.n_ctx)
        return is_usual and not (model.training or torch.is_grad_enabled())

    def read(
        self, model: GPT2, rows: Sequence[Sequence[int]], cache: KVCache, *, look: bool = True
    ) -> Tensor:
        """Read B lists of one token after what the cache holds, and return the logits after them, (B, V), in float32 or more.

        With `look`, what was captured of another model than this one is now is forgotten first. Raises ContextLengthError where
        the tokens do not fit.
        """
        cache.check_room(1)
        with self._lock:
            if self._snapshot is None or (look and not self._snapshot.is_current()):
                self._steps.clear()  # graphs hold addresses of weights
                self._stream, self._snapshot = None, Snapshot(model)
            step = self._step(cache)
            step.prepare(rows, cache.lengths)
            if self._captures and step.graph is None and step.runs >= WARM_UP:
                self._capture(model, step, cache)
            logits = self._run(model, step, cache) if step.graph is None else step.replay()
            step.ran()
        cache.advance(1)
        return logits

    def _step(self, cache: KVCache) -> _Step:
        """Return the step for a cache as it is, new or remembered."""
        # Compiling takes many times as long as looking at keys that are masked.
        span = (
            cache.capacity
            if self._compiled
            else min(rounded(max(cache.lengths) + 1), cache.capacity)
        )
        key = (
            cache.keys.data_ptr(),
            cache.values.data_ptr(),
            cache.keys.shape,
            cache.keys.dtype,
            span,
        )
        step = self._steps.pop(key, None) or _Step(cache, span)
        self._steps[key] = step
        while len(self._steps) > MOST_STEPS:
            del self._steps[next(iter(self._steps))]
        return step

    def _run(self, model: GPT2, step: _Step, cache: KVCache) -> Tensor:
        """Compute a step; where graphs are captured it is a warm-up, which has a stream of its own."""
        if not self._captures:
            return self._computed(model, step, cache)
        here, side = torch.cuda.current_stream(cache.keys.device), self._side_stream(cache)
        side.wait_stream(here)
        with torch.cuda.stream(side):
            logits = self._computed(model, step, cache)
        here.wait_stream(side)
        return logits

    def _computed(self, model: GPT2, step: _Step, cache: KVCache) -> Tensor:
        static = StaticCache(cache, step.span, step.places)
        try:
            return self._compute(model, step.ids, static)
        except Exception as error:
            if not self._compiled:
                raise
            # Whatever is missing: a compiler, its headers, support for this device.
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            warnings.warn(
                f"torch cannot compile here ({reason}): going on without",
                Gpt2KitWarning,
                stacklevel=2,
            )
            self._compute, self._compiled, self._failure = (
                next_logits,
                False,
                "it could not be compiled",
            )
            step.places.copy_(torch.tensor(cache.lengths))
            return next_logits(model, step.ids, static)

    def _capture(self, model: GPT2, step: _Step, cache: KVCache) -> None:
        """Record a step, which computes nothing yet."""
        side, graph = self._side_stream(cache), torch.cuda.CUDAGraph()
        try:
            # A capture that fails leaves its stream behind as the current one; the outer `with` puts ours back.
            # "thread_local": what other threads do meanwhile is no error, here or there.
            with (
                torch.cuda.stream(side),
                torch.cuda.graph(
                    graph, pool=self._pool, stream=side, capture_error_mode="thread_local"
                ),
            ):
                # What is made in here lies in the graph's own memory; what is read from outside must outlive the graph.
                logits = self._compute(model, step.ids, StaticCache(cache, step.span, step.places))
        except RuntimeError as error:
            self._captures = False
            self._failure = (
                f"no cuda graph: {(str(error).splitlines() or ['the capture failed'])[0]}"
            )
            self._steps.clear()
        else:
            step.graph, step.logits = graph, logits

    def _side_stream(self, cache: KVCache) -> torch.cuda.Stream:
        if self._stream is None:
            self._stream = torch.cuda.Stream(cache.keys.device)  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()
        return self._stream


class _Step:
    """What a step of one size reads and writes, apart from weights and cache, and its graph once it is captured."""

    def __init__(self, cache: KVCache, span: int) -> None:
        self.span = span
        with torch.inference_mode(False):  # tensors made there could not be written to elsewhere
            self.ids = torch.zeros(
                (cache.batch_size, 1), dtype=torch.long, device=cache.keys.device
            )  # (B, 1)
            self.places = torch.zeros(
                cache.batch_size, dtype=torch.long, device=cache.keys.device
            )  # (B,)
        self.runs = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.logits: Tensor | None = None  # (B, V), where the graph leaves them
        self._lengths: list[int] | None = None  # what `places` holds

    def prepare(self, rows: Sequence[Sequence[int]], lengths: list[int]) -> None:
        """Put the new tokens and the lengths of the rows where the step reads them; mostly the lengths are there already."""
        # From pinned memory a GPU fetches them when it gets there, and nobody waits.
        self.ids.copy_(torch.tensor(rows, pin_memory=self.ids.is_cuda), non_blocking=True)
        if self._lengths != lengths:
            self.places.copy_(torch.tensor(lengths, pin_memory=self.ids.is_cuda), non_blocking=True)
        self._lengths, self._next = None, [length + 1 for length in lengths]

    def replay(self) -> Tensor:
        assert self.graph is not None
        assert self.logits is not None
        self.graph.replay()
        return self.logits.clone()  # the next graph to run may write there

    def ran(self) -> None:
        """Take note that the step was computed."""
        self._lengths = self._next
        self.runs += 1


_KEPT: weakref.WeakKeyDictionary[GPT2, dict[tuple[bool, bool], StaticSteps]] = (
    weakref.WeakKeyDictionary()
)


def steps_of(model: GPT2, *, compiled: bool) -> StaticSteps:
    """Return the steps of a model, the same ones at every call, so that what is captured or compiled serves again."""
    capture = model.device.type == "cuda"
    own = _KEPT.setdefault(model, {})
    if (capture, compiled) not in own:
        own[capture, compiled] = StaticSteps(capture=capture, compiled=compiled)
    return own[capture, compiled]
