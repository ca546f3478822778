"""heads, as a user types it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from builders import write_hub
from conftest import make_model
from typer.testing import CliRunner, Result

from gpt2kit.checkpoints.load import load
from gpt2kit.cli import app
from gpt2kit.config import GPT2Config
from gpt2kit.inspection import head_scores, random_tokens
from gpt2kit.tokenizers import CharTokenizer


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["heads", *arguments])


@pytest.fixture
def letters(tmp_path: Path) -> str:
    config = GPT2Config(n_vocab=12, n_ctx=16, n_embd=8, n_head=2, n_layer=2)
    folder = write_hub(tmp_path / "letters", make_model(config))
    CharTokenizer([*"abcdefghij"]).save(folder)  # two rows of the embedding are padding
    return str(folder)


def test_every_head_is_listed_with_its_scores(letters: str) -> None:
    result = run(letters, "--length", "4", "--sequences", "3", "--seed", "7", "--json")
    shown = [json.loads(line) for line in result.stdout.splitlines()]
    model, tokenizer = load(letters, device="cpu")
    wanted = head_scores(model, random_tokens(model, tokenizer, length=4, sequences=3, seed=7))
    assert [(each["layer"], each["head"]) for each in shown] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for row, scores in zip(shown, wanted, strict=True):
        assert row == pytest.approx(vars(scores))
    assert "3 sequences of 4 random tokens and their repetition, seed 7" in result.stderr


def test_the_largest_score_comes_first_and_top_ends_the_list(letters: str) -> None:
    lines = run(letters, "--sort", "induction", "--top", "2").stdout.splitlines()
    values = [float(line.split()[3]) for line in lines[1:]]
    every = [float(line.split()[3]) for line in run(letters).stdout.splitlines()[1:]]
    assert values == sorted(every, reverse=True)[:2]


def test_tables_and_pictures_have_all_heads(letters: str, tmp_path: Path) -> None:
    table, picture = tmp_path / "heads.csv", tmp_path / "heads.svg"
    run(letters, "--top", "1", "--out", str(table), "--picture", str(picture))
    rows = list(csv.DictReader(table.open()))
    assert [f"{row['layer']}.{row['head']}" for row in rows] == ["0.0", "0.1", "1.0", "1.1"]
    assert {(row["length"], row["sequences"], row["seed"]) for row in rows} == {("8", "10", "0")}
    assert picture.stat().st_size > 5000


def test_a_text_gives_the_shares_its_own_numbers(letters: str) -> None:
    def shares(*more: str) -> list[list[str]]:
        return [line.split()[4:7] for line in run(letters, *more).stdout.splitlines()[1:]]

    assert shares("--text", "abababab") != shares()
    model, _ = load(letters, device="cpu")
    wanted = head_scores(model, text=[0, 1, 0, 1])[3]
    assert shares("--text", "abab")[3] == [
        f"{value:.3f}"
        for value in (wanted.previous_share, wanted.duplicate_share, wanted.induction_share)
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--length", "9"], "length is 9, but this model reads 16 tokens at once"),
        (["--first", "bos"], "no <|endoftext|>"),
        (["--text", "a"], "the text has 1 tokens, expected from 2 to 16"),
        (["--out", "heads.txt"], "heads.txt"),
        (["--picture", "heads.gif"], "expected a name that ends in .png, .svg or .pdf"),
    ],
)
def test_what_cannot_be_measured_or_written_is_one_line(
    arguments: list[str], message: str, letters: str
) -> None:
    result = run(letters, *arguments)
    assert result.exit_code
    assert message in result.stderr
    assert result.stdout == ""
