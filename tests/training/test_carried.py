"""The optimizer's averages of a run in another one: taken if they fit, otherwise named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_builders import go, small_model

from gpt2kit.errors import CheckpointFormatError
from gpt2kit.training.carried import Carried
from gpt2kit.training.optim import build_optimizers, named_state


def test_averages_that_fit_are_put_into_new_optimizers(tmp_path: Path) -> None:
    go(tmp_path)
    model = small_model()
    carried = Carried.find(tmp_path, model, "muon")
    assert carried is not None
    assert carried.reason.startswith("optimizer: continues with its averages of step 12 of ")
    optimizers = build_optimizers(model, optimizer="muon", weight_decay=0.0)
    carried.put(optimizers)
    kept = {name: values for name, _, values in named_state(optimizers)}
    assert int(kept["wte.weight"]["step"]) == 12
    assert torch.count_nonzero(kept["h.0.attn.c_attn.weight"]["momentum_buffer"])


def test_averages_of_another_optimizer_or_shape_are_named_and_not_taken(tmp_path: Path) -> None:
    go(tmp_path)
    for carried in (
        Carried.find(tmp_path, small_model(), "adamw"),
        Carried.find(tmp_path, small_model(n_layer=1), "muon"),
    ):
        assert carried is not None
        assert carried.state is None
        assert "starts anew, since the state of step 12 is of other parameters" in carried.reason


def test_damaged_averages_are_named_and_a_run_without_states_has_none(tmp_path: Path) -> None:
    go(tmp_path)
    file = tmp_path / "states" / "step-00000012" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    carried = Carried.find(tmp_path, small_model(), "muon")
    assert carried is not None
    assert carried.state is None
    assert "damaged" in carried.reason
    assert Carried.find(tmp_path / "nowhere", small_model(), "muon") is None


def test_averages_of_a_state_without_one_of_its_files_are_named_and_not_taken(
    tmp_path: Path,
) -> None:
    """The missing file was an error of the system, which ended the program."""
    go(tmp_path, steps=1)
    carried = Carried.find(tmp_path, small_model(), "muon")
    assert carried is not None
    assert carried.state is not None
    (carried.state / "weights.safetensors").unlink()
    found = Carried.find(tmp_path, small_model(), "muon")
    assert found is not None
    assert found.state is None
    assert "starts anew, since its saved state is damaged" in found.reason
    with pytest.raises(CheckpointFormatError, match=r"step-00000001: damaged: .*weights"):
        carried.put(build_optimizers(small_model(), optimizer="muon", weight_decay=0.0))
