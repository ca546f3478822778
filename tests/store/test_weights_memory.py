"""The memory that weights will take, guessed before they are loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from builders import write_hub
from conftest import make_model

from gpt2kit import store
from gpt2kit.checkpoints.load import load
from gpt2kit.config import GPT2Config


def test_the_memory_that_weights_will_need_is_known_before_they_are_loaded(tmp_path: Path) -> None:
    config = GPT2Config(n_vocab=300, n_ctx=32, n_embd=32, n_head=2, n_layer=2)
    for dtype, kind in (
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
        ("float64", torch.float64),
    ):
        folder = write_hub(tmp_path / dtype, make_model(config, dtype=kind))
        model, _ = load(folder, device="cpu", dtype=dtype)
        needed = sum(parameter.nbytes for parameter in model.parameters())
        assert (
            store.memory_needed(folder, dtype)
            == store.memory_needed(folder / "model.safetensors", dtype)
            == needed
        )
        assert (
            store.memory_needed(folder, "float32" if dtype == "bfloat16" else "bfloat16") == 0
        )  # while they are converted, there are more
    folder = tmp_path / "float32"
    assert store.memory_needed(folder, "auto") == store.memory_needed(folder, "float32")
    assert store.memory_needed(folder, "auto", "int8") == 0
    model, _ = load(folder, device="cpu", quantize="int8")
    needed = sum(parameter.nbytes for parameter in model.parameters())
    assert needed <= store.memory_needed(folder, "auto", "int8") < needed + 10_000


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"{",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32"}}',
        b'{"a": {"dtype": "F32", "shape": 3, "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": ["x", 8]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}',
        # More than the file has.
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 1000000000]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, Infinity]}}',
        b'{"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}',
        b'{"__metadata__": {"format": "pt"}}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_no_memory_is_asked_for_what_a_damaged_file_says(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert store.memory_needed(path) == store.memory_needed(tmp_path) == 0
    path.write_bytes(b"\xff" * 8 + header)
    assert store.memory_needed(path) == 0


def test_other_formats_do_not_tell_how_much_memory_they_need(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    assert (
        store.memory_needed(tmp_path)
        == store.memory_needed(tmp_path / "pytorch_model.bin")
        == store.memory_needed(tmp_path / "none")
        == 0
    )
