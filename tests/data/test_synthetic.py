"""Texts made by a rule: they follow it, and a seed always gives the same text."""

from __future__ import annotations

import hashlib

import pytest

from gpt2kit.data.synthetic import LETTERS, PAIRS, synthetic
from gpt2kit.errors import ConfigError


def test_a_repeated_line_is_letters_that_come_twice() -> None:
    lines = [line.removesuffix("\n") for line in synthetic("repeats", 20_000)]
    halves = [(line[: len(line) // 2], line[len(line) // 2 :]) for line in lines]
    assert all(first == second for first, second in halves)
    assert {len(first) for first, _ in halves} == set(range(10, 31))
    assert {letter for line in lines for letter in line} == set(LETTERS)


def test_every_bracket_is_closed_by_its_own_kind_or_still_open() -> None:
    closing = dict(PAIRS)
    for line in synthetic("brackets", 20_000):
        assert len(line) == 40
        still_open = []
        for bracket in line.removesuffix("\n"):
            if bracket in closing:
                still_open.append(closing[bracket])
            else:
                assert bracket == still_open.pop()


def test_a_seed_gives_the_same_text_in_every_version() -> None:
    def digest(kind: str, seed: int = 0) -> str:
        return hashlib.sha256("".join(synthetic(kind, 5000, seed)).encode()).hexdigest()[:12]

    assert digest("repeats") == "3035c47b6bd6"
    assert digest("brackets") == "580ed0679b3e"
    assert digest("brackets", 1) != digest("brackets")


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ConfigError, match="no synthetic text 'songs'; there are repeats, brackets"):
        list(synthetic("songs", 100))
