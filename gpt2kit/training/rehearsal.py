"""A training step on tensors without data, to count the bytes that it needs.

Torch's FakeTensor has a shape, a dtype and a device, but no memory: an operation on it only finds
out the shape of its result. A rehearsal runs the code of a real step on such tensors, with the
training's own model, adapters, dropout, loss and optimizer, and adds up the bytes of the tensors
that exist at the same time. It takes about 20 ms for each block of the model.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpt2kit.training.config import TrainConfig
from gpt2kit.training.heap import Heap
from gpt2kit.training.loss import NextTokenLoss
from gpt2kit.training.optim import build_optimizers
from gpt2kit.training.outline import Outline
from gpt2kit.training.readings import blank_batch

_SMALL = 2**15  # bytes; smaller tensors are left out of the heap

# What happens to tensors in the heap, in order: (key, bytes) is a new one, (key, None) its end.
Events = list[tuple[int, int | None]]


# Bytes of Python, torch and small objects: on Linux, the peak of a training of a tiny model.
PROGRAM = 380_000_000


@dataclass(frozen=True)
class Memory:
    """The bytes that a process has at the moment of a training that needs the most, by part."""

    program: int  # Python and torch; 0 on a device with memory of its own
    weights: int
    optimizer: int  # the averages that the optimizer keeps
    gradients: int  # of the parameters, as far as they are computed at that moment
    activations: int  # what the forward pass keeps for the backward pass
    temporaries: int  # everything else: logits, copies in bfloat16, attention scores …
    gaps: int  # holes in the heap that no tensor fits into

    @property
    def total(self) -> int:
        """The bytes of all parts."""
        return sum(vars(self).values())


def rehearse(outline: Outline, config: TrainConfig, windows: int, device: torch.device) -> Memory:
    """Return the memory for training a model on `windows` windows at once, alone on one device."""
    parts = min(2, config.accumulate)  # the second finds the first's gradients
    decisive = TrainConfig(
        max_steps=1,
        warmup=0,
        block_size=config.block_size,
        batch_size=parts,
        accumulate=parts,
        optimizer=config.optimizer,
        weight_decay=config.weight_decay,
        dtype=config.dtype,
        checkpointing=config.checkpointing,
    )
    return _rehearsed(outline, decisive, windows, device)


@functools.lru_cache(maxsize=64)
def _rehearsed(outline: Outline, config: TrainConfig, windows: int, device: torch.device) -> Memory:
    """Rehearse with a configuration that has only what the memory depends on."""
    random_state = torch.get_rng_state()
    try:
        chosen = windows * (outline.predicted or 0)
        with FakeTensorMode(), torch.device(device), _Meter(chosen) as meter:
            return _Rehearsal(outline, config, windows, meter).run()
    finally:
        torch.set_rng_state(random_state)


class _Rehearsal:
    """The phases of a training step, the highest peak among them, and what they do to the heap."""

    def __init__(self, outline: Outline, config: TrainConfig, windows: int, meter: _Meter) -> None:
        self.meter, self.config, self.windows, self.outline = meter, config, windows, outline
        self.model = outline.build()
        self.trained = [each for each in self.model.parameters() if each.requires_grad]
        self.loss = NextTokenLoss(self.model, config.dtype, config.checkpointing)
        self.weights = meter.now
        self.optimizers = build_optimizers(
            self.model, optimizer=config.optimizer, weight_decay=config.weight_decay
        )
        self.highest: Memory | None = None

    def run(self) -> Memory:
        """Rehearse the optimizer, a step that finds the optimizer's averages, and a validation."""
        averages = self._make_averages()
        self.optimizer = self.meter.now - self.weights
        step = self._step()
        validation = self._validation()
        assert self.highest is not None
        if self.model.device.type != "cpu":
            return self.highest
        heap = self._replay(averages, step, validation)
        gaps = max(0, heap - (self.highest.total - self.weights))
        return replace(self.highest, program=PROGRAM, gaps=gaps)

    def _make_averages(self) -> Events:
        """Let the optimizers make their averages; return what is new in the heap."""
        for parameter in self.trained:
            parameter.grad = torch.zeros_like(parameter)
        self.meter.events = []
        self._update()
        events = self.meter.events
        self.model.zero_grad(set_to_none=True)
        return events

    def _step(self) -> Events:
        self.meter.events = []
        for _ in range(self.config.accumulate):
            self._forward_and_backward()
        with self._phase():
            self._update()
        self.model.zero_grad(set_to_none=True)
        return self.meter.events

    def _update(self) -> None:
        with torch.device("cpu"):  # AdamW counts its steps there, and reads the count
            for optimizer in self.optimizers:
                optimizer.step()

    def _forward_and_backward(self) -> None:
        start = self.meter.now
        with self._phase() as forward:
            loss = self.loss.train()(self._batch())
            forward.activations = self.meter.now - start
        with self._phase() as backward, self.meter.adding_in_place():
            backward.activations = forward.activations
            loss.backward()

    def _validation(self) -> Events:
        self.meter.events = []
        with self._phase(), torch.no_grad():
            self.loss.eval()(self._batch())
        return self.meter.events

    def _batch(self) -> Tensor:
        return blank_batch(self.windows, self.config.block_size, self.outline.predicted)

    @contextmanager
    def _phase(self) -> Iterator[_Phase]:
        """Keep the peak of the operations in the block if it is the highest so far."""
        phase = _Phase(self.trained)
        self.meter.watch(phase.note)
        yield phase
        fixed = self.weights + self.optimizer + phase.gradients
        activations = min(phase.activations, phase.peak - fixed)
        peak = Memory(
            program=0,
            weights=self.weights,
            optimizer=self.optimizer,
            gradients=phase.gradients,
            activations=activations,
            temporaries=phase.peak - fixed - activations,
            gaps=0,
        )
        if self.highest is None or peak.total > self.highest.total:
            self.highest = peak

    @staticmethod
    def _replay(averages: Events, step: Events, validation: Events) -> int:
        """Return the bytes of a heap after the first steps of a training and two validations."""
        heap = Heap()
        for events in (validation, step, averages, step, step, validation, step):
            left = set()
            for key, n_bytes in events:
                if n_bytes is not None:
                    heap.allocate(key, n_bytes)
                    left.add(key)
                elif key in left:
                    heap.free(key)
                    left.remove(key)
        return heap.size


class _Phase:
    """A part of a step: the most bytes that it needs, and the gradients that exist then."""

    def __init__(self, trained: list[nn.Parameter]) -> None:
        self.trained = trained
        self.activations = self.peak = self.gradients = 0

    def note(self, now: int) -> None:
        """Take note of the bytes of all tensors."""
        if now > self.peak:
            self.peak = now
            grads = [parameter.grad for parameter in self.trained]
            self.gradients = sum(grad.nbytes for grad in grads if grad is not None)


class _Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that operations make, until they are freed.

    A mask selects `chosen` elements: a FakeTensor cannot tell, since it has no data.
    """

    def __init__(self, chosen: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self._chosen = chosen
        self.events: Events = []
        self._keys: dict[int, int] = {}  # of the storages that exist -> key
        self._n_storages = 0
        self._note: Callable[[int], None] = lambda _: None
        self._in_place = False
        self._viewed: set[int] = set()  # storages that more than one tensor has had

    def watch(self, note: Callable[[int], None]) -> None:
        """Call `note` with the bytes of all tensors, now and whenever there is a new one."""
        self._note = note
        note(self.now)

    @contextmanager
    def adding_in_place(self) -> Iterator[None]:
        """Count the sum of two gradients as no new tensor.

        Autograd adds the second gradient to the memory of the first, unless that is a view, whose
        memory another tensor has as well, or a FakeTensor.
        """
        self._in_place = True
        yield
        self._in_place = False

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if self._in_place and function is torch.ops.aten.add.Tensor:
            first, second = args
            is_viewed = first.untyped_storage()._cdata in self._viewed
            if isinstance(second, Tensor) and first.shape == second.shape and not is_viewed:
                function = torch.ops.aten.add_.Tensor
        if function is torch.ops.aten.index.Tensor and args[1][0].dtype is torch.bool:
            args = args[0], [args[0].new_zeros(self._chosen, dtype=torch.long)]
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage(), is_view=not function._schema.is_mutable)
        return result

    def _count(self, storage: torch.UntypedStorage, *, is_view: bool) -> None:
        address, n_bytes = storage._cdata, storage.nbytes()
        if address in self._keys:
            if is_view:
                self._viewed.add(address)
            return
        self._n_storages += 1
        self._keys[address] = self._n_storages
        self.now += n_bytes
        if n_bytes >= _SMALL:
            self.events.append((self._n_storages, n_bytes))
        weakref.finalize(storage, self._forget, address, n_bytes)
        self._note(self.now)

    def _forget(self, address: int, n_bytes: int) -> None:
        self.now -= n_bytes
        self.events.append((self._keys.pop(address), None))
        self._viewed.discard(address)
