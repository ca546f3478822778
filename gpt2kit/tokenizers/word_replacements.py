"""Replacements that a vocabulary of words makes in every text: each number becomes <NUM>.

Regular expressions may come from anybody's file. So their length and repetitions are bounded, which
bounds the memory to compile them, and a search that takes too long is an error.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from typing import Any

from gpt2kit.errors import TokenizerError

Replacement = tuple[str, str]  # a regular expression, and the marker that replaces what it finds

_MARKER = re.compile(r"<[^\s<>|]{1,30}>")
_LONGEST = 200  # characters of a regular expression
_MOST_REPEATS = 1000  # the product of all its counts: 12 for a{3}b{2,4}
_MOST = 100  # replacements
_SECONDS = 0.25  # of the processor's time that a search may take, and again for every so many
_CHARACTERS = 50_000  # characters of the text: plain expressions take a hundredth of it


def parse(typed: str) -> Replacement:
    """Return the regular expression and the marker of "REGEX=<NUM>"; the last = divides them.

    Raises TokenizerError if it is not of this form.
    """
    pattern, equals, marker = typed.rpartition("=")
    if not equals or not pattern or not _MARKER.fullmatch(marker):
        raise TokenizerError(
            f"replace is {typed[:80]!r}, expected REGEX=<NAME>, such as '[0-9]+=<NUM>'"
        )
    return pattern, marker


class Replacements:
    """Replacements in the order in which they are made; a marker is not replaced again.

    Raises TokenizerError for a regular expression that is none, or that is too large.
    """

    def __init__(self, pairs: Sequence[Replacement] = ()) -> None:
        if len(pairs) > _MOST:
            raise TokenizerError(f"{len(pairs):,} replacements, expected at most {_MOST}")
        self.pairs = tuple(pairs)
        for pattern, marker in self.pairs:
            _check(pattern, marker)

    def apply(self, text: str) -> str:
        """Return a text with everything replaced; TokenizerError if a search takes too long."""
        limit = _SECONDS * (1 + len(text) / _CHARACTERS)
        for (pattern, marker), search in zip(self.pairs, self._searches, strict=True):
            try:
                # An expression such as [0-9]* finds nothing at every offset.
                text = search.sub(
                    lambda found, marker=marker: marker if found[0] else "", text, timeout=limit
                )
            except (TimeoutError, MemoryError, RecursionError):
                raise TokenizerError(
                    f"the replacement of {pattern!r} takes too long on {len(text):,} characters; "
                    "write it without repetitions inside of repetitions"
                ) from None
        return text

    @functools.cached_property
    def _searches(self) -> list[Any]:
        """The compiled expressions, each of which passes over the markers."""
        import regex  # here, since a start without replacements need not wait for it

        markers = "|".join(regex.escape(marker) for _, marker in self.pairs)
        return [
            regex.compile(f"(?:{markers})(*SKIP)(*FAIL)|(?:{pattern})") for pattern, _ in self.pairs
        ]


def _check(pattern: str, marker: str) -> None:
    """Raise TokenizerError for an expression that cannot be compiled, or not in little memory."""
    import regex

    shown = pattern if len(pattern) <= 60 else f"{pattern[:59]}…"
    if not _MARKER.fullmatch(marker):
        raise TokenizerError(f"the marker of a replacement is {marker[:40]!r}, expected <NAME>")
    counts = [
        max(map(int, numbers))
        for braces in re.findall(r"\{[^}]*", pattern)
        if (numbers := re.findall(r"\d{1,9}", braces))
    ]
    if len(pattern) > _LONGEST or math.prod(counts) > _MOST_REPEATS:
        raise TokenizerError(
            f"the replacement of {shown!r} is too large; expected at most {_LONGEST} characters, "
            f"and counts in braces of at most {_MOST_REPEATS:,} multiplied"
        )
    if re.search(r"\(\?[A-Za-z01]*x", pattern):
        raise TokenizerError(f"the replacement of {shown!r} has the flag x, which is not supported")
    try:
        regex.compile(pattern)
        regex.compile(f"(?:<>)(*SKIP)(*FAIL)|(?:{pattern})")
    except (regex.error, RecursionError, OverflowError, MemoryError, ValueError) as error:
        raise TokenizerError(
            f"the replacement of {shown!r} is no regular expression: {error}"
        ) from None
