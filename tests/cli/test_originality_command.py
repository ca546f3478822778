"""gpt2kit originality: what is printed, and that each option has its effect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gpt2kit.cli import app

WORDS = "il sole la luna e le altre stelle che muovono il cielo sopra di noi"


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(
        f"Una prima riga.\n{WORDS}\n" + "".join(f"riga {n} del libro\n" for n in range(50)),
        encoding="utf-8",
    )
    return path


def run(*arguments: object, stdin: str | bytes | None = None) -> Any:
    return CliRunner().invoke(app, ["originality", *map(str, arguments)], input=stdin)


def test_it_shows_the_share_the_longest_run_and_where_it_is(book: Path) -> None:
    result = run("-", "--corpus", book, stdin="Vedo la luna e le altre stelle, ma non il mare.\n")
    assert result.exit_code == 0
    assert "54.5%  in runs of 5 words or more (the end of the corpus" in result.stdout
    assert "6 words, line 2\n  la luna e le altre stelle\n" in result.stdout


def test_a_shortest_run_where_whole_lines_are_compared_is_a_mistake_of_usage(book: Path) -> None:
    result = run("-", "--corpus", book, "--list", "--min_run", 7, stdin="a")
    assert result.exit_code == 2
    assert "--min_run has no effect here" in result.stderr


def test_the_shortest_run_that_counts_can_be_chosen(book: Path) -> None:
    text = "Vedo la luna e le altre stelle, ma non il mare."
    assert "0.0%  in runs of 7" in run("-", "--corpus", book, "--min_run", 7, stdin=text).stdout
    assert "54.5%  in runs of 6" in run("-", "--corpus", book, "--min-run", 6, stdin=text).stdout


def test_json_has_every_passage_and_the_baseline(book: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("la luna e le altre stelle")
    result = json.loads(run(tmp_path / "text.txt", "--corpus", book, "--json").stdout)
    assert (result["words"], result["copied"], result["longest"], result["baseline_longest"]) == (
        6,
        1.0,
        6,
        3,
    )
    assert result["passages"][0]["text"] == "la luna e le altre stelle"
    assert result["passages"][0]["line"] == 2


def test_a_folder_is_a_corpus_and_the_document_is_told(book: Path) -> None:
    (book.parent / "a.txt").write_text("un altro testo")
    assert "line 2 of document 2" in run("-", "--corpus", book.parent, stdin=WORDS).stdout


def test_lists_are_compared_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("ada\nbice\n")
    result = run("-", "--list", "--corpus", tmp_path / "names.txt", stdin="bice\ncarla\ncarla\n")
    assert result.stdout == "new    carla\nknown  bice\n"
    assert "50.0% new: 1 new, 1 in the corpus, 1 repeated" in result.stderr
    result = run(
        "-", "--list", "--json", "--corpus", tmp_path / "names.txt", stdin="bice\ncarla\ncarla\n"
    )
    assert json.loads(result.stdout) == {
        "new": ["carla"],
        "known": ["bice"],
        "repeated": 1,
        "share_new": 0.5,
    }


def test_the_encoding_can_be_told(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_bytes("perché così è la virtù della città".encode("cp1252"))
    result = run(tmp_path / "old.txt", "--corpus", tmp_path / "old.txt")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "add --encoding cp1252" in result.stderr
    assert (
        "100.0%"
        in run(
            tmp_path / "old.txt", "--corpus", tmp_path / "old.txt", "--encoding", "cp1252"
        ).stdout
    )


def test_a_missing_corpus_is_one_line_of_error(tmp_path: Path) -> None:
    result = run("-", "--corpus", tmp_path / "none.txt", stdin="text")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "none.txt: no such file" in result.stderr
