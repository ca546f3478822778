"""The surprisal of words: equal to NumPy and minicons, and the identities that it must keep."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_model

import gpt2kit
from gpt2kit import reference
from gpt2kit.config import GPT2Config
from gpt2kit.errors import ConfigError, TokenizerError
from gpt2kit.evaluation.perplexity import score
from gpt2kit.evaluation.word_options import WordOptions
from gpt2kit.evaluation.words import Word, words
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import BPETokenizer, CharTokenizer

TEXT = 'The cat didn\'t  sit on thé 中文 mat, "or" 👩‍👩‍👧 so.\nAnd e\u0301s!'


WHITE = [bytes([byte]) for byte in b" \n\t\r\f\v"]


@pytest.fixture(scope="module")
def model() -> GPT2:
    return make_model(GPT2Config(n_vocab=512, n_ctx=128, n_embd=16, n_head=2, n_layer=2))


def measure(model: GPT2, tokenizer: Any, text: str, **options: Any) -> list[Word]:
    return words(model, tokenizer, text, options=WordOptions(**options))[0]


def numpy_logs(model: GPT2, ids: list[int]) -> Any:
    """Return the log probabilities after each id, by the reference model in float64."""
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    logits = reference.logits(model.config, weights, ids)
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def test_every_figure_is_that_of_numpy_in_float64(model: GPT2, small_bpe: BPETokenizer) -> None:
    ids = small_bpe.encode(TEXT)
    logs = numpy_logs(model, [511, *ids])  # (n + 1, V)
    begins = np.array([small_bpe.token_bytes(token)[:1] in WHITE for token in range(512)])
    begins[511] = True  # <|endoftext|>
    ending = [-np.logaddexp.reduce(row[begins]) for row in logs]
    found = measure(model, small_bpe, TEXT, base="e", renyi=0.5)
    assert [word.text for word in found] == TEXT.split()
    at = 0
    for number, word in enumerate(found):
        n = len(word.tokens)
        own = range(at, at + n)
        assert [token.id for token in word.tokens] == ids[at : at + n]
        nats = -sum(logs[i, ids[i]] for i in own)
        assert word.surprisal == pytest.approx(nats, abs=1e-4)
        corrected = nats + ending[at + n] - (ending[at] if number else 0)
        assert word.surprisal_corrected == pytest.approx(corrected, abs=1e-4)
        first = logs[at]
        p = np.exp(first)
        assert word.entropy == pytest.approx(-(p * first).sum(), abs=1e-4)
        q = p[begins if number else ~begins]
        q /= q.sum()
        assert word.entropy_word == pytest.approx(-(q * np.log(q)).sum(), abs=1e-4)
        assert word.renyi == pytest.approx(2 * np.log(np.sqrt(p).sum()), abs=1e-4)
        assert word.rank == 1 + (first > first[ids[at]]).sum()
        assert word.n_context == at + 1
        at += n
    assert at == len(ids)


# minicons 0.3.39 on the shared model, in bits: token_score(bow_correction=True, bos_token=True);
# compared to 2e-4 bits, or 1.4e-4 nats, as it adds up in another order
MINICONS = {
    "I was a matron in France.": (
        [11.483534, 7.876029, 3.417903, 17.242527, 10.417029, 7.091206, 9.935184, 2.082616],
        [11.818974, 7.636578, 3.450511, 17.113930, 11.491675, 6.093643, 9.858101, 4.444190],
    ),
    "The cat didn't sit on the mat.": (
        [
            13.915667,
            13.229656,
            26.224253,
            14.124192,
            13.407173,
            4.054990,
            2.687815,
            18.454609,
            16.886599,
        ],
        [
            13.972528,
            13.373869,
            26.023176,
            15.188354,
            12.788589,
            4.262892,
            2.108795,
            18.380152,
            19.223624,
        ],
    ),
}


@pytest.mark.parametrize("text", MINICONS)
def test_words_are_those_of_minicons(text: str, test_data: Path) -> None:
    gpt2, tokenizer = gpt2kit.load(test_data / "models/shakespeare", dtype="float32", device="cpu")
    plain, corrected = MINICONS[text]
    found = measure(gpt2, tokenizer, text, boundary="space")
    at = 0
    for word in found:
        end = at + len(word.tokens)
        assert word.surprisal == pytest.approx(sum(plain[at:end]), abs=2e-4)
        assert word.surprisal_corrected == pytest.approx(sum(corrected[at:end]), abs=2e-4)
        at = end
    assert at == len(plain)


def test_the_sum_of_words_is_what_score_gives_for_the_line(
    model: GPT2, small_bpe: BPETokenizer
) -> None:
    long = "so it goes on " * 40  # more tokens than the model reads at once
    for text in ("The cat sat.", long.strip()):
        (line,) = score(model, small_bpe, [text])
        total = sum(word.surprisal or 0 for word in measure(model, small_bpe, text, base="e"))
        assert -total == pytest.approx(line.logprob, abs=1e-4)


@pytest.mark.parametrize("punctuation", ["keep", "split"])
def test_corrections_move_probability_between_words_and_lose_none(
    punctuation: Any, model: GPT2, small_bpe: BPETokenizer
) -> None:
    # The sum of the corrected surprisals exceeds the sum of the plain ones by b at the text's end.
    text = 'He said "no", twice.'
    found = measure(model, small_bpe, text, base="e", punctuation=punctuation)
    logs = numpy_logs(model, [511, *small_bpe.encode(text)])[-1]
    begins = [
        token for token in range(512) if token == 511 or small_bpe.token_bytes(token)[:1] in WHITE
    ]
    end = -np.logaddexp.reduce(logs[begins])
    plain = sum(word.surprisal or 0 for word in found)
    corrected = sum(word.surprisal_corrected or 0 for word in found)
    assert corrected == pytest.approx(plain + end, abs=1e-3)


def test_corrected_probabilities_of_all_words_sum_to_one_but_plain_ones_to_more() -> None:
    # All words of up to seven letters a and b, and what is left for longer ones, are as likely as
    # that a letter comes. The plain "probabilities" add up to more, as a word and its
    # beginnings are all counted.
    tokenizer = CharTokenizer([" ", "a", "b", "<|endoftext|>"])
    model = make_model(GPT2Config(n_vocab=4, n_ctx=16, n_embd=8, n_head=2, n_layer=1), seed=3)
    every = [""]
    for _ in range(7):
        every += [word + letter for word in every for letter in "ab"]
    candidates = sorted({word for word in every if 0 < len(word) <= 7})
    found = words(
        model, tokenizer, [f"ab {word}" for word in candidates], options=WordOptions(base="e")
    )
    corrected = [math.exp(-(text[-1].surprisal_corrected or 0)) for text in found]
    plain = [math.exp(-(text[-1].surprisal or 0)) for text in found]
    logs = numpy_logs(model, [3, 1, 2])[-1]
    begin = np.exp(np.logaddexp(logs[0], logs[3]))  # a space or the end of the text
    after = np.exp(numpy_logs(model, [3, 1, 2, 0])[-1])
    letters = np.exp(logs[0]) / begin * (after[1] + after[2])
    longer = sum(
        plain[index] / begin - corrected[index]
        for index, word in enumerate(candidates)
        if len(word) == 7
    )
    assert sum(corrected) + longer == pytest.approx(letters, abs=1e-5)
    assert sum(plain) / begin > letters + 0.1


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_company_and_order_change_nothing(
    batch_size: int, model: GPT2, small_bpe: BPETokenizer
) -> None:
    texts = ["The cat sat on the mat.", "No.", TEXT, "a b c " * 60, ""]
    alone = [measure(model, small_bpe, text) for text in texts]
    together = words(model, small_bpe, texts[::-1], batch_size=batch_size)[::-1]
    for one, other in zip(alone, together, strict=True):
        assert [word.surprisal_corrected for word in one] == pytest.approx(
            [word.surprisal_corrected for word in other], abs=1e-4
        )
        assert [word.text for word in one] == [word.text for word in other]


@pytest.mark.parametrize("stride", [None, 16, 128])
def test_a_long_text_is_read_in_windows_that_say_their_context(
    stride: int | None, model: GPT2, small_bpe: BPETokenizer
) -> None:
    text = "so it goes on and on " * 40
    found = measure(model, small_bpe, text, stride=stride, base="e")
    n = len(small_bpe.encode(text))
    assert n > 2 * 128
    least = 128 - (stride or 64) + 1
    assert min(word.n_context or 0 for word in found[len(found) // 2 :]) >= least
    assert max(word.n_context or 0 for word in found) <= 128
    # Each token is what the reference says of the tokens that it is predicted from.
    ids = [511, *small_bpe.encode(text)]
    word = found[100]
    at = sum(len(each.tokens) for each in found[:100]) + 1
    token = word.tokens[0]
    logs = numpy_logs(model, ids[at - token.n_context : at])
    assert token.surprisal == pytest.approx(-logs[-1, token.id], abs=1e-4)


def test_without_a_mark_before_it_the_first_word_has_no_figures(
    model: GPT2, small_bpe: BPETokenizer
) -> None:
    # Other programs give the first token a surprisal of zero, as if it were certain.
    first, second = measure(model, small_bpe, "The cat", first="none", base="e")
    assert (first.surprisal, first.surprisal_corrected, first.entropy, first.rank) == (None,) * 4
    assert first.flags == ("no-context",)
    logs = numpy_logs(model, small_bpe.encode("The cat"))
    n = len(first.tokens)
    ids = small_bpe.encode("The cat")
    expected = -sum(logs[i - 1, ids[i]] for i in range(n, len(ids)))
    assert second.surprisal == pytest.approx(expected, abs=1e-4)
    assert second.flags == ()


def test_bases_are_units_of_one_figure(model: GPT2, small_bpe: BPETokenizer) -> None:
    bits, nats, digits = (
        measure(model, small_bpe, "The cat sat", base=base)[1] for base in ("2", "e", "10")
    )
    for name in ("surprisal", "surprisal_corrected", "entropy", "entropy_word"):
        assert getattr(bits, name) * math.log(2) == pytest.approx(getattr(nats, name))
        assert getattr(digits, name) * math.log(10) == pytest.approx(getattr(nats, name))
    assert bits.rank == nats.rank


def test_tokens_spell_the_text_and_their_offsets_are_of_characters(
    model: GPT2, small_bpe: BPETokenizer
) -> None:
    # Offsets were counted in tokens' decoded texts elsewhere: one emoji is several tokens.
    found = measure(model, small_bpe, TEXT)
    tokens = [token for word in found for token in word.tokens]
    assert "".join(token.text for token in tokens) == TEXT
    assert all(TEXT[token.start : token.end] == token.text for token in tokens)
    assert all(TEXT[word.start : word.end] == word.text for word in found)


def test_odd_spellings_are_flagged_and_kept(model: GPT2, small_bpe: BPETokenizer) -> None:
    decomposed, spaced, plain = measure(model, small_bpe, "e\u0301s 10\xa0km fine")
    assert decomposed.flags == ("not-nfc",)
    assert spaced.flags == ("odd-space",)
    assert plain.flags == ()


@pytest.mark.parametrize("text", ["", " ", " \n\t "])
def test_a_text_without_words_has_none(text: str, model: GPT2, small_bpe: BPETokenizer) -> None:
    assert measure(model, small_bpe, text) == []


def test_a_space_alone_ends_a_word_if_asked(model: GPT2, small_bpe: BPETokenizer) -> None:
    wide, narrow = (
        measure(model, small_bpe, "The cat", boundary=boundary)
        for boundary in ("whitespace", "space")
    )
    # With fewer ways to end, the end is less likely.
    assert (narrow[0].surprisal_corrected or 0) > (wide[0].surprisal_corrected or 0)


def test_a_model_of_characters_has_words_too() -> None:
    tokenizer = CharTokenizer(sorted({*"The cat\n"}))
    model = make_model(GPT2Config(n_vocab=8, n_ctx=16, n_embd=8, n_head=2, n_layer=1))
    first, second = measure(model, tokenizer, "The cat")
    assert first.flags == ("no-context",)
    assert [token.text for token in second.tokens] == [*" cat"]
    with pytest.raises(TokenizerError, match="text 1: the character 'd'"):
        measure(model, tokenizer, "The dog")
    tokenizer.unknown = "skip"
    with pytest.raises(TokenizerError, match="do not spell it"):
        measure(model, tokenizer, "The dog")


@pytest.mark.parametrize("order", [0.9, 0.95, 1 - 1e-6, 1 + 1e-12, 1.05, 1.1])
def test_a_renyi_entropy_of_an_order_near_one_is_exact(
    model: GPT2, small_bpe: BPETokenizer, order: float
) -> None:
    # The sum of the powers was rounded to 1, and divided by next to nothing: 3% off at 1.000001.
    (word,) = measure(model, small_bpe, "the", base="e", renyi=order)
    p = np.exp(numpy_logs(model, [511])[0])
    expected = -(p * np.log(p)).sum()
    if abs(order - 1) > 1e-3:
        expected = np.log((p**order).sum()) / (1 - order)
    assert word.renyi == pytest.approx(expected, rel=1e-5)


def test_without_a_token_that_begins_a_word_no_corrected_surprisal_is_there() -> None:
    # It was infinite: no token can tell that a word ends.
    tokenizer = CharTokenizer(["a", "b", "\n"])
    tiny = make_model(GPT2Config(n_vocab=3, n_ctx=16, n_embd=8, n_head=1, n_layer=1))
    for boundary, is_there in (("whitespace", True), ("space", False)):
        _, word = measure(tiny, tokenizer, "ab\nba", boundary=boundary)
        assert word.surprisal is not None
        assert (word.surprisal_corrected is not None) == is_there


def test_a_renyi_entropy_of_order_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="renyi is 1"):
        WordOptions(renyi=1.0)
    with pytest.raises(ConfigError, match="renyi is 0"):
        WordOptions(renyi=0.0)


def test_padding_of_the_head_begins_no_word(small_bpe: BPETokenizer) -> None:
    padded = make_model(GPT2Config(n_vocab=520, n_ctx=32, n_embd=16, n_head=2, n_layer=1))
    with torch.no_grad():
        padded.wte.weight[512:] = -10.0 * padded.wte.weight[512:].sign()
    found = measure(padded, small_bpe, "The cat")
    assert all(math.isfinite(word.surprisal_corrected or math.nan) for word in found)


def test_corrections_in_float32_lose_no_small_probabilities(test_data: Path) -> None:
    # Added up by a matrix product, 50,000 probabilities of 1e-8 vanished beside a large one.
    text = "I was a matron in France."
    found = {}
    for dtype in ("float32", "float64"):
        model, tokenizer = gpt2kit.load(test_data / "models/shakespeare", dtype=dtype, device="cpu")
        found[dtype] = measure(model, tokenizer, text, base="e")
    for single, double in zip(found["float32"], found["float64"], strict=True):
        for name in ("surprisal", "surprisal_corrected", "entropy", "entropy_word"):
            assert getattr(single, name) == pytest.approx(getattr(double, name), abs=1e-4)
