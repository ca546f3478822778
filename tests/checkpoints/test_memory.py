"""Memory: large pages for weights, tensors that share them, and how much a conversion takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from conftest import make_model
from gguf_builders import characters

from gpt2kit.checkpoints import memory
from gpt2kit.checkpoints.exports import export_gguf, export_llmc
from gpt2kit.checkpoints.load import open_checkpoint, write_checkpoint, write_model
from gpt2kit.checkpoints.stored import empty_tensors
from gpt2kit.config import GPT2Config

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


def convert(folder: Path, to: Path, format: str, dtype: str) -> None:
    to.mkdir()
    checkpoint, tokenizer = open_checkpoint(folder), characters(40)
    if format == "hf":
        write_checkpoint(to, checkpoint, getattr(torch, dtype), tokenizer)
        return
    export = export_gguf if format == "gguf" else export_llmc
    export(to / "file", checkpoint, tokenizer, dtype=dtype)


def peak(kind: str) -> int:
    """Return what this process has in memory (VmRSS), or had at most (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    (found,) = re.findall(rf"{kind}:\s+(\d+) kB", status)
    return int(found) * 1024


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, and a wide one whose embedding of 60 MB is nearly all of it."""
    folder = tmp_path_factory.mktemp("models")
    for name, width in (("small", 32), ("wide", 8192)):
        (folder / name).mkdir()
        config = GPT2Config(n_vocab=1920, n_ctx=4, n_embd=width, n_head=1, n_layer=0)
        write_model(folder / name, make_model(config))
    return folder


@pytest.mark.parametrize(
    ("format", "dtype"),
    [("hf", "bfloat16"), ("gguf", "f32"), ("gguf", "q8_0"), ("llmc", "bf16")],
)
def test_a_conversion_takes_one_tensor_and_small_buffers(
    tmp_path: Path, models: Path, format: str, dtype: str
) -> None:
    """A file that was read back was compared with two tensors in memory, and a tensor was
    converted to bfloat16, and back, with one and a half."""
    convert(models / "small", tmp_path / "small", format, dtype)  # torch loads code on first use
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is that from now on
    except OSError:
        pytest.skip("this system does not let a process forget its peak")
    before = peak("VmRSS")
    convert(models / "wide", tmp_path / "wide", format, dtype)
    # Less than a tensor if the process had memory left that it had freed
    assert 20 * MB < peak("VmHWM") - before < 60 * MB + 24 * MB
