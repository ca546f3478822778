"""Whether a written file holds its model: what the comparison must notice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_model
from gguf_builders import characters

from gpt2kit.checkpoints.load import open_checkpoint, write_model
from gpt2kit.checkpoints.stored import Checkpoint, StoredTensor
from gpt2kit.checkpoints.written import compare_written
from gpt2kit.config import GPT2Config
from gpt2kit.errors import CheckpointFormatError

SMALL = GPT2Config(n_vocab=40, n_ctx=16, n_embd=32, n_head=2, n_layer=2)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    write_model(tmp_path, make_model(SMALL), characters(40))
    return open_checkpoint(tmp_path)


def rounded(checkpoint: Checkpoint, *, broken: bool) -> Checkpoint:
    """Return a checkpoint of rounded tensors; if it is broken, one number of one of them is NaN."""
    tensors = {name: each.read().bfloat16().float() for name, each in checkpoint.tensors.items()}
    if broken:
        tensors["wte.weight"][0, 0] = torch.nan
    stored = {name: StoredTensor.of(tensor) for name, tensor in tensors.items()}
    return replace(checkpoint, tensors=stored)


def test_a_number_that_is_none_is_noticed_among_rounded_ones(checkpoint: Checkpoint) -> None:
    """A difference that was NaN was no more than any other, so the file was taken as written."""
    errors = dict.fromkeys(checkpoint.tensors, 0.01)
    found = compare_written(
        checkpoint, checkpoint.tensors, rounded(checkpoint, broken=False), errors
    )
    assert found.n_rounded > 1
    with pytest.raises(CheckpointFormatError, match=r"wte.weight .* numbers differ by nan"):
        compare_written(checkpoint, checkpoint.tensors, rounded(checkpoint, broken=True), errors)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_noticed_in_a_rounded_file(
    checkpoint: Checkpoint, wrong: float
) -> None:
    """If a tensor was rounded, the other program's logits could be anything."""
    with pytest.raises(CheckpointFormatError, match=f"other logits .* differ by {wrong}"):
        compare_written(
            checkpoint,
            checkpoint.tensors,
            rounded(checkpoint, broken=False),
            dict.fromkeys(checkpoint.tensors, 0.01),
            compute=lambda ids: torch.full((*ids.shape, 40), wrong),
        )
