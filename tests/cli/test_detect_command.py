"""detect: figures without a verdict, a calibration, and verdicts by it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from builders import add_vocabulary, write_hub
from conftest import make_model
from typer.testing import CliRunner, Result

from gpt2kit.cli import app
from gpt2kit.config import GPT2Config
from gpt2kit.evaluation.detection import LIMITS

CONFIG = GPT2Config(n_vocab=512, n_ctx=64, n_embd=16, n_head=2, n_layer=1)
HUMAN = [f"The cat number {n} sat on the mat and saw {n * 7} dogs." for n in range(12)]
MACHINE = [f"zx {n} qv " * 4 for n in range(11)]


@pytest.fixture
def desk(weights: Path) -> Path:
    add_vocabulary(write_hub(weights / "tiny", make_model(CONFIG)))
    add_vocabulary(write_hub(weights / "other", make_model(CONFIG, seed=1)))
    for name, texts in (("human", HUMAN), ("machine", [*MACHINE, ""])):
        lines = (json.dumps({"text": text}) for text in texts)
        Path(f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return weights.parent


def run(*arguments: str, model: str = "tiny", code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["detect", *arguments, "--model", model, "--device", "cpu"])
    assert result.exit_code == code, result.output
    return result


def calibrated(*more: str) -> list[dict[str, Any]]:
    result = run(
        "--calibrate", "human.jsonl", "machine.jsonl", "--out", "calibration.json", "--json", *more
    )
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_without_a_calibration_there_are_figures_and_no_verdict(desk: Path) -> None:
    result = run("human.jsonl")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(rows) == 12
    assert rows[0]["text"] == HUMAN[0]
    assert "curvature" in rows[0]
    assert "verdict" not in rows[0]
    assert "No verdict: it needs --calibration." in result.stderr
    assert "curvature: measured without a token before the text" in result.stderr
    Path("lines.txt").write_text("The cat\nsat\n")
    table = list(csv.DictReader(io.StringIO(run("lines.txt", "--criteria", "tokens,lrr").stdout)))
    assert [row["text"] for row in table] == ["The cat", "sat"]


def test_a_calibration_shows_every_criterion_and_is_applied(desk: Path) -> None:
    shown = calibrated()
    assert {each["criterion"] for each in shown} >= {"perplexity", "entropy", "curvature", "top10"}
    assert "nll" not in {each["criterion"] for each in shown}  # it is of the length first
    for each in shown:
        assert 0 <= each["auroc"] <= 1
        assert each["threshold_interval"].count(None) == 1  # twelve texts bound one side
    kept = json.loads(Path("calibration.json").read_text())
    assert kept["human"]["texts"] == 12
    assert kept["machine"] == {**kept["machine"], "texts": 11, "left_out": 1}
    result = run("human.jsonl", "--calibration", "calibration.json", "--by", "rank")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert {row["verdict"] for row in rows} == {"not told apart"}
    assert max(row["human_share"] for row in rows) == 1.0
    assert LIMITS in " ".join(result.stderr.split())
    (threshold,) = (each["threshold"] for each in shown if each["criterion"] == "rank")
    machine = run("machine.jsonl", "--calibration", "calibration.json", "--by", "rank")
    for row in map(json.loads, machine.stdout.splitlines()):
        expected = None if row["rank"] is None else row["rank"] < threshold
        assert (row["verdict"] == "machine-like") is bool(expected) or row["verdict"] == "too short"


def test_a_calibration_as_a_table_says_what_few_texts_leave_open(desk: Path) -> None:
    result = run("--calibrate", "human.jsonl", "machine.jsonl", "--out", "calibration.json")
    header, *lines = result.stdout.splitlines()
    assert header.split() == ["criterion", "AUROC", "found", "at", "1%", "machine-like", "if"]
    assert len(lines) == 11
    assert "12 human texts are too few to measure 1% of them" in result.stderr


def test_the_same_seed_gives_the_same_calibration(desk: Path) -> None:
    one = ("--criteria", "entropy")
    first = calibrated(*one)
    kept = Path("calibration.json").read_bytes()
    assert calibrated(*one) == first
    assert Path("calibration.json").read_bytes() == kept
    assert calibrated(*one, "--seed", "1") != first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--first", "bos"], "first of the model is authors there, and bos here"),
        (["--stride", "8"], "stride of the model is 32 there, and 8 here"),
        (["--dtype", "bfloat16"], "dtype of the model is float32 there, and bfloat16 here"),
        (["--observer", "other"], "was made with no --observer"),
        (["--by", "binoculars"], "binoculars needs two models|has no binoculars"),
    ],
)
def test_other_options_than_those_of_the_calibration_are_refused(
    desk: Path, change: list[str], message: str
) -> None:
    calibrated("--criteria", "curvature")
    result = run("human.jsonl", "--calibration", "calibration.json", *change, code=1)
    assert any(each in result.stderr for each in message.split("|")), result.stderr
    assert result.stdout == ""


def test_another_model_than_that_of_the_calibration_is_refused(desk: Path) -> None:
    calibrated("--criteria", "curvature")
    result = run("human.jsonl", "--calibration", "calibration.json", model="other", code=1)
    assert "weights_sha256 of the model is" in result.stderr


def test_the_criterion_of_the_verdict_is_measured_even_if_others_are_asked_for(desk: Path) -> None:
    calibrated("--criteria", "curvature")
    arguments = ("--calibration", "calibration.json", "--criteria", "top10")
    result = run("human.jsonl", *arguments, "--out", "out.csv")
    with open("out.csv", newline="", encoding="utf-8") as file:
        columns = next(csv.reader(file))
    assert columns == ["text", "top10", "tokens", "curvature", "human_share", "verdict", "error"]
    receipt = json.loads(Path("out.csv.receipt.json").read_text())
    assert receipt["calibration"] == {"file": "calibration.json", "by": "curvature"}
    assert "out.csv" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a FILE of texts, or --calibrate HUMAN MACHINE"),
        (["human.jsonl", "--calibrate", "human.jsonl", "machine.jsonl", "--out", "c.json"],
         "takes its two files alone"),
        (["--calibrate", "human.jsonl", "machine.jsonl"], "--calibrate needs --out"),
        (["human.jsonl", "--json", "--out", "a.jsonl"], "--json is for standard output"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(
    desk: Path, arguments: list[str], message: str
) -> None:
    assert message in run(*arguments, code=2).stderr
