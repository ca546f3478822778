"""Bytes to text: nothing guessed, and a clear word about what is wrong."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from gpt2kit.data.encodings import decode
from gpt2kit.data.texts import read_texts
from gpt2kit.errors import CorpusError

ITALIAN = "Così è la virtù: perché no? «Città» più l’amor.\n"


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.mark.parametrize(
    "encoding", ["cp1252", "mac_roman", "cp850", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
def test_another_encoding_is_recognized_and_can_be_told(tmp_path: Path, encoding: str) -> None:
    text = ITALIAN.replace("’", "'") if encoding == "cp850" else ITALIAN
    path = write(tmp_path / "a.txt", (text * 20).encode(encoding))
    with pytest.raises(CorpusError, match=f"add --encoding {encoding}$"):
        read_texts(path)
    assert read_texts(path, encoding=encoding).documents == (text * 20,)


@pytest.mark.parametrize("encoding", ["cp1251", "koi8_r"])
def test_russian_is_recognized(tmp_path: Path, encoding: str) -> None:
    path = write(
        tmp_path / "a.txt", ("Все счастливые семьи похожи друг на друга. " * 5).encode(encoding)
    )
    with pytest.raises(CorpusError, match=f"add --encoding {encoding}$"):
        read_texts(path)


def test_a_bad_byte_is_placed_by_byte_and_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", codecs.BOM_UTF8 + b"one\ntwo\nth\xe8\n")
    with pytest.raises(
        CorpusError,
        match=r"a.txt: byte 13 \(line 3\) is 0xe8, which is not utf-8; the file looks like cp1252",
    ) as caught:
        read_texts(path)
    assert (caught.value.path, caught.value.offset) == (path, 13)


def test_one_bad_byte_among_good_ones_is_damage_and_not_another_encoding(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="the rest is UTF-8, so the file is damaged there"):
        read_texts(write(tmp_path / "a.txt", ITALIAN.encode() * 5 + b"\xe8" + ITALIAN.encode()))


def test_utf_8_read_as_something_stricter_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", ITALIAN)
    with pytest.raises(CorpusError, match="is 0xc3, which is not ascii; add --encoding utf-8"):
        read_texts(path, encoding="ascii")
    with pytest.raises(CorpusError, match="no encoding of texts is called 'klingon'"):
        read_texts(path, encoding="klingon")


@pytest.mark.parametrize(
    "encoding", ["rot13", "base64", "hex", "zip", "bz2", "undefined", "utf-8\0", "", "a b"]
)
def test_what_is_no_encoding_of_texts_is_refused(tmp_path: Path, encoding: str) -> None:
    # Codecs from bytes to bytes or from text to text were a LookupError, and a null a ValueError.
    path = write(tmp_path / "a.txt", "616263")
    with pytest.raises(CorpusError, match="no encoding of texts is called"):
        read_texts(path, encoding=encoding)


@pytest.mark.parametrize("encoding", ["punycode", "idna", "utf-7", "utf-16", "unicode_escape"])
@pytest.mark.parametrize("data", [b"a\xff.b", b"-\xe9", b"a..b", b"\\ud800", b"+2AA-", b"\\x"])
def test_any_bytes_in_any_encoding_are_text_or_an_error(
    tmp_path: Path, encoding: str, data: bytes
) -> None:
    # punycode and idna raise UnicodeError, which is no UnicodeDecodeError; others let half a
    # surrogate pair through, so that the text could not be encoded again.
    path = tmp_path / "a.txt"
    found = text_or_error(data, path, encoding)
    if isinstance(found, CorpusError):
        assert found.path == path
    else:
        assert found.encode().decode() == found


def text_or_error(data: bytes, path: Path, encoding: str) -> str | CorpusError:
    try:
        return decode(data, path, encoding)
    except CorpusError as error:
        return error
