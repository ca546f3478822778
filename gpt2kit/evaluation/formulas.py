"""Formulas over the surprisals of regions, as SyntaxGym's test suites state their predictions.

    [(6;%what_gap%) < (6;%that_gap%)] & [(*;%a%) - (*;%b%) > 1]

(6;%name%) is the surprisal of region 6 in the condition `name`, (*;%name%) that of all its regions.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from gpt2kit.errors import CorpusError

# How far apart two surprisals may be to be equal in a formula, as in syntaxgym-core.
EQUAL_ABSOLUTE, EQUAL_RELATIVE = 1e-3, 1e-5

Region = tuple[str, int]  # a condition, and the number of a region in it
Surprisals = Mapping[Region, float]
Value = Callable[[Surprisals], float]  # of a condition: 1.0 if it holds, else 0.0
Kind = Literal["number", "condition"]

_TOKEN = re.compile(
    r"(?P<region>\(\s*(?P<number>\d{1,9}|\*)\s*;\s*%(?P<name>[^%]*)%\s*\))"
    r"|(?P<float>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)|(?P<sign>[-+<>=&|()\[\]])"
)
_CLOSING = {"[": "]", "(": ")"}
_MOST_BRACKETS = 50  # inside each other


@dataclass(frozen=True)
class Formula:
    """A condition on the surprisals of regions."""

    text: str
    regions: tuple[tuple[str, int | None], ...]  # which it names; None stands for all regions
    value: Value

    def holds(self, surprisals: Surprisals) -> bool:
        """Whether the formula is true of these surprisals."""
        return bool(self.value(surprisals))


def parse(text: str) -> Formula:
    """Read a formula; raises CorpusError, which shows it, for one that cannot be understood.

    + and - bind first, from left to right, then < > =, then &, then |. Brackets are square or
    round.
    """
    parser = _Parser(text)
    kind, value = parser.either()
    if parser.next is not None:
        raise parser.error("the end or an operator")
    if kind != "condition":
        raise CorpusError(f"the formula is a number, expected one with < > or =: {text}")
    return Formula(text, tuple(parser.regions), value)


def _equal(one: float, other: float) -> bool:
    return math.fabs(one - other) <= EQUAL_ABSOLUTE + EQUAL_RELATIVE * math.fabs(other)


_OPERATORS: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "<": operator.lt,
    ">": operator.gt,
    "=": _equal,
    "&": lambda one, other: bool(one and other),
    "|": lambda one, other: bool(one or other),
}


class _Part(NamedTuple):
    """A part of a formula: what kind of value it has, and how that is computed."""

    kind: Kind
    value: Value


class _Parser:
    """Reads a formula from left to right; a method for each level of precedence."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.regions: list[tuple[str, int | None]] = []
        self.next: re.Match[str] | None = None  # the token that comes next
        self._end = 0
        self._brackets = 0
        self._advance()

    def error(self, expected: str) -> CorpusError:
        """Return an error about the token that comes next."""
        start = self._end if self.next is None else self.next.start()
        found = self.text[start : start + 10].strip() or "the end"
        return CorpusError(
            f"cannot understand the formula: expected {expected}, "
            f"found {found!r} at character {start + 1}: {self.text}"
        )

    def either(self) -> _Part:
        """Read conditions joined by |."""
        return self._joined(self._both, "|", "condition")

    def _both(self) -> _Part:
        return self._joined(self._comparison, "&", "condition")

    def _comparison(self) -> _Part:
        part = self._sum()
        if sign := self._take("<>="):
            parts = [(sign, self._sum())]
            return _Part("condition", self._combined(part, parts, "number").value)
        return part

    def _sum(self) -> _Part:
        """Read numbers joined by + and -; a sign before the first one is taken from 0."""
        if self.next is not None and self.next["sign"] in ("+", "-"):
            zero = _Part("number", lambda found: 0.0)
            return self._joined(self._atom, "+-", "number", zero)
        return self._joined(self._atom, "+-", "number")

    def _joined(
        self, read: Callable[[], _Part], signs: str, kind: Kind, first: _Part | None = None
    ) -> _Part:
        """Read parts with one of some operators between them."""
        first = first or read()
        parts = []
        while sign := self._take(signs):
            parts.append((sign, read()))
        return self._combined(first, parts, kind) if parts else first

    def _combined(self, first: _Part, parts: list[tuple[str, _Part]], kind: Kind) -> _Part:
        """Apply operators from left to right to parts that must be of one kind."""
        if first.kind != kind or any(part.kind != kind for _, part in parts):
            sign = parts[0][0]
            raise CorpusError(f"what stands beside {sign} is no {kind} in the formula: {self.text}")

        def value(found: Surprisals) -> float:
            total = first.value(found)
            for sign, part in parts:
                total = float(_OPERATORS[sign](total, part.value(found)))
            return total

        return _Part(kind, value)

    def _atom(self) -> _Part:
        """Read a region, a number, or a formula in brackets."""
        token = self.next
        if token and token["region"]:
            self._advance()
            return self._region(token)
        if token and token["float"]:
            self._advance()
            number = float(token["float"])
            return _Part("number", lambda found: number)
        if not (bracket := self._take("([")):
            raise self.error("a region such as (5;%condition%), a number or a bracket")
        self._brackets += 1
        if self._brackets > _MOST_BRACKETS:
            raise self.error(f"at most {_MOST_BRACKETS} brackets inside each other")
        part = self.either()
        if not self._take(_CLOSING[bracket]):
            raise self.error(f"an operator or {_CLOSING[bracket]}")
        self._brackets -= 1
        return part

    def _region(self, token: re.Match[str]) -> _Part:
        name = token["name"]
        if token["number"] == "*":
            self.regions.append((name, None))
            return _Part(
                "number",
                lambda found: sum(value for (where, _), value in found.items() if where == name),
            )
        region = (name, int(token["number"]))
        self.regions.append(region)
        return _Part("number", lambda found: found[region])

    def _take(self, signs: str) -> str | None:
        """Return the next token and go on, if it is one of these signs."""
        if self.next is None or not self.next["sign"] or self.next["sign"] not in signs:
            return None
        sign = self.next["sign"]
        self._advance()
        return sign

    def _advance(self) -> None:
        while self._end < len(self.text) and self.text[self._end].isspace():
            self._end += 1
        self.next = _TOKEN.match(self.text, self._end)
        if self.next is not None:
            self._end = self.next.end()
        elif self._end < len(self.text):
            raise self.error("a region, a number, a bracket or one of + - < > = & |")
