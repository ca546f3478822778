"""What a run records: each step once, whatever happened to the files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from training_builders import go, small_settings

from gpt2kit.training.records import METRICS, SAMPLES, append, read_metrics
from gpt2kit.training.run import Run

DAMAGED = {
    "cut short": b'{"step": 13, "tra',
    "no object": b"[1, 2]\nnull\n7\n",
    "a step that is no number": b'{"step": "x"}\n{"step": null}\n{"step": true}\n{}\n',
    "a loss that is no number": b'{"step": 3, "val_loss": "low"}\n',
    "norms that are no numbers": b'{"step": 3, "gradient_norms": {"wte": "low"}}\n',
    "norms that are no object": b'{"step": 3, "gradient_norms": [1.0]}\n',
    "lone surrogates": b'{"step": 3, "text": "\\ud800"}\n',
    "no UTF-8": b"\xff\xfe\n",
    "deep nesting": b"[" * 100_000 + b"\n",
    "a very long number": b'{"step": ' + b"9" * 10_000 + b"}\n",
    "zeros": b"\x00" * 4096,
}


def test_metrics_are_the_reports(tmp_path: Path) -> None:
    _, reports = go(tmp_path)
    lines = read_metrics(tmp_path)
    assert lines == read_metrics(tmp_path / METRICS)
    assert [line.get("train_loss") for line in lines] == [report.train_loss for report in reports]
    assert "val_loss" in lines[4]
    assert "val_loss" not in lines[5]


def test_a_figure_of_an_earlier_version_has_its_new_name(tmp_path: Path) -> None:
    append(tmp_path / METRICS, {"step": 2, "tokens": 64, "train_loss": 3.5})
    assert read_metrics(tmp_path) == [{"step": 2, "tokens_seen": 64, "train_loss": 3.5}]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended after 7 of its 12 steps; tests change copies of it."""
    folder = tmp_path_factory.mktemp("run")
    go(folder, steps=7)
    return folder


@pytest.mark.parametrize("file", [METRICS, SAMPLES])
@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_records_never_keep_a_run_from_being_resumed(
    tmp_path: Path, interrupted: Path, file: str, damage: str
) -> None:
    # Each of these was a traceback, although the saved state was whole.
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    record = (tmp_path / file).read_bytes() if (tmp_path / file).exists() else b""
    first, end, rest = record.partition(b"\n")
    (tmp_path / file).write_bytes(first + end + DAMAGED[damage] + b"\n" + rest)
    _, reports = go(tmp_path, resume=True)
    assert [report.step for report in reports] == list(range(8, 13))
    if file == METRICS:
        steps = [line["step"] for line in read_metrics(tmp_path)]
        assert [step for step in steps if step != 3] == [0, 1, 2, *range(4, 13)]


def test_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    go(tmp_path)
    lines = read_metrics(tmp_path)
    with (tmp_path / METRICS).open("ab") as file:
        file.write(DAMAGED["cut short"])
    assert read_metrics(tmp_path) == lines


def test_any_text_is_one_line_and_comes_back(tmp_path: Path) -> None:
    # Lines were also split at characters that only Unicode takes for line ends.
    records = [{"step": 1, "text": "a\u2028b\x85c\ud800 è\n"}, {"step": 2, "text": ""}]
    for record in records:
        append(tmp_path / "x", record)
    assert read_metrics(tmp_path / "x") == records


def test_samples_of_steps_that_are_done_again_are_removed(tmp_path: Path) -> None:
    go(tmp_path, steps=6)
    run = Run(tmp_path, small_settings(), resume=True)
    for step in (3, 6, 9):
        run.record_sample({"step": step, "text": "…"})
    run.close()
    go(tmp_path, resume=True)
    lines = (tmp_path / SAMPLES).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 6]
