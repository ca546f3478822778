"""score --out DIR over many files, and parts."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from builders import add_vocabulary, write_hub
from bulk_builders import write_texts
from conftest import make_model
from typer.testing import CliRunner, Result

from gpt2kit.cli import app
from gpt2kit.config import GPT2Config
from gpt2kit.data.streams import read_batches, write_batches


@pytest.fixture
def desk(weights: Path) -> Path:
    model = make_model(GPT2Config(n_vocab=512, n_ctx=32, n_embd=16, n_head=2, n_layer=1))
    add_vocabulary(write_hub(weights / "tiny", model))
    write_texts(Path("a.jsonl"), 25)
    Path("b.txt").write_text("the cat\n\nthe dog\n")
    return weights.parent


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


SCORE = ("score", "a.jsonl", "b.txt", "--model", "tiny", "--out", "out", "--part_rows", "10")


def test_parts_say_how_far_it_is_and_are_merged(desk: Path) -> None:
    assert invoke(*SCORE, "--share", "1/2").exit_code == 0
    state = json.loads(invoke("parts", "out", "--json").stdout)
    assert (state["parts"], state["done"], state["running"], state["failed"]) == (4, 2, 0, 0)
    assert (state["rows"], state["rows_done"]) == (28, 15)
    early = invoke("parts", "out", "--merge", "all.jsonl")
    assert early.exit_code == 1
    assert "this part is not done" in early.stderr
    done = invoke(*SCORE, "--time", "1h30m")
    assert done.exit_code == 0
    assert "4 of 4 parts done: 28 rows, 1 of them with an error" in done.stderr
    assert invoke("parts", "out", "--merge", "all.jsonl").exit_code == 0
    rows = [json.loads(line) for line in Path("all.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows] == list(range(1, 29))
    assert "parts" in invoke("parts", "out").stdout
    assert json.loads(Path("out/summary.json").read_text())["rows"] == 28


def test_the_figures_are_those_of_a_single_file(desk: Path) -> None:
    assert invoke(*SCORE).exit_code == 0
    lines = [
        json.loads(line)
        for line in invoke("score", "b.txt", "--model", "tiny", "--json").stdout.splitlines()
    ]
    found = [json.loads(line) for line in Path("out/parts/00003.jsonl").read_text().splitlines()]
    assert [row["logprob"] for row in found] == [
        pytest.approx(lines[0]["logprob"], abs=1e-4),
        None,
        pytest.approx(lines[1]["logprob"], abs=1e-4),
    ]


def test_an_option_that_has_no_effect_or_sense_is_refused(desk: Path) -> None:
    cases = {
        ("score", "b.txt", "--model", "tiny", "--workers", "2"): "--workers has no effect here",
        (
            "score",
            "a.jsonl",
            "b.txt",
            "--model",
            "tiny",
        ): "many files need a folder",
        (*SCORE, "--sort", "total"): "--sort has no effect here",
        (*SCORE, "--share", "5/4"): "share is '5/4', expected i/n",
        (*SCORE, "--time", "soon"): "time is 'soon', expected hours",
        (*SCORE, "--columns", "tokens"): "two columns 'tokens'",
        ("parts", "weights"): "no plan.json in it",
    }
    for arguments, message in cases.items():
        result = invoke(*arguments)
        assert result.exit_code in (1, 2), arguments
        assert message in result.stderr


def test_a_changed_option_is_refused_and_a_failed_run_ends_with_1(desk: Path) -> None:
    assert invoke(*SCORE).exit_code == 0
    changed = invoke(*SCORE, "--overflow", "stop")
    assert changed.exit_code == 1
    assert '--overflow was "slide" and is "stop"' in changed.stderr
    strict = invoke(*SCORE[:-4], "--out", "other", "--on_error", "stop")
    assert strict.exit_code == 1
    assert "row 27: empty" in strict.stderr


def test_the_words_of_many_files_are_those_of_each(desk: Path) -> None:
    done = invoke("surprisal", "a.jsonl", "b.txt", "--model", "tiny", "--out", "words")
    assert done.exit_code == 0, done.stderr
    assert invoke("parts", "words", "--merge", "words.csv").exit_code == 0
    lines = Path("words.csv").read_text().splitlines()
    assert lines[0].startswith("row,file,word_n,word,start,end,surprisal,surprisal_corrected,")
    with Path("words.csv").open() as file:
        found = list(csv.DictReader(file))
    assert {int(row["row"]) for row in found} == set(range(1, 29))
    alone = invoke("surprisal", "b.txt", "--model", "tiny", "--json")
    expected = [json.loads(line) for line in alone.stdout.splitlines()]
    ours = [row for row in found if row["file"] == "b.txt" and not row["error"]]
    assert [row["word"] for row in ours] == [row["word"] for row in expected]
    for row, other in zip(ours, expected, strict=True):
        assert float(row["surprisal"]) == pytest.approx(other["surprisal"], abs=1e-4)


def test_targets_have_one_row_each(desk: Path) -> None:
    Path("c.csv").write_text("before,word\nthe dog,barks\nthe cat,sat on\n,a\n")
    columns = ("--context", "before", "--target", "word")
    done = invoke("surprisal", "c.csv", *columns, "--model", "tiny", "--out", "targets")
    assert done.exit_code == 0, done.stderr
    rows = [json.loads(line) for line in Path("targets/parts/00000.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows] == [1, 2, 3]
    assert all(row["surprisal"] > 0 for row in rows)
    two = invoke("surprisal", "c.csv", "--model", "tiny", "--model", "other", "--out", "x")
    assert two.exit_code == 2
    assert "one --model" in two.stderr
    several = invoke("surprisal", "a.jsonl", "c.csv", "--model", "tiny", "--out", "x.csv")
    assert "many files need a folder" in several.stderr


def lines_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def same(found: str, expected: str, names: Sequence[str]) -> None:
    """Check that the rows of two files agree in some columns."""
    ours, theirs = lines_of(found), lines_of(expected)
    assert len(ours) == len(theirs) > 0
    for row, other in zip(ours, theirs, strict=True):
        for name in names:
            value = other[name]
            assert row[name] == (pytest.approx(value, rel=1e-4) if type(value) is float else value)


WORDS = """item,position,word
1,2,cat
1,1,the
1,3,sat
é,1,rain
é,2,""
"b, c",1,"dogs
bark"
2.0,1,   
2.0,2,at
2.0,3,night
"""  # noqa: W291  # a word of spaces


@pytest.mark.parametrize(
    ("name", "unit"), [("w.csv", "word"), ("w.jsonl", "token"), ("w.parquet", "word")]
)
def test_a_table_of_words_is_cut_between_its_texts(desk: Path, name: str, unit: str) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    Path("words.csv").write_text(WORDS, newline="")
    write_batches(Path(name), read_batches(Path("words.csv")))
    how = ["--words", "word", "--by", "item", "--order", "position", "--unit", unit]
    how += ["--model", "tiny", "--top", "1"]
    done = invoke("surprisal", name, *how, "--out", "many", "--part_rows", "2", "--columns", "item")
    assert done.exit_code == 0, done.stderr
    assert "3 of 3 parts done: 9 rows" in done.stderr
    assert invoke("parts", "many", "--merge", "many.jsonl").exit_code == 0
    assert invoke("surprisal", "words.csv", *how, "--out", "one.jsonl").exit_code == 0
    with_top = ["item", "surprisal", "rank", "n_context", "top_1", "top_1_p", "error"]
    same("many.jsonl", "one.jsonl", with_top)


def test_a_text_whose_rows_are_apart_is_refused_by_name(desk: Path) -> None:
    Path("words.csv").write_text("item,word\n1,the\n2,dogs\n1,cat\n")
    refused = invoke(
        *("surprisal", "words.csv", "--words", "word", "--by", "item"),
        *("--model", "tiny", "--out", "many"),
    )
    assert refused.exit_code == 1
    assert "but those of item=1 begin again in row 3; sort the table by item" in refused.stderr


def test_a_text_with_a_bad_word_has_an_error_in_all_its_rows(desk: Path) -> None:
    """Two words with one order stopped the command for a single file; here it is their text's."""
    rows = [("1", 1, "the"), ("1", "x", "cat"), ("2", 1, "dogs"), ("2", 1, "bark"), ("3", 1, "at")]
    lines = [json.dumps({"item": a, "n": b, "word": c}) for a, b, c in rows]
    lines.insert(1, "no json")
    Path("words.jsonl").write_text("\n".join(lines))
    how = ("--words", "word", "--by", "item", "--order", "n", "--model", "tiny")
    done = invoke("surprisal", "words.jsonl", *how, "--out", "many")
    assert done.exit_code == 0, done.stderr
    found = lines_of("many/parts/00000.jsonl")
    assert [row["row"] for row in found] == [1, 2, 3, 4, 5, 6]
    assert [row["error"] and row["error"][:40] for row in found] == [
        "row 3, of the same text, has an error",
        found[1]["error"][:40],
        "n is 'x', expected a number",
        "the input: rows 4 and 5 have the same n,",
        "the input: rows 4 and 5 have the same n,",
        None,
    ]
    assert found[1]["error"].startswith("not valid JSON")
    assert found[5]["surprisal"] > 0


def test_the_tokens_of_many_files_are_those_of_each(desk: Path) -> None:
    how = ("--unit", "token", "--top", "2", "--model", "tiny")
    assert invoke("surprisal", "b.txt", *how, "--out", "tokens").exit_code == 0
    assert invoke("surprisal", "b.txt", *how, "--out", "one.jsonl").exit_code == 0
    assert invoke("parts", "tokens", "--merge", "many.jsonl").exit_code == 0
    found = [row for row in lines_of("many.jsonl") if not row["error"]]
    Path("many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    same("many.jsonl", "one.jsonl", ["token", "token_id", "start", "surprisal", "top_2", "top_2_p"])
    state = json.loads(invoke("parts", "tokens", "--json").stdout)
    assert state["tokens"] == len(found)


def test_percentiles_are_those_of_all_files(desk: Path) -> None:
    """They need all perplexities: so it is --merge that divides the rows, and chooses them."""
    how = ("--percentiles", "40,80", "--model", "tiny")
    many = ("a.jsonl", "--part_rows", "10", "--columns", "id")
    for keep in ((), ("--keep", "bucket == middle and id != a-3")):
        out = f"many{len(keep)}"
        assert invoke("filter", *many, *how, *keep, "--out", out).exit_code == 0
        merged = invoke("parts", out, "--merge", "many.jsonl")
        assert merged.exit_code == 0, merged.stderr
        one = invoke("filter", "a.jsonl", *how, *keep, "--out", "one.jsonl")
        assert one.exit_code == 0
        same("many.jsonl", "one.jsonl", ["id", "perplexity", "bucket"])
        assert "head to perplexity" in merged.stderr
        assert "of 25 rows" in one.stderr
        assert one.stderr.splitlines()[-1] == merged.stderr.splitlines()[-1]
        assert invoke("parts", out, "--merge", "many.csv").exit_code == 0
    refused = invoke("filter", *many[:3], *how, *keep, "--out", "other")
    assert "add 'id' to --columns" in refused.stderr


def test_an_observer_may_read_the_texts_of_many_files(desk: Path, weights: Path) -> None:
    model = make_model(GPT2Config(n_vocab=512, n_ctx=32, n_embd=16, n_head=2, n_layer=1), seed=5)
    add_vocabulary(write_hub(weights / "other", model))
    how = ("--observer", "other", "--criteria", "binoculars,cross_curvature", "--model", "tiny")
    for command in ("filter", "detect"):
        assert invoke(command, "a.jsonl", *how, "--out", command).exit_code == 0
        assert invoke(command, "a.jsonl", *how, "--out", "one.jsonl").exit_code == 0
        same(f"{command}/parts/00000.jsonl", "one.jsonl", ["binoculars", "cross_curvature"])
    changed = invoke("filter", "a.jsonl", *how, "--observer", "tiny", "--out", "filter")
    assert "observer was" in changed.stderr


def test_a_filter_keeps_the_rows_that_a_single_file_keeps(desk: Path) -> None:
    keep = ("--keep", "tokens >= 12 and id != a-8", "--model", "tiny")
    done = invoke("filter", "a.jsonl", *keep, "--out", "kept", "--id_field", "id")
    assert done.exit_code == 0, done.stderr
    merged = invoke("parts", "kept", "--merge", "kept.jsonl")
    assert re.search(r"kept.jsonl: \d+ of 25 rows", merged.stderr)
    assert invoke("filter", "a.jsonl", *keep, "--out", "b.jsonl").exit_code == 0
    found, expected = (
        [json.loads(line) for line in Path(name).read_text().splitlines()]
        for name in ("kept.jsonl", "b.jsonl")
    )
    assert 0 < len(found) < 25
    assert [row["id"] for row in found] == [row["id"] for row in expected]
    assert [row["perplexity"] for row in found] == pytest.approx(
        [row["perplexity"] for row in expected], rel=1e-4
    )
    for column in (
        ("--keep", "perplexty < 3"),
        ("--text", "perplexty"),
        ("--columns", "perplexty"),
    ):
        refused = invoke("filter", "a.jsonl", *column, "--model", "tiny", "--out", "other")
        assert "the inputs have no column 'perplexty'; they have text, id" in refused.stderr


def test_a_bad_row_is_kept_if_conditions_on_the_input_hold(desk: Path) -> None:
    rows = [{"text": "", "kind": "a"}, {"text": "the cat", "kind": "b"}, {"text": [], "kind": "a"}]
    Path("c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keep = ("c.jsonl", "--keep", "kind == a", "--model", "tiny", "--out")
    assert invoke("filter", *keep, "kept").exit_code == 0
    assert invoke("filter", *keep, "one.jsonl").exit_code == 0
    found, expected = lines_of("kept/parts/00000.jsonl"), lines_of("one.jsonl")
    assert [row["row"] for row in found] == [1, 3]
    assert len(expected) == 2
    assert all(row["error"] for row in (*found, *expected))


def test_verdicts_are_those_of_a_single_file(desk: Path) -> None:
    write_texts(Path("human.jsonl"), 30, seed=1)
    write_texts(Path("machine.jsonl"), 30, seed=2)
    model = ("--model", "tiny", "--criteria", "curvature,perplexity")
    made = invoke(
        "detect", "--calibrate", "human.jsonl", "machine.jsonl", *model, "--out", "c.json"
    )
    assert made.exit_code == 0, made.stderr
    verdict = (*model, "--calibration", "c.json")
    many = invoke("detect", "a.jsonl", *verdict, "--out", "found", "--id_field", "id")
    assert many.exit_code == 0, many.stderr
    found = [json.loads(line) for line in Path("found/parts/00000.jsonl").read_text().splitlines()]
    alone = invoke("detect", "a.jsonl", *verdict, "--json")
    expected = [json.loads(line) for line in alone.stdout.splitlines()]
    assert [row["verdict"] for row in found] == [row["verdict"] for row in expected]
    assert [row["id"] for row in found] == [row["id"] for row in expected]
    other = invoke("detect", "a.jsonl", *verdict, "--first", "bos", "--out", "other")
    assert other.exit_code == 1
    assert "does not belong to these figures" in other.stderr


def test_vectors_are_those_of_a_single_file(desk: Path) -> None:
    pytest.importorskip("pyarrow")
    how = ("--model", "tiny", "--layer", "1", "--pool", "last")
    many = invoke("embed", "a.jsonl", "b.txt", *how, "--out", "vectors", "--part_rows", "10")
    assert many.exit_code == 0, many.stderr
    assert invoke("parts", "vectors", "--merge", "all.parquet").exit_code == 0
    assert invoke("embed", "a.jsonl", *how, "--out", "alone.jsonl").exit_code == 0
    expected = [json.loads(line) for line in Path("alone.jsonl").read_text().splitlines()]
    table = next(batch for batch in read_batches(Path("all.parquet")) if batch.rows)
    at = table.column("vector")
    assert len(table.rows) == 28
    for row, other in zip(table.rows, expected, strict=False):
        assert row[at] == pytest.approx(other["vector"], abs=1e-5)
    assert table.rows[26][at] is None
    assert table.rows[26][table.column("error")] == "empty"
    wrong = invoke("embed", "a.jsonl", "--model", "tiny", "--layer", "9", "--out", "other")
    assert wrong.exit_code == 1
    assert "layer" in wrong.stderr


def test_the_text_of_a_prompt_is_that_of_its_row_s_seed(desk: Path) -> None:
    how = ("--model", "tiny", "--max_tokens", "5", "--num_samples", "2")
    many = ("generate", "--prompts", "*.jsonl", "--prompts", "b.txt", "--out", "texts", *how)
    done = invoke(*many, "--part_rows", "10", "--id_field", "id")
    assert done.exit_code == 0, done.stderr
    assert invoke("parts", "texts", "--merge", "texts.jsonl").exit_code == 0
    rows = lines_of("texts.jsonl")
    assert [row["row"] for row in rows if row["sample"] != 1] == list(range(1, 29))
    assert len({row["seed"] for row in rows if row["seed"]}) == 27  # of 28 rows, one is empty
    for row in (rows[0], rows[33]):
        alone = invoke("generate", row["prompt"], *how, "--seed", str(row["seed"]), "--json")
        texts = [json.loads(line) for line in alone.stdout.splitlines()]
        assert row["text"] == texts[row["sample"]]["text"]
        assert row["n_tokens"] == len(texts[row["sample"]]["tokens"])
    assert "--seed was 0 and is 1" in invoke(*many, "--seed", "1").stderr
    cases = {
        (*many, "--json"): "--json has no effect here",
        (*many, "a prompt"): "--prompt has no effect here",
        (*many[:3], *how): "--prompts FILES and --out DIR go together",
        ("generate", "a", *how, "--workers", "2"): "--workers has no effect here",
    }
    for arguments, message in cases.items():
        assert message in invoke(*arguments).stderr, arguments


@pytest.mark.slow
def test_an_error_that_ends_a_worker_is_one_line(desk: Path) -> None:
    """A bad row with --on_error stop, in one of several processes, printed a traceback."""
    strict = invoke(*SCORE, "--on_error", "stop", "--workers", "2")
    assert strict.exit_code == 1
    assert strict.stderr.endswith("error: row 27: empty\n")
    assert "Traceback" not in strict.stderr
