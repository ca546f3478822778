"""Stored tensors: their shape is known before they are read, and read they have it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gpt2kit.checkpoints.stored import (
    Checkpoint,
    StoredTensor,
    as_bytes,
    transpose_if_conv1d,
    view_into,
)
from gpt2kit.config import GPT2Config
from gpt2kit.errors import CheckpointMismatchError

CONFIG = GPT2Config(n_vocab=5, n_ctx=4, n_embd=2, n_head=1, n_layer=1)


def tensors(dtype: torch.dtype = torch.float32) -> dict[str, StoredTensor]:
    shapes = CONFIG.shapes().items()
    return {name: StoredTensor.of(torch.zeros(shape, dtype=dtype)) for name, shape in shapes}


def test_a_matrix_that_is_stored_as_in_by_out_is_turned_when_it_is_read() -> None:
    tensor = torch.arange(6.0).view(2, 3)
    stored = transpose_if_conv1d("h.0.attn.c_attn.weight", StoredTensor.of(tensor))
    assert stored.shape == (3, 2)
    assert stored.nbytes == 24
    assert torch.equal(stored.read(), tensor.t())
    back = transpose_if_conv1d("h.0.attn.c_attn.weight", stored)
    assert back.shape == (2, 3)
    assert torch.equal(back.read(), tensor)


@pytest.mark.parametrize("name", ["wte.weight", "h.0.attn.c_attn.bias", "lm_head.weight"])
def test_other_tensors_are_never_turned(name: str) -> None:
    stored = StoredTensor.of(torch.zeros(2, 3))
    assert transpose_if_conv1d(name, stored) is stored


def test_a_tensor_can_lie_in_a_buffer_that_is_larger_than_it() -> None:
    buffer = torch.zeros(100, dtype=torch.uint8)
    view_into((2, 3), torch.float16, buffer).fill_(1)
    assert buffer[:12].view(torch.float16).tolist() == [1] * 6
    assert not buffer[12:].any()
    alone = view_into((2, 3), torch.float16, None)
    assert (tuple(alone.shape), alone.dtype) == ((2, 3), torch.float16)
    assert as_bytes(alone).shape == (12,)


def test_every_difference_from_the_configuration_is_listed() -> None:
    found = tensors()
    del found["ln_f.bias"]
    found["wpe.weight"] = StoredTensor.of(torch.zeros(4, 3))
    found["h.1.ln_1.bias"] = StoredTensor.of(torch.zeros(2))
    with pytest.raises(CheckpointMismatchError) as caught:
        Checkpoint(Path("model"), "safetensors", CONFIG, found)
    assert caught.value.missing == ["ln_f.bias"]
    assert caught.value.unexpected == ["h.1.ln_1.bias"]
    assert caught.value.misshapen == {"wpe.weight": ((4, 2), (4, 3))}


def test_the_dtype_of_a_checkpoint_holds_each_of_its_tensors_exactly() -> None:
    found = tensors(torch.float16)
    assert Checkpoint(Path("model"), "safetensors", CONFIG, found).dtype == torch.float16
    found["ln_f.bias"] = StoredTensor.of(torch.zeros(2, dtype=torch.bfloat16))
    assert Checkpoint(Path("model"), "safetensors", CONFIG, found).dtype == torch.float32


def test_the_folder_of_a_file_is_the_one_that_it_lies_in(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    for path in (tmp_path, file):
        assert Checkpoint(path, "safetensors", CONFIG, tensors()).folder == tmp_path
