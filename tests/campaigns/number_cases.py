"""Cases of numbers: what the program computes, beside what its definition says."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from campaigns.cases import Result, TooSlow, limited_time

SECONDS = 60.0

Floats = NDArray[np.floating]


class Different(Exception):
    """Two numbers that must be the same are not."""


@dataclass
class Tally:
    """Counts the comparisons of a case; a comparison is of one vector, token or text.

    `closest` is the largest difference that was found, as a share of what was allowed.
    """

    comparisons: int = 0
    refused: bool = False
    unsure: int = 0  # vectors that were not compared, because rounding decides them
    closest: float = 0.0
    seen: list[str] = field(default_factory=list)

    def require(self, holds: bool, what: str) -> None:
        """Count one comparison; raise Different unless it holds."""
        self.comparisons += 1
        if not holds:
            raise Different(what)

    def equal(self, found: object, expected: object, what: str) -> None:
        """Compare two values, of which neither is an array."""
        self.require(found == expected, f"{what}: {found!r}, expected {expected!r}")

    def same_bits(self, found: Floats, expected: Floats, what: str) -> None:
        """Compare two arrays, bit for bit; every NaN is the same."""
        same = found.shape == expected.shape and found.dtype == expected.dtype
        self.require(same and np.array_equal(found, expected, equal_nan=True), f"{what}: bits")

    def close(self, found: Floats, expected: Floats, tolerance: Floats | float, what: str) -> None:
        """Compare a vector with float64; what is not finite there must not be finite here."""
        if found.shape != expected.shape:
            raise Different(f"{what}: shape {found.shape}, expected {expected.shape}")
        found = found.astype(np.float64)
        finite = np.isfinite(expected)
        self.require(
            bool((np.isfinite(found) == finite).all()),
            f"{what}: not finite at {np.flatnonzero(~np.isfinite(found))[:5]}, expected that at "
            f"{np.flatnonzero(~finite)[:5]}",
        )
        allowed = np.broadcast_to(tolerance, expected.shape)[finite]
        off = np.abs(found[finite] - expected[finite])
        if not off.size:
            return
        share = float((off / np.maximum(allowed, 1e-300)).max())
        self.closest = max(self.closest, share)
        if not share <= 1:
            worst = int(np.argmax(off / np.maximum(allowed, 1e-300)))
            raise Different(
                f"{what}: {found[finite][worst]!r} is not {expected[finite][worst]!r} within "
                f"{allowed[worst]:.3g} ({share:.3g} times that)"
            )


Check = Callable[[random.Random, Tally], None]


@dataclass(frozen=True)
class NumberTarget:
    """Something that computes: `check` draws a case and compares, or what `begin` returns does."""

    name: str
    check: Check | None = None
    begin: Callable[[ExitStack], Check] | None = None  # makes the check, with a server it needs
    limits_memory: bool = False
    stuck: float = 120.0

    def prepare(self, folder: Path) -> NumberCases:
        """Nothing has to be written."""
        return NumberCases(self)


class NumberCases:
    """The cases of a target; each is known by its seed."""

    def __init__(self, target: NumberTarget) -> None:
        self.target = target
        self.closest = 0.0
        self._stack = ExitStack()
        check = target.check or (target.begin and target.begin(self._stack))
        assert check is not None
        self._check = check

    def describe(self, seed: int) -> tuple[str, bytes]:
        """Return that nothing is given to the program but numbers."""
        return "drawn numbers", b""

    def run(self, seed: int) -> Result:
        """Draw one case, and compare all that it gives."""
        tally = Tally()
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"), limited_time(SECONDS):
                warnings.simplefilter("ignore")
                self._check(random.Random(f"{self.target.name} {seed}"), tally)
        except (Exception, TooSlow) as error:
            name = "" if isinstance(error, Different) else f"{type(error).__name__}: "
            why = f"{name}{error} {' '.join(tally.seen)}"
            return Result("failed", why, tally.comparisons)
        self.closest = max(self.closest, tally.closest)
        outcome = "refused" if tally.refused else "same"
        return Result(outcome, comparisons=tally.comparisons)  # type: ignore[arg-type]

    def close(self) -> None:
        """End what `begin` started."""
        self._stack.close()
