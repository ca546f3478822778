"""gpt2kit evaluate --task blimp, pairs and syntaxgym: what is printed and written."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from builders import add_vocabulary
from conftest import GOLDEN
from typer.testing import CliRunner

from gpt2kit.checkpoints.load import load
from gpt2kit.cli import app
from gpt2kit.evaluation.pairs import read_blimp, score_pairs


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN / "hf/safetensors", tmp_path / "model")
    return add_vocabulary(tmp_path / "model")


@pytest.fixture
def blimp(tmp_path: Path) -> Path:
    """Two paradigms of one phenomenon, of two pairs and one, and a third of another."""
    folder = tmp_path / "blimp"
    folder.mkdir()
    pairs = {
        ("a1", "A"): [("the cat", "cat the"), ("so it is", "so is it")],
        ("a2", "A"): [("due donne", "donne due")],
        ("b1", "B"): [('a \u00e8, "b"', "b e, a"), ("end", "dne")],
    }
    for (paradigm, phenomenon), sentences in pairs.items():
        lines = [
            {
                "sentence_good": good,
                "sentence_bad": bad,
                "UID": paradigm,
                "linguistics_term": phenomenon,
                "pairID": str(number),
            }
            for number, (good, bad) in enumerate(sentences)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{paradigm}.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    def condition(name: str, verb: str) -> dict[str, Any]:
        regions = [
            {"region_number": 1, "content": "The cat"},
            {"region_number": 2, "content": verb},
        ]
        return {"condition_name": name, "regions": regions}

    value = {
        "meta": {"name": "verbs", "metric": "sum"},
        "predictions": [
            {"type": "formula", "formula": "(2;%one%) < (2;%two%)"},
            {"type": "formula", "formula": "(2;%one%) > (2;%two%)"},
        ],
        "items": [
            {"item_number": 4, "conditions": [condition("one", "sits"), condition("two", "sit")]}
        ],
    }
    path = tmp_path / "verbs.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)])


def objects(result: Any) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_accuracies_are_those_of_the_items_overall_and_by_group(model: Path, blimp: Path) -> None:
    found = score_pairs(*load(model), read_blimp(blimp))
    right = [bool(each.correct) for each in found]
    (shown,) = objects(run("evaluate", model, "--task", "blimp", blimp, "--json"))
    assert shown["as"] == "paper"
    assert (shown["items"], shown["accuracy"]) == (5, sum(right) / 5)
    p = sum(right) / 5
    assert shown["accuracy_standard_error"] == pytest.approx(math.sqrt(p * (1 - p) / 4))
    first, second = shown["groups"]
    assert (first["phenomenon"], first["items"], first["accuracy"]) == ("A", 3, sum(right[:3]) / 3)
    assert second["accuracy"] == sum(right[3:]) / 2
    assert [(each["paradigm"], each["accuracy"]) for each in first["groups"]] == [
        ("a1", sum(right[:2]) / 2),
        ("a2", float(right[2])),
    ]
    assert first["groups"][1]["accuracy_standard_error"] is None


def test_the_table_has_a_line_for_each_group_and_a_column_for_each_model(
    model: Path, blimp: Path, tmp_path: Path
) -> None:
    shutil.copytree(model, tmp_path / "other")
    result = run("evaluate", model, tmp_path / "other", "--task", "blimp", blimp)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["model", "other"]
    names = [line.split()[0] for line in lines[1:]]
    assert names == ["items", "as", "accuracy", "A", "a1", "a2", "B", "b1"]
    assert lines[5].startswith("  a1")
    assert len(lines[5].split()) == 7  # the name, and twice an accuracy, ± and its error


def test_pairs_that_cannot_be_scored_are_counted_and_listed(model: Path, tmp_path: Path) -> None:
    # The first one ended the command.
    pairs, out = tmp_path / "p.csv", tmp_path / "items.csv"
    lines = ["paradigm,good,bad", "a,the cat,cat the", "a,the dog,", f"b,the dog,{'dog ' * 99}"]
    pairs.write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = ("evaluate", model, "--task", "pairs", pairs)
    shown = run(*command, "--out", out)
    assert shown.exit_code == 0
    assert "2 pairs left out; the first: " in shown.stderr
    assert f"{pairs}: row 2: expected a sentence under 'bad', found ''" in shown.stderr
    table = [line.split() for line in shown.stdout.splitlines()]
    assert table[1:4] == [["items", "1"], ["as", "paper"], ["left", "out", "2"]]
    assert table[-1] == ["b", "-"]
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["correct"] == "" for row in rows] == [False, True, True]
    assert "the model reads at most" in rows[2]["error"]
    (figures,) = objects(run(*command, "--json"))
    assert (figures["items"], figures["errors"]) == (1, 2)
    assert figures["groups"][1]["accuracy"] is None
    pairs.write_text("\n".join(lines[:1] + lines[2:3]), encoding="utf-8")
    nothing = run(*command)
    assert nothing.exit_code == 1
    assert "row 1: expected a sentence under 'bad'" in nothing.stderr


def test_the_two_protocols_differ_by_a_space(model: Path, blimp: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "spaced.csv"
    pairs.write_text("good,bad\n the cat, cat the\n", encoding="utf-8")
    plain = tmp_path / "plain.csv"
    plain.write_text("good,bad\nthe cat,cat the\n", encoding="utf-8")
    values = []
    for file, protocol in ((pairs, "paper"), (plain, "harness"), (plain, "paper")):
        out = tmp_path / "items.jsonl"
        task = ("--task", "pairs", file, "--as", protocol, "--out", out)
        (shown,) = objects(run("evaluate", model, *task, "--json"))
        assert shown["as"] == protocol
        (row,) = map(json.loads, out.read_text(encoding="utf-8").splitlines())
        values.append((row["logprob_good"], row["tokens_good"]))
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_the_table_of_items_has_a_row_for_each_item_and_model(
    suffix: str, delimiter: str, model: Path, blimp: Path, tmp_path: Path
) -> None:
    out = tmp_path / f"items.{suffix}"
    result = run("evaluate", model, model, "--task", "blimp", blimp, "--out", out)
    assert "wrote 10 rows to " in result.stderr
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter=delimiter))
    found = score_pairs(*load(model), read_blimp(blimp))
    for row, each in zip(rows, [*found, *found], strict=True):
        assert row["model"] == str(model)
        assert (row["good"], row["bad"]) == (each.pair.good, each.pair.bad)
        assert float(row["logprob_good"]) == pytest.approx(each.logprob_good, rel=1e-8)
        assert int(row["tokens_bad"]) == each.tokens_bad
        assert row["correct"] == ("true" if each.correct else "false")


def test_a_suite_with_two_predictions_shows_both(model: Path, suite: Path, tmp_path: Path) -> None:
    out = tmp_path / "items.csv"
    result = run("evaluate", model, "--task", "syntaxgym", suite, "--out", out)
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[1:4] == [
        ["items", "2"],
        ["accuracy", "0.5000", "\u00b1", "0.5000"],
        ["mean", "of", "suites", "0.5000"],
    ]
    assert [line[0] for line in lines[4:]] == ["verbs", "prediction", "prediction"]
    with out.open(encoding="utf-8", newline="") as file:
        first, second = csv.DictReader(file)
    assert {first["correct"], second["correct"]} == {"true", "false"}
    assert (first["suite"], first["prediction"], first["item"]) == ("verbs", "1", "4")
    bits = json.loads(first["surprisals"])
    assert (bits["one"]["2"] < bits["two"]["2"]) == (first["correct"] == "true")
    (shown,) = objects(run("evaluate", model, "--task", "syntaxgym", suite, "--json"))
    assert shown["mean_of_suites"] == 0.5
    assert shown["groups"][0]["suite"] == "verbs"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "blimp", "x", "--out", "x.txt"], "expected a name in .csv, .tsv, .jsonl"),
        (["--task", "syntaxgym", "x", "--as", "paper"], "--as has no effect here"),
        (["--corpus", "x", "--as", "paper"], "--as has no effect here"),
        (["--task", "lambada", "x", "--out", "x.csv"], "--out has no effect here"),
        (["--task", "blimp", "x", "--stride", "3"], "--stride has no effect here"),
        (["--task", "blimp", "x", "--as", "me"], "is not one of"),
    ],
)
def test_what_has_no_effect_is_a_mistake_of_usage(
    arguments: list[str], message: str, model: Path
) -> None:
    result = run("evaluate", model, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_a_wrong_file_is_found_before_a_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("yes,no\na,b\n", encoding="utf-8")
    result = run("evaluate", tmp_path / "none", "--task", "pairs", tmp_path / "p.csv")
    assert result.exit_code == 1
    assert "no column 'good'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_int8_weights_are_read_as_they_generate(model: Path, blimp: Path) -> None:
    found = []
    for option in ([], ["--quantize", "int8"]):
        out = blimp / "items.json.jsonl"
        run("evaluate", model, "--task", "blimp", blimp / "a1.jsonl", "--out", out, *option)
        rows = map(json.loads, out.read_text(encoding="utf-8").splitlines())
        found.append([row["logprob_good"] for row in rows])
    assert found[0] != found[1]
    assert found[0] == pytest.approx(found[1], rel=0.02)
