"""GPT-2's real weights, where they are in weights/: what other programs say they answer.

gpt2kit download 124M && pytest -m weights
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from gpt2kit.checkpoints.load import load
from gpt2kit.evaluation.verify import verify
from gpt2kit.evaluation.word_options import WordOptions
from gpt2kit.evaluation.words import words

WEIGHTS = Path(__file__).parent.parent / "weights"


@pytest.mark.weights
@pytest.mark.parametrize("name", ["124M", "124M-openai"])
def test_published_weights_give_their_published_answers(name: str) -> None:
    if not (WEIGHTS / name).is_dir():
        pytest.skip(f"weights/{name} is not here; run: gpt2kit download 124M")
    outcomes = {check.name: check for check in verify(WEIGHTS / name)}
    assert not [check for check in outcomes.values() if check.passed is False]
    assert outcomes["fingerprint"].passed


@pytest.mark.weights
def test_the_tokens_of_gltr_have_its_probabilities_and_ranks(test_data: Path) -> None:
    # GLTR's own server: 2,136 tokens of six texts, probabilities to five decimals, ranks from 0.
    if not (WEIGHTS / "124M").is_dir():
        pytest.skip("weights/124M is not here; run: gpt2kit download 124M")
    model, tokenizer = load(WEIGHTS / "124M", device="cpu", dtype="float32")
    for path in sorted((test_data / "known/gltr").glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        (found,) = words(model, tokenizer, content["request"]["text"])
        tokens = [token for word in found for token in word.tokens]
        for token, (rank, probability) in zip(tokens, content["result"]["real_topk"], strict=True):
            assert 2 ** -(token.surprisal or math.inf) == pytest.approx(probability, abs=6e-6)
            assert abs((token.rank or 0) - 1 - rank) <= 1 + 0.001 * rank  # but for ties


# The surprisal README, in nats after <|endoftext|>; it leaves that token out of the sum.
KNOWN = {
    "The cat is on the mat": [3.276, 9.222, 2.463, 4.145, 0.961, 7.237],
    "The pizza is on the mat": [3.276, 10.860, 3.212, 4.910, 0.985, 8.379],
}


@pytest.mark.weights
@pytest.mark.parametrize("text", KNOWN)
def test_words_have_their_published_surprisals(text: str) -> None:
    if not (WEIGHTS / "124M").is_dir():
        pytest.skip("weights/124M is not here; run: gpt2kit download 124M")
    model, tokenizer = load(WEIGHTS / "124M", device="cpu", dtype="float32")
    (found,) = words(model, tokenizer, text, options=WordOptions(base="e"))
    assert [word.surprisal for word in found] == pytest.approx(KNOWN[text], abs=3e-3)
