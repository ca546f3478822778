"""Text files: nothing lost, nothing changed, and a clear word about what is wrong with them."""

from __future__ import annotations

import codecs
import json
import os
from pathlib import Path

import pytest

from gpt2kit.data.texts import examine, find_files, read_texts
from gpt2kit.errors import CorpusError

ITALIAN = "Così è la virtù: perché no? «Città» più l’amor.\n"


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_line_ends_and_every_other_character_stay_as_they_are(tmp_path: Path) -> None:
    text = "a\r\nb\rc\n\x00\x0c\u2028è🙂 "
    assert read_texts(write(tmp_path / "a.txt", text)).documents == (text,)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    assert read_texts(write(tmp_path / "a.txt", codecs.BOM_UTF8 + b"abc")).documents == ("abc",)


def test_the_marker_separates_documents_and_empty_ones_are_left_out(tmp_path: Path) -> None:
    text = read_texts(
        write(tmp_path / "a.txt", "one<|endoftext|>\ntwo\n<|endoftext|>\n <|endoftext|>")
    )
    assert text.documents == ("one", "\ntwo\n")
    assert text.joined == "one<|endoftext|>\ntwo\n"


def test_a_folder_or_glob_is_its_files_by_name(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.txt", "sub/c.txt", "notes.md"):
        write(tmp_path / name, name)
    assert read_texts(tmp_path).documents == ("a.txt", "b.txt", "sub/c.txt")
    assert read_texts(str(tmp_path / "*.txt")).documents == ("a.txt", "b.txt")
    assert read_texts([tmp_path / "notes.md", str(tmp_path / "[ab].txt")]).documents == (
        "notes.md",
        "a.txt",
        "b.txt",
    )
    assert [file.name for file in read_texts(tmp_path).files] == ["a.txt", "b.txt", "c.txt"]


def test_a_file_whose_name_looks_like_a_glob_is_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "book[1].txt", "text")
    assert find_files(str(path)) == [path]


def test_each_line_of_a_jsonl_file_is_a_document(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "one\\ntwo", "n": 1}\n\n{"text": "three"}\r\n')
    assert read_texts(path).documents == ("one\ntwo", "three")
    path = write(tmp_path / "b.jsonl", json.dumps({"body": "four"}))
    assert read_texts(path, text_field="body").documents == ("four",)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 2 is not valid JSON"),
        ("[1]", "line 2 is no JSON object: found '\\[1\\]'"),
        ('{"body": "x"}', "line 2 has no text under 'text': it has 'body'; --text_field"),
        ('{"text": 1}', "line 2 has no text"),
        ('{"text": "\\ud83d"}', "line 2 has half a surrogate pair"),
        ("[" * 100_000, "line 2 is not valid JSON"),
    ],
)
def test_a_bad_line_of_jsonl_is_named(tmp_path: Path, line: str, reason: str) -> None:
    with pytest.raises(CorpusError, match=reason):
        read_texts(write(tmp_path / "a.jsonl", f'{{"text": "x"}}\n{line}\n'))


@pytest.mark.parametrize(
    "encoding", ["cp1252", "mac_roman", "cp850", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
def test_another_encoding_is_recognised_and_can_be_told(tmp_path: Path, encoding: str) -> None:
    text = ITALIAN.replace("’", "'") if encoding == "cp850" else ITALIAN
    path = write(tmp_path / "a.txt", (text * 20).encode(encoding))
    with pytest.raises(CorpusError, match=f"add --encoding {encoding}$"):
        read_texts(path)
    assert read_texts(path, encoding=encoding).documents == (text * 20,)


@pytest.mark.parametrize("encoding", ["cp1251", "koi8_r"])
def test_russian_is_recognised(tmp_path: Path, encoding: str) -> None:
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
    with pytest.raises(CorpusError, match="no encoding is called 'klingon'"):
        read_texts(path, encoding="klingon")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b" \n\r\n\t", "nothing but white space"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"PK\x03\x04...", "a zip archive"),
        (b"\x1f\x8b\x08", "compressed with gzip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(CorpusError, match=f"a.txt: .*{reason}"):
        read_texts(write(tmp_path / "a.txt", data))


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no such file"):
        read_texts(tmp_path / "a.txt")
    with pytest.raises(CorpusError, match="no file has such a name"):
        read_texts(str(tmp_path / "*.txt"))
    with pytest.raises(CorpusError, match=r"no \.txt or \.jsonl file in this folder"):
        read_texts(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(CorpusError, match="expected a file"):
        read_texts(tmp_path / "a.txt")


def test_a_text_that_is_as_it_should_be_has_no_notes() -> None:
    assert examine([ITALIAN, "Ñandú «È» – “É” ü\tß\n"]).notes == []


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("a\r\nb\r\n", r"2 lines end with \r\n"),
        (
            ITALIAN.encode().decode("cp1252", "ignore"),
            "9 times UTF-8 was read as something else before",
        ),
        ("città".encode().decode("latin-1"), "(Ã\xa0 for à)"),
        ("l’amor".encode().decode("cp1252"), "(â€™ for ’)"),
        ("a\ufffdb\ufffd", "2 characters are U+FFFD"),
        ("cittA\u0300", "not in Unicode's composed form"),
        ("a\x00\x00\x0c", "3 control characters: U+0000 (2), U+000C (1)"),
    ],
)
def test_what_is_odd_is_noted(text: str, note: str) -> None:
    notes = examine([text]).notes
    assert len(notes) >= 1
    assert any(note in line for line in notes)
