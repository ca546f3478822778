"""Adapters over adapters: merged in order, over what they were trained on, and taken off again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_builders import TOKENIZER, same, small_model, weights

from gpt2kit.checkpoints.adapters import save_adapters
from gpt2kit.checkpoints.load import write_model
from gpt2kit.errors import CheckpointError, CheckpointNotFoundError
from gpt2kit.lora import add_adapters
from gpt2kit.model import GPT2
from gpt2kit.training.adapted import (
    digest_of,
    find_stack,
    put_adapters,
    require_adapters,
    with_adapters,
)

IDS = torch.arange(12)[None]


def adapters(folder: Path, base: str, digest: str, seed: int) -> Path:
    """Write a folder of random adapters."""
    model = small_model()
    add_adapters(model, 2)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".lora_b" in name:
            parameter.data.normal_(std=0.5, generator=generator)
    folder.mkdir()
    save_adapters(folder, model, base=base, base_sha256=digest)
    return folder


@pytest.fixture
def stacked(tmp_path: Path) -> tuple[Path, Path]:
    """A model, adapters over it, and adapters over those."""
    (tmp_path / "base").mkdir()
    write_model(tmp_path / "base", small_model(), TOKENIZER)
    digest = digest_of(small_model(), ())
    low = adapters(tmp_path / "low", str(tmp_path / "base"), digest, 1)
    high = adapters(tmp_path / "high", str(low), digest_of(small_model(), [low]), 2)
    return low, high


def test_adapters_lie_over_each_other_in_order(tmp_path: Path, stacked: tuple[Path, Path]) -> None:
    stack = find_stack(str(stacked[1]))
    assert (stack.base, stack.folders) == (str(tmp_path / "base"), stacked)


def test_one_model_serves_many_adapters_and_is_itself_again_to_the_bit(
    stacked: tuple[Path, Path],
) -> None:
    low, high = stacked
    model = small_model().eval()
    before, plain = weights(model), model(IDS)
    outputs = []
    for folders in ([low], [low, high], [low]):
        with with_adapters(model, folders) as adapted:
            assert adapted is model
            outputs.append(model(IDS))
        assert same(weights(model), before)
        assert torch.equal(model(IDS), plain)
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-3)
    assert not torch.allclose(outputs[0], plain, atol=1e-3)


def test_adapters_for_other_weights_are_refused_and_leave_the_model_as_it_was(
    stacked: tuple[Path, Path],
) -> None:
    low, high = stacked
    model: GPT2 = small_model()
    before = weights(model)
    with (
        pytest.raises(CheckpointError, match="trained on other weights"),
        with_adapters(model, [low, low]),
    ):
        pass
    assert same(weights(model), before)
    with pytest.raises(CheckpointError, match="trained on other weights"):
        put_adapters(high, model, digest_of(model, ()))


def test_adapters_over_themselves_and_no_adapters_are_said(
    tmp_path: Path, stacked: tuple[Path, Path]
) -> None:
    around = adapters(tmp_path / "around", str(tmp_path / "around"), "", 3)
    with pytest.raises(CheckpointError, match="lie over themselves"):
        find_stack(str(around))
    with pytest.raises(CheckpointNotFoundError, match="no adapters; expected the folder"):
        require_adapters(tmp_path / "base")
