"""generate with --regex, --allow, --forbid and --valid_utf8, as a user types it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from builders import add_vocabulary, write_hub
from typer.testing import CliRunner, Result

from gpt2kit.cli import app
from gpt2kit.model import GPT2


@pytest.fixture
def model(tmp_path: Path, tiny_model: GPT2, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return str(add_vocabulary(write_hub(tmp_path / "model", tiny_model)))


def generate(model: str, *arguments: str) -> Result:
    words = ["generate", *arguments, "--model", model, "--device", "cpu", "--seed", "1"]
    return CliRunner().invoke(app, words)


def test_every_prompt_of_a_file_gets_texts_that_match(model: str) -> None:
    Path("prompts").write_text("one\ntwo\n")
    result = generate(
        model, "--prompts_file", "prompts", "--num_samples", "3", "--json", "--regex", r"\d{2}[è🙂]"
    )
    assert result.exit_code == 0, result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(found) == 6
    assert all(re.fullmatch(r"\d{2}[è🙂]", one["text"]) for one in found)
    assert {(one["finish_reason"], one["matches"]) for one in found} == {("constraint", True)}


def test_lines_are_allowed_and_forbidden_by_files(model: str) -> None:
    Path("lines").write_text("\ufeffperché no\r\n\r\ntwo words\n", encoding="utf-8")
    chosen = generate(model, "a", "--no_prompt", "--allow", "lines")
    assert chosen.stdout in ("perché no\n", "two words\n")
    other = "two words\n" if chosen.stdout == "perché no\n" else "perché no\n"
    Path("not").write_text(chosen.stdout, encoding="utf-8")
    asked = ("--no_prompt", "--allow", "lines", "--forbid", "not", "--valid_utf8")
    assert generate(model, "a\n", *asked).stdout == other


@pytest.mark.parametrize(
    "arguments", [["-", "--allow", "-"], ["--allow=-"], ["a", "--allow=-", "--forbid=-"]]
)
def test_standard_input_is_read_for_one_thing(model: str, arguments: list[str]) -> None:
    """The second one that read it was empty, without a word."""
    result = generate(model, *arguments)
    assert result.exit_code == 2
    assert "standard input is read once, not for" in result.stderr


def test_a_text_that_was_cut_short_is_told(model: str) -> None:
    result = generate(model, "a", "--regex", "[a-z]{90}", "--max_tokens", "3")
    assert result.exit_code == 0
    expected = "warning: 1 text ended before the constraint was met; give more --max_tokens\n"
    assert result.stderr == expected
    assert generate(model, "a", "--regex", "[a-z]{2}").stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--regex", "("], "which is no pattern: missing ), unterminated"),
        (["--regex", r"(a)\1"], "the backreference"),
        (["--regex", r"[^\s\S]"], "no text is allowed by regex"),
        (["--regex", ""], "only the empty text is allowed by regex"),
        (["--regex", "a{1,99999}"], "too many states"),
        (["--allow", "nowhere"], "nowhere: No such file"),
        (["--forbid", "empty"], "empty: no lines"),
        (["--allow", "latin1"], "latin1: not UTF-8 text: byte 4 is 0xe9"),
        (["--allow", "one", "--regex", "two"], "no text is allowed by regex and allow"),
    ],
)
def test_a_constraint_that_cannot_be_met_is_one_line_and_nothing_before(
    model: str, arguments: list[str], message: str
) -> None:
    Path("empty").write_text("\n\n")
    Path("latin1").write_bytes(b"perch\xe9\n"[1:])
    Path("one").write_text("one\n")
    result = generate(model, "the prompt", *arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
