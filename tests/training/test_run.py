"""Runs on disk: whole at every instant, gone on from bit for bit, and never mixed with another."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from training_builders import TOKENIZER, same, small_config, small_corpus, small_model, weights

from gpt2kit.checkpoints.load import load
from gpt2kit.errors import Gpt2KitWarning, TrainingError
from gpt2kit.model import GPT2
from gpt2kit.training.loop import StepReport, train
from gpt2kit.training.optim import build_optimizers, freeze
from gpt2kit.training.run import (
    METRICS,
    SAMPLES,
    SETTINGS,
    Progress,
    Run,
    check_settings,
    fingerprint,
    read_metrics,
)

SETTING = {"corpus": "a" * 64, "training": {"lr": 1e-3}}


def go(
    folder: Path,
    *,
    steps: int | None = None,
    resume: bool = False,
    optimizer: str = "muon",
    **more: Any,
) -> tuple[GPT2, list[StepReport]]:
    """Train a small model in a folder, to the end or for some reports."""
    model, reports = small_model(), []
    run = Run(folder, SETTING, resume=resume, **more)
    stream = train(model, small_corpus(), small_config(optimizer=optimizer), run=run)
    for report in stream:
        reports.append(report)
        if steps is not None and report.step == steps:
            break
    stream.close()  # type: ignore[attr-defined]
    run.close()
    return model, reports


def states(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "states").iterdir())


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("steps", [0, 1, 3, 7, 11])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    tmp_path: Path, steps: int, optimizer: str
) -> None:
    whole, reports = go(tmp_path / "whole", optimizer=optimizer)
    go(tmp_path / "cut", steps=steps, optimizer=optimizer)
    model, rest = go(tmp_path / "cut", resume=True, optimizer=optimizer)
    assert same(weights(model), weights(whole))
    assert [report.train_loss for report in rest] == [
        report.train_loss for report in reports[steps + 1 :]
    ]
    assert (tmp_path / "cut" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()
    assert [line["step"] for line in read_metrics(tmp_path / "cut")] == list(range(13))


def test_a_finished_run_is_not_gone_on_with(tmp_path: Path) -> None:
    first, _ = go(tmp_path)
    model, reports = go(tmp_path, resume=True)
    assert not reports
    assert same(weights(model), weights(first))


def test_only_trained_parameters_are_in_a_state_and_the_rest_comes_from_the_start(
    tmp_path: Path,
) -> None:
    def frozen(steps: int | None, resume: bool) -> GPT2:
        model = small_model()
        freeze(model, "embeddings")
        run = Run(tmp_path, SETTING, resume=resume)
        for report in train(model, small_corpus(), small_config(), run=run):
            if report.step == steps:
                break
        run.close()
        return model

    frozen(6, False)
    model = frozen(None, True)
    assert torch.equal(model.wte.weight, small_model().wte.weight)
    with (tmp_path / "states" / "step-00000012" / "weights.safetensors").open("rb") as file:
        assert b"wte" not in file.read(10_000)


def test_the_folder_is_a_model_with_the_best_weights(tmp_path: Path) -> None:
    from functools import partial

    from gpt2kit.checkpoints.load import write_model

    model, _ = go(tmp_path, write=partial(write_model, tokenizer=TOKENIZER))
    loaded, tokenizer = load(tmp_path, device="cpu")
    assert tokenizer is not None
    assert tokenizer.encode("selva") == TOKENIZER.encode("selva")
    assert same(weights(loaded), weights(model))  # it still improves in the last steps


def test_two_states_are_kept_and_nothing_unfinished(tmp_path: Path) -> None:
    go(tmp_path)
    assert states(tmp_path) == ["step-00000009", "step-00000012"]
    assert not [
        path for path in tmp_path.iterdir() if path.name.startswith(".") and path.name != ".lock"
    ]


def test_a_damaged_state_is_named_and_the_one_before_used(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("what", ["manifest.json", "state.json", "optimizer.safetensors"])
def test_a_state_without_one_of_its_files_is_damaged(tmp_path: Path, what: str) -> None:
    go(tmp_path, steps=7)
    (tmp_path / "states" / "step-00000007" / what).unlink()
    with pytest.warns(Gpt2KitWarning, match="step-00000007"):
        go(tmp_path, resume=True)


def test_where_every_state_is_damaged_nothing_is_started(tmp_path: Path) -> None:
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
    run = Run(tmp_path, SETTING, resume=True)
    with pytest.raises(TrainingError, match=r"12 parameters differ, such as h\.1"):
        run.restore(model, build_optimizers(model, optimizer="muon", weight_decay=0.0))
    run.close()


def test_a_run_is_not_overwritten_unless_told(tmp_path: Path) -> None:
    go(tmp_path, steps=3)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(
        TrainingError, match=r"already exists; --resume goes on with it, --force replaces it"
    ):
        go(tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    go(tmp_path, force=True)
    assert states(tmp_path) == ["step-00000009", "step-00000012"]


def test_a_folder_that_is_no_run_is_not_replaced_even_when_told(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(TrainingError, match=r"already exists|holds no training run"):
            go(tmp_path, force=force)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_resuming_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no training run to resume; expected run.json"):
        go(tmp_path / "nothing", resume=True)
    assert not (tmp_path / "nothing").exists()


def test_changed_settings_are_refused_with_the_difference(tmp_path: Path) -> None:
    go(tmp_path, steps=3)
    changed = {"corpus": "b" * 64, "training": {"lr": 2e-3, "clip": 1.0}}
    with pytest.raises(TrainingError, match=r"corpus was aaaaaaaa… and is now bbbbbbbb…; training.clip was nothing and is now 1.0; training.lr was 0.001 and is now 0.002"):  # fmt: skip
        check_settings(tmp_path, changed)
    check_settings(tmp_path, SETTING)


def test_a_folder_is_for_one_training_at_a_time(tmp_path: Path) -> None:
    run = Run(tmp_path, SETTING)
    with pytest.raises(TrainingError, match="in use by another training"):
        Run(tmp_path, SETTING, resume=True)
    with pytest.raises(TrainingError, match="in use by another training"):
        Run(tmp_path, SETTING, force=True)
    run.close()
    Run(tmp_path, SETTING, resume=True).close()


def test_a_full_disk_leaves_what_was_saved_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(tmp_path, steps=6)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    before = states(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        TrainingError, match="No space left on device; what was saved before is whole"
    ):
        go(tmp_path, resume=True)
    assert states(tmp_path) == before


def test_metrics_are_the_reports_and_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    _, reports = go(tmp_path)
    lines = read_metrics(tmp_path)
    assert [line.get("train_loss") for line in lines] == [report.train_loss for report in reports]
    assert "val_loss" in lines[4]
    assert "val_loss" not in lines[5]
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 13, "tra')
    assert read_metrics(tmp_path) == lines


def test_samples_of_steps_that_are_done_again_are_taken_back(tmp_path: Path) -> None:
    go(tmp_path, steps=6)
    run = Run(tmp_path, SETTING, resume=True)
    for step in (3, 6, 9):
        run.record({"step": step, "text": "…"}, SAMPLES)
    run.close()
    go(tmp_path, resume=True)
    assert [json.loads(line)["step"] for line in (tmp_path / SAMPLES).read_text().splitlines()] == [
        3,
        6,
    ]


def test_nothing_is_pickled(tmp_path: Path) -> None:
    go(tmp_path)
    endings = {
        path.suffix for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"
    }
    assert endings == {".json", ".jsonl", ".safetensors"}
    assert json.loads((tmp_path / SETTINGS).read_text()) == SETTING


def test_a_fingerprint_tells_weights_apart() -> None:
    model = small_model()
    first = fingerprint(model)
    assert fingerprint(small_model()) == first
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1e-6
    assert fingerprint(model) != first


def test_progress_knows_the_best_validation() -> None:
    progress = Progress()
    assert [progress.note(loss) for loss in (3.0, 2.0, 2.5, 2.0, 1.0)] == [
        True,
        True,
        False,
        False,
        True,
    ]
    assert progress.best_val_loss == 1.0
    assert progress.since_best == 0


# --- killed at any instant -------------------------------------------------------------------------------------------

_PROCESSES = multiprocessing.get_context(
    "forkserver"
)  # forks from a process that has imported torch already
_STEPS = 150
_SECONDS = 120  # for what takes one or two


def _train_in(folder: Path, progress: Any) -> None:
    torch.set_num_threads(1)
    run = Run(folder, {}, resume=folder.exists())
    config = small_config(max_steps=_STEPS, eval_every=5, save_every=2, warmup=10)
    for report in train(small_model(), small_corpus(), config, run=run):
        progress.value = report.step


def _start(folder: Path) -> tuple[Any, Any]:
    _PROCESSES.set_forkserver_preload(
        ["gpt2kit.train", "gpt2kit.tokenizers", "torch._dynamo"]
    )  # optimizers import the last, for a second
    progress = _PROCESSES.Value("i", -1, lock=False)  # a lock could be held by who is killed
    process = _PROCESSES.Process(target=_train_in, args=(folder, progress))
    process.start()
    return process, progress


def _finish(folder: Path) -> None:
    process, _ = _start(folder)
    process.join(timeout=_SECONDS)
    assert process.exitcode == 0


def _kill_and_resume(tmp_path: Path, kills: int) -> None:
    _finish(tmp_path / "whole")
    chance = random.Random(kills)
    for number in range(0, kills, 5):
        folder = tmp_path / f"killed-{number}"
        for target in sorted(
            chance.randrange(1, _STEPS - 5) for _ in range(5)
        ):  # each time after it was resumed
            process, progress = _start(folder)
            deadline = time.monotonic() + _SECONDS
            while progress.value < target and process.is_alive() and time.monotonic() < deadline:
                time.sleep(0.001)
            assert progress.value >= target
            time.sleep(chance.random() * 0.02)
            process.kill()
            process.join()
            assert process.exitcode == -signal.SIGKILL
        _finish(folder)
        for file in (
            f"states/step-{_STEPS:08d}/weights.safetensors",
            f"states/step-{_STEPS:08d}/optimizer.safetensors",
            "model.safetensors",
        ):
            assert (folder / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_run_killed_at_random_instants_ends_with_the_same_weights(tmp_path: Path) -> None:
    _kill_and_resume(tmp_path, 5)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_run_killed_at_fifty_random_instants_ends_with_the_same_weights(tmp_path: Path) -> None:
    _kill_and_resume(tmp_path, 50)
