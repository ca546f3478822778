"""patch, as a user types it."""

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
from gpt2kit.inspection import Pair, PatchOptions, patch, path_patch
from gpt2kit.inspection.paths import parse_receiver
from gpt2kit.tokenizers import CharTokenizer

PROMPTS = ("--clean", "abcde", "--corrupt", "abfde", "--answer", "g", "--wrong", "h")
PAIR = Pair([0, 1, 2, 3, 4], [0, 1, 5, 3, 4], 6, 7)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["patch", *arguments])


@pytest.fixture
def letters(tmp_path: Path) -> str:
    config = GPT2Config(n_vocab=10, n_ctx=16, n_embd=8, n_head=2, n_layer=2)
    folder = write_hub(tmp_path / "letters", make_model(config))
    CharTokenizer([*"abcdefghij"]).save(folder)
    return str(folder)


def shown(result: Result) -> list[dict[str, object]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("options", [{}, {"at": "z"}, {"at": "pattern", "by": "both"}])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_the_numbers_are_those_of_the_library(
    letters: str, options: dict[str, str], direction: str
) -> None:
    typed = [word for name, value in options.items() for word in (f"--{name}", value)]
    rows = shown(run("--model", letters, *PROMPTS, *typed, "--direction", direction, "--json"))
    model, _ = load(letters, device="cpu")
    found = patch(model, PAIR, PatchOptions(direction=direction, **options))  # type: ignore[arg-type]
    assert [row["logit_diff"] for row in rows] == pytest.approx(
        [cell.logit_diff for cell in found.cells]
    )
    assert [(row["layer"], row.get("head"), row.get("position")) for row in rows] == [
        (cell.layer, cell.head, cell.position) for cell in found.cells
    ]


def test_the_largest_effects_come_first(letters: str) -> None:
    result = run("--model", letters, *PROMPTS, "--top", "3", "--attribution")
    head, *lines = [line.split() for line in result.stdout.splitlines()]
    assert head == ["layer", "position", "token", "logit_diff", "recovered", "estimate"]
    effects = [abs(float(line[4])) for line in lines]
    assert len(effects) == 3
    assert effects == sorted(effects, reverse=True)
    assert "1 pair; difference of the logits:" in result.stderr
    assert "estimates: correlation" in result.stderr


def test_paths_into_a_receiver_are_those_of_the_library(letters: str, tmp_path: Path) -> None:
    picture = tmp_path / "paths.svg"
    typed = ["--model", letters, *PROMPTS, "--receiver", "1.0.q", "--picture", str(picture)]
    rows = shown(run(*typed, "--json"))
    model, _ = load(letters, device="cpu")
    found = path_patch(model, PAIR, parse_receiver("1.0.q"))
    assert [row["sender"] for row in rows] == [path.sender.name for path in found.paths]
    assert [row["logit_diff"] for row in rows] == pytest.approx(
        [path.logit_diff for path in found.paths]
    )
    assert picture.stat().st_size > 5000
    (one,) = shown(run(*typed, "--sender", "0.1", "--json"))
    assert one == rows[2]


def test_a_table_of_pairs_gives_their_mean_and_all_numbers(letters: str, tmp_path: Path) -> None:
    pairs, out = tmp_path / "pairs.csv", tmp_path / "out.csv"
    pairs.write_text("clean,corrupt,answer,wrong\nabcde,abfde,g,h\nbbcda,bbfda,h,i\n")
    rows = shown(run("--model", letters, str(pairs), "--at", "z", "--json", "--out", str(out)))
    every = list(csv.DictReader(out.open()))
    assert [row["item"] for row in every] == ["1"] * 4 + ["2"] * 4
    for n, row in enumerate(rows):
        both = [float(every[n][name]) for n in (n, n + 4) for name in ["logit_diff"]]
        assert row["logit_diff"] == pytest.approx(sum(both) / 2)


@pytest.mark.parametrize("options", [["--at", "z"], ["--at", "k", "--by", "both"], []])
def test_pictures_are_drawn(letters: str, tmp_path: Path, options: list[str]) -> None:
    picture = tmp_path / "patch.png"
    result = run("--model", letters, *PROMPTS, *options, "--picture", str(picture))
    assert result.exit_code == 0, result.output
    assert picture.stat().st_size > 5000


def test_prompts_of_unequal_length_are_refused_with_their_tokens(letters: str) -> None:
    result = run("--model", letters, *PROMPTS, "--clean", "abcd")
    assert result.exit_code == 1
    assert "the prompts have 4 and 5 tokens, expected as many: a|b|c|d and a|b|f|d|e" in (
        result.stderr
    )


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--answer", "gh"], 1, "--answer 'gh': expected one token, found g|h"),
        (["--by", "head"], 1, "resid_pre has no heads"),
        (["--sender", "0.1"], 2, "--sender has no effect here: it is for --receiver"),
        (["--receiver", "1.0.q", "--at", "z"], 2, "--at has no effect here: --receiver patches"),
        (["--receiver", "x"], 1, "'x' names no receiver"),
        (["--out", "x.txt"], 2, "--out is x.txt, expected a name in .csv, .tsv"),
        (["pairs.csv"], 2, "--clean has no effect here: pairs.csv has the pairs"),
    ],
)
def test_what_cannot_be_patched_is_refused_in_one_line(
    letters: str, options: list[str], code: int, message: str
) -> None:
    result = run("--model", letters, *PROMPTS, *options)
    assert result.exit_code == code
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_missing_prompt_is_asked_for() -> None:
    result = run("--clean", "abc")
    assert result.exit_code == 2
    assert "--corrupt is missing; give --clean, --corrupt, --answer and --wrong" in result.stderr
