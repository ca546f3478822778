"""Vectors of texts and words: transformers' hidden states, pooled by offsets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from builders import write_hub
from conftest import make_model

from gpt2kit.config import GPT2Config
from gpt2kit.evaluation.passages import Passage, Unit, split
from gpt2kit.evaluation.vectors import text_vectors, token_states, word_vectors
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import BPETokenizer

CONFIG = GPT2Config(n_vocab=512, n_ctx=64, n_embd=16, n_head=2, n_layer=3)
TEXTS = ["The cat sat on thé mat.", "So", "One two"]


@pytest.fixture(scope="module")
def model() -> GPT2:
    return make_model(CONFIG)


def theirs(model: GPT2, folder: Path, ids: list[int]) -> Any:
    """Return the hidden states of transformers, (L + 1) of (T, C)."""
    transformers = pytest.importorskip("transformers")
    judge = transformers.GPT2LMHeadModel.from_pretrained(write_hub(folder / "hf", model)).eval()
    with torch.no_grad():
        return [each[0] for each in judge(torch.tensor([ids]), output_hidden_states=True)[2]]


def test_vectors_are_means_of_transformers_hidden_states_without_position_0(
    model: GPT2, small_bpe: BPETokenizer, tmp_path: Path
) -> None:
    ids = small_bpe.encode(TEXTS[0])
    states = theirs(model, tmp_path, [511, *ids])
    vectors = [vector for vector, _ in text_vectors(model, small_bpe, TEXTS, [0, 1, 2, "ln_f"])]
    for layer in range(4):  # transformers' last one is after ln_f
        expected = states[layer][1:].mean(dim=0)
        torch.testing.assert_close(vectors[0][layer], expected, atol=1e-4, rtol=1e-4)


def test_a_words_vector_is_that_of_its_tokens(
    model: GPT2, small_bpe: BPETokenizer, tmp_path: Path
) -> None:
    ids = small_bpe.encode(TEXTS[0])
    stream = theirs(model, tmp_path, [511, *ids])[2][1:]
    pieces = [len(small_bpe.encode(word)) for word in ("The", " cat", " sat", " on", " thé")]
    for pool in ("mean", "last", "first"):
        (found,) = word_vectors(model, small_bpe, [split(TEXTS[0])], [2], pool=pool)
        assert found.shape == (6, 1, 16)
        done = 0
        for word, n in enumerate(pieces):
            own = stream[done : done + n]
            expected = {"mean": own.mean(dim=0), "last": own[-1], "first": own[0]}[pool]
            torch.testing.assert_close(found[word, 0], expected, atol=1e-4, rtol=1e-4)
            done += n


def test_without_a_mark_the_first_token_is_in_no_vector(
    model: GPT2, small_bpe: BPETokenizer
) -> None:
    text = "a b c"
    (found,) = word_vectors(model, small_bpe, [split(text)], [1], first="none")
    assert found[0].isnan().all()
    assert not found[1:].isnan().any()
    vectors = list(text_vectors(model, small_bpe, ["a", "", text], [1], first="none"))
    assert [error for _, error in vectors] == [
        "the text has one token, and nothing before it",
        "the text is empty",
        None,
    ]
    torch.testing.assert_close(vectors[2][0], found[1:].mean(dim=0))


def test_a_long_text_has_each_token_once_from_the_first_window_that_has_it(
    model: GPT2, small_bpe: BPETokenizer
) -> None:
    ids = small_bpe.encode("The cat sat on the mat. " * 20)
    assert len(ids) > 2 * CONFIG.n_ctx
    (found,) = token_states(model, small_bpe, [ids], [1])
    assert found.shape == (len(ids), 1, 16)
    assert not found.isnan().any()
    (beginning,) = token_states(model, small_bpe, [ids[: CONFIG.n_ctx - 1]], [1])
    torch.testing.assert_close(found[: CONFIG.n_ctx - 1], beginning, atol=1e-5, rtol=1e-5)
    # With windows that do not overlap, each begins with a token that has no vector.
    (apart,) = token_states(model, small_bpe, [ids], [1], stride=CONFIG.n_ctx)
    missing = apart[:, 0, 0].isnan().nonzero()[:, 0].tolist()
    assert missing == [CONFIG.n_ctx * number - 1 for number in range(1, len(missing) + 1)]


def test_the_first_vectors_come_before_the_last_texts_are_read(small_bpe: BPETokenizer) -> None:
    # The hidden states of 256 texts were in memory together, whatever their length: 10 GB for 13
    # layers of texts of 1,000 tokens.
    wide = make_model(GPT2Config(n_vocab=512, n_ctx=64, n_embd=1024, n_head=2, n_layer=0))
    rows: list[int] = []
    wide.wte.register_forward_hook(lambda _, args, output: rows.append(len(args[0])))
    texts = [small_bpe.encode("a b c d " * 8)[:32]] * 24
    found = token_states(wide, small_bpe, texts, [0] * 100)
    assert next(found).shape == (32, 100, 1024)
    assert sum(rows) < 24
    assert len(list(found)) == 23
    assert sum(rows) == 24


def test_normalized_vectors_have_length_one(model: GPT2, small_bpe: BPETokenizer) -> None:
    plain, unit = (
        [vector for vector, _ in text_vectors(model, small_bpe, TEXTS, ["ln_f"], normalize=yes)]
        for yes in (False, True)
    )
    for one, other in zip(plain, unit, strict=True):
        assert float(other.norm()) == pytest.approx(1.0, abs=1e-6)
        torch.testing.assert_close(one / one.norm(), other)


def test_a_word_whose_tokens_all_end_in_the_next_one_has_no_vector(
    model: GPT2, small_bpe: BPETokenizer
) -> None:
    passage = Passage(" the", (Unit(0, 2), Unit(2, 4)))  # one token
    assert len(small_bpe.encode(" the")) == 1
    found, empty = word_vectors(model, small_bpe, [passage, split("")], [1])
    assert found[0].isnan().all()
    assert not found[1].isnan().any()
    assert empty.shape == (0, 1, 16)
