"""Options as dataclass fields: every value that breaks its rule is refused by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from gpt2kit.errors import ConfigError
from gpt2kit.fields import build, check, option, rules, same_option


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


def test_a_field_can_have_the_rule_of_another_dataclasss_field() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Other:
        count: int = same_option(Example, "count")
        share: float | None = same_option(Example, "share", None, default="half", group="x")

        def __post_init__(self) -> None:
            check(self)

    assert (Other().count, Other().share) == (1, None)
    assert rules(Other)["share"].help == "Which part."
    assert rules(Other)["share"].default == "half"
    with pytest.raises(ConfigError, match="count is 0, expected a whole number, from 1 to 100"):
        Other(count=0)
    with pytest.raises(ConfigError, match="share is 2, expected a number, above 0, at most 1"):
        Other(share=2)


def test_a_dataclass_is_built_from_values_by_name() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Required:
        size: int = option(help="How large.", at_least=1)

    assert build(Example, {"count": 3}, what="it") == Example(count=3)
    with pytest.raises(ConfigError, match=r"^it has no option 'cuont'; did you mean count\?$"):
        build(Example, {"cuont": 3}, what="it")
    with pytest.raises(ConfigError, match=r"^it has no option 'zzz'; there are count, "):
        build(Example, {"zzz": 3}, what="it")
    with pytest.raises(ConfigError, match="^it has no 'size', which is required$"):
        build(Required, {}, what="it")
