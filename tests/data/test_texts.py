"""Text files: nothing lost, nothing changed, and a clear word about what is wrong with them."""

from __future__ import annotations

import codecs
import json
import os
from pathlib import Path

import pytest

from gpt2kit.data.texts import find_files, read_texts
from gpt2kit.errors import CorpusError


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
    with pytest.raises(CorpusError, match="no file matches"):
        read_texts(str(tmp_path / "*.txt"))
    with pytest.raises(CorpusError, match=r"no \.txt or \.jsonl file in this folder"):
        read_texts(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(CorpusError, match="expected a file"):
        read_texts(tmp_path / "a.txt")
