"""--steer of generate and replay: what is said, what is refused, and what receipts keep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from builders import add_vocabulary, write_hub
from features_builders import write_sae
from typer.testing import CliRunner, Result

from gpt2kit.cli import app
from gpt2kit.errors import ConfigError
from gpt2kit.generation.receipts.receipt import receipt
from gpt2kit.generation.request import Request
from gpt2kit.inspection.steering import steered, steering_of
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import BPETokenizer

PROMPT = "The cat s"  # as many tokens as the two prompts with their start have
SEEDED = ["--seed", "1", "--top_k", "0", "--max_tokens", "9", "--ignore_eos"]


@pytest.fixture
def model(weights: Path, tiny_model: GPT2) -> str:
    add_vocabulary(write_hub(weights / "tiny", tiny_model))
    return "tiny"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def generate(*arguments: str) -> Result:
    result = run("generate", PROMPT, "--model", "tiny", *SEEDED, *arguments)
    assert result.exit_code == 0, result.stderr
    return result


def test_a_steered_text_is_another_one_and_the_strength_is_shown(model: str) -> None:
    plain = generate()
    for typed, where in {
        "Love - Hate @1 *500": "at the first",
        "file:a.txt - file:b.txt @1 *500": "at every position",
        "sae:sae#7 *50": "at every position",
    }.items():
        Path("a.txt").write_text("happy\n")
        Path("b.txt").write_text("sad sad\n")
        if not Path("sae").exists():
            write_sae(Path("sae"))
        steered = generate("--steer", typed)
        assert steered.stdout != plain.stdout, typed
        assert f"steering: {typed}: adds a vector of norm" in steered.stderr
        assert where in steered.stderr
        assert "%)" in steered.stderr


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("Love", "expected one ' - ' between two texts; expected 'TEXT - TEXT @LAYER"),
        ("Love - Hate @9", "there is no block 9: the model has 2, from 0 to 1"),
        ("sae:nowhere#3", "nowhere"),
        ("file:none.txt - file:none.txt @1", "none.txt"),
        ("a long prompt that is longer than this - b @1", "and the prompt has only"),
    ],
)
def test_what_cannot_be_done_is_one_line(model: str, typed: str, expected: str) -> None:
    result = run("generate", PROMPT, "--model", model, *SEEDED, "--steer", typed)
    assert result.exit_code == 1
    assert expected in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("typed", ["Love - Hate @1 *500", "sae:sae#7 *50"])
def test_a_receipt_keeps_the_steering_and_replay_writes_the_same_text(
    model: str, typed: str
) -> None:
    write_sae(Path("sae"))
    first = generate("--steer", typed, "--receipt", "r.json")
    assert json.loads(Path("r.json").read_text())["source"]["steer"] == [typed]
    again = run("replay", "r.json", PROMPT)
    assert again.exit_code == 0, again.stderr
    assert again.stdout == first.stdout
    other = run("replay", "r.json", PROMPT, "--steer", "Hate - Love @1 *500")
    assert other.exit_code == 1
    assert "different now: steer: " in other.stderr


def test_a_receipt_of_a_model_with_hooks_that_it_does_not_name_is_refused(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    """Such a receipt would say that the weights alone made the text."""
    vector = steering_of("Love - Hate @1 *5", tiny_model, small_bpe)
    with (
        steered(tiny_model, [vector]),
        pytest.raises(ConfigError, match="a receipt does not hold"),
    ):
        receipt(tiny_model, small_bpe, Request(seed=1), [])
