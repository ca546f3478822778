"""Tokens and lines, counted by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from training_builders import VERSES

from gpt2kit.data.census import count_lines, count_tokens, passage
from gpt2kit.data.corpus import load_corpus
from gpt2kit.data.texts import Text
from gpt2kit.tokenizers import CharTokenizer, WordTokenizer


@pytest.mark.parametrize("kind", [CharTokenizer, WordTokenizer])
def test_counts_are_those_of_the_whole_text_the_most_frequent_first(
    kind: type[CharTokenizer] | type[WordTokenizer],
) -> None:
    tokenizer = kind.from_text(VERSES)
    corpus = load_corpus(Text((VERSES,), (Path("verses.txt"),), len(VERSES)), tokenizer)
    found = count_tokens(corpus, tokenizer)
    expected = Counter(kind.cut(VERSES))
    assert {each.piece.decode(): each.count for each in found} == expected
    assert [each.count for each in found] == sorted(expected.values(), reverse=True)
    assert sum(each.count for each in found) == corpus.report.tokens
    assert all(tokenizer.token_bytes(each.token) == each.piece for each in found)


def test_the_separator_of_documents_is_counted_and_tokens_that_do_not_occur_are_not() -> None:
    tokenizer = CharTokenizer(["a", "b", "c", "<|endoftext|>"])
    corpus = load_corpus(Text(("ab", "b", "a"), (Path("x"),), 4), tokenizer, val_fraction=0)
    assert [(each.piece, each.count) for each in count_tokens(corpus, tokenizer)] == [
        (b"a", 2),
        (b"b", 2),
        (b"<|endoftext|>", 2),
    ]


@pytest.mark.parametrize(
    ("documents", "lines"),
    [(["a\nb\n"], 2), (["a\nb"], 2), (["a", "b\n\n"], 3), ([""], 0), (["\n"], 1)],
)
def test_a_last_line_counts_with_or_without_its_newline(documents: list[str], lines: int) -> None:
    assert count_lines(documents) == lines


def test_the_passage_is_the_first_line_that_is_long_enough_cut_between_words() -> None:
    long = "Nel mezzo del cammin di nostra vita mi ritrovai per una selva oscura"
    assert passage(f"CANTO I\n\n  {long}\nand so on") == long[:60].rsplit(" ", 1)[0]
    assert passage("CANTO I\nends") == "CANTO I"
    assert passage("x" * 100) == "x" * 60
    assert passage("") == ""
