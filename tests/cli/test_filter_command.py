"""filter: columns are added and rows chosen, in every format, whole or not at all."""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from builders import add_vocabulary, write_hub
from conftest import make_model
from typer.testing import CliRunner, Result

from gpt2kit.cli import app
from gpt2kit.config import GPT2Config
from gpt2kit.evaluation.criteria import measure
from gpt2kit.evaluation.criteria_options import CriteriaOptions
from gpt2kit.tokenizers import BPETokenizer

CONFIG = GPT2Config(n_vocab=512, n_ctx=32, n_embd=16, n_head=2, n_layer=2)
TEXTS = ["The cat sat.", 'Öl, "and"\nmore of it', "a", "The the the the the", "One two three"]


@pytest.fixture
def desk(weights: Path) -> Path:
    add_vocabulary(write_hub(weights / "tiny", make_model(CONFIG)))
    add_vocabulary(write_hub(weights / "other", make_model(CONFIG, seed=1)))
    rows = [{"id": number, "text": text} for number, text in enumerate(TEXTS)]
    write_lines("texts.jsonl", map(json.dumps, rows))
    return weights.parent


def write_lines(name: str, lines: Any) -> None:
    Path(name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def run(*arguments: str, model: str = "tiny", code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["filter", *arguments, "--model", model, "--device", "cpu"])
    assert result.exit_code == code, result.output
    return result


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


def expected(bpe: BPETokenizer, texts: Sequence[str]) -> list[dict[str, Any]]:
    options = CriteriaOptions(criteria="nll,tokens,perplexity,bits_per_byte")
    return list(measure(make_model(CONFIG), bpe, texts, options))


def test_rows_stay_as_they_are_and_get_the_figures(desk: Path, small_bpe: BPETokenizer) -> None:
    result = run("texts.jsonl", "--out", "out.jsonl")
    found = read("out.jsonl")
    assert [(row["id"], row["text"]) for row in found] == list(enumerate(TEXTS))
    for row, figures in zip(found, expected(small_bpe, TEXTS), strict=True):
        assert list(row) == ["id", "text", *figures]
        assert row["error"] is figures.pop("error") is None
        assert {name: row[name] for name in figures} == pytest.approx(figures, rel=1e-5)
    assert result.stdout == ""
    assert "out.jsonl: 5 of 5 rows" in result.stderr
    assert "nll, perplexity, bits_per_byte: measured after <|endoftext|>" in result.stderr


def test_the_formats_have_the_same_rows(desk: Path) -> None:
    run("texts.jsonl", "--out", "out.csv")
    run("out.csv", "--out", "again.jsonl", "--criteria", "curvature")
    with open("out.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == TEXTS
    assert [row["text"] for row in read("again.jsonl")] == TEXTS
    run("texts.jsonl", "--out", "out.jsonl.gz")
    with gzip.open("out.jsonl.gz", "rt", encoding="utf-8") as packed:
        assert [json.loads(line)["text"] for line in packed] == TEXTS
    write_lines("lines.txt", ["The cat", "", "sat on"])
    run("lines.txt", "--out", "lines.jsonl")
    assert [row["text"] for row in read("lines.jsonl")] == ["The cat", "sat on"]


def test_parquet_in_and_out(desk: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    run("texts.jsonl", "--out", "out.parquet", "--keep", "tokens > 1")
    table = parquet.read_table("out.parquet")
    assert table["text"].to_pylist() == [text for text in TEXTS if text != "a"]
    assert str(table.schema.field("perplexity").type) == "double"
    assert str(table.schema.field("error").type) == "string"
    run("out.parquet", "--out", "again.jsonl", "--criteria", "entropy")
    assert len(read("again.jsonl")) == 4


def test_keep_writes_the_rows_that_fulfill_it(desk: Path, small_bpe: BPETokenizer) -> None:
    figures = expected(small_bpe, TEXTS)
    limit = sorted(each["perplexity"] for each in figures)[2]
    run("texts.jsonl", "--out", "out.jsonl", "--keep", f"perplexity < {limit} and id != 4")
    kept = [n for n, each in enumerate(figures) if each["perplexity"] < limit and n != 4]
    assert 0 < len(kept) < 4
    assert [row["id"] for row in read("out.jsonl")] == kept
    refused = run("texts.jsonl", "--out", "no.jsonl", "--keep", "perplexty < 5", code=1)
    assert "--keep names 'perplexty'; the columns are id, text, nll" in refused.stderr
    assert not Path("no.jsonl").exists()


def test_percentiles_divide_the_texts_into_three(desk: Path, small_bpe: BPETokenizer) -> None:
    run("texts.jsonl", "--out", "out.jsonl", "--percentiles", "40,80")
    order = sorted(range(5), key=lambda n: expected(small_bpe, TEXTS)[n]["perplexity"])
    names = dict(zip(order, ["head", "head", "middle", "middle", "tail"], strict=True))
    assert {row["id"]: row["bucket"] for row in read("out.jsonl")} == names
    run("texts.jsonl", "--out", "m.jsonl", "--percentiles", "40,80", "--keep", "bucket == middle")
    assert {row["id"] for row in read("m.jsonl")} == set(order[2:4])
    receipt = json.loads(Path("m.jsonl.receipt.json").read_text())
    assert list(receipt["percentiles"]) == ["40", "80"]
    assert receipt["kept"] == 2
    assert (
        "reads the input twice" in run("-", "--out", "o.csv", "--percentiles", "3,6", code=2).stderr
    )
    assert (
        "add it to --criteria"
        in run(
            "texts.jsonl", "--out", "o.csv", "--percentiles", "3,6", "--criteria", "nll", code=2
        ).stderr
    )


def test_bad_rows_have_an_error_and_stop_no_other(desk: Path) -> None:
    write_lines("bad.jsonl", ['{"text": "The cat"}', "no json", '{"text": [1]}', '{"text": ""}',
                              '{"text": "sat", "extra": 1}'])  # fmt: skip
    result = run("bad.jsonl", "--out", "out.jsonl")
    found = read("out.jsonl")
    assert [row["error"] is None for row in found] == [True, False, False, False, True]
    assert [row["perplexity"] is None for row in found] == [False, True, True, True, False]
    assert "line 2 is not valid JSON" in found[1]["error"]
    assert found[2]["error"] == "[1] is no text"
    assert "5 of 5 rows, 3 with an error" in result.stderr


def test_company_and_batches_change_nothing(desk: Path) -> None:
    run("texts.jsonl", "--out", "one.jsonl", "--batch_size", "1")
    run("texts.jsonl", "--out", "many.jsonl", "--batch_size", "64")
    for one, other in zip(read("one.jsonl"), read("many.jsonl"), strict=True):
        assert one["nll"] == pytest.approx(other["nll"], rel=1e-5)


def test_an_observer_adds_the_criteria_of_two_models(desk: Path) -> None:
    run("texts.jsonl", "--out", "two.jsonl", "--observer", "other", "--criteria", "all")
    assert all(row["binoculars"] for row in read("two.jsonl") if row["id"] != 2)
    one = run("texts.jsonl", "--out", "o.jsonl", "--criteria", "binoculars", code=1)
    assert "binoculars needs two models: add --observer MODEL" in one.stderr


def test_what_is_not_understood_leaves_nothing_behind(desk: Path) -> None:
    before = sorted(os.listdir())
    assert "expected a name in .csv" in run("texts.jsonl", "--out", "out.txt", code=2).stderr
    assert (
        "no column 'body'" in run("texts.jsonl", "--out", "o.csv", "--text", "body", code=1).stderr
    )
    write_lines("ragged.csv", ["text", "a"])
    assert (
        "expected a column, one of"
        in run("ragged.csv", "--out", "o.csv", "--keep", "tokens", code=1).stderr
    )
    assert sorted(os.listdir()) == sorted([*before, "ragged.csv"])


def test_standard_input_needs_a_format(desk: Path) -> None:
    lines = Path("texts.jsonl").read_text()
    arguments = ["filter", "-", "--out", "out.jsonl", "--model", "tiny"]
    refused = CliRunner().invoke(app, arguments, input=lines)
    assert "add --format" in refused.stderr
    assert CliRunner().invoke(app, [*arguments, "--format", "jsonl"], input=lines).exit_code == 0
    assert len(read("out.jsonl")) == 5


def test_rewritings_in_a_column_give_detectgpts_criterion(desk: Path) -> None:
    rows = [{"text": text, "other": ["a cat sat.", "The cat."]} for text in TEXTS[:2]]
    write_lines("r.jsonl", map(json.dumps, [*rows, {"text": "a cat", "other": "b"}]))
    how = ("--criteria", "perturbation,fracprob", "--rewritings", "other")
    run("r.jsonl", "--out", "out.jsonl", *how)
    run("r.jsonl", "--out", "out", *how)
    found, parts = read("out.jsonl"), read("out/parts/00000.jsonl")
    assert [row["perturbation"] is None for row in found] == [False, False, True]
    assert 0 < found[0]["fracprob"] <= 1
    assert found[2]["error"] == parts[2]["error"] == "the rewritings are no list of texts"
    for row, other in zip(found[:2], parts, strict=False):
        assert row["perturbation"] == pytest.approx(other["perturbation"], rel=1e-3)
    missing = run("texts.jsonl", "--out", "o.jsonl", "--criteria", "perturbation", code=1)
    assert "add --rewritings COLUMN" in missing.stderr
