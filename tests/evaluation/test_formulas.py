"""Formulas over regions: what they mean, and what is refused."""

from __future__ import annotations

import pytest

from gpt2kit.errors import CorpusError
from gpt2kit.evaluation.formulas import parse

FOUND = {("a", 1): 5.0, ("a", 2): 1.0, ("b-b_2", 1): 3.0, ("b-b_2", 2): 4.0}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("(1;%a%) > (1;%b-b_2%)", True),
        ("(1;%a%)<(1;%b-b_2%)", False),
        ("(*;%a%) < (*;%b-b_2%)", True),  # 6 < 7
        ("(*;%a%) = 6", True),
        ("(1;%a%) = 5.0009", True),  # within 1e-3, and 1e-5 of the number
        ("(1;%a%) = 5.0011", False),
        ("[(1;%a%) - (2;%a%)] - (1;%b-b_2%) > 0.5", True),
        ("(1;%a%) - (2;%a%) - (1;%b-b_2%) = 1", True),  # from left to right: not 5 - (1 - 3)
        ("(1;%a%) - (2;%a%) + (1;%b-b_2%) = 7", True),  # not 5 - (1 + 3)
        ("-(2;%a%) + 2 = 1", True),
        ("1 < 2 & 2 < 3 & 4 < 3", False),  # a third condition counts
        ("1 < 2 & 2 < 1 | 3 < 4", True),  # & before |
        ("3 < 4 | 1 < 2 & 2 < 1", True),
        ("[3 < 4 | 1 < 2] & 2 < 1", False),
        ("([((1 < 2))])", True),
        (" [ ( 1 ; %a% ) > 1e0 ] ", True),
    ],
)
def test_a_formula_means_what_it_says(text: str, holds: bool) -> None:
    assert parse(text).holds(FOUND) is holds


def test_a_formula_knows_its_regions() -> None:
    assert parse("[(6;%x y%) + (*;%z%)] > 0").regions == (("x y", 6), ("z", None))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a region .*found 'the end' at character 1"),
        ("(5;%a%)", "is a number, expected one with < > or ="),
        ("(5;%a%) ~ 3", "found '~ 3' at character 9: .5;%a%. ~ 3"),
        ("(5;%a%) < 3 < 4", "expected the end or an operator, found '< 4' at character 13"),
        ("[(5;%a%) < 3", "expected an operator or ]"),
        ("[(5;%a%) < 3)", "expected an operator or ], found '\\)' at character 13"),
        ("(5;%a%) & 1 < 2", "what stands beside & is no condition"),
        ("1 < 2 & (5;%a%)", "what stands beside & is no condition"),
        ("[1 < 2] + 1 > 0", "what stands beside \\+ is no number"),
        ("1 < [2 > 1]", "what stands beside < is no number"),
        ("(x;%a%) < 1", "cannot understand the formula"),
        ("__import__('os')", "cannot understand the formula"),
        ("[" * 1000, "at most 50 brackets"),
    ],
)
def test_what_cannot_be_understood_is_shown(text: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        parse(text)


def test_long_formulas_are_no_deep_ones() -> None:
    assert parse("0" + " + 1" * 5000 + " = 5000").holds({})
    with pytest.raises(CorpusError, match="cannot understand the formula"):
        parse("-" * 100_000 + "1 > 0")
