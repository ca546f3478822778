"""generate --receipt and replay, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import add_vocabulary, write_hub
from conftest import make_model
from typer.testing import CliRunner, Result

from gpt2kit.cli import app
from gpt2kit.model import GPT2

PROMPT = "the secret end"


@pytest.fixture
def model(tmp_path: Path, tiny_model: GPT2) -> str:
    return str(add_vocabulary(write_hub(tmp_path / "model", tiny_model)))


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / "receipt.json")


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin)


def write(model: str, file: str, *options: str, prompt: str | None = PROMPT) -> Result:
    given = [] if prompt is None else [prompt]
    result = run("generate", *given, "--model", model, "--receipt", file, *options)
    assert result.exit_code == 0, result.stderr
    return result


def replayed(file: str, *options: str, stdin: str | None = None) -> Result:
    return run("replay", file, *options, stdin=stdin)


def test_a_receipt_replays_to_the_same_text(model: str, file: str) -> None:
    first = write(model, file, "--max_tokens", "30")  # with a seed that is drawn
    again = replayed(file, PROMPT)
    assert again.exit_code == 0
    assert again.stdout == first.stdout
    assert again.stderr == "the text is the same\n"
    assert PROMPT not in Path(file).read_text()
    assert replayed(file, "-", stdin=PROMPT).stdout == first.stdout
    assert f"{PROMPT}{replayed(file, PROMPT, '--no_prompt').stdout}" == first.stdout


def test_a_receipt_with_its_text_needs_no_prompt(model: str, file: str) -> None:
    first = write(model, file, "--receipt_text", "--json")
    found = json.loads(Path(file).read_text())
    assert found["prompts"][0]["text"] == PROMPT
    assert found["texts"][0]["text"] == json.loads(first.stdout)["text"]
    assert "the text is the same" in replayed(file).stderr


@pytest.mark.parametrize(
    "options",
    [
        ["--num_samples", "5", "--batch_size", "2"],
        ["--draft", "lookup", "--temperature", "0"],
        ["--draft", "MODEL", "--draft_tokens", "3"],
        ["--quantize", "int8", "--no_cache"],
        ["--dtype", "bfloat16"],
        ["--bias", "e:3", "--ban", "a", "--stop", "th", "--min_tokens", "5"],
        ["--overflow", "stop", "--max_tokens", "90", "--ignore_eos"],
    ],
    ids=" ".join,
)
def test_every_kind_of_generation_replays(model: str, file: str, options: list[str]) -> None:
    write(model, file, *(model if word == "MODEL" else word for word in options))
    again = replayed(file, PROMPT)
    assert (again.exit_code, again.stderr.count("same")) == (0, 1), again.stderr
    assert "different" not in again.stderr


def test_lines_that_constrain_a_text_are_kept_by_their_digest(
    model: str, file: str, tmp_path: Path
) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("one town\nanother town\n")
    write(model, file, "--allow", str(lines))
    assert "town" not in Path(file).read_text()
    assert "give them again: --allow FILE" in replayed(file, PROMPT).stderr
    again = replayed(file, PROMPT, "--allow", str(lines))
    assert again.stderr == "the text is the same\n"
    lines.write_text("one village\n")
    changed = replayed(file, PROMPT, "--allow", str(lines))
    assert changed.exit_code == 1
    assert "different now: allow: " in changed.stderr
    write(model, file, "--regex", "[a-z]{5,9}")
    assert replayed(file, PROMPT).stderr == "the text is the same\n"


def test_several_prompts_replay_from_their_file(model: str, file: str, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the\nan end\nthe\n")
    options = ["--prompts_file", str(prompts), "--num_samples", "2"]
    write(model, file, *options, prompt=None)
    assert replayed(file, *options[:2]).stderr == "all 6 texts are the same\n"
    prompts.write_text("the\nThe end\n")
    assert "are not the 2 of the receipt" in replayed(file, *options[:2]).stderr


def test_what_was_changed_is_named_with_the_first_token_that_differs(
    model: str, file: str, tmp_path: Path, tiny_config: Any
) -> None:
    write(model, file, "--seed", "1", "--top_k", "0", "--max_tokens", "40")
    changed = replayed(file, PROMPT, "--top_k", "3", "--seed", "2")
    assert changed.exit_code == 1
    assert "the text is another one\nfirst differs at token " in changed.stderr
    assert "different now: top_k: 0 in the receipt, 3 now" in changed.stderr
    assert "different now: seed: 1 in the receipt, 2 now" in changed.stderr
    found = json.loads(replayed(file, PROMPT, "--seed", "2", "--json").stdout)
    assert found["texts"][0]["equal"] is False
    assert found["changes"] == ["seed: 1 in the receipt, 2 now"]
    narrow = replayed(file, PROMPT, "--dtype", "bfloat16")
    assert "different now: dtype: 'float32' in the receipt, 'bfloat16' now" in narrow.stderr
    other = make_model(tiny_config)
    with torch.no_grad():
        other.wte.weight.neg_()
    write_hub(Path(model), other)
    changed = replayed(file, PROMPT)
    assert changed.exit_code == 1
    assert "different now: weights: sha256 " in changed.stderr


def test_a_text_that_was_changed_in_the_receipt_is_noticed(model: str, file: str) -> None:
    write(model, file, "--seed", "1")
    found = json.loads(Path(file).read_text())
    found["texts"][0]["sha256"] = "0" * 64
    Path(file).write_text(json.dumps(found))
    changed = replayed(file, PROMPT)
    assert changed.exit_code == 1
    assert "the tokens are the same, but not the text" in changed.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[]", "expected a JSON object"),
        (b"{}", "this is no receipt of version 1"),
        (b"[" * 10**5, "not valid JSON"),
        (b'{"receipt": 1, "receipt": 1}', "a key is given twice"),
    ],
)
def test_a_file_that_is_no_receipt_is_one_line(file: str, content: bytes, message: str) -> None:
    Path(file).write_bytes(content)
    refused = replayed(file, PROMPT)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert message in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_hostile_values_in_a_receipt_are_one_line(model: str, file: str) -> None:
    write(model, file)
    found = json.loads(Path(file).read_text())
    for part, change in (
        ("source", {"model": 3}),
        ("source", {"model": "/no/such/model"}),
        ("source", {"trust": True}),
        ("source", {"batch_size": 0}),
        ("source", {"draft": 3}),
        ("source", {"dtype": "float1"}),
        ("options", {"top_k": -1}),
        ("options", {"invented": 1}),
        ("options", {"num_samples": 0}),
        ("options", {"first_sample": 7}),
    ):
        Path(file).write_text(json.dumps({**found, part: {**found[part], **change}}))
        refused = replayed(file, PROMPT)
        assert (refused.exit_code, refused.stdout) == (1, ""), change
        assert refused.stderr.startswith("error: ")
        assert refused.stderr.count("\n") == 1


def test_a_receipt_that_cannot_be_written_is_refused_before_the_text(
    model: str, tmp_path: Path
) -> None:
    for name, message in (("none/receipt.json", "no such folder"), ("", "expected the name of")):
        refused = run("generate", "a", "--model", model, "--receipt", str(tmp_path / name))
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert message in refused.stderr
    refused = run("generate", "a", "--model", model, "--receipt_text")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "--receipt_text is for --receipt FILE" in refused.stderr
