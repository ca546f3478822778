"""Words and their tokens: which token belongs to which word, with any spelling."""

from __future__ import annotations

import random
from typing import Any

import pytest

from gpt2kit.errors import TokenizerError
from gpt2kit.evaluation.passages import (
    Passage,
    Span,
    Unit,
    joined,
    spans,
    split,
    target,
    token_pieces,
    token_texts,
)
from gpt2kit.tokenizers import BPETokenizer, CharTokenizer


def texts(passage: Passage, *, wanted: bool | None = None) -> list[str]:
    return [
        passage.text[unit.start : unit.end]
        for unit in passage.units
        if wanted is None or unit.wanted is wanted
    ]


@pytest.mark.parametrize(
    ("punctuation", "expected"),
    [
        ("keep", ['"Don\'t,"', "she", "said", "--", "twice…"]),
        ("split", ['"', "Don't", ',"', "she", "said", "--", "twice", "…"]),
        ("drop", ["Don't", "she", "said", "twice"]),
    ],
)
def test_punctuation_is_kept_split_or_dropped(punctuation: Any, expected: list[str]) -> None:
    passage = split('"Don\'t," she  said -- twice… ', punctuation)
    assert texts(passage, wanted=True) == expected
    assert all(a.end <= b.start for a, b in zip(passage.units, passage.units[1:], strict=False))


def test_a_token_belongs_to_the_word_in_which_it_ends() -> None:
    passage = Passage("ab cd  ef ", (Unit(0, 2), Unit(3, 5), Unit(7, 9)))
    assert spans(passage, [b"ab", b" cd", b" ", b" ef", b" "]) == [
        Span(0, 1, False),
        Span(1, 2, False),
        Span(2, 4, False),  # the second of two spaces belongs to the word after it
    ]


def test_a_token_of_two_words_is_flagged_in_both_and_moved_nowhere() -> None:
    passage = Passage("abcdef", (Unit(0, 2), Unit(2, 4), Unit(4, 6)))
    assert spans(passage, [b"a", b"bc", b"d", b"ef"]) == [
        Span(0, 1, True),
        Span(1, 3, True),
        Span(3, 4, False),
    ]
    assert spans(passage, [b"abc", b"def"]) == [
        Span(0, 0, True),
        Span(0, 1, True),
        Span(1, 2, True),
    ]


def test_a_token_that_ends_in_the_last_white_space_stays_with_its_word() -> None:
    assert spans(Passage("ab ", (Unit(0, 2),)), [b"a", b"b "]) == [Span(0, 2, False)]


def test_cells_become_one_text_and_blank_ones_are_left_out() -> None:
    passage, owners = joined(["The", "", "cat.", "  ", "!?", "end"])
    assert passage.text == "The cat. !? end"
    assert owners == [0, 2, 4, 5]
    passage, owners = joined(["The", "cat.", "!?", "end"], punctuation="drop")
    assert passage.text == "The cat. !? end"
    assert texts(passage, wanted=True) == ["The", "cat", "end"]
    assert owners == [0, 1, 3]
    assert joined(["中", "文"], "")[0].text == "中文"


@pytest.mark.parametrize(
    ("context", "after", "text"),
    [
        ("from the", "tree", "from the tree"),
        ("from the ", "tree", "from the tree"),
        ("from the", " tree", "from the tree"),
        ("", "tree", "tree"),
        ("from the\n", "tree", "from the\ntree"),
    ],
)
def test_a_target_has_one_space_before_it(context: str, after: str, text: str) -> None:
    # "from the " + " " + "tree" would be other tokens than the text that is meant.
    passage = target(context, after)
    assert passage.text == text
    assert texts(passage, wanted=True)[0].strip() == "tree"


@pytest.mark.parametrize("seed", range(20))
def test_any_text_is_cut_into_tokens_that_all_have_a_word(
    seed: int, small_bpe: BPETokenizer
) -> None:
    draw = random.Random(seed)
    alphabet = "ab té中文👩‍🚀e\u0301 '\".,\n\t\xa0\u3000 \ufeff<|endoftext|> "
    text = "".join(draw.choices(alphabet, k=draw.randrange(1, 60)))
    ids = small_bpe.encode(text)
    pieces = token_pieces(small_bpe, text, ids)
    assert "".join(token_texts(small_bpe, ids)) == text
    for punctuation in ("keep", "split", "drop"):
        passage = split(text, punctuation)
        found = spans(passage, pieces)
        assert sum(each.end - each.first for each in found) + _trailing(text, pieces) == len(
            ids
        ) or (not passage.units)
        for unit, each in zip(passage.units, found, strict=True):
            own = b"".join(pieces[each.first : each.end]).decode("utf-8", "replace")
            word = text[unit.start : unit.end]
            assert each.straddles or own.lstrip(" \t\n\r\v\f") == word


def _trailing(text: str, pieces: list[bytes]) -> int:
    """Return how many tokens at the end are white space alone."""
    count = 0
    while count < len(pieces) and not pieces[-1 - count].strip(b" \t\n\r\v\f"):
        count += 1
    return count


def test_tokens_that_do_not_spell_the_text_are_refused() -> None:
    tokenizer = CharTokenizer([*"abc"], unknown="skip")
    with pytest.raises(TokenizerError, match="do not spell it"):
        token_pieces(tokenizer, "abx", tokenizer.encode("abx"))
