"""Memory for weights: taken, got ready, given back."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from gpt2kit import memory
from gpt2kit.checkpoints.stored import empty_tensors

pytestmark = pytest.mark.skipif(
    not memory.available(), reason="this system has no large pages to ask for"
)
MB = 2**20


@pytest.fixture(autouse=True)
def _nothing_prepared() -> None:
    memory.release()


def resident() -> int:
    """Return how many bytes this process has in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def wait_for_threads() -> None:
    for thread in threading.enumerate():
        if thread.daemon and thread.name.endswith("(_touch)"):
            thread.join()


def test_memory_is_zeros_and_touched_only_where_it_is_written() -> None:
    before = resident()
    pages = memory.take(64 * MB)
    assert resident() - before < 4 * MB
    pages[5 * MB] = 7
    assert pages[0:3] == bytes(3)
    assert pages[5 * MB] == 7


def test_what_is_prepared_is_there_when_it_is_taken() -> None:
    before = resident()
    memory.prepare(64 * MB)
    wait_for_threads()
    if resident() - before < 64 * MB:
        pytest.skip("this system gives pages only when they are touched")
    pages = memory.take(64 * MB)
    assert len(pages) >= 64 * MB
    assert resident() - before < 72 * MB  # the same memory, not as much again
    assert pages[:MB] == bytes(MB)


def test_what_was_prepared_is_taken_once_and_only_for_about_as_many_bytes() -> None:
    memory.prepare(40 * MB)
    assert len(memory.take(10 * MB)) == 10 * MB
    assert len(memory.take(80 * MB)) == 80 * MB
    assert len(memory.take(40 * MB)) > 40 * MB
    assert len(memory.take(40 * MB)) == 40 * MB


def test_what_nobody_takes_is_given_back() -> None:
    before = resident()
    memory.prepare(64 * MB)
    wait_for_threads()
    memory.release()
    deadline = time.monotonic() + 5
    while resident() - before > 8 * MB and time.monotonic() < deadline:
        time.sleep(0.01)
    assert resident() - before < 8 * MB
    assert len(memory.take(64 * MB)) == 64 * MB


def test_unwritten_tensors_share_memory_but_no_byte_and_outlive_each_other() -> None:
    specs = {
        "a": ((3, 5), torch.float32),
        "b": ((7,), torch.int8),
        "c": ((2, 2), torch.bfloat16),
        "d": ((1, 1000, 1000), torch.float64),
    }
    tensors = empty_tensors(specs)
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()} == specs
    for number, tensor in enumerate(tensors.values()):
        tensor.fill_(number + 1)
        assert tensor.data_ptr() % 64 == 0
        assert (
            tensor.untyped_storage().nbytes() == tensor.nbytes
        )  # so that one alone is saved as one alone
    last = tensors.pop("d")
    assert [set(tensors[name].flatten().tolist()) for name in "abc"] == [{1}, {2}, {3}]
    tensors.clear()
    assert (last == 4).all()
