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


def commands_alone() -> list[str]:
    return list(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def help_of(command: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "110")
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.parametrize("command", commands())
def test_a_type_is_a_short_word_and_only_where_a_value_is_typed(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # --help itself was a <bool>, MODEL a <list[str]>, and --top_k an <int range> [x>=0].
    shown = help_of(command, monkeypatch)
    assert not re.search(r"<(str|path|list|bool|int|float)\b|range|[x<>]=\d", shown)


@pytest.mark.parametrize("command", ["explain", "evaluate", "score", "diff", "blend", "plot lens"])
def test_options_stand_in_groups(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # They were one list of up to 27.
    shown = help_of(command, monkeypatch)
    headings = re.findall(r"^╭─ (.+?) ─", shown, re.MULTILINE)
    assert {"Model", "Text", "Output"} <= set(headings)
    model = shown.split("─ Model ─")[1].split("╰")[0]
    assert {"--device", "--dtype"} <= set(re.findall(r"--\w+", model))
    assert "--json" not in model


def test_help_is_listed_only_among_other_options_without_a_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A heading "Options" over --help alone says nothing.
    assert "--help" not in help_of("explain", monkeypatch)
    assert "--help" in help_of("blend", monkeypatch)


def test_commands_stand_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = help_of("", monkeypatch)
    headings = re.findall(r"^╭─ (.+?) ─", shown, re.MULTILINE)
    assert headings == ["Options", "Write", "Models", "Train", "Measure", "Look inside"]
    assert len(set(re.findall(r"^│ (\w+)  ", shown, re.MULTILINE))) == len(commands_alone())


def test_paragraphs_are_as_wide_as_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    # They ended where a line of the program ends, and at the edge of the terminal too.
    assert "including the <|endoftext|> between two documents." in help_of("evaluate", monkeypatch)


def test_an_optional_argument_is_in_brackets_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "generate [OPTIONS] [PROMPT|-] " in help_of("generate", monkeypatch)


def test_options_may_be_typed_with_dashes_and_in_british_spelling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "--color" in help_of("explain", monkeypatch)
    assert "colour" not in help_of("explain", monkeypatch)
    for spelling in ("--color", "--colour"):
        done = CliRunner().invoke(app, ["explain", "none", "x", spelling, "purple"])
        assert done.exit_code == 2
        assert "purple" in done.stderr
        assert "No such option" not in done.stderr
