"""Options as dataclass fields: every value that breaks its rule is refused by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from gpt2kit.errors import ConfigError
from gpt2kit.fields import check, option, rules


@dataclass(frozen=True, kw_only=True)
class Example:
    count: int = option(1, "How many.", at_least=1, at_most=100)
    share: float = option(0.5, "Which part.", above=0, at_most=1)
    rate: float = option(0.1, at_least=0)
    dropout: float = option(0.1, at_least=0, below=1)
    name: str = option("x")
    loud: bool = option(False)
    kind: Literal["a", "b"] = option("a")
    limit: int | None = option(None, at_least=0)

    def __post_init__(self) -> None:
        check(self)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("count", 0, "expected a whole number, from 1 to 100"),
        ("count", 1.0, "expected a whole number"),
        ("count", True, "expected a whole number"),
        ("share", 0, "expected a number, above 0, at most 1"),
        ("share", math.nan, "expected a number"),
        ("rate", math.inf, "expected a number, 0 or more"),
        ("rate", 10**400, "expected a number"),
        ("dropout", 1, "expected a number, 0 or more, less than 1"),
        ("name", 3, "expected text"),
        ("loud", 1, "expected true or false"),
        ("kind", "c", "expected one of a, b"),
        ("kind", ["a"], "expected one of a, b"),
        ("limit", -1, "expected a whole number, 0 or more"),
    ],
)
def test_a_value_that_breaks_its_rule_is_refused_by_name(
    name: str, value: Any, expected: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is .*, {expected}"):
        Example(**{name: value})


def test_values_within_the_rules_are_taken() -> None:
    given: list[dict[str, Any]] = [
        {"count": 100, "share": 1, "rate": 0, "dropout": 0.99, "kind": "b", "limit": None},
        {"count": 1, "limit": 0, "loud": True},
    ]
    for values in given:
        example = Example(**values)
        assert {name: getattr(example, name) for name in values} == values


def test_a_long_value_is_shortened_in_the_message() -> None:
    with pytest.raises(ConfigError) as caught:
        Example(kind="x" * 1000)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 100


def test_the_help_of_a_field_is_kept_with_it() -> None:
    assert rules(Example)["count"].help == "How many."
