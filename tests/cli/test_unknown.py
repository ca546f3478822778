"""--unknown: what generate and tokenize do with characters that a model does not know."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gpt2kit.cli import app
from gpt2kit.tokenizers import CharTokenizer

MODEL = Path(__file__).parents[1] / "golden/hf/safetensors"


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A model of 512 characters, among them those of ASCII."""
    shutil.copytree(MODEL, tmp_path / "model")
    CharTokenizer([chr(code) for code in (*range(32, 127), *range(0x400, 0x400 + 417))]).save(
        tmp_path / "model"
    )
    return str(tmp_path / "model")


@pytest.mark.parametrize("command", ["generate", "tokenize"])
def test_an_unknown_character_is_one_line_of_error(command: str, model: str) -> None:
    result = CliRunner().invoke(app, [command, "piñata", "--model", model])
    assert result.exit_code == 1
    assert "error: the character 'ñ' at offset 2" in result.stderr
    assert "the nearest are 'n', 'N'" in result.stderr


def test_skipped_it_is_as_if_it_were_not_there(model: str) -> None:
    def generated(prompt: str) -> str:
        command = [
            "generate",
            prompt,
            "--model",
            model,
            "--unknown",
            "skip",
            "--no_prompt",
            "--seed",
            "1",
            "--max_tokens",
            "8",
        ]
        return CliRunner().invoke(app, command).stdout

    assert len(generated("pinata").rstrip("\n")) == 8
    assert generated("piñnata") == generated("pinata")
    assert (
        "'p'"
        in CliRunner().invoke(app, ["tokenize", "ñp", "--model", model, "--unknown", "skip"]).stdout
    )


def test_another_word_is_a_mistake_of_usage(model: str) -> None:
    assert (
        CliRunner()
        .invoke(app, ["tokenize", "p", "--model", model, "--unknown", "ignore"])
        .exit_code
        == 2
    )


@pytest.mark.parametrize(("command", "advised"), [("cloze", False), ("tokenize", True)])
def test_the_option_is_advised_by_the_commands_that_have_it(
    command: str, advised: bool, model: str
) -> None:
    # Every command advised --unknown skip, and most refused it when it was typed.
    result = CliRunner().invoke(app, [command, "piñata", "--model", model])
    assert result.stderr.rstrip().endswith(", or add --unknown skip") is advised
    assert result.stderr.count("\n") == 1


def test_the_option_is_advised_if_a_line_of_a_file_cannot_be_written(
    model: str, tmp_path: Path
) -> None:
    (tmp_path / "lines.txt").write_text("ñ\n")
    result = CliRunner().invoke(app, ["score", str(tmp_path / "lines.txt"), "--model", model])
    assert "line 1: the character 'ñ'" in result.stderr
    assert ", or add --unknown skip" in result.stderr


def test_a_cell_with_an_error_names_no_option(model: str, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("piñata\n")
    command = ["surprisal", str(tmp_path / "lines.txt"), "--model", model]
    result = CliRunner().invoke(app, command)
    assert "the character 'ñ' at offset 2" in result.stdout
    assert "--unknown" not in result.stdout
