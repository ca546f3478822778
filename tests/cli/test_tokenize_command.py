"""tokenize, as a user types it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from builders import add_vocabulary, write_hub
from typer.testing import CliRunner, Result

import gpt2kit
from gpt2kit.cli import app, output
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import CharTokenizer


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin)


@pytest.fixture
def model(tmp_path: Path, tiny_model: GPT2) -> str:
    return str(add_vocabulary(write_hub(tmp_path / "model", tiny_model)))


def test_tokens_are_shown_with_ids_and_pieces(model: str) -> None:
    result = run("tokenize", "he é🙂", "--model", model)
    assert result.exit_code == 0
    ids = [int(line.split()[0]) for line in result.stdout.splitlines()]
    _, tokenizer = gpt2kit.load(model, device="cpu")
    assert tokenizer is not None
    assert tokenizer.decode(ids) == "he é🙂"
    assert "'he'" in result.stdout
    assert re.search(r"b'\\x", result.stdout)  # half a character is shown as its bytes
    assert re.search(r"\d+ tokens, 5 characters, [\d.]+ characters per token", result.stderr)


def test_tokens_as_json_and_from_standard_input(model: str) -> None:
    found = json.loads(run("tokenize", "-", "--model", model, "--json", stdin="the end\n").stdout)
    _, tokenizer = gpt2kit.load(model, device="cpu")
    assert tokenizer is not None
    assert found["ids"] == tokenizer.encode("the end")
    assert "".join(found["pieces"]) == "the end"


def test_markers_are_tokens_only_when_special(model: str) -> None:
    assert json.loads(
        run("tokenize", "<|endoftext|>", "--model", model, "--json", "--special").stdout
    )["ids"] == [511]
    assert (
        len(json.loads(run("tokenize", "<|endoftext|>", "--model", model, "--json").stdout)["ids"])
        > 1
    )


def test_tokenizing_nothing_is_no_tokens(model: str) -> None:
    result = run("tokenize", "", "--model", model)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "0 tokens, 0 characters\n")


def test_a_model_without_a_vocabulary_cannot_tokenize(tmp_path: Path, tiny_model: GPT2) -> None:
    result = run("tokenize", "a", "--model", str(write_hub(tmp_path, tiny_model)))
    assert result.exit_code == 1
    assert (
        "no vocabulary beside the weights; expected vocab.json and merges.txt there"
        in result.stderr
    )


def test_a_long_text_is_written_at_once(
    tmp_path: Path, tiny_model: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each token was written and flushed on its own: 10 MB of characters took more than a minute.
    folder = write_hub(tmp_path / "model", tiny_model)
    CharTokenizer([*"abc "]).save(folder)
    written: list[str] = []
    monkeypatch.setattr(output, "result", lambda text, end: written.append(text + end))
    run("tokenize", "-", "--model", str(folder), stdin="ab c" * 250_000)
    assert len(written) == 1
    assert written[0] == "      0  'a'\n      1  'b'\n      3  ' '\n      2  'c'\n" * 250_000
