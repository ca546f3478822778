"""Text token by token: a character is given when its last byte is there."""

from __future__ import annotations

import random

from gpt2kit.tokenizers import StreamDecoder


def byte(token: int) -> bytes:
    return bytes([token])


def test_a_character_comes_with_its_last_byte() -> None:
    decoder = StreamDecoder(byte)
    assert [decoder.feed(token) for token in "aè€😀".encode()] == [
        *("a", "", "è", "", "", "€", "", "", "", "😀")
    ]
    assert decoder.finish() == ""


def test_a_character_that_was_never_completed_becomes_a_replacement_character() -> None:
    decoder = StreamDecoder(byte)
    assert [decoder.feed(token) for token in "€".encode()[:2]] == ["", ""]
    assert decoder.finish() == "\N{REPLACEMENT CHARACTER}"


def test_any_bytes_give_the_text_that_they_give_at_once() -> None:
    generator = random.Random(0)
    for _ in range(300):
        data = bytes(generator.choices(b"a\x80\xbf\xc3\xa8\xe2\x82\xac\xf0\x9f\x98\xff", k=12))
        decoder = StreamDecoder(byte)
        pieces = [decoder.feed(token) for token in data]
        assert "".join(pieces) + decoder.finish() == data.decode(errors="replace")
