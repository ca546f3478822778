"""Word vocabularies: exact both ways; unknown words are named."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from gpt2kit.errors import TokenizerError
from gpt2kit.tokenizers import (
    StreamDecoder,
    Tokenizer,
    WordTokenizer,
    identity,
    load_tokenizer,
)
from gpt2kit.tokenizers.word import parse_markers

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


# --- replacements and markers ---------------------------------------------------------------------

NUMBERS = [("[0-9]+", "<NUM>")]
ALL = ("<PAD>", "<BOS>", "<EOS>", "<UNK>")


def test_a_vocabulary_without_options_is_saved_as_ever(tmp_path: Path) -> None:
    WordTokenizer.from_text("due donne").save(tmp_path)
    assert (tmp_path / "gpt2kit_tokenizer.json").read_bytes() == (
        b'{"kind": "word", "tokens": [" donne", "due"]}'
    )


def test_replacements_are_made_in_the_text_learned_from_and_in_every_text() -> None:
    tokenizer = WordTokenizer.from_text("nel 1300, nel 35", replace=NUMBERS)
    assert tokenizer.tokens == [" <NUM>", " <NUM>,", " nel", "nel"]
    assert tokenizer.decode(tokenizer.encode("nel 1999")) == "nel <NUM>"
    assert tokenizer.encode("nel <NUM>") == tokenizer.encode("nel 1999")


def test_markers_come_first_and_an_unknown_word_is_one_of_them() -> None:
    tokenizer = WordTokenizer.from_text("due donne", markers=["<UNK>", "<PAD>", "<EOS>", "<BOS>"])
    assert tokenizer.tokens == [*ALL, " donne", "due"]
    assert (tokenizer.stop_id, tokenizer.unknown_id) == (2, 3)
    assert tokenizer.encode("due rose donne") == [5, 3, 4]
    assert tokenizer.decode([5, 3, 4]) == "due<UNK> donne"
    tokenizer.unknown = "skip"
    assert tokenizer.encode("due rose donne") == [5, 4]


def test_a_marker_is_plain_text_unless_special() -> None:
    tokenizer = WordTokenizer.from_text("due donne", markers=ALL)
    assert tokenizer.encode("<BOS>") == [3]  # a word that it does not know
    assert tokenizer.encode("<BOS>due<EOS>", special=True) == [1, 5, 2]
    assert tokenizer.encode("due<|endoftext|>", special=True) == [5, 2]


def test_the_end_marker_is_plain_text_unless_special() -> None:
    # It was the end marker if it stood alone, also in a prompt that somebody else had written.
    tokenizer = WordTokenizer.from_text("due donne<|endoftext|>tre rose")
    with pytest.raises(TokenizerError, match="endoftext"):
        tokenizer.encode("<|endoftext|>")


@pytest.mark.parametrize("markers", [(), ("<UNK>",), ALL])
@pytest.mark.parametrize("replace", [(), NUMBERS])
def test_a_saved_vocabulary_comes_back(
    markers: tuple[str, ...], replace: list[tuple[str, str]], tmp_path: Path
) -> None:
    text = "nel 1300<|endoftext|>due donne"
    tokenizer = WordTokenizer.from_text(text, markers=markers, replace=replace)
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert isinstance(again, WordTokenizer)
    assert again.files() == tokenizer.files()
    assert identity(again) == identity(tokenizer)
    assert again.encode("nel 1300 due") == tokenizer.encode("nel 1300 due")
    assert (again.stop_id, again.before, again.after) == (
        tokenizer.stop_id,
        tokenizer.before,
        tokenizer.after,
    )


def test_a_marker_that_is_a_word_of_the_text_is_refused() -> None:
    """A marker behind a blank was not noticed."""
    for text in ("due\n<UNK> donne", "due <UNK> donne"):
        with pytest.raises(TokenizerError, match="<UNK> is a word of the text"):
            WordTokenizer.from_text(text, markers=["<UNK>"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"markers": ["<END>"]}, "there is no marker <END>"),
        ({"markers": ["<UNK>"]}, "the marker <UNK> is not among the tokens"),
        ({"markers": ["<PAD>", "<PAD>"]}, "given twice"),
        ({"markers": "<PAD>"}, 'and "markers": \\[texts\\]'),
        ({"replace": [["[0-9", "<NUM>"]]}, "is no regular expression"),
        ({"replace": [["[0-9]+", "a b"]]}, "expected <NAME>"),
        ({"replace": [["(((a{99}){99}){99}){99}", "<X>"]]}, "is too large"),
        ({"replace": [["a"]]}, 'expected "replace"'),
        ({"replace": {"a": "<X>"}}, 'expected "replace"'),
        ({"replace": [[1, "<X>"]]}, 'expected "replace"'),
    ],
)
def test_a_damaged_file_is_one_error_that_names_it(
    fields: dict[str, object], message: str, tmp_path: Path
) -> None:
    content = {"kind": "word", "tokens": ["<PAD>", " a", "due"], **fields}
    (tmp_path / "gpt2kit_tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert "gpt2kit_tokenizer.json" in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "expected"), [("unk", ("<UNK>",)), ("EOS,bos", ("<BOS>", "<EOS>")), ("", ())]
)
def test_markers_are_typed_as_names(typed: str, expected: tuple[str, ...]) -> None:
    assert parse_markers(typed) == expected
    with pytest.raises(TokenizerError, match="there is no marker <STOP>"):
        parse_markers("pad,stop")
