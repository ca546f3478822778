"""The folder of a run: claimed by one training, resumed bit for bit, never mixed with another."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from training_builders import (
    TOKENIZER,
    go,
    killed_before_change,
    same,
    small_config,
    small_corpus,
    small_model,
    small_settings,
    states,
    weights,
)

from gpt2kit.checkpoints.load import load, write_model
from gpt2kit.errors import TrainingError
from gpt2kit.model import GPT2
from gpt2kit.training.loop import train
from gpt2kit.training.optim import freeze
from gpt2kit.training.records import METRICS, SAMPLES, read_metrics
from gpt2kit.training.run import Run
from gpt2kit.training.settings import SETTINGS


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("steps", [0, 1, 3, 7, 11])
def test_an_interrupted_run_continues_as_if_it_had_not_been_interrupted(
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


@pytest.mark.parametrize("how", [{"shuffle": False}, {"shuffle": False, "stride": 3}])
def test_a_run_in_the_order_of_the_text_continues_as_if_it_had_not_been_interrupted(
    tmp_path: Path, how: dict[str, Any]
) -> None:
    whole, _ = go(tmp_path / "whole", accumulate=2, **how)
    go(tmp_path / "cut", steps=7, accumulate=2, **how)
    model, _ = go(tmp_path / "cut", resume=True, accumulate=2, **how)
    assert same(weights(model), weights(whole))
    assert not same(weights(model), weights(go(tmp_path / "shuffled", accumulate=2)[0]))


def test_a_state_is_saved_once_its_report_was_taken(tmp_path: Path) -> None:
    """It was saved before: after a kill, the sample that is written with a report was missing."""
    settings = small_settings(training=small_config(save_every=1))
    run = Run(tmp_path, settings)
    saved = []
    for report in train(small_model(), small_corpus(), settings.training, run=run):
        saved.append((report.step, run.last_step))
    run.close()
    assert saved == [(0, None), *((step, step - 1) for step in range(1, 13))]
    assert run.last_step == 12


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    first, _ = go(tmp_path)
    record = (tmp_path / METRICS).read_bytes()
    model, reports = go(tmp_path, resume=True)
    assert not reports
    assert same(weights(model), weights(first))
    assert (tmp_path / METRICS).read_bytes() == record


def test_a_finished_run_can_be_resumed_to_more_steps(tmp_path: Path) -> None:
    go(tmp_path)
    longer, reports = go(tmp_path, resume=True, max_steps=20)
    assert [report.step for report in reports] == list(range(13, 21))
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(21))
    assert [line["step"] for line in read_metrics(tmp_path) if "finish_reason" in line] == [20]
    again, reports = go(tmp_path, resume=True, max_steps=20)  # the new number is in run.json
    assert not reports
    assert same(weights(again), weights(longer))
    with pytest.raises(TrainingError, match=r"training\.max_steps was 20 and is now 12"):
        go(tmp_path, resume=True)


def test_a_run_out_of_patience_is_finished(tmp_path: Path) -> None:
    impatient: dict[str, Any] = {"lr": 1.0, "max_steps": 100, "eval_every": 1, "patience": 3}
    impatient |= {"clip": 0.0, "optimizer": "adamw"}
    _, reports = go(tmp_path, **impatient)
    assert reports[-1].finish_reason == "patience"
    _, reports = go(tmp_path, resume=True, **impatient)
    assert not reports


def test_a_stop_leaves_no_trace_in_the_record_of_a_resumed_run(tmp_path: Path) -> None:
    # metrics.jsonl said "stopped" in the middle.
    go(tmp_path, stop=lambda: True)
    assert read_metrics(tmp_path)[-1]["finish_reason"] == "stopped"
    go(tmp_path, resume=True)
    reasons = {line["step"]: line.get("finish_reason") for line in read_metrics(tmp_path)}
    assert reasons == {step: "steps" if step == 12 else None for step in range(13)}


def test_only_trained_parameters_are_in_a_state_and_the_rest_comes_from_the_start(
    tmp_path: Path,
) -> None:
    def frozen(steps: int | None, resume: bool) -> GPT2:
        model = small_model()
        freeze(model, "embeddings")
        run = Run(tmp_path, small_settings(), resume=resume)
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
    model, _ = go(tmp_path, write=partial(write_model, tokenizer=TOKENIZER))
    loaded, tokenizer = load(tmp_path, device="cpu")
    assert tokenizer is not None
    assert tokenizer.encode("selva") == TOKENIZER.encode("selva")
    assert same(weights(loaded), weights(model))  # it still improves in the last steps


def test_a_run_is_not_overwritten_without_force(tmp_path: Path) -> None:
    go(tmp_path, steps=3)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(
        TrainingError, match=r"already exists; --resume continues it, --force replaces it"
    ):
        go(tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / SAMPLES).write_text("of the old run")
    go(tmp_path, force=True)
    assert states(tmp_path) == ["step-00000012"]
    assert not (tmp_path / SAMPLES).exists()


def test_a_folder_that_is_no_run_is_not_replaced_even_with_force(tmp_path: Path) -> None:
    # --force was advised, and then refused.
    (tmp_path / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(TrainingError, match="holds no training run") as caught:
            go(tmp_path, force=force)
        assert "--force" not in str(caught.value)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_resuming_where_no_run_is_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no training run to resume; expected run.json"):
        go(tmp_path / "nothing", resume=True)
    assert not (tmp_path / "nothing").exists()


def test_a_folder_is_for_one_training_at_a_time(tmp_path: Path) -> None:
    settings = small_settings()
    run = Run(tmp_path, settings)
    with pytest.raises(TrainingError, match="in use by another training"):
        Run(tmp_path, settings, resume=True)
    with pytest.raises(TrainingError, match="in use by another training"):
        Run(tmp_path, settings, force=True)
    run.close()
    Run(tmp_path, settings, resume=True).close()


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


def test_nothing_is_pickled(tmp_path: Path) -> None:
    go(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files if path.name != ".lock"} == {
        ".json",
        ".jsonl",
        ".safetensors",
    }
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".b")]


# --- killed while the folder is claimed -------------------------------------------------------


SHORT: dict[str, Any] = {"max_steps": 4, "save_every": 2, "eval_every": 2}


def claimed_until(folder: Path, n: int, **how: Any) -> bool:
    """Claim a folder, killed before the n-th change of the file system; return whether it came."""
    with killed_before_change(n) as killed:
        Run(folder, small_settings(training=small_config(**SHORT)), **how).close()
    return killed()


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_whose_claim_was_killed_is_accepted_as_the_message_says(
    tmp_path: Path, force: bool
) -> None:
    # After a kill before run.json was written, nothing accepted the folder.
    if force:
        go(tmp_path / "run", steps=2, **SHORT)
    for n in itertools.count(1):
        folder = tmp_path / f"killed-{n}"
        if force:
            shutil.copytree(tmp_path / "run", folder)
        if not claimed_until(folder, n, force=force):
            break
        accepted: dict[str, bool] = {}
        try:
            go(folder, **SHORT)
        except TrainingError as error:
            accepted = {word: True for word in ("resume", "force") if f"--{word}" in str(error)}
            assert accepted
        if accepted:
            shutil.copytree(folder, tmp_path / f"again-{n}")
            go(tmp_path / f"again-{n}", force=True, **SHORT)
            go(folder, resume=True, **SHORT)
        assert [line["step"] for line in read_metrics(folder)] == list(range(5))
        assert load(folder, device="cpu")
    assert n > (4 if force else 2)


def test_what_a_kill_before_run_json_leaves_is_free_to_use(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / f"{SETTINGS}.tmp").write_text("{")
    go(tmp_path)
    assert states(tmp_path) == ["step-00000012"]


# --- killed at any instant --------------------------------------------------------------------

_PROCESSES = multiprocessing.get_context(
    "forkserver"
)  # forks from a process that has imported torch already
_STEPS = 100
_SECONDS = 120  # for what takes one or two


def _train_in(folder: Path, progress: Any) -> None:
    torch.set_num_threads(1)
    run = Run(folder, small_settings(), resume=(folder / SETTINGS).exists())
    config = small_config(max_steps=_STEPS, eval_every=5, save_every=2, warmup=10)
    for report in train(small_model(), small_corpus(), config, run=run):
        progress.value = report.step


def _start(folder: Path) -> tuple[Any, Any]:
    _PROCESSES.set_forkserver_preload(
        ["gpt2kit.training.loop", "gpt2kit.tokenizers", "torch._dynamo"]
    )  # optimizers import the last, for a second
    progress = _PROCESSES.Value("i", -1, lock=False)  # a lock could be held by who is killed
    process = _PROCESSES.Process(target=_train_in, args=(folder, progress))
    process.start()
    return process, progress


def _finish(folder: Path) -> None:
    process, _ = _start(folder)
    process.join(timeout=_SECONDS)
    assert process.exitcode == 0


def _kill_and_resume(tmp_path: Path, *, runs: int, kills: int) -> None:
    _finish(tmp_path / "whole")
    chance = random.Random(runs)
    for number in range(runs):
        folder = tmp_path / f"killed-{number}"
        for target in sorted(
            chance.randrange(1, _STEPS - 5) for _ in range(kills)
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
    _kill_and_resume(tmp_path, runs=1, kills=3)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_run_killed_at_fifty_random_instants_ends_with_the_same_weights(tmp_path: Path) -> None:
    _kill_and_resume(tmp_path, runs=10, kills=5)
