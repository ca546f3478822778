"""Which tokens of a vocabulary an automaton allows: all of them are walked at once, as a trie.

Bytes that the automaton does not tell apart are one label, so tokens that mean the same to it are
one path of the trie.

    V vocabulary, N nodes of the trie, R states from which the walk begins
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt2kit.generation.constraints.utf8 import ByteAutomaton
from gpt2kit.tokenizers import Tokenizer


class Spelling:
    """The bytes of all tokens of a vocabulary, below `n_vocab`."""

    def __init__(self, tokenizer: Tokenizer, n_vocab: int) -> None:
        gaps: Callable[[], set[int]] | None = getattr(tokenizer, "gaps", None)
        none = gaps() if gaps else set()
        self.tokens = [
            b"" if token in none else tokenizer.token_bytes(token) for token in range(n_vocab)
        ]
        # With all bytes as tokens, any text that is allowed can be written.
        self.has_all_bytes = len({token for token in self.tokens if len(token) == 1}) == 256
        self.bytes = np.frombuffer(b"".join(self.tokens), np.uint8)
        self.lengths = np.array([len(token) for token in self.tokens], np.int64)
        self.offsets = np.cumsum(self.lengths) - self.lengths


_spellings: weakref.WeakKeyDictionary[Tokenizer, dict[int, Spelling]] = weakref.WeakKeyDictionary()


def spelling_of(tokenizer: Tokenizer, n_vocab: int) -> Spelling:
    """Return the bytes of a tokenizer's tokens, which are read only once."""
    known = _spellings.setdefault(tokenizer, {})
    if n_vocab not in known:
        known[n_vocab] = Spelling(tokenizer, n_vocab)
    return known[n_vocab]


@dataclass(frozen=True, eq=False)
class _Level:
    """The nodes at one depth of the trie."""

    parents: NDArray[np.int64]  # indices in the level above
    labels: NDArray[np.int32]  # the class of the byte that leads to each


class TokenTrie:
    """The tokens of a vocabulary as one automaton sees them."""

    def __init__(self, spelling: Spelling, automaton: ByteAutomaton) -> None:
        self._width = automaton.table.shape[1]
        self._flat = (automaton.table * self._width).ravel()  # times width: one product less a step
        self._levels: list[_Level] = []
        self._node_of_token = np.zeros(len(spelling.tokens), np.int64)  # 0 for one without a node
        self._size = 1
        self._build(spelling, automaton)

    def _build(self, spelling: Spelling, automaton: ByteAutomaton) -> None:
        used = np.logical_or.reduce(automaton.table > 0, axis=0)  # (classes,)
        alive = used[automaton.classes]  # (256,): is the byte ever allowed?
        labels = automaton.classes[spelling.bytes].astype(np.int64)
        wrong = np.concatenate([[0], np.cumsum(~alive[spelling.bytes])])
        ends = spelling.offsets + spelling.lengths
        tokens = np.flatnonzero(
            (spelling.lengths > 0) & (wrong[ends] == wrong[spelling.offsets])
        )  # those that can be allowed at all
        nodes = np.zeros(len(tokens), np.int64)  # of each token, in the level reached
        depth = 0
        while len(tokens):
            edges = nodes * self._width + labels[spelling.offsets[tokens] + depth]
            found, numbers = np.unique(edges, return_inverse=True)
            parents, own = np.divmod(found, self._width)
            self._levels.append(_Level(parents, own.astype(np.int32)))
            depth += 1
            ends_here = spelling.lengths[tokens] == depth
            self._node_of_token[tokens[ends_here]] = self._size + numbers[ends_here]
            self._size += len(found)
            tokens, nodes = tokens[~ends_here], numbers[~ends_here]

    @property
    def nbytes(self) -> int:
        """The bytes of its own copy of the automaton's table, which is most of it."""
        return int(self._flat.nbytes)

    @property
    def size(self) -> int:
        """How many nodes there are."""
        return self._size

    def walk(self, states: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the state at each node, from each of some states: (R,) -> (R, N), 0 for dead."""
        found = np.zeros((len(states), self._size), np.int32)
        at = states[:, None] * self._width  # (R, nodes of the level), states times width
        start = 1
        for level in self._levels:
            at = self._flat[at[:, level.parents] + level.labels]
            stop = start + len(level.labels)
            found[:, start:stop] = at
            start = stop
            if not at.any():
                break
        found //= self._width
        return found

    def tokens(self, at_nodes: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return for each token what is said of its node: (N,) -> (V,); node 0 must be false."""
        return at_nodes[self._node_of_token]

    def used_nodes(self) -> NDArray[np.int64]:
        """Return the nodes at which a token ends."""
        return np.unique(self._node_of_token[self._node_of_token > 0])
