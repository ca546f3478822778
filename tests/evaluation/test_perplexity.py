"""evaluate and score: equal to the loss of transformers and to counting by hand; refused texts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN, make_model

import gpt2kit
from gpt2kit.checkpoints.load import load
from gpt2kit.config import GPT2Config
from gpt2kit.data.texts import read_texts
from gpt2kit.errors import (
    ConfigError,
    ContextLengthError,
    CorpusError,
    Gpt2KitWarning,
    TokenizerError,
)
from gpt2kit.evaluation.perplexity import Line, evaluate, score, text_ids
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import BPETokenizer, CharTokenizer, Tokenizer, WordTokenizer

TEXT = (
    "Nel mezzo del cammin di nostra vita\n"
    "mi ritrovai per una selva oscura,\n"
    "ché la diritta via era smarrita.\n" * 3
)


def transformers_loss(folder: Path, ids: list[int], stride: int) -> float:
    """Return the loss of transformers, by the loop of its documentation on perplexity.

    Each token but the first is scored once.
    """
    transformers = pytest.importorskip("transformers")
    model: Any = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    n_ctx, n = model.config.n_positions, len(ids) - 1  # to predict
    total, scored = 0.0, 0
    for start in range(0, n, stride):
        end = min(start + n_ctx, n)
        read, coming = torch.tensor([ids[start:end]]), torch.tensor([ids[start + 1 : end + 1]])
        coming[:, : scored - start] = -100  # scored before
        with torch.inference_mode():
            total += float(model(read, labels=read, shift_labels=coming).loss) * (end - scored)
        scored = end
        if end == n:
            break
    return total / n


@pytest.mark.parametrize("stride", [24, 12, 7])
def test_the_loss_of_a_tiny_model_is_that_of_transformers(
    stride: int, small_bpe: BPETokenizer
) -> None:
    folder = GOLDEN / "hf/safetensors"
    model, _ = load(folder)
    found = evaluate(model, small_bpe, TEXT, stride=stride, batch_size=3)
    assert found.loss == pytest.approx(
        transformers_loss(folder, small_bpe.encode(TEXT), stride), rel=1e-5
    )


@pytest.mark.parametrize("stride", [256, 128, 100])
def test_the_perplexity_of_a_trained_model_is_that_of_transformers(
    stride: int, test_data: Path
) -> None:
    folder = test_data / "models/shakespeare"
    model, tokenizer = load(folder)
    assert tokenizer is not None
    text = (test_data / "corpora/tinyshakespeare.txt").read_text(encoding="utf-8")[-1500:]
    found = evaluate(model, tokenizer, text, stride=stride)
    assert found.perplexity == pytest.approx(
        math.exp(transformers_loss(folder, tokenizer.encode(text), stride)), rel=1e-5
    )


def test_the_figures_follow_from_the_loss_and_the_text(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    found = gpt2kit.evaluate(tiny_model, small_bpe, TEXT)
    ids = small_bpe.encode(TEXT)
    rest = small_bpe.decode(ids[1:])  # the first token is not scored
    assert (found.tokens, found.bytes, found.characters, found.words) == (
        len(ids) - 1,
        len(rest.encode()),
        len(rest),
        len(rest.split()),
    )
    assert (found.n_ctx, found.stride) == (32, 16)
    nats = found.loss * found.tokens
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert found.perplexity_per_word == pytest.approx(math.exp(nats / found.words))
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / found.bytes)
    assert found.bits_per_character == pytest.approx(nats / math.log(2) / found.characters)


def test_markers_around_documents_are_scored_but_are_no_characters_of_the_text() -> None:
    tokenizer = WordTokenizer.from_text("due donne\ntre", markers=["<BOS>", "<EOS>"])
    model = make_model(GPT2Config(n_vocab=6, n_ctx=16, n_embd=8, n_head=1, n_layer=1))
    found = evaluate(model, tokenizer, "due donne<|endoftext|>tre")
    assert found.tokens == len(["due", " donne", "<EOS>", "<BOS>", "tre", "<EOS>"])
    assert (found.characters, found.bytes) == (len("due donnetre"), len("due donnetre"))
    assert found.words == 3
    (line,) = score(model, tokenizer, ["tre"])
    with torch.no_grad():
        logprobs = model(torch.tensor([tokenizer.before]))[0, 0].log_softmax(
            -1
        )  # after <BOS>, (V,)
    (tre,) = tokenizer.encode("tre")
    assert line.logprob == pytest.approx(float(logprobs[tre]), rel=1e-5)


def test_the_standard_error_is_that_of_the_mean(tiny_model: GPT2, small_bpe: BPETokenizer) -> None:
    ids = small_bpe.encode("selva oscura")
    with torch.inference_mode():
        nats = torch.nn.functional.cross_entropy(
            tiny_model(torch.tensor([ids]))[0, :-1], torch.tensor(ids[1:]), reduction="none"
        ).numpy()
    assert evaluate(tiny_model, small_bpe, "selva oscura").standard_error == pytest.approx(
        nats.std(ddof=1) / len(nats) ** 0.5, rel=1e-5
    )


def test_characters_are_a_fair_measure_of_models_that_know_nothing() -> None:
    # A model to which all tokens are equally likely needs log2(n_vocab) bits per token.
    for tokenizer in (
        CharTokenizer.from_text(TEXT),
        BPETokenizer.from_folder(GOLDEN / "bpe/small"),
    ):
        assert tokenizer is not None
        model = GPT2(
            GPT2Config(n_vocab=tokenizer.n_vocab, n_ctx=32, n_embd=16, n_head=2, n_layer=1)
        ).eval()
        torch.nn.init.zeros_(model.ln_f.weight)  # type: ignore[arg-type]
        found = evaluate(model, tokenizer, TEXT)
        assert found.perplexity == pytest.approx(tokenizer.n_vocab, rel=1e-5)
        assert found.bits_per_character == pytest.approx(
            math.log2(tokenizer.n_vocab) * found.tokens / found.characters, rel=1e-5
        )


def test_documents_are_one_sequence_with_separators(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    stop = small_bpe.stop_id
    assert stop is not None
    found = evaluate(tiny_model, small_bpe, "una selva<|endoftext|>oscura era", stride=32)
    ids = [*small_bpe.encode("una selva"), stop, *small_bpe.encode("oscura era")]
    with torch.inference_mode():
        loss = torch.nn.functional.cross_entropy(
            tiny_model(torch.tensor([ids]))[0, :-1], torch.tensor(ids[1:])
        )
    assert found.tokens == len(ids) - 1
    assert found.loss == pytest.approx(float(loss), rel=1e-5)
    assert found.bytes == len("una selvaoscura era") - len(
        small_bpe.token_bytes(ids[0])
    )  # a separator is no text
    assert found.words == 4  # but it ends a word


def test_a_path_a_text_and_ids_are_measured_alike(
    tmp_path: Path, tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    np.save(tmp_path / "ids.npy", text_ids(TEXT, small_bpe))
    expected = evaluate(tiny_model, small_bpe, TEXT)
    for text in (path, read_texts(path), text_ids(TEXT, small_bpe), tmp_path / "ids.npy"):
        assert evaluate(tiny_model, small_bpe, text) == expected


def test_line_ends_and_emoji_are_measured_as_they_are(
    tiny_model: GPT2, small_bpe: BPETokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "windows.txt"
    path.write_bytes("via 🙂\r\nvita\r\n".encode())
    found = evaluate(tiny_model, small_bpe, path)
    first = len(small_bpe.token_bytes(small_bpe.encode("via")[0]))
    assert (found.bytes, found.characters, found.words) == (
        len(path.read_bytes()) - first,
        13 - first,
        3,
    )


def test_half_a_character_has_no_figure_per_character(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    found = evaluate(
        tiny_model, small_bpe, "ô"
    )  # two tokens of one byte, of which the second is scored
    assert (
        found.tokens,
        found.bytes,
        found.characters,
        found.bits_per_character,
        found.standard_error,
    ) == (1, 1, 0, None, None)


def test_progress_says_how_much_is_done_of_how_much(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    told: list[tuple[int, int]] = []
    found = evaluate(tiny_model, small_bpe, TEXT, progress=lambda done, of: told.append((done, of)))
    assert told[-1] == (found.tokens, found.tokens)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@pytest.mark.parametrize(
    ("text", "stride", "error", "message"),
    [
        ("", None, CorpusError, "the text is empty"),
        (" \n", None, CorpusError, "the text is empty"),
        ("a", None, CorpusError, "1 token, expected at least two"),
        (TEXT, 33, ConfigError, "stride is 33"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    text: str,
    stride: int | None,
    error: type[Exception],
    message: str,
    tiny_model: GPT2,
    small_bpe: BPETokenizer,
) -> None:
    with pytest.raises(error, match=message):
        evaluate(tiny_model, small_bpe, text, stride=stride)


def test_a_model_without_a_vocabulary_is_refused(tiny_model: GPT2) -> None:
    with pytest.raises(TokenizerError, match="no vocabulary beside the weights"):
        evaluate(tiny_model, None, TEXT)


# --- lines ----------------------------------------------------------------------------------------


def by_hand(model: GPT2, tokenizer: Tokenizer, text: str) -> tuple[float, int]:
    ids = [*([] if tokenizer.stop_id is None else [tokenizer.stop_id]), *tokenizer.encode(text)]
    with torch.inference_mode():
        logprobs = model(torch.tensor([ids[:-1]]))[0].double().log_softmax(-1)
    return float(sum(logprobs[position, token] for position, token in enumerate(ids[1:]))), len(
        ids
    ) - 1


@pytest.mark.parametrize("batch_size", [1, 8])
def test_every_line_is_scored_alone_and_blank_ones_are_left_out(
    batch_size: int, tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    lines = ["Nel mezzo", "", "la diritta via era", "  ", "a 🙂"]
    found = list(score(tiny_model, small_bpe, lines, batch_size=batch_size))
    assert [line.line for line in found] == [1, 3, 5]
    for line in found:
        expected, tokens = by_hand(tiny_model, small_bpe, line.text)
        assert line.tokens == tokens
        assert line.logprob == pytest.approx(expected, rel=1e-5)
        assert line.logprob_per_token == pytest.approx(expected / tokens, rel=1e-5)


def test_without_an_end_marker_the_first_token_is_not_scored() -> None:
    tokenizer = CharTokenizer.from_text("abc")
    model = make_model(GPT2Config(n_vocab=3, n_ctx=8, n_embd=16, n_head=2, n_layer=1))
    one, two = score(model, tokenizer, ["a", "abc"])
    assert one == Line(1, "a", 0, 0.0, None)
    assert two.tokens == 2
    assert two.logprob == pytest.approx(by_hand(model, tokenizer, "abc")[0], rel=1e-5)


def test_a_long_line_slides_stops_or_is_refused(tiny_model: GPT2, small_bpe: BPETokenizer) -> None:
    text, stop = TEXT.replace("\n", " "), small_bpe.stop_id
    ids = [stop, *small_bpe.encode(text)]
    slid = next(score(tiny_model, small_bpe, [text], overflow="slide"))
    with pytest.warns(
        Gpt2KitWarning,
        match="line 1 has .* tokens, but the model reads at most 32: the last .* are left out",
    ):
        stopped = next(score(tiny_model, small_bpe, [text], overflow="stop"))
    assert slid.tokens == len(ids) - 1
    assert slid.logprob == pytest.approx(
        -evaluate(tiny_model, small_bpe, np.array(ids), stride=16).loss * slid.tokens, rel=1e-5
    )
    assert stopped.tokens == 32
    assert stopped.logprob == pytest.approx(
        -evaluate(tiny_model, small_bpe, np.array(ids[:33])).loss * 32, rel=1e-5
    )
    with pytest.raises(
        ContextLengthError,
        match="line 2 has .* tokens, but the model reads at most 32; .*use --overflow slide",
    ):
        list(score(tiny_model, small_bpe, ["short", text], overflow="error"))


def test_the_marker_in_a_line_is_text_unless_special(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    plain, special = (
        next(score(tiny_model, small_bpe, ["via<|endoftext|>"], special=special))
        for special in (False, True)
    )
    assert plain.tokens > special.tokens == len(small_bpe.encode("via")) + 1


def test_an_unknown_character_is_an_error_with_the_line() -> None:
    model = make_model(GPT2Config(n_vocab=3, n_ctx=8, n_embd=16, n_head=2, n_layer=1))
    with pytest.raises(TokenizerError, match="line 2: the character 'x'"):
        list(score(model, CharTokenizer.from_text("abc"), ["ab", "ax"]))
