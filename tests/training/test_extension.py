"""Extended runs: exact as far as the learning rate allows it, otherwise a phase that is named."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from training_builders import (
    go,
    killed_before_change,
    same,
    small_config,
    small_settings,
    states,
    weights,
)

from gpt2kit.errors import ConfigError, TrainingError
from gpt2kit.training.extension import Extension, steps_alike
from gpt2kit.training.records import METRICS, read_metrics
from gpt2kit.training.run import Run
from gpt2kit.training.settings import Settings

CONSTANT: dict[str, Any] = {"schedule": "constant"}
WARMDOWN: dict[str, Any] = {**CONSTANT, "warmdown": 3, "eval_every": 3}


def records(folder: Path) -> list[dict[str, Any]]:
    """Return the metrics of a run but for its speed."""
    return [
        {name: value for name, value in line.items() if name != "tokens_per_second"}
        for line in read_metrics(folder)
    ]


def extended(folder: Path, **config: Any) -> Extension:
    """Open a run with more steps and return how it continues."""
    run = Run(folder, small_settings(training=small_config(**config)), resume=True)
    run.close()
    assert run.extension is not None
    return run.extension


def assert_as_long_from_the_start(tmp_path: Path, **config: Any) -> None:
    longer, _ = go(tmp_path / "long", max_steps=20, **config)
    model, _ = go(tmp_path / "run", resume=True, max_steps=20, **config)
    assert same(weights(model), weights(longer))
    assert records(tmp_path / "run") == records(tmp_path / "long")
    for file in ("model.safetensors", "states/step-00000020/optimizer.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "long" / file).read_bytes()


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_at_a_constant_rate_a_finished_run_is_extended_bit_for_bit(
    tmp_path: Path, optimizer: str
) -> None:
    go(tmp_path / "run", optimizer=optimizer, **CONSTANT)
    assert states(tmp_path / "run") == ["step-00000012"]
    assert_as_long_from_the_start(tmp_path, optimizer=optimizer, **CONSTANT)


def test_a_run_whose_rate_has_not_begun_to_fall_is_extended_bit_for_bit(tmp_path: Path) -> None:
    go(tmp_path / "run", steps=8, **WARMDOWN)
    assert_as_long_from_the_start(tmp_path, **WARMDOWN)


def test_a_run_whose_rate_has_fallen_goes_back_to_a_kept_state(tmp_path: Path) -> None:
    go(tmp_path / "run", keep_states=True, **WARMDOWN)
    assert "step-00000009" in states(tmp_path / "run")
    assert_as_long_from_the_start(tmp_path, **WARMDOWN)
    (step,) = Settings.read(tmp_path / "run").history
    assert step == {"step": 9, "max_steps_before": 12, "max_steps": 20, "kind": "exact"}


def test_a_run_does_not_go_back_to_a_damaged_state(tmp_path: Path) -> None:
    """The whole states after it were deleted first, so that every state was damaged."""
    go(tmp_path, keep_states=True, **WARMDOWN)
    for step in (0, 3, 6):
        shutil.rmtree(tmp_path / "states" / f"step-{step:08d}")
    (tmp_path / "states" / "step-00000009" / "weights.safetensors").write_bytes(b"")
    extension = extended(tmp_path, max_steps=20, **WARMDOWN)
    assert (extension.exact, extension.step) == (False, 12)
    _, reports = go(tmp_path, resume=True, steps=13, max_steps=20, **WARMDOWN)
    assert reports[0].step == 13


def test_a_kill_while_a_run_goes_back_changes_nothing(tmp_path: Path) -> None:
    # After a kill before the best weights were written, those of a step that was given up stayed.
    go(tmp_path / "run", keep_states=True, **WARMDOWN)
    how: dict[str, Any] = {"resume": True, "max_steps": 20, "keep_states": True, **WARMDOWN}

    def copied(name: str) -> Path:
        return Path(shutil.copytree(tmp_path / "run", tmp_path / name))

    def files(folder: Path) -> dict[str, Any]:
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and path.name != METRICS
        } | {METRICS: records(folder)}

    go(copied("whole"), steps=10, **how)  # there is no validation between steps 9 and 12
    for n in itertools.count(1):
        folder = copied(f"killed-{n}")
        with killed_before_change(n) as killed:
            go(folder, steps=10, **how)
        if not killed():
            break
        go(folder, steps=10, **how)
        assert files(folder) == files(tmp_path / "whole"), n
    assert n > 10


def test_the_state_before_the_rate_falls_is_saved_whatever_save_every_says(tmp_path: Path) -> None:
    go(tmp_path, keep_states=True, **{**WARMDOWN, "warmdown": 5})
    assert "step-00000007" in states(tmp_path)


def test_without_a_state_from_before_it_fell_the_rest_is_a_new_phase(tmp_path: Path) -> None:
    go(tmp_path / "run", **WARMDOWN)
    go(tmp_path / "long", max_steps=20, **WARMDOWN)
    extension = extended(tmp_path / "run", max_steps=20, **WARMDOWN)
    assert (extension.exact, extension.step) == (False, 12)
    assert "new phase: after step 12 the learning rate goes from 0.00075 to 0.003" in str(extension)
    go(tmp_path / "run", resume=True, max_steps=20, **WARMDOWN)
    assert records(tmp_path / "run") != records(tmp_path / "long")
    assert Settings.read(tmp_path / "run").last_phase == 12


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_schedule_that_falls_all_the_way_goes_on_as_a_new_phase_in_the_record(
    tmp_path: Path, schedule: str
) -> None:
    go(tmp_path, schedule=schedule, keep_states=True)
    assert not extended(tmp_path, schedule=schedule, max_steps=20).exact
    history = json.loads((tmp_path / "run.json").read_text())["history"]
    assert [(each["step"], each["kind"]) for each in history] == [(12, "new phase")]
    assert len(states(tmp_path)) == 5  # no step is given up


def test_a_run_stopped_in_its_warm_up_is_extended_exactly_under_any_schedule(
    tmp_path: Path,
) -> None:
    go(tmp_path / "run", steps=2)
    assert_as_long_from_the_start(tmp_path)


def test_what_is_exact_after_a_new_phase_is_exact_since_then(tmp_path: Path) -> None:
    go(tmp_path, **WARMDOWN)
    go(tmp_path, resume=True, max_steps=20, steps=15, **WARMDOWN)
    extension = extended(tmp_path, max_steps=24, **WARMDOWN)
    assert extension.exact
    assert "24 steps from the phase that began at step 12" in str(extension)


def test_a_validation_more_than_the_longer_run_has_is_named(tmp_path: Path) -> None:
    go(tmp_path, eval_every=5, **CONSTANT)
    line = str(extended(tmp_path, eval_every=5, max_steps=20, **CONSTANT))
    assert line.endswith("but for one more validation, at step 12")
    assert "with warmup 2 and eval_every 5" in line


def test_a_run_out_of_patience_says_that_it_cannot_be_extended(tmp_path: Path) -> None:
    # It did nothing, and said that the run had ended.
    impatient: dict[str, Any] = {"lr": 1.0, "eval_every": 1, "patience": 3, "clip": 0.0}
    _, reports = go(tmp_path, max_steps=100, optimizer="adamw", **impatient)
    assert reports[-1].finish_reason == "patience"
    with pytest.raises(TrainingError, match=r"3 validations brought no better one.*--model"):
        go(tmp_path, resume=True, max_steps=200, optimizer="adamw", **impatient)


def test_rates_are_alike_up_to_where_the_shorter_run_s_falls() -> None:
    longer = small_config(max_steps=20, **WARMDOWN)
    assert steps_alike(small_config(**WARMDOWN), longer) == 9
    assert steps_alike(small_config(), small_config(max_steps=20)) == 3
    with pytest.raises(ConfigError, match="warmdown is 11, expected at most 10"):
        small_config(schedule="constant", warmdown=11)
