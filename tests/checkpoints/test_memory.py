"""Memory for weights: large pages, and tensors that share them."""

from __future__ import annotations

import pytest
import torch

from gpt2kit.checkpoints import memory
from gpt2kit.checkpoints.stored import empty_tensors

pytestmark = pytest.mark.skipif(
    not memory.available(), reason="this system has no large pages to ask for"
)
MB = 2**20


def resident() -> int:
    """Return how many bytes this process has in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_memory_is_zeros_and_touched_only_where_it_is_written() -> None:
    before = resident()
    pages = memory.take(64 * MB)
    assert resident() - before < 4 * MB
    pages[5 * MB] = 7
    assert pages[0:3] == bytes(3)
    assert pages[5 * MB] == 7


def test_large_pages_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT2KIT_LARGE_PAGES", "0")
    assert not memory.available()
    tensor = empty_tensors({"a": ((3, 5), torch.float32)})["a"]
    assert tensor.fill_(1).sum() == 15


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
