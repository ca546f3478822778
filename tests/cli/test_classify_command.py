"""classify: what it writes, and from a table to a classifier in two commands."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import make_model
from typer.testing import CliRunner

from gpt2kit.checkpoints.classifiers import LabelWords
from gpt2kit.checkpoints.load import write_model
from gpt2kit.cli import app
from gpt2kit.config import GPT2Config
from gpt2kit.tokenizers import BPETokenizer

TABLE = "text,label,n\nwho,no,1\nwhat,yes,2\n"


@pytest.fixture
def desk(weights: Path, small_bpe: BPETokenizer) -> Path:
    """Make the models 124M and words, whose labels are no and yes, and the table texts.csv."""
    config = GPT2Config(n_vocab=512, n_ctx=32, n_embd=16, n_head=2, n_layer=1)
    for name in ("124M", "words"):
        (weights / name).mkdir()
        write_model(weights / name, make_model(config), small_bpe)
    LabelWords(("no", "yes"), "\n").write(weights / "words")
    Path("texts.csv").write_text(TABLE)
    return weights.parent


def run(*arguments: str, code: int = 0, **how: Any) -> Any:
    result = CliRunner().invoke(app, list(arguments), **how)
    assert result.exit_code == code, result.output
    return result


def test_every_row_gets_a_label_and_the_probability_of_each(desk: Path) -> None:
    rows = [*csv.DictReader(io.StringIO(run("classify", "words", "texts.csv").stdout))]
    assert [list(row) for row in rows] == [
        ["text", "label", "n", "predicted", "p_no", "p_yes", "error"]
    ] * 2
    for row, text in zip(rows, ("who", "what"), strict=True):
        no, yes = float(row["p_no"]), float(row["p_yes"])
        assert no + yes == pytest.approx(1)
        assert row["text"] == text
        assert row["predicted"] == ("no" if no >= yes else "yes")


def test_a_file_standard_input_and_json_have_the_same_figures(desk: Path) -> None:
    run("classify", "words", "texts.csv", "--out", "out.jsonl", "--batch_size", "1")
    given = run("classify", "words", "-", "--format", "csv", "--json", input=TABLE).stdout
    written = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    shown = [json.loads(line) for line in given.splitlines()]
    for one, other in zip(written, shown, strict=True):
        assert one == other | {"p_no": pytest.approx(other["p_no"]), "p_yes": one["p_yes"]}


def test_the_right_labels_are_compared_with(desk: Path) -> None:
    result = run("classify", "words", "texts.csv", "--label", "label")
    assert "of 2 texts; always 'no' would be right for 50.0%" in result.stderr
    assert "right \\ given  no  yes" in result.stderr
    assert "accuracy" not in run("classify", "words", "texts.csv").stderr


def test_a_row_that_cannot_be_read_has_an_error_and_stops_no_other(desk: Path) -> None:
    Path("a.jsonl").write_text('{"text": "who"}\n{"text": [1]}\n{"text": "what"}\n')
    lines = run("classify", "words", "a.jsonl", "--json").stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["predicted"] is None for row in rows] == [False, True, False]
    assert rows[1]["error"] == "[1] is no text"


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["124M", "texts.csv"], 1, "a model without labels; make one with"),
        (["words", "texts.csv", "--text", "a"], 1, "no column 'a'"),
        (["words", "texts.csv", "--out", "a.txt"], 2, "expected a name in"),
        (["words", "texts.csv", "--out", "a.csv", "--json"], 2, "both given"),
        (["words", "-"], 1, "add --format"),
    ],
)
def test_what_does_not_fit_is_refused(
    desk: Path, arguments: list[str], code: int, problem: str
) -> None:
    assert problem in " ".join(run("classify", *arguments, code=code).stderr.split())


def test_a_table_becomes_a_classifier_with_a_report(desk: Path) -> None:
    rows = "".join(f"word {n},{'even' if n % 2 == 0 else 'odd'}\n" for n in range(30))
    Path("numbers.csv").write_text("text,label\n" + rows)
    options = ["--max_steps", "4", "--val_fraction", "0.3", "--label_field", "label"]
    for how in (["--label_head"], ["--lora_rank", "2"]):
        result = run("finetune", "numbers.csv", *options, *how, "--out", "run", "--force")
        assert "examples  30 examples with labels: even 50%, odd 50%" in result.stderr
        assert "split     22 examples to train with, 8 to validate with" in result.stderr
        assert "of 8 texts; always '" in result.stderr
        assert "now try: gpt2kit classify run TEXTS.csv" in result.stderr
        report = json.loads(Path("run/report.json").read_text())
        assert sum(sum(row.values()) for row in report["labels"]["confusion"].values()) == 8
        run("classify", "./run", "numbers.csv")
    run("merge", "run", "--out", "merged")
    shown = [run("classify", name, "numbers.csv", "--json").stdout for name in ("merged", "./run")]
    merged, adapted = ([json.loads(line) for line in each.splitlines()] for each in shown)
    assert [row["p_odd"] for row in merged] == pytest.approx([row["p_odd"] for row in adapted])


def test_a_label_that_no_held_out_text_has_is_named(desk: Path) -> None:
    # Its accuracy was measured without a word about it.
    Path("few.csv").write_text("text,label\na,yes\nb,no\nc,no\nd,no\n")
    shown = run("plan", "few.csv", "--label_field", "label").stderr
    assert "split     3 examples to train with, 1 to validate with" in shown
    assert "1 label without an example to validate with: 'yes'" in shown


def test_a_plan_counts_the_head_for_labels(desk: Path) -> None:
    # More parameters were trained than the model was said to have.
    Path("few.csv").write_text("text,label\na,yes\nb,no\nc,no\nd,no\n")
    how = ["few.csv", "--label_field", "label", "--label_head", "--json"]
    found = json.loads(run("plan", *how).stdout)
    assert found["parameters"] == found["parameters_trained"]


def test_a_plan_says_what_becomes_of_examples(desk: Path) -> None:
    rows = [("a", "yes"), ("b", ""), ("c " * 40, "no"), ("d", "no " * 40)]
    lines = [json.dumps({"prompt": prompt, "completion": answer}) for prompt, answer in rows]
    Path("pairs.jsonl").write_text("\n".join(lines))
    shown = run("plan", "pairs.jsonl").stderr
    assert "examples  3 examples, of which" in shown
    assert "1 row without a completion or label left out" in shown
    assert "1 example left out: a completion of more than 32 tokens" in shown
    assert "1 example of more than 32 tokens without the beginning of the prompt" in shown
    assert "rows of 32 tokens" in shown
    figures = json.loads(run("plan", "pairs.jsonl", "--json").stdout)["corpus"]["examples"]
    assert (figures["train"], figures["val"], figures["left_out"]) == (2, 1, 1)


def test_samples_answer_a_held_out_prompt(desk: Path) -> None:
    lines = [json.dumps({"prompt": f"n {n}", "completion": str(n)}) for n in range(12)]
    Path("pairs.jsonl").write_text("\n".join(lines))
    options = ["--max_steps", "2", "--sample_every", "1", "--sample_tokens", "5", "--out", "run"]
    result = run("finetune", "pairs.jsonl", *options)
    sample = json.loads(Path("run/samples.jsonl").read_text().splitlines()[0])
    assert sample["text"].startswith("n ")
    assert "\n\n" in sample["text"]
    assert "now try: gpt2kit generate $'n " in result.stderr


def test_corpus_is_about_texts(desk: Path) -> None:
    Path("pairs.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}))
    problem = run("corpus", "pairs.jsonl", "--model", "124M", code=1).stderr
    assert "is a table of examples, not a text; gpt2kit plan shows them" in problem
