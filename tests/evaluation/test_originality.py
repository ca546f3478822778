"""Copied passages and their shares, the same as by comparing everything with everything."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import numpy as np
import pytest

from gpt2kit.errors import ConfigError
from gpt2kit.evaluation.originality import (
    Index,
    TextIndex,
    baseline,
    measure,
    measure_list,
    measure_text,
)

POEM = """\
Nel mezzo del cammin di nostra vita
mi ritrovai per una selva oscura,
ché la diritta via era smarrita.
"""


def longest_matches(text: list[int], corpus: list[int]) -> list[int]:
    """The slow way."""

    def match(start: int) -> int:
        length = 0
        while start + length < len(text) and occurrences(text[start : start + length + 1], corpus):
            length += 1
        return length

    return [match(start) for start in range(len(text))]


def occurrences(run: list[int], corpus: list[int]) -> list[int]:
    return [
        offset
        for offset in range(len(corpus) - len(run) + 1)
        if corpus[offset : offset + len(run)] == run
    ]


def random_pairs(n: int) -> list[tuple[list[int], list[int]]]:
    """Make texts and corpora of few different tokens; some texts have a piece of the corpus."""
    generator = random.Random(0)
    pairs = []
    for _ in range(n):
        n_vocab = generator.choice([1, 2, 3, 6])
        corpus = [generator.randrange(n_vocab) for _ in range(generator.randrange(40))]
        text = [generator.randrange(n_vocab + 1) for _ in range(generator.randrange(40))]
        if generator.random() < 0.3:
            text = text[:5] + corpus[generator.randrange(len(corpus) + 1) :] + text[5:]
        pairs.append((text, corpus))
    return pairs


def test_matches_are_those_of_brute_force() -> None:
    for text, corpus in random_pairs(300):
        index = Index(corpus)
        matches = index.matches(text)
        assert matches.lengths.tolist() == longest_matches(text, corpus)
        for start, length in enumerate(matches.lengths.tolist()):
            if length:
                found = index.offsets(matches.low[start], matches.high[start])
                assert sorted(found.tolist()) == occurrences(text[start : start + length], corpus)


def test_the_copied_share_counts_each_token_of_a_long_enough_run_once() -> None:
    for text, corpus in random_pairs(100):
        for min_run in (1, 3, 7):
            result = measure(text, corpus, min_run=min_run)
            starts = [
                start
                for start in range(len(text) - min_run + 1)
                if occurrences(text[start : start + min_run], corpus)
            ]
            covered = {start + offset for start in starts for offset in range(min_run)}
            assert result.copied == pytest.approx(len(covered) / max(1, len(text)))
            assert result.longest == max(longest_matches(text, corpus), default=0)


def test_passages_are_whole_and_name_their_first_place() -> None:
    corpus = [*range(10, 30), 99, *range(15, 25)]
    result = measure([1, *range(15, 24), 2, *range(10, 30), 3, 15, 16], corpus, min_run=5)
    assert [(p.start, p.length, p.offset, p.occurrences) for p in result.passages] == [
        (11, 20, 0, 1),
        (1, 9, 5, 2),
    ]
    assert result.copied == pytest.approx(29 / 34)
    assert result.longest == 20


def test_one_long_copy_takes_no_longer_than_many_short_ones() -> None:
    generator = np.random.default_rng(0)
    corpus = generator.integers(0, 60, 100_000)
    index = Index(corpus)
    started = time.process_time()
    result = measure(corpus[20_000:80_000], index)
    assert time.process_time() - started < 5
    assert (result.copied, result.longest, len(result.passages), result.passages[0].offset) == (
        1.0,
        60_000,
        1,
        20_000,
    )


@pytest.mark.parametrize(("text", "corpus"), [([], []), ([1], []), ([], [1]), ([7], [1, 2])])
def test_nothing_in_common_is_nothing_copied(text: list[int], corpus: list[int]) -> None:
    result = measure(text, corpus, min_run=1)
    assert (result.copied, result.longest, result.passages) == (0.0, 0, [])


def test_a_run_of_no_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="min_run is 0"):
        measure([1], [1], min_run=0)


def test_words_are_compared_whatever_the_line_ends_marks_and_case() -> None:
    text = "Disse: «Mi ritrovai, per una\n\nselva oscura, ché» la strada"
    result = measure_text(text, ["Altro documento.", POEM])
    passage = result.passages[0]
    assert result.length == 10
    assert (result.copied, result.longest, len(result.passages)) == (0.8, 8, 1)
    assert (
        passage.text
        == text[passage.start :][: len(passage.text)]
        == "Mi ritrovai, per una\n\nselva oscura, ché» la"
    )
    assert (passage.document, passage.line, passage.occurrences) == (1, 2, 1)
    assert POEM[passage.offset :].startswith("mi ritrovai")


def test_no_passage_goes_from_one_document_into_the_next() -> None:
    index = TextIndex(["uno due tre", "quattro cinque sei"])
    assert index.measure("uno due tre quattro cinque sei").longest == 3
    assert (
        TextIndex("uno due tre quattro cinque sei")
        .measure("uno due tre quattro cinque sei")
        .longest
        == 6
    )


def test_the_baseline_is_what_the_end_of_a_corpus_shares_with_the_rest() -> None:
    refrain = "e caddi come corpo morto cade\n"
    usual = baseline(
        [refrain + "".join(f"verso{number} di prova\n" for number in range(100)) + refrain]
    )
    assert usual is not None
    assert usual.longest == 6
    assert 0 < usual.copied < 0.5
    assert baseline(["due parole"]) is None


def test_list_entries_are_new_or_already_there_and_count_once() -> None:
    result = measure_list(["ada", " bice ", "", "ada", "carla"], ["bice", "dora"])
    assert (result.new, result.known, result.repeated) == (["ada", "carla"], ["bice"], 1)
    assert result.share_new == pytest.approx(2 / 3)
    assert measure_list([], []).share_new == 0


@pytest.mark.skipif(
    "GPT2KIT_TEST_DATA" not in os.environ, reason="needs the corpora in $GPT2KIT_TEST_DATA"
)
def test_a_megabyte_is_indexed_and_its_end_measured_in_seconds() -> None:
    text = (Path(os.environ["GPT2KIT_TEST_DATA"]) / "corpora/tinyshakespeare.txt").read_text()
    ids = np.frombuffer(text.encode(), np.uint8)
    cut = int(len(ids) * 0.9)
    started = time.process_time()
    result = measure(ids[cut:], Index(ids[:cut]))
    assert time.process_time() - started < 20
    assert result.longest == 31
    assert bytes(ids[cut:])[result.passages[0].start :][:31].decode() in text[:cut]
