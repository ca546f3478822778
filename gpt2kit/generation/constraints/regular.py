"""From the tree of a pattern to an automaton: first with choices, then deterministic."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gpt2kit.errors import ConfigError
from gpt2kit.generation.constraints.automaton import (
    CODE_POINTS,
    MOST_ENTRIES,
    Automaton,
    classes_of_sets,
    require_size,
)
from gpt2kit.generation.constraints.pattern import Character, Choice, Node, Repeat, Sequence, parse

MOST_STATES = 20_000  # before and after the automaton is made deterministic
MOST_WORK = 3_000_000  # transitions looked at; about three seconds
MOST_CLASSES = 400  # different ones, each searched for among all characters: as long

_END = -1  # stands for the end of the text among characters to come


def regular(pattern: str) -> Automaton:
    """Return the automaton of the texts that match a whole pattern, trimmed.

    Raises ConfigError for a pattern that `parse` refuses, and for one that needs too many states.
    """
    steps = _Steps()
    try:
        first = steps.add(parse(pattern), frozenset([_END]))
    except RecursionError:
        raise ConfigError("regex has too many groups inside each other") from None
    sets = list(dict.fromkeys(steps.characters))
    if (n := sum(not _is_literal(one.pattern) for one in sets)) > MOST_CLASSES:
        raise ConfigError(
            f"regex has {n:,} different classes of characters, expected at most {MOST_CLASSES:,}"
        )
    ranges = [_ranges(one.pattern, one.flags) for one in sets]
    if 2 * sum(map(len, ranges)) * len(sets) > MOST_ENTRIES:
        raise _too_large()
    classes, members = classes_of_sets(ranges)
    index = {one: number for number, one in enumerate(sets)}
    own = [np.flatnonzero(members[:, index[one]]).tolist() for one in steps.characters]
    table, accepts = _determinized(first, own, steps.following, len(members))
    return Automaton(classes, table, accepts, 1).trimmed()


@functools.lru_cache(maxsize=64)
def _ranges(pattern: str, flags: int) -> NDArray[np.int64]:
    """Return the ranges of code points that a pattern of one character matches: (ranges, 2)."""
    if _is_literal(pattern):  # spares a search of all characters
        alike = pattern[-1]
        if flags & re.IGNORECASE and alike in _cased_characters():
            alike = "".join(re.compile(pattern, flags).findall(_cased_characters()))
        return np.array([[ord(each), ord(each) + 1] for each in alike], np.int64)
    found = re.compile(f"(?:{pattern})+", flags).finditer(_every_character())
    return np.array([one.span() for one in found], np.int64).reshape(-1, 2)


def _is_literal(pattern: str) -> bool:
    """Whether a pattern of one character is that character and no class."""
    return pattern == re.escape(pattern[-1])


@functools.cache
def _cased_characters() -> str:
    """Return the characters that without regard to case may be the same as others, in order."""
    cased = {each for each in _every_character() if (each.lower(), each.upper()) != (each, each)}
    return "".join(sorted(cased | {each.lower() for each in cased if len(each.lower()) == 1}))


@functools.cache
def _every_character() -> str:
    return np.arange(CODE_POINTS, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")


@dataclass
class _Steps:
    """A pattern as characters, and for each of them those that may follow it."""

    characters: list[Character] = field(default_factory=list)
    following: list[frozenset[int]] = field(default_factory=list)
    _work: int = 0
    _loops: int = 0

    def add(self, node: Node, after: frozenset[int]) -> frozenset[int]:
        """Add a node before what may come after it, and return the characters it may begin with."""
        self._count(len(after) + 1)
        if isinstance(node, Character):
            self.characters.append(node)
            self.following.append(after)
            return frozenset([len(self.characters) - 1])
        if isinstance(node, Sequence):
            for part in reversed(node.parts):
                after = self.add(part, after)
            return after
        if isinstance(node, Choice):
            return frozenset().union(*(self.add(option, after) for option in node.options))
        return self._add_repeat(node, after)

    def _add_repeat(self, node: Repeat, after: frozenset[int]) -> frozenset[int]:
        first, still = after, node.least
        if node.most is None:
            first = self._add_loop(node.part, after)
            if node.least == 0:
                return first | after
            still -= 1
        else:
            for _ in range(node.most - node.least):
                first = self.add(node.part, first) | after
        for _ in range(still):
            first = self.add(node.part, first)
        return first

    def _add_loop(self, part: Node, after: frozenset[int]) -> frozenset[int]:
        """Add a part that occurs once or more often."""
        self._loops += 1
        again = _END - self._loops  # stands for the loop's beginning until that is known
        start = len(self.characters)
        first = self.add(part, after | {again})
        if again in first:  # the part may be empty
            first = (first - {again}) | after
        known: dict[frozenset[int], frozenset[int]] = {}  # many characters share what follows
        for number in range(start, len(self.characters)):
            old = self.following[number]
            if again in old:
                if old not in known:
                    known[old] = (old - {again}) | first
                    self._count(len(known[old]))
                self.following[number] = known[old]
        self._count(len(self.characters) - start)
        return first

    def _count(self, work: int) -> None:
        """Count transitions that are looked at; raises ConfigError if there are too many."""
        self._work += work
        if len(self.characters) > MOST_STATES or self._work > MOST_WORK:
            raise _too_large()


def _determinized(
    first: frozenset[int],
    classes: list[list[int]],
    following: list[frozenset[int]],
    n_classes: int,
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Return the table (S, K) and the accepting states (S,): a state is a set of characters."""
    states, waiting = {frozenset[int](): 0, first: 1}, [first]
    rows, work = [np.zeros(n_classes, np.int32)], 0
    different = list(dict.fromkeys(following))  # many characters are followed by the same ones
    numbers = {each: number for number, each in enumerate(different)}
    own = [numbers[each] for each in following]
    known: dict[frozenset[int], int] = {}  # the state after several of `different` together
    for state in waiting:
        row = np.zeros(n_classes, np.int32)
        reached: dict[int, set[int]] = {}
        for character in state - {_END}:
            for each in classes[character]:
                reached.setdefault(each, set()).add(own[character])
            work += len(classes[character])
        for each, sets in reached.items():
            key = frozenset(sets)
            if key not in known:
                together = frozenset[int]().union(*(different[number] for number in key))
                work += len(together)
                if together not in states:
                    states[together] = len(states)
                    waiting.append(together)
                known[key] = states[together]
            row[each] = known[key]
        rows.append(row)
        if len(states) > MOST_STATES or work > MOST_WORK:
            raise _too_large()
        require_size(len(states), n_classes, "regex")
    accepts = np.array([False, *(_END in state for state in waiting)])
    return np.stack(rows), accepts


def _too_large() -> ConfigError:
    return ConfigError(
        "regex needs too many states; give it smaller repetitions {m,n} or fewer alternatives"
    )
