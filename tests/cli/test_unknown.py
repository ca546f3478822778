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
