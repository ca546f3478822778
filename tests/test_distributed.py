"""Several processes train as one: the same losses and weights at the same batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import spawn
from training_builders import VERSES, small_config, small_corpus, small_model, weights

from gpt2kit.checkpoints.training import Run, read_metrics
from gpt2kit.distributed import Ranks, join, leave
from gpt2kit.train import StepReport, train

ROOT = Path(__file__).parents[1]
NO_DROPOUT = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
SMALL = "--n_layer=1 --n_head=2 --n_embd=16 --block_size=16 --batch_size=4 --max_steps=6 --warmup=1 --eval_every=3 --dropout=0"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def go(rank: int, world_size: int, port: int, folder: Path, settings: dict[str, Any], resume: bool = False) -> None:
    """Train as one of several processes; the main one leaves its weights."""
    if world_size > 1:
        torch.set_num_threads(1)
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    ranks = join()
    model = small_model(**NO_DROPOUT)
    run = Run(folder, {}, resume=resume, ranks=ranks)
    stop_after = settings.pop("stop_after", None)
    reports: list[StepReport] = []
    for report in train(model, small_corpus(), small_config(**settings), run=run, ranks=ranks, stop=lambda: len(reports) == stop_after):
        reports.append(report)
    if ranks.is_main:
        torch.save(weights(model), folder.parent / f"{folder.name}.pt")
    run.close()
    leave()


def together(world_size: int, folder: Path, resume: bool = False, **settings: Any) -> dict[str, torch.Tensor]:
    if world_size == 1:
        go(0, 1, 0, folder, settings, resume)
    else:
        spawn(go, args=(world_size, free_port(), folder, settings, resume), nprocs=world_size)  # type: ignore[no-untyped-call]
    found: dict[str, torch.Tensor] = torch.load(folder.parent / f"{folder.name}.pt", weights_only=True)
    return found


def losses(folder: Path) -> list[float]:
    return [line["train_loss"] for line in read_metrics(folder) if "train_loss" in line]


def test_one_process_is_alone() -> None:
    assert Ranks() == join()
    assert Ranks().is_main
    assert Ranks().mean(2.5) == 2.5
    assert Ranks().any(True)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    one, two = together(1, tmp_path / "one"), together(2, tmp_path / "two", accumulate=2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
    for name, parameter in one.items():
        torch.testing.assert_close(two[name], parameter, atol=2e-3, rtol=1e-2)


@pytest.mark.slow
def test_a_run_of_two_processes_is_gone_on_with_by_one(tmp_path: Path) -> None:
    together(1, tmp_path / "whole")
    together(2, tmp_path / "cut", stop_after=5)
    together(1, tmp_path / "cut", resume=True)
    assert len(losses(tmp_path / "cut")) == 12
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), abs=1e-4)


@pytest.mark.slow
def test_torchrun_prints_and_writes_once(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text(VERSES * 3, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    arguments = ["-m", "gpt2kit", "train", str(book), *SMALL.split(), "--out", str(tmp_path / "run"), "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command + arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 8  # step 0 to 6, and the summary
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == list(range(7))
