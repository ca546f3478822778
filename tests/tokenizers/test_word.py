"""Word vocabularies: exact both ways; unknown words are named."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from gpt2kit.errors import TokenizerError
from gpt2kit.tokenizers import StreamDecoder, Tokenizer, WordTokenizer, load_tokenizer

TEXT = "  Nel mezzo del cammin\ndi nostra  vita,\tmi ritrovai \r\n\nper una selva\n"


def test_words_take_the_blank_before_them_and_other_white_space_stands_alone() -> None:
    assert WordTokenizer.cut("  Nel mezzo\ndel  cammin\t\n") == [
        " ",
        " Nel",
        " mezzo",
        "\n",
        "del",
        " ",
        " cammin",
        "\t",
        "\n",
    ]


def test_it_keeps_the_protocol_and_gives_the_text_back() -> None:
    tokenizer = WordTokenizer.from_text(TEXT)
    ids = tokenizer.encode(TEXT)
    decoder = StreamDecoder(tokenizer.token_bytes)
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.decode(ids) == TEXT
    assert "".join(map(decoder.feed, ids)) + decoder.finish() == TEXT


def test_any_text_comes_back_to_the_character() -> None:
    generator = random.Random(0)
    for _ in range(200):
        text = "".join(
            generator.choice("ab  \n\t\u00a0\r") for _ in range(generator.randint(1, 30))
        )
        tokenizer = WordTokenizer.from_text(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_word_known_elsewhere_in_a_line_is_used_at_any_position() -> None:
    tokenizer = WordTokenizer.from_text("tre donne\ntre rose")
    assert tokenizer.decode(tokenizer.encode("donne tre")) == " donnetre"
    assert tokenizer.decode(tokenizer.encode("donne rose")) == " donne rose"


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("canmin", "'cammin'"),
        ("nel", "'Nel', 'del'"),
        ("selve,", "'selva'"),
        ("xyz", "none is near"),
    ],
)
def test_an_unknown_word_is_named_with_the_nearest_known_ones(word: str, nearest: str) -> None:
    tokenizer = WordTokenizer.from_text(TEXT)
    with pytest.raises(TokenizerError) as caught:
        tokenizer.encode(f"di nostra {word} vita,")
    assert f"word ' {word}' at offset 9" in str(caught.value)
    assert nearest in str(caught.value)


def test_unknown_words_can_be_skipped(tmp_path: Path) -> None:
    WordTokenizer.from_text(TEXT).save(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, WordTokenizer)
    tokenizer.unknown = "skip"
    assert tokenizer.decode(tokenizer.encode("di questa nostra dolce vita,")) == "di nostra vita,"


def test_the_end_marker_is_one_token() -> None:
    tokenizer = WordTokenizer.from_text("due donne<|endoftext|>tre rose")
    ids = tokenizer.encode("due donne<|endoftext|>tre", special=True)
    assert ids.count(tokenizer.stop_id or 0) == 1
    assert tokenizer.decode(ids) == "due donne<|endoftext|>tre"
