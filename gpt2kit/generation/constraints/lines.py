"""Lists of lines as automata: texts that are one of the lines, and texts that have none of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gpt2kit.generation.constraints.automaton import (
    CODE_POINTS,
    SURROGATES,
    Automaton,
    require_size,
)

_ROOT = 1  # the state before the first character of a line; 0 is dead


def only(lines: Sequence[str]) -> Automaton:
    """Return the automaton of the texts that are one of these lines, without a line end."""
    classes, n_classes = _classes(lines)
    classes[classes == n_classes] = 0  # characters that no line has
    parents, labels, ends = _trie(lines, classes)
    require_size(len(parents), n_classes, "allow")
    table = np.zeros((len(parents), n_classes), np.int32)
    table[parents[2:], labels[2:]] = np.arange(2, len(parents))
    accepts = np.zeros(len(parents), bool)
    accepts[ends] = True
    return Automaton(classes, table, accepts, _ROOT)


def none(lines: Sequence[str]) -> Automaton:
    """Return the automaton of the texts that have none of these among their lines.

    Each text of whole characters is allowed that, cut at "\\n", has no line of the list. Its last
    state is that of a line which cannot become one of the list.
    """
    classes, n_classes = _classes(["\n", *lines])
    newline, other = int(classes[ord("\n")]), n_classes
    parents, labels, ends = _trie(lines, classes)
    free = len(parents)
    require_size(free + 1, n_classes + 1, "forbid")
    table = np.full((free + 1, n_classes + 1), free, np.int32)
    table[parents[2:], labels[2:]] = np.arange(2, free)
    table[:, newline] = _ROOT
    table[ends, newline] = 0
    table[0] = 0
    table[:, 0] = 0
    accepts = np.ones(free + 1, bool)
    accepts[0] = False
    accepts[ends] = False
    classes[SURROGATES] = 0
    assert other < table.shape[1]
    return Automaton(classes, table, accepts, _ROOT)


def free_state(automaton: Automaton) -> int:
    """Return the state of `none` in a line that cannot become one of its list."""
    return len(automaton.table) - 1


def _code_points(lines: Sequence[str]) -> NDArray[np.uint32]:
    return np.frombuffer("".join(lines).encode("utf-32-le"), np.uint32)


def _classes(lines: Sequence[str]) -> tuple[NDArray[np.int32], int]:
    """Return a class for each character of the lines, from 1 on, and the class of all others."""
    own = np.unique(_code_points(lines))
    classes = np.full(CODE_POINTS, len(own) + 1, np.int32)
    classes[own] = np.arange(1, len(own) + 1)
    return classes, len(own) + 1


def _trie(
    lines: Sequence[str], classes: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return parent and class of each state of the lines' trie, and in which states lines end.

    The states 0 (dead) and 1 (the root) have no parent.
    """
    lengths = np.array([len(line) for line in lines], np.int64)
    offsets = np.cumsum(lengths) - lengths
    labels = classes[_code_points(lines)].astype(np.int64) if lines else np.zeros(0, np.int64)
    width = int(classes.max()) + 1
    states = np.full(len(lines), _ROOT, np.int64)  # of each line, as far as it is read
    parents, own = [np.zeros(2, np.int64)], [np.zeros(2, np.int64)]
    count = 2
    for depth in range(int(lengths.max(initial=0))):
        longer = np.flatnonzero(lengths > depth)
        edges = states[longer] * width + labels[offsets[longer] + depth]
        found, numbers = np.unique(edges, return_inverse=True)
        parents.append(found // width)
        own.append(found % width)
        states[longer] = count + numbers
        count += len(found)
    return np.concatenate(parents), np.concatenate(own), states
