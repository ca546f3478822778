"""Options as dataclass fields that carry their own help and rule, checked in one place.

    @dataclass(frozen=True, kw_only=True)
    class Sampling:
        top_k: int = option(40, "Sample from the k most likely tokens; 0 keeps all.", at_least=0)

        def __post_init__(self) -> None:
            check(self)

The library checks the values; the command line makes its options, help and defaults from the same
fields.
"""

from __future__ import annotations

import difflib
import functools
import types
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from gpt2kit.errors import ConfigError

T = TypeVar("T")

_KEY = "gpt2kit"
_LARGEST = 1e300  # of a number: refuses infinities, NaN and integers that no float can hold


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a field's value must be, besides its declared type, and how the option is presented."""

    help: str = ""
    group: str = ""  # the heading under which the command line lists it
    metavar: str | None = None  # what stands for the value in the help
    default: str = ""  # the default in words, if the field's own is None: "a tenth of the steps"
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None

    def allows(self, value: float) -> bool:
        """Return whether a number lies in the range."""
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    @property
    def range(self) -> str:
        """The range in words: "0 or more", "from 1 to 100", "above 0, at most 1", or nothing."""
        if self.at_least is not None and self.at_most is not None:
            return f"from {self.at_least:,} to {self.at_most:,}"
        bounds = (
            ("{:,} or more", self.at_least),
            ("above {:,}", self.above),
            ("at most {:,}", self.at_most),
            ("less than {:,}", self.below),
        )
        return ", ".join(words.format(bound) for words, bound in bounds if bound is not None)


def option(value: Any = MISSING, help: str = "", **rule: Any) -> Any:
    """Return a dataclass field with a default value, a help text and the other parts of a Rule.

    Without a default value the field is required.
    """
    return field(default=value, metadata={_KEY: Rule(help=help, **rule)})


def same_option(kind: type, name: str, value: Any = MISSING, **changes: Any) -> Any:
    """Return a dataclass field with the rule, help and default value of another dataclass's field.

    A default value given here replaces the other's; `changes` replace parts of its rule.
    """
    (other,) = (each for each in fields(kind) if each.name == name)
    default = other.default if value is MISSING else value
    return field(default=default, metadata={_KEY: replace(rules(kind)[name], **changes)})


def rules(kind: type) -> Mapping[str, Rule]:
    """Return the rule of every field of a dataclass, by the field's name."""
    return {each.name: each.metadata.get(_KEY, Rule()) for each in fields(kind)}


@functools.cache
def declared_types(kind: type) -> Mapping[str, Any]:
    """Return the type of every field of a dataclass, by the field's name."""
    hints = get_type_hints(kind)
    return {each.name: hints[each.name] for each in fields(kind)}


def build(kind: type[T], values: Mapping[str, Any], *, what: str) -> T:
    """Return a dataclass made from values by field name.

    Raises ConfigError for a name that it does not have and for a missing one; `what` says in the
    message what the values are: "run.json", "recipe toy".
    """
    known = {each.name: each for each in fields(kind) if each.init}  # type: ignore[arg-type]
    check_names(values, known, what=what)
    required = [name for name, each in known.items() if each.default is MISSING]
    if missing := [name for name in required if name not in values]:
        raise ConfigError(f"{what} has no {missing[0]!r}, which is required")
    return kind(**values)


def check_names(names: Iterable[str], known: Collection[str], *, what: str) -> None:
    """Raise ConfigError for the first name that is not known, with the most similar one that is."""
    if unknown := sorted(set(names) - set(known)):
        near = difflib.get_close_matches(unknown[0], known, 1)
        advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
        raise ConfigError(f"{what} has no option {unknown[0]!r}; {advice}")


def check(instance: Any) -> None:
    """Raise ConfigError for the first field whose value has another type or lies out of its range.

    The message names the field, the value and what was expected. True is not taken for a number.
    """
    kind: type = type(instance)
    declared = declared_types(kind)
    for name, rule in rules(kind).items():
        check_value(name, getattr(instance, name), declared[name], rule)


def check_value(name: str, value: Any, declared: Any, rule: Rule) -> None:
    """Raise ConfigError unless a value has the declared type and lies in the rule's range."""
    allowed = get_args(declared) if is_union(declared) else (declared,)
    if not any(_fits(value, each, rule) for each in allowed):
        expected = " or ".join(
            _described(each, rule) for each in allowed if each is not types.NoneType
        )
        raise ConfigError(f"{name} is {shortened(value)}, expected {expected}")


def is_union(declared: Any) -> bool:
    """Return whether a type is `A | B`."""
    return get_origin(declared) in (Union, types.UnionType)


def shortened(value: Any) -> str:
    """Return a value as Python writes it, in at most 40 characters."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "…"


def _fits(value: Any, declared: Any, rule: Rule) -> bool:
    if get_origin(declared) is Literal:
        return type(value) is str and value in get_args(declared)
    if declared is types.NoneType:
        return value is None
    if declared is float:
        return type(value) in (int, float) and abs(value) < _LARGEST and rule.allows(value)
    if declared is int:
        return type(value) is int and rule.allows(value)
    if declared in (bool, str) or is_dataclass(declared):
        return type(value) is declared
    return True  # paths, callables and collections are checked by those who use them


def _described(declared: Any, rule: Rule) -> str:
    if get_origin(declared) is Literal:
        return f"one of {', '.join(get_args(declared))}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    described = words.get(declared, getattr(declared, "__name__", str(declared)))
    return f"{described}, {rule.range}" if declared in (int, float) and rule.range else described
