"""From an automaton that reads characters to one that reads the bytes of UTF-8.

A state of the second is a state of the first between two characters, or in the middle of one: then
what counts is where each completion of the character leads. States from which all completions lead
to the same are one, so there are few of them.

    S states between characters, K classes of characters
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt2kit.generation.constraints.automaton import Automaton, Bools, Ints, require_size

# Code points are cut into blocks of 64: the last byte of a character chooses among those.
_BLOCK = 64


@dataclass(frozen=True, eq=False)
class ByteAutomaton:
    """A deterministic automaton over bytes, without dead ends at the level of bytes.

    classes  the class of each byte: (256,)
    table    the state after a byte of each class: (states, classes). State 0 is dead
    accepts  in which states a text may end: (states,)
    start    the state before the first byte
    """

    classes: Ints
    table: Ints
    accepts: Bools
    start: int

    def read(self, state: int, text: bytes) -> int:
        """Return the state after some bytes, 0 if they are not allowed."""
        for byte in text:
            state = int(self.table[state, self.classes[byte]])
        return state


def over_bytes(automaton: Automaton) -> ByteAutomaton:
    """Return the automaton over bytes that allows the same texts, as UTF-8; its states come first.

    `automaton` must be trimmed.
    """
    return _Encoding(automaton).result()


class _Encoding:
    """States in the middle of characters, found from the last byte of each to the first."""

    def __init__(self, automaton: Automaton) -> None:
        self._automaton = automaton
        self._rows: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []  # children, states
        self._count = len(automaton.table)  # states so far

    def result(self) -> ByteAutomaton:
        table, classes = self._automaton.table, self._automaton.classes
        columns = self._leading()  # the states after each byte that may begin a character
        ascii_, ascii_classes = np.unique(classes[:128], return_inverse=True)
        leads = sorted(columns)
        width = len(ascii_) + len(leads) + 1
        continuation, n_continuation = self._continuation_classes()
        require_size(self._count, width + n_continuation, "the constraint")
        whole = np.zeros((self._count, width + n_continuation), np.int32)
        whole[: len(table), : len(ascii_)] = table[:, ascii_]
        for number, lead in enumerate(leads, len(ascii_)):
            whole[: len(table), number] = columns[lead]
        byte_classes = np.full(256, width - 1, np.int32)  # of bytes that occur nowhere: dead
        byte_classes[:128] = ascii_classes.ravel()
        byte_classes[leads] = np.arange(len(ascii_), width - 1)
        byte_classes[0x80:0xC0] = width + continuation
        for children, states in self._rows:
            whole[states[:, None], width + continuation] = children
        accepts = np.zeros(self._count, bool)
        accepts[: len(table)] = self._automaton.accepts
        return ByteAutomaton(byte_classes, whole, accepts, self._automaton.start)

    def _leading(self) -> dict[int, NDArray[np.int64]]:
        """Return the states after each byte that begins a character of several: (S,) each."""
        table, classes = self._automaton.table.astype(np.int64), self._automaton.classes.copy()
        classes[:0x80] = 0  # one byte spells these characters, so two must not
        last, states = self._level(classes.reshape(-1, _BLOCK), table.T)
        leads = {0xC0 + i: states[last[i]] for i in range(2, 0x20)}
        middle_of = last.reshape(-1, _BLOCK).copy()
        middle_of[0, :0x20] = 0  # two bytes spell these characters, so three must not
        middle, states = self._level(middle_of, states)
        leads |= {0xE0 + i: states[middle[i]] for i in range(0x10)}
        first_of = np.zeros(5 * _BLOCK, np.int64)
        first_of[0x10 : len(middle)] = middle[0x10:]  # below, three bytes spell the characters
        first, states = self._level(first_of.reshape(5, _BLOCK), states)
        leads |= {0xF0 + i: states[first[i]] for i in range(5)}
        return {lead: column for lead, column in leads.items() if column.any()}

    def _level(
        self, blocks: NDArray[np.integer], after: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Make the states before the byte that chooses in a block.

        blocks (n, 64) holds the number of what each byte chooses, and after (numbers, S) the state
        that this leads to, for every state before the character. Returns a number for each block
        (n,), 0 if all of it is dead, and the states before the byte: (numbers, S).
        """
        numbers: dict[bytes, int] = {bytes(blocks[0].nbytes): 0}
        columns = [np.zeros(after.shape[1], np.int64)]
        found = []
        for block in blocks:
            key = block.tobytes()
            if key not in numbers:
                numbers[key] = len(columns)
                columns.append(self._states(block, after))
            found.append(numbers[key])
        return np.array(found, np.int64), np.stack(columns)

    def _states(self, block: NDArray[np.integer], after: NDArray[np.int64]) -> NDArray[np.int64]:
        """Make the states before a byte that chooses in one block, and return them: (S,)."""
        chosen, position = np.unique(block, return_inverse=True)
        different, which = np.unique(after[chosen].T, axis=0, return_inverse=True)
        is_live = different.any(axis=1)
        states = np.where(is_live, self._count - 1 + np.cumsum(is_live), 0)
        self._count += int(is_live.sum())
        self._rows.append((different[is_live][:, position.ravel()], states[is_live]))
        return states[which.ravel()]

    def _continuation_classes(self) -> tuple[NDArray[np.int64], int]:
        """Return a class for each of the 64 bytes that continue a character, and their count."""
        rows = [children for children, _ in self._rows]
        together = np.concatenate(rows) if rows else np.zeros((0, _BLOCK), np.int64)
        numbers: dict[bytes, int] = {}
        columns = np.ascontiguousarray(together.T)
        own = [numbers.setdefault(column.tobytes(), len(numbers)) for column in columns]
        return np.array(own, np.int64), len(numbers)
