"""Damaged files of every format: what the whole file gives, or one of our errors, and soon."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from campaigns import file_cases, planted
from campaigns.file_cases import FileCases, FileTarget
from campaigns.hostile_files import CAMPAIGN

SCRIPT = Path(__file__).parents[2] / "scripts" / "campaign.py"
PLANTED = {target.name: target for target in planted.CAMPAIGN.targets}
FEW = 2  # cases of a target in the default run


@pytest.mark.parametrize("target", CAMPAIGN.targets, ids=lambda target: target.name)
def test_a_damaged_file_is_refused_or_read_right(tmp_path: Path, target: FileTarget) -> None:
    cases = FileCases(target, tmp_path / "case")
    found = {seed: cases.run(seed) for seed in range(FEW)}
    assert {seed: each.why for seed, each in found.items() if each.outcome == "failed"} == {}


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("rows.parquet: blind", 57),  # the name of a column was not UTF-8: UnicodeDecodeError
        ("adapter.json: json values", 139),  # the rank was true: TypeError
        ("adapter.json: absurd", 41),  # alpha had 4,000 digits: OverflowError
        ("ids .npy: blind", 1375),  # a header of 662 MB: NumPy reserved these
        ("nanoGPT: pickle program", 577),  # the name of a tensor was a number: KeyError
    ],
)
def test_a_case_that_once_failed_is_refused(tmp_path: Path, name: str, seed: int) -> None:
    (target,) = (target for target in CAMPAIGN.targets if target.name == name)
    assert FileCases(target, tmp_path / "case").run(seed).outcome == "refused"


def test_a_reader_that_takes_whole_files_only_fails_no_case(tmp_path: Path) -> None:
    cases = FileCases(PLANTED["sound"], tmp_path)
    assert {cases.run(seed).outcome for seed in range(50)} <= {"same", "refused"}


@pytest.mark.parametrize(
    ("name", "why"),
    [("crashing", "IndexError"), ("gullible", "not found"), ("endless", "longer than")],
)
def test_a_planted_fault_is_found(
    tmp_path: Path, name: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_cases, "SECONDS", 0.05)
    cases = FileCases(PLANTED[name], tmp_path)
    results = [cases.run(seed) for seed in range(30)]
    outcomes = Counter(result.outcome for result in results)
    assert outcomes["failed"]
    assert all(why in result.why for result in results if result.outcome == "failed")


def test_a_case_is_the_same_every_time_and_the_whole_file_is_put_back(tmp_path: Path) -> None:
    cases = FileCases(PLANTED["crashing"], tmp_path)
    first = [cases.describe(seed) for seed in range(20)]
    for seed in range(20):
        cases.run(seed)
        assert (tmp_path / "file").read_bytes() == planted.CONTENT
    assert [cases.describe(seed) for seed in range(20)] == first


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_slow_targets_have_a_twentieth_of_the_cases() -> None:
    done = {target.name: CAMPAIGN.cases_of(target, 1000) for target in CAMPAIGN.targets}
    assert (done["rows.csv.gz: bomb"], done["rows.csv.gz: blind"]) == (50, 1000)
    assert {CAMPAIGN.cases_of(target, 1) for target in CAMPAIGN.targets} == {1}


def test_memory_and_the_death_of_a_process_are_found_and_the_rest_is_done(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    command = [sys.executable, str(SCRIPT), "planted", "--only", "dying"]
    command += ["--cases", "3", "--results", str(results)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "MemoryError" in done.stdout
    assert "the process ended with -6" in done.stdout
    assert "| dying | 6 | " in done.stdout
    size = results.stat().st_size
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "| dying | 6 | " in again.stdout
    assert results.stat().st_size == size  # nothing was done twice
    command[command.index("3")] = "4"
    more = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "| dying | 8 | " in more.stdout  # nor was it with more cases: it counted 14


@pytest.mark.campaign
def test_a_million_damaged_files_fail_no_case(tmp_path: Path) -> None:
    results = Path(os.environ.get("GPT2KIT_CAMPAIGN", tmp_path / "campaign.jsonl"))
    command = [sys.executable, str(SCRIPT), "hostile_files", "--results", str(results)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
