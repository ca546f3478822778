"""CUDA graphs on a processor: what is captured is a list of operations and addresses, and replaying it runs them there again."""

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
    """Where a tensor from outside of a graph lies, without keeping it there."""

    def __init__(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._place, self._bytes, self.owner = (
            storage.data_ptr(),
            storage.nbytes(),
            StorageWeakRef(storage),
        )
        self._view = tensor.storage_offset(), tensor.size(), tensor.stride()
        self._dtype = tensor.dtype

    def tensor(self) -> Tensor:
        memory = torch.frombuffer(
            (ctypes.c_char * self._bytes).from_address(self._place), dtype=torch.uint8
        )
        return torch.empty(0, dtype=self._dtype).set_(memory.untyped_storage(), *self._view)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs operations, and remembers each with its arguments: tensors made here as they are, others by their addresses."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.outside: list[Address] = []
        self._inside: set[int] = set()  # storages made here
        self._kept: list[Tensor] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            self._remember(args[0])
        recorded = tree_map_only(Tensor, self._address, (args, kwargs))
        result = func(*args, **kwargs)
        aliases = any(one.alias_info is not None for one in func._schema.returns)
        if not aliases:
            tree_map_only(Tensor, self._made, result)
        self.operations.append(
            (func, *recorded, None if aliases and func._schema.is_mutable else result)
        )
        if (
            aliases and not func._schema.is_mutable and not self._is_inside(result)
        ):  # a view of something outside: found again by its address
            self.operations.pop()
        return result

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

    def undo(self) -> None:
        """Capturing computes nothing: put back what was written to."""
        for tensor, before in reversed(self._before.values()):
            tensor.copy_(before)
        self._before.clear()


class FakeGraph:
    """A CUDA graph; `log` has a line for everything that was done with any."""

    log: list[str]
    fails = False

    def __init__(self) -> None:
        self.recorder = Recorder()
        self._replays = 0

    def replay(self) -> None:
        if not self._replays:
            assert not any(address.owner.expired() for address in self.recorder.outside), (
                "the graph reads memory that is free"
            )
        self._replays += 1
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
    def __init__(self, device: object = None) -> None: ...

    def wait_stream(self, other: FakeStream) -> None:
        FakeGraph.log.append("wait")


@contextlib.contextmanager
def capture(
    graph: FakeGraph, *, pool: object, stream: FakeStream, capture_error_mode: str
) -> Iterator[None]:
    assert pool == "the pool"
    assert capture_error_mode == "thread_local"
    FakeGraph.log.append("capture")
    if FakeGraph.fails:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")
    with graph.recorder:
        yield
    graph.recorder.undo()


@contextlib.contextmanager
def on_stream(stream: FakeStream) -> Iterator[None]:
    FakeGraph.log.append("stream")
    yield


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> type[FakeGraph]:
    """Put these in the place of torch's, and return the class of graphs, with its log."""
    FakeGraph.log, FakeGraph.fails = [], False
    fakes: dict[str, Callable[..., Any]] = {
        "CUDAGraph": FakeGraph,
        "graph": capture,
        "stream": on_stream,
        "Stream": FakeStream,
        "current_stream": FakeStream,
        "graph_pool_handle": lambda: "the pool",
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return FakeGraph
