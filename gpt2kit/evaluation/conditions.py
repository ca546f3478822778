"""Which rows of a table to keep: conditions on columns, and the head, middle and tail of a column.

rows = [{"perplexity": 41.0, "tokens": 30}]
keep = Conditions.parse("perplexity < 60 and tokens >= 20")
keep.check(["perplexity", "tokens"])
assert keep.holds(rows[0])
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt2kit.errors import ConfigError

BUCKET = "bucket"  # the column that percentiles add
BUCKETS = ("head", "middle", "tail")  # what it says

_SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
_CONDITION = re.compile(r"(?P<column>[^<>=!]+?)\s*(?P<sign><=|>=|==|!=|<|>)\s*(?P<value>[^<>=!]+)")


@dataclass(frozen=True)
class Condition:
    """A column, a comparison, and what the cell is compared with."""

    column: str
    sign: str
    value: float | str

    def holds(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row fulfills it; an empty cell, or no number, fulfills none."""
        cell = row.get(self.column)
        if isinstance(self.value, float):
            cell = _number(cell)
        return cell is not None and _SIGNS[self.sign](cell, self.value)


@dataclass(frozen=True)
class Conditions:
    """Conditions that all have to hold."""

    every: tuple[Condition, ...]

    @classmethod
    def parse(cls, text: str) -> Conditions:
        """Read conditions such as `perplexity < 60 and bucket == middle`.

        They are compared, never run as a program. Raises ConfigError for anything else.
        """
        return cls(tuple(map(_condition, re.split(r"\s+and\s+", text.strip()))))

    @property
    def columns(self) -> list[str]:
        """The columns that are compared."""
        return [each.column for each in self.every]

    def check(self, columns: Collection[str]) -> None:
        """Raise ConfigError for a column that is not there, or there twice."""
        names = [*columns]
        for each in self.every:
            found = names.count(each.column)
            if not found:
                shown = ", ".join(names)
                raise ConfigError(f"--keep names {each.column!r}; the columns are {shown[:300]}")
            if found > 1:
                raise ConfigError(f"--keep names {each.column!r}, as {found} columns are called")

    def holds(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row fulfills all conditions."""
        return all(each.holds(row) for each in self.every)


def _condition(text: str) -> Condition:
    found = _CONDITION.fullmatch(text.strip())
    value = _number(found["value"]) if found else None
    if found is None or (value is None and found["sign"] not in ("==", "!=")):
        raise ConfigError(
            f"--keep has {text.strip()!r}; expected a column, one of < <= > >= and a number, or "
            "== or != and a number or word; several are joined by and: "
            "'perplexity < 60 and tokens >= 20'"
        )
    return Condition(
        found["column"].strip(), found["sign"], found["value"] if value is None else value
    )


def _number(cell: Any) -> float | None:
    """Return a cell as a finite number, or None."""
    if isinstance(cell, bool) or not isinstance(cell, str | int | float):
        return None
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


# --- head, middle and tail ------------------------------------------------------------------------


@dataclass(frozen=True)
class Buckets:
    """How the rows of a whole collection are divided by their perplexity, and which of them stay.

    It can be done once all perplexities are known.
    """

    percentiles: Sequence[float]  # two: up to the first is the head, above the second the tail
    keep: str | None = None  # conditions, which may name the column bucket


def parse_percentiles(text: str) -> tuple[float, float]:
    """Return two percentiles such as "30,60"; raises ConfigError for anything else."""
    found = [_number(part) for part in text.split(",")]
    if len(found) == 2 and None not in found:
        low, high = (value or 0.0 for value in found)
        if 0 < low < high < 100:
            return low, high
    raise ConfigError(
        f"percentiles is {text!r}, expected two rising numbers between 0 and 100, such as 30,60"
    )


def percentiles(values: Iterable[float], wanted: Sequence[float]) -> list[float]:
    """Return percentiles of some values: each is the smallest one with such a share at or below."""
    import numpy as np

    ordered = np.fromiter(values, np.float64)  # 8 bytes for each value, where a list has 32
    ordered.sort()
    if not len(ordered):
        raise ConfigError("no text could be measured, so there are no percentiles")
    return [float(ordered[max(0, math.ceil(each / 100 * len(ordered)) - 1)]) for each in wanted]


def bucket(value: float | None, cuts: Sequence[float]) -> str | None:
    """Return where a value lies: the head up to the first cut, the tail above the second."""
    if value is None:
        return None
    return BUCKETS[sum(value > cut for cut in cuts)]
