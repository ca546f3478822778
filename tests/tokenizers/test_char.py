"""Character vocabularies: exact both ways, saved and read again; unknown characters are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpt2kit.errors import TokenizerError
from gpt2kit.tokenizers import CharTokenizer, StreamDecoder, Tokenizer, identity, load_tokenizer

TEXT = "Nel mezzo del cammin\n  di nostra vita è 🙂\r\n"


def test_it_keeps_the_protocol_and_gives_the_text_back() -> None:
    tokenizer = CharTokenizer.from_text(TEXT)
    ids = tokenizer.encode(TEXT)
    assert isinstance(tokenizer, Tokenizer)
    assert len(ids) == len(TEXT)
    assert tokenizer.n_vocab == len(set(TEXT))
    assert tokenizer.stop_id is None
    assert tokenizer.decode(ids) == TEXT


def test_streaming_gives_one_character_for_each_token() -> None:
    tokenizer = CharTokenizer.from_text(TEXT)
    decoder = StreamDecoder(tokenizer.token_bytes)
    assert [decoder.feed(token) for token in tokenizer.encode(TEXT)] == list(TEXT)
    assert decoder.finish() == ""


def test_the_end_marker_of_the_text_is_one_token_and_plain_text_unless_asked_for() -> None:
    tokenizer = CharTokenizer.from_text("ab<|endoftext|>ba")
    assert tokenizer.tokens == ["a", "b", "<|endoftext|>"]
    assert tokenizer.stop_id == 2
    assert tokenizer.encode("ab<|endoftext|>a<|endoftext|>", special=True) == [0, 1, 2, 0, 2]
    with pytest.raises(TokenizerError, match="'<'"):
        tokenizer.encode("ab<|endoftext|>a")


def test_without_the_marker_in_its_vocabulary_special_changes_nothing() -> None:
    tokenizer = CharTokenizer.from_text("<|endoftx>")
    assert tokenizer.encode("<|endoftext|>", special=True) == tokenizer.encode("<|endoftext|>")


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    tokenizer = CharTokenizer.from_text("ab\n\u2028<|endoftext|>è")
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, CharTokenizer)
    assert loaded.tokens == tokenizer.tokens
    assert loaded.stop_id == tokenizer.stop_id
    assert identity(loaded) == identity(tokenizer) != identity(CharTokenizer.from_text("ab\n"))


@pytest.mark.parametrize(
    ("piece", "nearest"),
    [
        ("é", "'è', 'e'"),
        ("N", "'n'"),
        ("7", "'1', '0'"),
        ("œ", "'è', 'x', 'n'"),
        ("€", "none is near"),
    ],
)
def test_an_unknown_character_is_named_with_the_nearest_known_ones(
    piece: str, nearest: str
) -> None:
    tokenizer = CharTokenizer.from_text("enx è 01")
    with pytest.raises(TokenizerError) as caught:
        tokenizer.encode(f"ne {piece}")
    assert f"character '{piece}' at offset 3" in str(caught.value)
    assert nearest in str(caught.value)
    assert caught.value.option == "--unknown skip"


def test_unknown_characters_can_be_skipped() -> None:
    tokenizer = CharTokenizer(["a", "b"], unknown="skip")
    assert tokenizer.encode("xaxbx") == [0, 1]
    tokenizer.unknown = "ignore"  # type: ignore[assignment]
    with pytest.raises(TokenizerError, match="expected error or skip"):
        tokenizer.encode("a")


@pytest.mark.parametrize("token", [-1, 2])
def test_an_id_beyond_the_vocabulary_is_refused(token: int) -> None:
    with pytest.raises(TokenizerError, match=f"id {token} is not in the vocabulary of 2"):
        CharTokenizer(["a", "b"]).decode([token])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not valid JSON"),
        ('{"kind": "syllable", "tokens": ["a"]}', "expected .*kind"),
        ('{"kind": "char", "tokens": "ab"}', "expected .*tokens"),
        ('{"kind": "char", "tokens": ["a", 1]}', "expected .*tokens"),
        ('{"kind": "char", "tokens": ["a", "a"]}', "expected each once"),
        ('{"kind": "char", "tokens": ["ab"]}', "not one character"),
        ('{"kind": "char", "tokens": [""]}', "not one character"),
        ('{"kind": "char", "tokens": []}', "expected each once"),
        (json.dumps({"kind": "char", "tokens": ["\ud800"]}), "surrogate"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "gpt2kit_tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError, match=reason) as caught:
        load_tokenizer(tmp_path)
    assert "gpt2kit_tokenizer.json" in str(caught.value)


def test_an_empty_text_has_no_vocabulary() -> None:
    with pytest.raises(TokenizerError, match="empty"):
        CharTokenizer.from_text("")
