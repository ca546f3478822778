"""Saved states: whole or not used, damage named, one kept at the end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from training_builders import go, same, small_model, small_settings, states, weights

from gpt2kit.errors import Gpt2KitWarning, TrainingError
from gpt2kit.training.optim import build_optimizers
from gpt2kit.training.run import Run
from gpt2kit.training.states import LoopState


def test_two_states_are_kept_while_a_run_goes_on_and_one_when_it_has_ended(tmp_path: Path) -> None:
    # A finished run kept two, which is six times the model.
    go(tmp_path, steps=10)
    assert states(tmp_path) == ["step-00000009", "step-00000010"]
    go(tmp_path, resume=True)
    assert states(tmp_path) == ["step-00000012"]


def test_a_state_that_a_kill_left_beside_the_last_one_is_deleted_by_resuming(
    tmp_path: Path,
) -> None:
    # A run that had ended was not looked at again, so the state before stayed for ever.
    go(tmp_path)
    shutil.copytree(tmp_path / "states/step-00000012", tmp_path / "states/step-00000009")
    go(tmp_path, resume=True)
    assert states(tmp_path) == ["step-00000012"]


def test_every_state_is_kept_if_asked(tmp_path: Path) -> None:
    go(tmp_path, keep_states=True)
    assert states(tmp_path) == [f"step-{step:08d}" for step in (0, 3, 6, 9, 12)]


def test_a_damaged_state_is_named_and_the_one_before_is_used(tmp_path: Path) -> None:
    whole, _ = go(tmp_path / "whole")
    go(tmp_path / "cut", steps=7)
    newest = tmp_path / "cut" / "states" / "step-00000007" / "weights.safetensors"
    damaged = bytearray(newest.read_bytes())
    damaged[-1] ^= 1
    newest.write_bytes(damaged)
    with pytest.warns(
        Gpt2KitWarning, match=r"step-00000007.*weights.safetensors: damaged.*the state before"
    ):
        model, reports = go(tmp_path / "cut", resume=True)
    assert reports[0].step == 7
    assert same(weights(model), weights(whole))


def test_a_state_that_is_damaged_a_second_time_is_set_aside_again(tmp_path: Path) -> None:
    """The folder that was set aside the first time was in the way, and nothing could be resumed."""
    go(tmp_path, steps=4)
    for _ in range(2):
        (tmp_path / "states" / "step-00000004" / "weights.safetensors").write_bytes(b"")
        with pytest.warns(Gpt2KitWarning, match=r"step-00000004.*the state before"):
            go(tmp_path, resume=True, steps=4)


@pytest.mark.parametrize("what", ["manifest.json", "state.json", "optimizer.safetensors"])
def test_a_state_without_one_of_its_files_is_damaged(tmp_path: Path, what: str) -> None:
    go(tmp_path, steps=7)
    (tmp_path / "states" / "step-00000007" / what).unlink()
    with pytest.warns(Gpt2KitWarning, match="step-00000007"):
        go(tmp_path, resume=True)


def without(name: str) -> Any:
    return lambda manifest: {key: value for key, value in manifest.items() if key != name}


@pytest.mark.parametrize(
    "change",
    [
        without("weights.safetensors"),  # such a file was loaded unchecked
        without("optimizer.safetensors"),
        without("state.json"),
        lambda manifest: {},
        lambda manifest: {**manifest, "state.json": 3},
        lambda manifest: {**manifest, "state.json": {"sha256": None}},
        lambda manifest: [manifest],
    ],
)
def test_a_state_with_a_damaged_manifest_is_not_loaded(tmp_path: Path, change: Any) -> None:
    go(tmp_path, steps=7)
    path = tmp_path / "states" / "step-00000007" / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.warns(Gpt2KitWarning, match="step-00000007"):
        _, reports = go(tmp_path, resume=True)
    assert reports[0].step == 7


@pytest.mark.parametrize("name", ["\x00", "../run.json", "a" * 300])
def test_other_names_in_a_manifest_are_not_opened(tmp_path: Path, name: str) -> None:
    # A null character in a name was a ValueError, which kept the run from being resumed.
    go(tmp_path, steps=7)
    path = tmp_path / "states" / "step-00000007" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: {"sha256": "0" * 64}}))
    _, reports = go(tmp_path, resume=True)
    assert reports[0].step == 8


def test_if_every_state_is_damaged_nothing_is_started(tmp_path: Path) -> None:
    go(tmp_path, steps=7)
    for manifest in tmp_path.glob("states/*/manifest.json"):
        manifest.write_text("{")
    with (
        pytest.warns(Gpt2KitWarning),
        pytest.raises(TrainingError, match="every saved state is damaged"),
    ):
        go(tmp_path, resume=True)
    with pytest.raises(TrainingError, match="every saved state is damaged"):
        go(tmp_path, resume=True)


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    go(tmp_path)
    model = small_model(n_layer=1)
    run = Run(tmp_path, small_settings(), resume=True)
    with pytest.raises(TrainingError, match=r"12 parameters differ, such as h\.1"):
        run.restore(model, build_optimizers(model, optimizer="muon", weight_decay=0.0))
    run.close()


def test_a_state_of_an_earlier_version_is_loaded(tmp_path: Path) -> None:
    # It had a field more: whether the run was finished.
    whole, _ = go(tmp_path / "whole")
    go(tmp_path / "cut", steps=7)
    folder = tmp_path / "cut" / "states" / "step-00000007"
    (folder / "state.json").write_text(
        json.dumps({**json.loads((folder / "state.json").read_text()), "finished": False})
    )
    from hashlib import sha256

    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["state.json"]["sha256"] = sha256((folder / "state.json").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    model, reports = go(tmp_path / "cut", resume=True)
    assert reports[0].step == 8
    assert same(weights(model), weights(whole))


def test_the_best_validation_is_known() -> None:
    state = LoopState()
    assert [state.note(loss) for loss in (float("nan"), 3.0, 2.0, 2.5, 2.0, 1.0)] == [
        False,
        True,
        True,
        False,
        False,
        True,
    ]
    assert state.best_val_loss == 1.0
    assert state.since_best == 0
    assert LoopState().note(None)  # without a validation text, the newest weights are the best
