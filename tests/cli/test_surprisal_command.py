"""gpt2kit surprisal: tables in and out, and that each option has its effect."""

from __future__ import annotations

import csv
import io
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from builders import add_vocabulary
from conftest import GOLDEN
from typer.testing import CliRunner

from gpt2kit.checkpoints.load import load
from gpt2kit.cli import app
from gpt2kit.evaluation.word_options import WordOptions
from gpt2kit.evaluation.words import words

SENTENCES = ["The old man the boat.", "The horse raced past the barn fell."]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("surprisal") / "model"
    shutil.copytree(GOLDEN / "hf/safetensors", folder)
    return add_vocabulary(folder)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: object, stdin: str | None = None) -> Any:
    return CliRunner().invoke(app, ["surprisal", *map(str, arguments)], input=stdin)


def rows(result: Any) -> list[dict[str, str]]:
    assert result.exit_code == 0, result.stderr
    return list(csv.DictReader(io.StringIO(result.stdout, newline="")))


def expected(model: Path, texts: list[str], **options: Any) -> list[Any]:
    found = words(*load(model), texts, options=WordOptions(**options))
    return [word for text in found for word in text]


def close(cell: str, value: float | None) -> bool:
    return cell == "" if value is None else float(cell) == pytest.approx(value, rel=1e-5)


def test_lines_give_a_row_for_each_word(model: Path) -> None:
    Path("lines.txt").write_text(f"{SENTENCES[0]}\r\n\n{SENTENCES[1]}\n", newline="")
    found = rows(run("lines.txt", "--model", model))
    wanted = expected(model, SENTENCES)
    assert [row["word"] for row in found] == [word.text for word in wanted]
    assert [row["line"] for row in found] == ["1"] * 5 + ["3"] * 7
    for row, word in zip(found, wanted, strict=True):
        for name in ("surprisal", "surprisal_corrected", "entropy", "entropy_word", "rank"):
            assert close(row[name], getattr(word, name))
        assert int(row["n_tokens"]) == len(word.tokens)


def test_a_word_in_each_row_in_any_order_keeps_every_row_and_column(model: Path) -> None:
    wanted = {
        (item, number): word
        for item, text in enumerate(SENTENCES)
        for number, word in enumerate(expected(model, [text]))
    }
    lines = [
        [str(item), str(number), word.text, f'{item}{number} ms, "x"', "é"]
        for (item, number), word in wanted.items()
    ]
    random.Random(1).shuffle(lines)
    with Path("words.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([["item", "n", "word", "rt", "é"], *lines])
    columns = ["--words", "word", "--by", "item", "--order", "n"]
    found = rows(run("words.csv", *columns, "--model", model))
    assert [[*row.values()][:5] for row in found] == lines
    for row in found:
        word = wanted[int(row["item"]), int(row["n"])]
        assert close(row["surprisal"], word.surprisal)
        assert close(row["surprisal_corrected"], word.surprisal_corrected)


def test_blank_cells_keep_their_rows_and_change_no_other(model: Path) -> None:
    table = "item,word\n1,The\n1,\n1,old\n1,--\n2,  \n"
    found = rows(run("-", "--words", "word", "--by", "item", "--model", model, stdin=table))
    assert [row["flag"] for row in found] == ["", "empty", "", "", "empty"]
    assert [row["surprisal"] == "" for row in found] == [False, True, False, False, True]
    the, old, dash = expected(model, ["The old --"])
    assert close(found[2]["surprisal"], old.surprisal)
    dropped = run(
        "-",
        "--words",
        "word",
        "--by",
        "item",
        "--model",
        model,
        "--punctuation",
        "drop",
        stdin=table,
    )
    assert [row["flag"] for row in rows(dropped)] == ["", "empty", "", "punctuation", "empty"]
    assert close(found[0]["surprisal"], the.surprisal)
    assert close(found[3]["surprisal"], dash.surprisal)


def test_a_target_is_measured_after_its_context(model: Path) -> None:
    table = "context\ttarget\tcloze\nThe old\tman\t0.1\nThe old \tman\t0.1\n\tThe\t1\nThe\t\t0\n"
    found = rows_tsv(
        run(
            "-",
            "--context",
            "context",
            "--target",
            "target",
            "--format",
            "tsv",
            "--model",
            model,
            stdin=table,
        )
    )
    wanted = expected(model, ["The old man"])[2]
    assert [row["cloze"] for row in found] == ["0.1", "0.1", "1", "0"]
    assert close(found[0]["surprisal"], wanted.surprisal)
    assert close(found[0]["surprisal_corrected"], wanted.surprisal_corrected)
    assert close(found[1]["surprisal"], wanted.surprisal)  # one space, not two
    assert close(found[2]["surprisal"], expected(model, ["The"])[0].surprisal)
    assert found[3]["flag"] == "empty"


def rows_tsv(result: Any) -> list[dict[str, str]]:
    assert result.exit_code == 0, result.stderr
    return list(csv.DictReader(io.StringIO(result.stdout, newline=""), delimiter="\t"))


def test_a_text_in_each_row_may_give_words_tokens_or_one_figure(model: Path) -> None:
    Path("texts.jsonl").write_text(
        "".join(
            json.dumps({"id": [i], "t": text}) + "\n" for i, text in enumerate([*SENTENCES, ""])
        )
    )
    command = ["texts.jsonl", "--text", "t", "--model", model]
    whole = [json.loads(line) for line in run(*command, "--unit", "text").stdout.splitlines()]
    assert [row["id"] for row in whole] == [[0], [1], [2]]
    assert whole[2]["flag"] == "empty"
    by_word = [json.loads(line) for line in run(*command).stdout.splitlines()]
    by_token = [json.loads(line) for line in run(*command, "--unit", "token").stdout.splitlines()]
    for item in (1, 2):
        assert "".join(r["token"] for r in by_token if r["text_n"] == item) == SENTENCES[item - 1]
        for level in (by_word, by_token):
            total = sum(row["surprisal"] for row in level if row["text_n"] == item)
            assert total == pytest.approx(whole[item - 1]["surprisal"], rel=1e-5)


def test_options_of_words_have_their_effect(model: Path) -> None:
    for typed, named in (
        (["--base", "e"], {"base": "e"}),
        (["--first", "none"], {"first": "none"}),
        (["--stride", "5"], {"stride": 5}),
        (["--punctuation", "split"], {"punctuation": "split"}),
        (["--boundary", "space"], {"boundary": "space"}),
        (["--renyi", "0.5"], {"renyi": 0.5}),
    ):
        text = " ".join(SENTENCES)
        found = rows(run("-", "--model", model, *typed, stdin=text))
        wanted = expected(model, [text], **named)
        assert len(found) == len(wanted)
        for row, word in zip(found, wanted, strict=True):
            assert close(row["surprisal"], word.surprisal)
            assert close(row["surprisal_corrected"], word.surprisal_corrected)
            assert close(row.get("renyi", ""), word.renyi)


def test_several_models_give_columns_each(model: Path) -> None:
    shutil.copytree(model, "other one")
    found = rows(run("-", "--model", model, "--model", "other one", stdin="The old man\n"))
    assert [row["surprisal_model"] for row in found] == [
        row["surprisal_other_one"] for row in found
    ]
    refused = run("-", "--model", model, "--model", "nowhere", stdin="The\n")
    assert refused.exit_code == 1
    assert "nowhere" in refused.stderr


def test_a_file_comes_with_a_receipt(model: Path) -> None:
    Path("lines.txt").write_text(SENTENCES[0])
    result = run("lines.txt", "--model", model, "--out", "found.csv", "--base", "e")
    assert result.exit_code == 0
    assert result.stdout == ""
    printed = run("lines.txt", "--model", model, "--base", "e").stdout
    assert Path("found.csv").read_text() == printed
    receipt = json.loads(Path("found.csv.receipt.json").read_text())
    assert receipt["units"] == 5
    assert receipt["texts"] == 1
    assert receipt["options"]["base"] == "e"
    assert "5 words in 1 text" in receipt["methods"]
    assert "in nats" in receipt["methods"]
    assert "windows of 24 tokens that begin 12 tokens apart" in receipt["methods"]
    assert receipt["models"][0]["weights_sha256"][:12] in receipt["methods"]
    assert receipt["methods"] in result.stderr.replace("\n", "")


def test_the_digest_of_weights_changes_with_a_single_number(model: Path) -> None:
    from gpt2kit.engine.snapshot import weights_sha256

    first, _ = load(model)
    before = weights_sha256(first)
    assert weights_sha256(load(model)[0]) == before
    next(first.parameters()).data[3, 3] += 1e-3
    assert weights_sha256(first) != before


@pytest.mark.parametrize(
    ("arguments", "table", "message"),
    [
        (["--words", "word"], "", "--words needs --by"),
        (["--by", "item"], "", "--by and --order are for --words"),
        (["--context", "c"], "", "--context and --target go together"),
        (["--text", "t", "--words", "w", "--by", "i"], "", "give one of"),
        (["--unit", "text", "--words", "w", "--by", "i"], "", "--unit text is for --text"),
        (["--format", "csv"], "a,b\n1,2\n", "name its column: --text COLUMN"),
        (["--text", "t"], "a,b\n1,2\n", "no column 't'; its columns are 'a', 'b'"),
        (["--text", "a"], "a,rank\nx,2\n", "there is a column 'rank' already"),
        (
            ["--words", "w", "--by", "i", "--order", "n"],
            "w,i,n\na,1,1\nb,1,1\n",
            "rows 1 and 2 have the same n, 1, in the text 1",
        ),
        (
            ["--words", "w", "--by", "i", "--order", "n", "--on_error", "stop"],
            "w,i,n\na,1,first\n",
            "row 1: n is 'first', expected a number",
        ),
        (["--words", "w", "--by", "i", "--punctuation", "split"], "w,i\na,1\n", "keep or drop"),
        (["--unit", "text", "--punctuation", "drop"], "a\n", "--punctuation is for words"),
        # The Rényi entropy was left out without a word.
        (["--unit", "text", "--renyi", "0.5"], "a\n", "--renyi is for words"),
        (["--unit", "token", "--renyi", "0.5"], "a\n", "--renyi is for words"),
        (["--out", "found.xls"], "a\n", "expected a name in .csv, .tsv, .jsonl (each also"),
        (["--out", "found.csv", "--json"], "a\n", "--out FILE.jsonl writes it"),
        ([], " \n", "no text, expected a text on each line"),
        (["--renyi", "1"], "a\n", "renyi is 1"),
        (["--stride", "99"], "a\n", "stride is 99, expected from 1 to 24"),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: list[str], table: str, message: str, model: Path
) -> None:
    result = run("-", "--model", model, *arguments, stdin=table)
    assert result.exit_code in (1, 2)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_the_warning_about_rows_with_an_error_shows_the_first_error() -> None:
    # With --out, all that a user saw of a wrong --order was the number of rows.
    Path("t.csv").write_text("item,word\n1,Nel\n1,mezzo\n")
    result = run(
        "t.csv",
        "--words",
        "word",
        "--by",
        "item",
        "--order",
        "word",
        "--model",
        "dante",
        "--out",
        "r.csv",
    )
    assert "2 rows with an error (see the column error); the first: word is 'Nel'" in result.stderr
    assert "for the Methods section: The surprisal of" in result.stderr
