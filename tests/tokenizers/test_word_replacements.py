"""Replacements of a vocabulary of words; regular expressions from anybody's file are bounded."""

from __future__ import annotations

import time

import pytest

from gpt2kit.errors import TokenizerError
from gpt2kit.tokenizers.word_replacements import Replacements, parse


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("[0-9]+=<NUM>", ("[0-9]+", "<NUM>")),
        ("(?=a)b=<X-1>", ("(?=a)b", "<X-1>")),
        (r"\w+=\w+=<SET>", (r"\w+=\w+", "<SET>")),
    ],
)
def test_the_last_equals_sign_divides_expression_and_marker(
    typed: str, expected: tuple[str, str]
) -> None:
    assert parse(typed) == expected


@pytest.mark.parametrize("typed", ["", "[0-9]+", "=<NUM>", "a=NUM", "a=<>", "a=<N M>", "a=<|x|>"])
def test_another_form_is_refused(typed: str) -> None:
    with pytest.raises(TokenizerError, match="expected REGEX=<NAME>"):
        parse(typed)


def test_replacements_are_made_in_their_order_and_no_marker_is_replaced() -> None:
    replace = Replacements([("[0-9]+", "<NUM>"), ("[A-Z]+", "<CAP>"), (r"(.)\1", "<TWICE>")])
    assert replace.apply("IX anni, 1321: <NUM> oo") == "<CAP> a<TWICE>i, <NUM>: <NUM> <TWICE>"
    once = replace.apply("IX anni, 1321: <NUM> oo")
    assert replace.apply(once) == once


def test_a_marker_is_written_as_it_is_and_finding_nothing_changes_nothing() -> None:
    assert Replacements([("a", r"<\1>")]).apply("aba") == r"<\1>b<\1>"
    assert Replacements([("[0-9]*", "<N>")]).apply("ab12c") == "ab<N>c"
    assert Replacements().apply("ab 12") == "ab 12"


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "is no regular expression: missing \\)"),
        ("a**", "is no regular expression"),
        ("(" * 90 + ")" * 100, "is no regular expression"),
        ("a" * 201, "is too large"),
        ("((a{100}){100}){100}", "is too large"),  # took seconds and gigabytes to compile
        ("(?:a{1,30}b{40})c{ 2 }", "is too large"),
        ("(?sx)a", "has the flag x"),
    ],
)
def test_an_expression_that_cannot_be_compiled_cheaply_is_refused(
    pattern: str, message: str
) -> None:
    with pytest.raises(TokenizerError, match=message):
        Replacements([(pattern, "<X>")])


def test_one_that_never_ends_is_stopped() -> None:
    replace = Replacements([("(a|a)*b", "<X>")])
    started = time.monotonic()
    with pytest.raises(TokenizerError, match="takes too long on 41 characters"):
        replace.apply("a" * 40 + "c")
    assert time.monotonic() - started < 10


def test_too_many_and_a_marker_that_is_none_are_refused() -> None:
    with pytest.raises(TokenizerError, match="101 replacements, expected at most 100"):
        Replacements([("a", "<X>")] * 101)
    with pytest.raises(TokenizerError, match="expected <NAME>"):
        Replacements([("a", "two words")])
