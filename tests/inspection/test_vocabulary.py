"""What a vocabulary consists of, counted by hand and against GPT-2's own files."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import GOLDEN

from gpt2kit.inspection.vocabulary import entries, summarize_vocabulary
from gpt2kit.tokenizers import BPETokenizer, CharTokenizer, WordTokenizer, load_tokenizer
from gpt2kit.tokenizers.bpe import byte_characters


def test_the_kinds_of_a_vocabulary_are_counted() -> None:
    tokenizer = WordTokenizer(["\n", " ", " 12", " vita,", " è", "12", "nel", "<|endoftext|>"])
    summary = summarize_vocabulary(tokenizer)
    assert summary.tokenizer == "words"
    assert summary.n_vocab == 8
    assert [entry.text for entry in summary.special] == ["<|endoftext|>"]
    assert [entry.text for entry in summary.longest] == [" vita,", " 12", " è", "nel", "12"]
    assert summary.kinds == {
        "single bytes": 2,
        "single characters": 2,
        "letters": 1,
        "a space and letters": 1,
        "digits": 2,
        "white space": 2,
        "begin with a space": 3,
        "not whole characters": 0,
    }


def test_the_bytes_of_every_token_are_those_of_the_files(small_bpe: BPETokenizer) -> None:
    written = json.loads((GOLDEN / "bpe" / "small" / "vocab.json").read_text(encoding="utf-8"))
    spelled = {character: byte for byte, character in byte_characters().items()}
    found = list(entries(small_bpe))
    assert [entry.id for entry in found] == sorted(written.values())
    for token, number in written.items():
        if token != "<|endoftext|>":
            assert found[number].piece == bytes(spelled[character] for character in token)
    assert [entry.id for entry in found if entry.special] == [511]
    assert {entry.piece for entry in found if len(entry.piece) == 1} == {
        bytes([byte]) for byte in range(256)
    }
    # the 128 bytes of ASCII are characters, and the other 128 are only parts of some
    summary = summarize_vocabulary(small_bpe)
    assert summary.kinds["single bytes"] == 256
    assert summary.kinds["not whole characters"] == sum(entry.text is None for entry in found)
    assert summary.kinds["not whole characters"] >= 128


def test_the_sample_is_spread_over_the_vocabulary(small_bpe: BPETokenizer) -> None:
    ids = [entry.id for entry in summarize_vocabulary(small_bpe).sample]
    assert len(ids) == 12
    assert ids == sorted(ids)
    assert ids[0] < 60
    assert ids[-1] > 450
    few = summarize_vocabulary(CharTokenizer([*"ab"]))
    assert [entry.text for entry in few.sample] == ["a", "b"]


def test_ids_that_stand_for_no_token_are_left_out(tmp_path: Path) -> None:
    tokens = {character: byte for byte, character in byte_characters().items()}
    tokens |= {"he": 300, "<|endoftext|>": 310}
    BPETokenizer(tokens, ["h e"]).save(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer is not None
    assert [entry.id for entry in entries(tokenizer)][255:] == [255, 300, 310]
    assert tokenizer.n_vocab == 311
