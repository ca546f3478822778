"""Commands over many files under torchrun, on Ray, and on a disk that is full (slow)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from builders import add_vocabulary, write_hub
from bulk_builders import write_texts
from conftest import make_model

from gpt2kit.bulk import plan as plans
from gpt2kit.bulk.folder import Folder
from gpt2kit.bulk.merge import merge
from gpt2kit.config import GPT2Config

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def desk(weights: Path) -> Path:
    model = make_model(GPT2Config(n_vocab=512, n_ctx=32, n_embd=16, n_head=2, n_layer=2))
    add_vocabulary(write_hub(weights / "tiny", model))
    write_texts(weights.parent / "texts.jsonl", 3000)
    return weights.parent


def score(out: Path, *more: str) -> list[str]:
    """Return the words of a command that scores the texts."""
    return [
        *("-m", "gpt2kit", "score", "texts.jsonl", "--model", "tiny", "--out", str(out)),
        *("--part_rows", "50", *more),
    ]


def start(*words: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    return subprocess.Popen([sys.executable, *words], env=environment)


def merged(out: Path) -> bytes:
    merge(Folder(out), plans.read(out / "plan.json"), out / "all.jsonl")
    return (out / "all.jsonl").read_bytes()


def wait_for_parts(out: Path, n: int) -> None:
    deadline = time.monotonic() + 120
    while len(list((out / "parts").glob("*.jsonl"))) < n and time.monotonic() < deadline:
        time.sleep(0.05)


@pytest.fixture
def alone(desk: Path) -> bytes:
    """What one process makes of the texts."""
    assert start(*score(desk / "alone")).wait(240) == 0
    return merged(desk / "alone")


def test_two_torchruns_work_on_one_folder_at_once(desk: Path, alone: bytes) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    running = [start(*torchrun, *score(desk / "both")) for _ in range(2)]
    assert [process.wait(240) for process in running] == [0, 0]
    assert merged(desk / "both") == alone
    assert not list((desk / "both" / "claims").iterdir())


def test_an_actor_of_a_ray_cluster_may_be_killed(desk: Path, alone: bytes) -> None:
    pytest.importorskip("ray")
    running = start(*score(desk / "ray", "--ray", "--workers", "2"))
    folder = Folder(desk / "ray")
    wait_for_parts(folder.path, 3)
    plan = plans.read(folder.path / "plan.json")
    victim = next(receipt["pid"] for receipt in folder.receipts(plan))
    os.kill(victim, signal.SIGKILL)
    assert running.wait(240) == 0
    assert len({receipt["pid"] for receipt in folder.receipts(plan)}) >= 2
    assert merged(folder.path) == alone


def test_processes_of_one_command_may_be_killed(desk: Path, alone: bytes) -> None:
    running = start(*score(desk / "workers", "--workers", "3"))
    folder = Folder(desk / "workers")
    wait_for_parts(folder.path, 3)
    plan = plans.read(folder.path / "plan.json")
    os.kill(next(receipt["pid"] for receipt in folder.receipts(plan)), signal.SIGKILL)
    assert running.wait(240) == 0
    assert merged(folder.path) == alone


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_processes_and_leaves_nothing(
    desk: Path, alone: bytes, number: signal.Signals
) -> None:
    running = start(*score(desk / "out", "--workers", "2"))
    folder = Folder(desk / "out")
    wait_for_parts(folder.path, 2)
    running.send_signal(number)
    assert running.wait(60) == 128 + number
    assert not list((folder.path / "claims").iterdir())
    assert not list((folder.path / "parts").glob(".*"))
    assert start(*score(desk / "out")).wait(240) == 0
    assert merged(folder.path) == alone


def test_a_command_goes_on_after_the_disk_was_full(desk: Path, alone: bytes) -> None:
    small = desk / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)]
    with contextlib.suppress(OSError):
        if subprocess.run(mount, capture_output=True).returncode == 0:
            try:
                assert start(*score(small / "out")).wait(240) == 1
                assert not list((small / "out" / "claims").iterdir())
                assert not list((small / "out" / "parts").glob(".*"))
                subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
                assert start(*score(small / "out")).wait(240) == 0
                assert merged(small / "out") == alone
            finally:
                subprocess.run(["umount", str(small)], check=True)
            return
    pytest.skip("this user may not mount a small disk")
