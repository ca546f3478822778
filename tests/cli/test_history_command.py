"""history: off unless it is turned on, searchable, and for its user's eyes only."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from builders import add_vocabulary, write_hub
from typer.testing import CliRunner, Result

from gpt2kit.cli import app
from gpt2kit.cli import history as module
from gpt2kit.model import GPT2


@pytest.fixture
def model(tmp_path: Path, tiny_model: GPT2) -> str:
    return str(add_vocabulary(write_hub(tmp_path / "model", tiny_model)))


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.stderr
    return result


def write(model: str, prompt: str, *options: str) -> str:
    return run("generate", prompt, "--model", model, "--max_tokens", "5", *options).stdout


def kept() -> list[str]:
    lines = run("history", "--json").stdout.splitlines()
    return [json.loads(line)["prompt"] for line in lines]


def test_nothing_is_kept_unless_it_was_turned_on(model: str) -> None:
    write(model, "one")
    assert kept() == []
    assert not list(Path(os.environ["GPT2KIT_DATA"]).iterdir())
    assert "the history is off, and gpt2kit history --on turns it on" in run("history").stderr


def test_texts_are_kept_from_on_to_off_until_they_are_cleared(model: str) -> None:
    run("history", "--on")
    first = write(model, "one", "--seed", "7")
    write(model, "two", "--json", "--num_samples", "2")
    run("history", "--off")
    write(model, "three")
    assert kept() == ["one", "two", "two"]
    shown = run("history").stdout
    assert first.strip() in shown
    assert "seed 7" in shown
    run("history", "--on")
    write(model, "four")
    assert kept() == ["one", "two", "two", "four"]
    run("history", "--clear")
    assert kept() == []
    write(model, "five")
    assert kept() == ["five"]


def test_words_are_searched_for_whatever_their_case(model: str) -> None:
    run("history", "--on")
    write(model, "The Dog and the cat")
    write(model, "the dog")
    found = run("history", "dog", "CAT", "--json").stdout.splitlines()
    assert [json.loads(line)["prompt"] for line in found] == ["The Dog and the cat"]
    assert "no such text" in run("history", "horse").stderr


def test_only_the_user_may_read_the_file(model: str) -> None:
    run("history", "--on")
    write(model, "one")
    (file,) = Path(os.environ["GPT2KIT_DATA"]).iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_older_half_goes_when_there_is_too_much(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGEST", 1500)
    run("history", "--on")
    for number in range(9):
        write(model, f"text {number}", "--seed", str(number))
    found = kept()
    assert found[-1] == "text 8"
    assert 1 < len(found) < 9
    assert found == [f"text {number}" for number in range(9 - len(found), 9)]
    (file,) = Path(os.environ["GPT2KIT_DATA"]).iterdir()
    assert file.stat().st_size <= 1500
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_damaged_lines_are_left_out(model: str) -> None:
    run("history", "--on")
    (file,) = Path(os.environ["GPT2KIT_DATA"]).iterdir()
    file.write_bytes(b'{"time": 3}\n\xff\n[1]\n' + b"[" * 10**5 + b"\n")
    write(model, "one")
    assert kept() == ["one"]


def test_options_that_exclude_each_other_are_refused() -> None:
    for options in (["--on", "--off"], ["dog", "--clear"]):
        assert CliRunner().invoke(app, ["history", *options]).exit_code == 2
