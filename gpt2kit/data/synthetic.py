"""Texts made by a rule, for small models whose insides can be understood.

The same seed gives the same text in every version: NumPy promises it of the raw output of PCG64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from gpt2kit.errors import ConfigError

LETTERS = "".join(map(chr, (*range(0x41, 0x5B), *range(0x61, 0x7B), *range(0x410, 0x450))))
PAIRS = (("(", ")"), ("[", "]"), ("{", "}"))

_FEWEST, _MOST = 10, 30  # letters that are repeated
_BRACKETS = 39  # of a line, which is 40 characters with its end
_DEEPEST = 8


class _Numbers:
    """Random whole numbers."""

    def __init__(self, seed: int) -> None:
        self._source = np.random.PCG64(seed)

    def below(self, n: int) -> int:
        """Return one of 0 … n - 1, equally likely but for 1 in 10^17."""
        return int(self._source.random_raw() % n)


def repeats(numbers: _Numbers) -> str:
    """Return a line of 10 to 30 random letters, Latin or Cyrillic, that then come once more."""
    length = _FEWEST + numbers.below(_MOST - _FEWEST + 1)
    letters = "".join(LETTERS[numbers.below(len(LETTERS))] for _ in range(length))
    return letters * 2


def brackets(numbers: _Numbers) -> str:
    """Return a line of 39 brackets of three kinds, each closed by its own kind or still open.

    Where both may stand, an opening and a closing bracket are equally likely.
    """
    line, still_open = "", ""
    while len(line) < _BRACKETS:
        opens = not still_open or (len(still_open) < _DEEPEST and numbers.below(2) == 0)
        if opens:
            opening, closing = PAIRS[numbers.below(len(PAIRS))]
            line, still_open = line + opening, still_open + closing
        else:
            line, still_open = line + still_open[-1], still_open[:-1]
    return line


KINDS: dict[str, Callable[[_Numbers], str]] = {"repeats": repeats, "brackets": brackets}


def synthetic(kind: str, characters: int, seed: int = 0) -> Iterator[str]:
    """Yield lines of a kind, "repeats" or "brackets", until there are that many characters.

    Raises ConfigError for another kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"there is no synthetic text {kind!r}; there are {', '.join(KINDS)}")
    numbers, written = _Numbers(seed), 0
    while written < characters:
        line = f"{KINDS[kind](numbers)}\n"
        written += len(line)
        yield line
