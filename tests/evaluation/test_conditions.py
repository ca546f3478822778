"""Conditions on columns: compared, never run; and the head, middle and tail of a column."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from gpt2kit.errors import ConfigError
from gpt2kit.evaluation.conditions import Conditions, bucket, parse_percentiles, percentiles

ROW = {"perplexity": 41.5, "tokens": 30, "year": "1999", "kind": "news", "empty": None, "a b": 1}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("perplexity<60", True),
        ("perplexity < 41.5", False),
        ("perplexity <= 41.5 and tokens >= 30", True),
        ("perplexity>60", False),
        ("year == 1999.0", True),
        ("kind == news", True),
        ("kind != news", False),
        ("tokens != 31 and kind != sport", True),
        ("a b > 0", True),
        ("empty < 5", False),
        ("empty != 5", False),
        ("kind < 5", False),
        ("tokens > -1e3", True),
    ],
)
def test_conditions_compare_cells(text: str, holds: bool) -> None:
    assert Conditions.parse(text).holds(ROW) is holds


@pytest.mark.parametrize(
    "text", ["", "perplexity", "perplexity <", "perplexity < high", "1 < tokens < 5", "a < 1 and",
             "__import__('os')", "tokens > nan", "a = 5", "a < 1 or b < 2"]
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a column, one of"):
        Conditions.parse(text)


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"--keep names 'perplexty'; the columns are perplexity"):
        Conditions.parse("perplexty < 5").check(list(ROW))
    with pytest.raises(ConfigError, match="--keep names 'lang', as 2 columns are called"):
        Conditions.parse("lang == it").check(["lang", "text", "lang"])  # it took the last of them


def test_buckets_have_the_shares_that_the_percentiles_say() -> None:
    values = [float(number) for number in range(1, 101)]
    cuts = percentiles(values, parse_percentiles("30, 60"))
    assert cuts == [30.0, 60.0]
    found = [bucket(value, cuts) for value in values]
    assert [found.count(name) for name in ("head", "middle", "tail")] == [30, 30, 40]
    assert bucket(None, cuts) is None
    assert percentiles([7.0], (30, 60)) == [7.0, 7.0]


@pytest.mark.parametrize("text", ["30", "60,30", "0,50", "30,100", "a,b", "30,60,90"])
def test_percentiles_must_rise_between_0_and_100(text: str) -> None:
    with pytest.raises(ConfigError, match="two rising numbers"):
        parse_percentiles(text)


def test_percentiles_of_many_values_need_little_memory() -> None:
    """Each value was an object of Python in a list: four gigabytes for a hundred million texts."""
    n = 100_000
    tracemalloc.start()
    try:
        cuts = percentiles((float(n - index) for index in range(n)), (30, 60))
        assert tracemalloc.get_traced_memory()[1] < 20 * n
    finally:
        tracemalloc.stop()
    assert cuts == [0.3 * n, 0.6 * n]


def test_no_values_have_no_percentiles() -> None:
    values: list[Any] = []
    with pytest.raises(ConfigError, match="no text could be measured"):
        percentiles(values, (30, 60))
