"""Finite automata that read characters: which texts a constraint allows.

S states, K classes: characters that the automaton does not tell apart
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gpt2kit.errors import ConfigError

CODE_POINTS = 0x110000
SURROGATES = slice(0xD800, 0xE000)  # code points that are no characters
MOST_ENTRIES = 2**25  # of a table; 128 MiB

Ints = NDArray[np.int32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Automaton:
    """A deterministic automaton over characters.

    classes  the class of each code point: (0x110000,). Class 0 is never allowed
    table    the state after a character of each class: (S, K). State 0 is dead, and column 0 leads
             to it
    accepts  in which states a text may end: (S,)
    start    the state before the first character
    """

    classes: Ints
    table: Ints
    accepts: Bools
    start: int

    def read(self, state: int, text: str) -> int:
        """Return the state after a text, 0 if it is not allowed."""
        for character in text:
            state = int(self.table[state, self.classes[ord(character)]])
        return state

    def trimmed(self) -> Automaton:
        """Return the automaton without the transitions after which no text can be completed."""
        sources, columns = np.nonzero(self.table)
        accepts = self.accepts.copy()
        accepts[0] = False
        live = leading_to(accepts, sources, self.table[sources, columns])
        table = np.where(live[self.table], self.table, np.int32(0))
        return replace(self, table=table, start=self.start if live[self.start] else 0)


def leading_to(wanted: Bools, sources: NDArray[np.integer], targets: NDArray[np.integer]) -> Bools:
    """Return from which states one comes to a wanted one, those included: (S,) -> (S,).

    Transition i leads from sources[i] to targets[i]. Each is looked at once, from its target.
    """
    order = np.argsort(targets, kind="stable")
    sources = sources[order]
    offsets = np.searchsorted(targets[order], np.arange(len(wanted) + 1))  # of each target's
    found, new = wanted.copy(), np.flatnonzero(wanted)
    while new.size:
        before = [sources[offsets[state] : offsets[state + 1]] for state in new]
        reached = np.unique(np.concatenate(before))
        new = reached[~found[reached]]
        found[new] = True
    return found


def require_size(states: int, classes: int, what: str) -> None:
    """Raise ConfigError if a table would be larger than is allowed."""
    if states * classes > MOST_ENTRIES:
        raise ConfigError(
            f"{what} needs {states:,} states of {classes:,} entries, expected at most "
            f"{MOST_ENTRIES:,} entries in all; give fewer or shorter alternatives"
        )


def classes_of_sets(sets: Sequence[NDArray[np.int64]]) -> tuple[Ints, Bools]:
    """Return the class of each code point, and which class lies in which set: (K, sets).

    A set is given by ranges of code points: (ranges, 2), from the first to the one after the last.
    Characters that lie in the same sets share a class; those in none, and surrogates, have class 0.
    """
    ends = [each.ravel() for each in sets]
    surrogates = [SURROGATES.start, SURROGATES.stop]
    edges = np.unique(np.concatenate([[0, CODE_POINTS], surrogates, *ends]))  # of segments
    starts = edges[:-1]
    inside = np.zeros((len(starts), len(sets)), bool)
    for number, ranges in enumerate(sets):
        before = np.searchsorted(ranges[:, 0], starts, side="right")
        left = np.searchsorted(ranges[:, 1], starts, side="right")
        inside[:, number] = before > left
    inside[(starts >= SURROGATES.start) & (starts < SURROGATES.stop)] = False
    nothing = np.zeros((1, len(sets)), bool)
    members, numbers = np.unique(np.concatenate([nothing, inside]), axis=0, return_inverse=True)
    classes = np.repeat(numbers.ravel()[1:], np.diff(edges))
    return classes.astype(np.int32), members  # the row without any set sorts first


def intersection(a: Automaton, b: Automaton) -> Automaton:
    """Return the automaton of the texts that both automata allow, trimmed.

    Raises ConfigError if its table would be larger than is allowed.
    """
    classes, class_a, class_b = _common_classes(a, b)
    width = len(b.table)
    if len(a.table) * width > 4 * MOST_ENTRIES:
        raise ConfigError(
            f"the constraints together need {len(a.table):,} times {width:,} states; give a "
            "smaller pattern or list"
        )
    numbers = np.zeros(len(a.table) * width, np.int32)  # of the pairs of states found so far
    new = np.array([a.start * width + b.start] if a.start and b.start else [], np.int64)
    pairs, rows = [np.zeros(1, np.int64)], [np.zeros((1, len(class_a)), np.int64)]
    count = 1
    while new.size:
        numbers[new] = np.arange(count, count + len(new))
        count += len(new)
        require_size(count, len(class_a), "the constraint")
        next_a = a.table[new // width][:, class_a].astype(np.int64)
        next_b = b.table[new % width][:, class_b].astype(np.int64)
        following = np.where((next_a > 0) & (next_b > 0), next_a * width + next_b, 0)
        pairs.append(new)
        rows.append(following)
        found = np.unique(following)
        new = found[(found > 0) & (numbers[found] == 0)]
    pair, table = np.concatenate(pairs), numbers[np.concatenate(rows)]
    accepts = a.accepts[pair // width] & b.accepts[pair % width]
    accepts[0] = False
    return Automaton(classes, table, accepts, min(1, count - 1)).trimmed()


def _common_classes(a: Automaton, b: Automaton) -> tuple[Ints, Ints, Ints]:
    """Return the classes of pairs of classes, and the two classes of each: (K,) twice."""
    width = b.table.shape[1]
    pairs = a.classes.astype(np.int64) * width + b.classes
    pairs[(a.classes == 0) | (b.classes == 0)] = 0
    used = np.zeros(a.table.shape[1] * width, bool)
    used[pairs] = True
    used[0] = True
    numbers = np.cumsum(used, dtype=np.int32) - 1
    kept = np.flatnonzero(used)
    return numbers[pairs], (kept // width).astype(np.int32), (kept % width).astype(np.int32)
