"""The help of every command: what a user needs, and no types of the program's own."""

from __future__ import annotations

import re

import pytest
import typer
from typer.testing import CliRunner

from gpt2kit.cli import app


def commands() -> list[str]:
    root = typer.main.get_command(app)
    kinds = root.commands["plot"].commands  # type: ignore[attr-defined]
    return ["", *root.commands, *(f"plot {kind}" for kind in kinds)]  # type: ignore[attr-defined]


def help_of(command: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "110")
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.parametrize("command", commands())
def test_a_type_is_shown_only_where_it_says_something(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # --help itself was a <bool>, and MODEL a <list[str]>.
    before, options = re.split(r"─ Options ─", help_of(command, monkeypatch))
    assert re.search(r"--help +-h +Show this message", options)
    assert "<bool>" not in options
    assert not re.search(r"<(str|path|list|bool)", before)


def test_paragraphs_are_as_wide_as_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    # They ended where a line of the program ends, and at the edge of the terminal too.
    assert " too. Perplexities compare only models with the same vocabulary" in help_of(
        "evaluate", monkeypatch
    )


def test_an_optional_argument_is_in_brackets_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "generate [OPTIONS] [PROMPT|-] " in help_of("generate", monkeypatch)
