"""Vocabularies learned from a text."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2kit.errors import ConfigError
from gpt2kit.tokenizers import load_tokenizer
from gpt2kit.tokenizers.learn import learn_bpe

TEXT = (
    "la gloria di colui che tutto move per l'universo penetra, e risplende\n"
    "  in una parte più e meno altrove.\n" * 3
)


def test_a_learned_vocabulary_encodes_and_decodes_any_text() -> None:
    tokenizer = learn_bpe([TEXT], 300)
    for text in (TEXT, "日本 🙂 \x00\n\n  x", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(TEXT)) < len(TEXT) * 0.7


def test_the_most_frequent_pair_is_merged_first_and_ties_in_their_order() -> None:
    tokenizer = learn_bpe(["xy xy xy ab ab"], 260)
    assert [tokenizer.token_bytes(token) for token in (256, 257, 258)] == [b"xy", b"ab", b" ab"]


def test_a_vocabulary_has_the_size_asked_for_and_ends_with_the_end_of_text() -> None:
    tokenizer = learn_bpe([TEXT], 290)
    assert tokenizer.n_vocab == 290
    assert tokenizer.stop_id == 289
    assert learn_bpe(["aa"], 1000).n_vocab == 257  # nothing occurs twice


@pytest.mark.parametrize("n_vocab", [256, 1_000_001, 2_000_000])
def test_a_size_that_no_vocabulary_may_have_is_refused_with_both_ends(n_vocab: int) -> None:
    """Of 2,000,000 it was said that 257 or more are expected, and 1,000,001 were learned."""
    with pytest.raises(ConfigError, match=f"n_vocab is {n_vocab:,}, expected 257 to 1,000,000"):
        learn_bpe([TEXT], n_vocab)


def test_a_token_that_two_merges_would_make_is_made_once(tmp_path: Path) -> None:
    tokenizer = learn_bpe(["ab abc bc abc bc xbc abx " * 5 + "aaaa aaa aa a aaaaaaa " * 9], 400)
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again is not None
    assert again.encode(TEXT) == tokenizer.encode(TEXT)
