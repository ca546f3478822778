"""ablate, as a user types it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from builders import add_vocabulary, write_hub
from conftest import make_model
from typer.testing import CliRunner, Result

from gpt2kit.checkpoints.load import load
from gpt2kit.cli import app
from gpt2kit.config import GPT2Config
from gpt2kit.inspection import Ablation, Part, of_windows

TEXT = "The dog ate the cat. The cat sat on the dog, and the dog sat on the cat.\n"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["ablate", *arguments])


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    config = GPT2Config(n_vocab=512, n_ctx=24, n_embd=16, n_head=2, n_layer=2)
    add_vocabulary(write_hub(tmp_path / "model", make_model(config)))
    Path("text.txt").write_text(TEXT * 3)
    Path("lambada.jsonl").write_text(json.dumps({"text": "The dog ate the cat"}) + "\n")
    Path("pairs.csv").write_text("good,bad\nThe cats sleep.,The cats sleeps.\nA dog,A dogs\n")
    return tmp_path


def test_the_change_of_the_loss_is_that_of_the_library(desk: Path) -> None:
    result = run("model", "--heads", "1.1,0.0", "--over", "text.txt", "--with", "zero", "--json")
    (found,) = map(json.loads, result.stdout.splitlines())
    model, tokenizer = load("model", device="cpu")
    assert tokenizer is not None
    texts = of_windows(tokenizer.encode(TEXT * 3), 24)
    wanted = Ablation(model, [Part("head", 1, 1), Part("head", 0, 0)], "zero").effect(texts)
    assert found["parts"] == "1.1, 0.0"
    assert found["measure"] == "loss"
    assert found["change"] == pytest.approx(wanted.change)
    assert found["standard_error"] == pytest.approx(wanted.standard_error)


def test_every_head_by_itself_is_a_row_and_a_cell(desk: Path) -> None:
    arguments = ["--over", "text.txt", "--each", "--out", "a.csv", "--picture", "a.svg"]
    result = run("model", "--heads", "all", *arguments)
    shown = [line.split() for line in result.stdout.splitlines()[1:]]
    rows = list(csv.DictReader(Path("a.csv").read_text().splitlines()))
    assert [row["parts"] for row in rows] == ["0.0", "0.1", "1.0", "1.1"]
    ordered = sorted(rows, key=lambda row: -abs(float(row["change"])))
    assert [line[0] for line in shown] == [row["parts"] for row in ordered]
    assert Path("a.svg").stat().st_size > 5000
    assert {row["with"] for row in rows} == {"mean"}


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["--task", "pairs", "pairs.csv"], "accuracy"),
        (["--task", "lambada", "lambada.jsonl"], "accuracy"),
        (["--over", "random"], "loss"),
        (["--prompt", "The dog", "--answer", "e", "--wrong", "a"], "logit difference"),
    ],
)
def test_tasks_random_tokens_and_logits_are_measured_too(
    more: list[str], what: str, desk: Path
) -> None:
    parts = ["--heads", "0.*", "--mlps", "all", "--neurons", "1.3", "--with", "zero"]
    result = run("model", *parts, *more, "--json")
    (found,) = map(json.loads, result.stdout.splitlines())
    assert found["measure"] == what
    assert found["parts"] == "0.0, 0.1, MLP 0, MLP 1, neuron 1.3"
    assert what == "accuracy" or found["before"] != found["after"]


def test_the_reference_and_the_seed_change_what_takes_the_place(desk: Path) -> None:
    Path("other.txt").write_text("Cats and dogs and cats and dogs.\n")

    def after(*more: str) -> float:
        result = run("model", "--heads", "all", "--over", "text.txt", "--json", *more)
        value: float = json.loads(result.stdout)["after"]
        return value

    assert after() != after("--reference", "other.txt")
    assert after("--with", "resample") != after("--with", "resample", "--seed", "1")
    assert after("--block_size", "8") != after()


_AFTER_NOTHING = ("--prompt", "", "--answer", "e", "--wrong", "a")  # was a ZeroDivisionError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no parts are named"),
        (["--heads", "x", "--over", "text.txt"], "--heads: found 'x'"),
        (["--heads", "9.0", "--over", "text.txt"], "there is no head 9.0"),
        (["--heads", "0.0"], "give one of --over FILE"),
        (["--heads", "0.0", "--prompt", "a"], "go together"),
        (["--heads", "0.0", *_AFTER_NOTHING], "the prompt is empty"),
        (["--heads", "0.0", "--task", "other", "x"], "--task is 'other', expected one of"),
        (["--mlps", "x", "--over", "text.txt"], "--mlps: found 'x'"),
        (["--neurons", "0.*", "--over", "text.txt"], "single neurons"),
        (["--heads", "0.0", "--over", "text.txt", "--picture", "a.png"], "needs --heads all"),
        (["--heads", "0.0", "--over", "text.txt", "--block_size", "99"], "reads 24 tokens"),
    ],
)
def test_wrong_options_are_one_line(arguments: list[str], message: str, desk: Path) -> None:
    result = run("model", *arguments)
    assert result.exit_code
    assert message in " ".join(result.stderr.split())
