"""A stand-in for CUDA graphs on a CPU, for tests of what is captured and when it is replayed.

A capture records operations and the addresses they use; a replay runs them on these addresses
again. This shows that a graph reads and writes where it should. It does not show that CUDA would
capture these operations.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing import reductions
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

StorageWeakRef: Any = reductions.StorageWeakRef  # torch has no types for it


class Address:
    """Where a tensor that was made outside of a graph lies, without keeping its memory."""

    def __init__(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self.owner = StorageWeakRef(storage)
        self._start, self._bytes = storage.data_ptr(), storage.nbytes()
        self._view = tensor.storage_offset(), tensor.size(), tensor.stride()
        self._dtype = tensor.dtype

    def tensor(self) -> Tensor:
        """Return a tensor over whatever lies there now."""
        array = (ctypes.c_char * self._bytes).from_address(self._start)
        memory = torch.frombuffer(array, dtype=torch.uint8)
        return torch.empty(0, dtype=self._dtype).set_(memory.untyped_storage(), *self._view)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs operations and remembers each: tensors made here as they are, others as addresses."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.outside: list[Address] = []
        self._inside: set[int] = set()  # memory that was allocated here
        self._kept: list[Tensor] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        mutates = func._schema.is_mutable
        if mutates:
            self._remember(args[0])
        recorded = tree_map_only(Tensor, self._address, (args, kwargs))
        result = func(*args, **kwargs)
        aliases = any(one.alias_info is not None for one in func._schema.returns)
        if not aliases:
            tree_map_only(Tensor, self._made, result)
        # A view of a tensor from outside has an address of its own: it is not computed again.
        if not aliases or mutates or self._is_inside(result):
            self.operations.append((func, *recorded, None if aliases and mutates else result))
        return result

    def undo(self) -> None:
        """Put back what was written to: a capture computes nothing."""
        for tensor, before in reversed(self._before.values()):
            tensor.copy_(before)
        self._before.clear()

    def _is_inside(self, tensor: Any) -> bool:
        return isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata in self._inside

    def _made(self, tensor: Tensor) -> None:
        self._inside.add(tensor.untyped_storage()._cdata)
        self._kept.append(tensor)

    def _address(self, tensor: Tensor) -> Tensor | Address:
        if self._is_inside(tensor):
            return tensor
        self.outside.append(Address(tensor))
        return self.outside[-1]

    def _remember(self, tensor: Tensor) -> None:
        if not self._is_inside(tensor):
            self._before.setdefault(id(tensor), (tensor, tensor.clone()))


class FakeGraph:
    """A CUDA graph. `log` has a line for each capture and each replay of any graph."""

    log: list[str]
    fails = False  # whether captures fail

    def __init__(self) -> None:
        self.recorder = Recorder()
        self._replayed = False

    def replay(self) -> None:
        if not self._replayed:  # later the cache may be another one, at the same addresses
            freed = [address for address in self.recorder.outside if address.owner.expired()]
            assert not freed, "the graph reads memory that was freed after the capture"
        self._replayed = True
        self.log.append("replay")
        for func, args, kwargs, result in self.recorder.operations:
            args, kwargs = tree_map_only(Address, Address.tensor, (args, kwargs))
            again = func(*args, **kwargs)
            if isinstance(result, Tensor) and result.data_ptr() != again.data_ptr():
                result.copy_(again)
            elif isinstance(result, tuple):
                for one, new in zip(result, again, strict=True):
                    if isinstance(one, Tensor):
                        one.copy_(new)


class FakeStream:
    """A stream, of which there is only one here."""

    def __init__(self, device: object) -> None: ...

    def wait_stream(self, other: FakeStream) -> None: ...


@contextlib.contextmanager
def capture(graph: FakeGraph, *, stream: FakeStream, capture_error_mode: str) -> Iterator[None]:
    FakeGraph.log.append("capture")
    if FakeGraph.fails:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")
    with graph.recorder:
        yield
    graph.recorder.undo()


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> type[FakeGraph]:
    """Replace torch's graphs by these, and return the class of graphs, with its log."""
    FakeGraph.log, FakeGraph.fails = [], False
    fakes: dict[str, Callable[..., Any]] = {
        "CUDAGraph": FakeGraph,
        "graph": capture,
        "stream": contextlib.nullcontext,
        "Stream": FakeStream,
        "current_stream": FakeStream,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return FakeGraph
