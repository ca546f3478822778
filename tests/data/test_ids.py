"""Token ids: the same whatever the pieces in which a text is encoded, and wrong files refused."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_builders import byte_tokenizer

from gpt2kit.data import ids as ids_module
from gpt2kit.data.corpus import load_corpus
from gpt2kit.data.ids import encode_documents, read_ids, text_bytes
from gpt2kit.errors import CorpusError
from gpt2kit.tokenizers import CharTokenizer, Tokenizer, WordTokenizer

# --- texts ----------------------------------------------------------------------------------------


def test_without_a_stop_id_documents_are_separated_by_a_line_end() -> None:
    tokenizer = CharTokenizer.from_text("ab\n")
    assert tokenizer.decode(encode_documents(["a", "b"], tokenizer).tolist()) == "a\nb"


def test_encoding_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random.Random(0)
    text = "".join(
        generator.choice(["he", "the ", "\n", "\n\n", " \n", "  ", "'s", "è", "12"])
        for _ in range(3000)
    )
    tokenizers: list[Tokenizer] = [
        CharTokenizer.from_text(text),
        WordTokenizer.from_text(text),
        byte_tokenizer(),
    ]
    monkeypatch.setattr(ids_module, "CHUNK", 50)
    for tokenizer in tokenizers:
        assert encode_documents([text], tokenizer).tolist() == tokenizer.encode(text)


def test_markers_stand_around_each_document_and_count_no_bytes() -> None:
    def tokens(*markers: str) -> list[str]:
        tokenizer = WordTokenizer.from_text("a b\nc", markers=markers)
        ids = encode_documents(["a b", "c"], tokenizer)
        words = [tokenizer.tokens[token] for token in ids]
        assert text_bytes(ids, tokenizer) == len("a b") + len("c") + words.count("\n")
        return words

    assert tokens("<BOS>", "<EOS>") == ["<BOS>", "a", " b", "<EOS>", "<BOS>", "c", "<EOS>"]
    assert tokens("<BOS>") == ["<BOS>", "a", " b", "<BOS>", "c"]
    assert tokens("<EOS>", "<PAD>") == ["a", " b", "<EOS>", "c", "<EOS>"]
    assert tokens("<UNK>") == ["a", " b", "\n", "c"]


def test_a_text_is_not_encoded_in_pieces_if_a_replacement_might_be_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ids_module, "CHUNK", 10)
    text = "due donne\nuno " * 20
    tokenizer = WordTokenizer.from_text(text, replace=[(r"donne\nuno", "<PAIR>")])
    assert encode_documents([text], tokenizer).tolist() == tokenizer.encode(text)


def test_ids_of_a_large_vocabulary_have_four_bytes() -> None:
    tokenizer = CharTokenizer([chr(code) for code in range(0x1_0000, 0x2_0001)])
    assert encode_documents([chr(0x2_0000)], tokenizer).tolist() == [0x1_0000]


def test_the_bytes_of_a_text_are_counted_without_separators() -> None:
    tokenizer = byte_tokenizer()
    ids = encode_documents(["he è", "he"], tokenizer)
    assert ids.tolist() == [256, 32, 195, 168, 257, 256]
    assert text_bytes(ids, tokenizer) == len("he è".encode()) + len("he")


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.npy", "a.bin"])
def test_a_file_of_ids_is_mapped_and_not_copied(tmp_path: Path, name: str) -> None:
    ids = np.array([1, 256, 257], "<u2")
    if name == "a.npy":
        np.save(tmp_path / name, ids)
    else:
        (tmp_path / name).write_bytes(ids.tobytes())
    found = read_ids(tmp_path / name, 258)
    assert isinstance(found, np.memmap)
    assert found.tolist() == ids.tolist()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.bin", b"\0\0\0", "3 bytes, expected two for each id"),
        ("a.bin", b"", "empty"),
        ("a.bin", b"\1\0\2\0\2\1\3\1", "id 258 at offset 2, but the vocabulary has 258"),
        ("a.bin", b"\1\0", "1 token to train on"),
        ("a.npy", b"\x93NUMPY", "not a complete .npy file"),
        ("a.npy", np.array([1, 2], np.int64), "int64 of shape \\[2\\], expected one row of uint16"),
        ("a.npy", np.array([[1, 2]], np.uint16), "uint16 of shape \\[1, 2\\], expected one row"),
        ("a.npy", np.array([1, 2], ">u2"), ">u2 of shape"),
        ("a.npy", np.array([1, 70_000], np.uint32), "id 70,000 at offset 1"),
        ("a.npy", np.array([{}, {}], object), "not a complete .npy file"),
    ],
)
def test_a_wrong_file_of_ids_is_refused(
    tmp_path: Path, name: str, content: bytes | np.ndarray[Any, Any], reason: str
) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(CorpusError, match=f"{name}: .*{reason}"):
        load_corpus(path, byte_tokenizer())


@pytest.mark.parametrize(("version", "digits"), [(1, 2), (2, 4), (3, 4)])
def test_a_npy_header_that_is_longer_than_the_file_is_refused_before_it_is_read(
    tmp_path: Path, version: int, digits: int
) -> None:
    """NumPy reserved memory for all that the header says, up to 4 GB for a file of 12 bytes."""
    start = b"\x93NUMPY" + bytes([version, 0]) + (2 ** (8 * digits) - 1).to_bytes(digits, "little")
    (tmp_path / "a.npy").write_bytes(start.ljust(200, b" "))
    with pytest.raises(CorpusError, match="its header is said to have"):
        load_corpus(tmp_path / "a.npy", byte_tokenizer())


def test_a_damaged_header_of_a_npy_file_is_refused_wherever_the_damage_is(tmp_path: Path) -> None:
    # NumPy reads the header as Python, whose tokenizer has an error of its own: TokenError.
    np.save(tmp_path / "a.npy", np.arange(100, dtype=np.uint16))
    whole = (tmp_path / "a.npy").read_bytes()
    generator = random.Random(0)
    refused = 0
    for _ in range(500):
        damaged = bytearray(whole)
        for _ in range(generator.randint(1, 3)):
            damaged[generator.randrange(128)] = generator.choice(b"\0'\"()[]{},:\\\n #x9\xff")
        (tmp_path / "a.npy").write_bytes(damaged)
        try:
            load_corpus(tmp_path / "a.npy", byte_tokenizer())
        except CorpusError:
            refused += 1
    assert refused > 300
