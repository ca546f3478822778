"""What a row may write next: a constraint, and how far a row has come in it.

A text is never led into a dead end: a token is allowed only if after it some text of the vocabulary
can still be completed.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpt2kit.errors import ConfigError
from gpt2kit.generation.constraints.automaton import Automaton, intersection, leading_to
from gpt2kit.generation.constraints.lines import free_state, none, only
from gpt2kit.generation.constraints.regular import regular
from gpt2kit.generation.constraints.utf8 import ByteAutomaton, over_bytes
from gpt2kit.generation.constraints.vocabulary import Spelling, TokenTrie, spelling_of
from gpt2kit.generation.request import Request
from gpt2kit.generation.shaping.processors import RowView
from gpt2kit.tokenizers import Tokenizer
from gpt2kit.tokenizers.listed import boundaries

_MASKS = 2**26  # bytes of masks that a constraint keeps
_AT_ONCE = 2**22  # nodes that are walked at once, over all states
_KEPT = 8  # constraints kept for the next request
_KEPT_BYTES = 2**27  # of their tables; the last one may have more
_making = threading.Lock()  # making one may take hundreds of megabytes for a moment
_MOST_WALKED = 3 * 10**8  # nodes walked to find out from where a text can be completed


class Constraint:
    """The texts that an automaton allows, as the tokens of one vocabulary."""

    def __init__(self, automaton: ByteAutomaton, spelling: Spelling, stop_id: int | None) -> None:
        """Allow the token `stop_id`, if there is one, only where a text may end."""
        self.automaton = automaton
        self._spelling = spelling
        self._stop_id = stop_id
        self._trie = TokenTrie(spelling, automaton)
        self._live = self._find_live()
        size = max(16, _MASKS // max(1, len(spelling.tokens)))
        self._mask = functools.lru_cache(maxsize=size)(self._make_mask)

    @property
    def nbytes(self) -> int:
        """The bytes of the tables; masks come on top, at most _MASKS."""
        return self.automaton.table.nbytes + self._trie.nbytes

    def can_be_met(self, state: int) -> bool:
        """Return whether the vocabulary can write some text from a state on."""
        return bool(self._live[state])

    def may_end(self, state: int) -> bool:
        """Return whether a text may end in a state."""
        return bool(self.automaton.accepts[state])

    def must_end(self, state: int) -> bool:
        """Return whether a text that came to a state can only end."""
        return not self._mask(state)[1]

    def forbidden(self, state: int) -> Tensor:
        """Return which tokens may not be next: (V,), true for those."""
        return self._mask(state)[0]

    def after(self, state: int, token: int) -> int:
        """Return the state after a token; the end marker adds no text."""
        if token == self._stop_id:
            return state
        return self.automaton.read(state, self._spelling.tokens[token])

    def _make_mask(self, state: int) -> tuple[Tensor, bool]:
        """Return which tokens may not follow a state (V,), and whether any text may."""
        at_nodes = self._live[self._trie.walk(np.array([state], np.int32))[0]]
        allowed = self._trie.tokens(at_nodes)
        if self._stop_id is not None:
            allowed[self._stop_id] = False
        goes_on = bool(allowed.any())
        if self._stop_id is not None and self.automaton.accepts[state]:
            allowed[self._stop_id] = True
        return torch.from_numpy(~allowed), goes_on

    def _find_live(self) -> NDArray[np.bool_]:
        """Return from which states a text can be completed with the tokens that there are."""
        states = len(self.automaton.table)
        live = np.ones(states, bool)
        live[0] = False
        if self._spelling.has_all_bytes:
            return live  # the automaton has no dead ends
        nodes = self._trie.used_nodes()
        if states * self._trie.size > _MOST_WALKED:
            raise ConfigError(
                f"the constraint has {states:,} states, which are too many for a vocabulary of "
                f"{len(self._spelling.tokens):,} words; give it shorter lists or patterns"
            )
        at_once = max(1, _AT_ONCE // self._trie.size)
        edges = []
        for start in range(1, states, at_once):
            some = np.arange(start, min(states, start + at_once), dtype=np.int32)
            reached = self._trie.walk(some)[:, nodes]  # (R, used nodes)
            pairs = some[:, None].astype(np.int64) * states + reached
            edges.append(np.unique(pairs[reached > 0]))
        pairs = np.concatenate([np.zeros(0, np.int64), *edges])
        return leading_to(self.automaton.accepts, pairs // states, pairs % states)


@dataclass(eq=False)
class Progress:
    """How far a text has come in a constraint; it limits the next token."""

    name: str  # of the options, for errors
    constraint: Constraint
    state: int

    def after(self, token: int) -> Progress:
        """Return the progress after one more token."""
        return replace(self, state=self.constraint.after(self.state, token))

    def forbid(self, logits: Tensor, row: RowView) -> None:
        """Set the logits (V,) of tokens that must not come next to minus infinity, in place.

        Where the text has to end, nothing is forbidden: only a draft asks for a token all the same,
        and that one is never used.
        """
        if self.state and not self.must_end:
            mask = self.constraint.forbidden(self.state)
            logits[: len(mask)].masked_fill_(mask.to(logits.device), -math.inf)
            logits[len(mask) :] = -math.inf  # padding of the embedding

    @property
    def may_end(self) -> bool:
        """Whether the text is complete as it is."""
        return self.constraint.may_end(self.state)

    @property
    def must_end(self) -> bool:
        """Whether nothing can follow."""
        return self.constraint.must_end(self.state)


# --- the constraint of a request ------------------------------------------------------------------


class Constraints:
    """What one request asks of texts, for prompts of every kind."""

    def __init__(
        self, request: Request, tokenizer: Tokenizer, n_vocab: int, stop_id: int | None
    ) -> None:
        self._tokenizer, self._stop_id = tokenizer, stop_id
        self._spelling = spelling_of(tokenizer, n_vocab)
        self.names = request.constraints
        self._whole = self._continuation(request)
        has_lines = request.forbid or self._whole is None
        self._lines = none(request.forbid or ()) if has_lines else None
        self._made: dict[int, Constraint] = {}

    @property
    def nbytes(self) -> int:
        """The bytes of all tables that are kept for the next prompts."""
        automata = [each for each in (self._whole, self._lines) if each is not None]
        own = sum(each.table.nbytes + each.classes.nbytes for each in automata)
        return own + sum(made.nbytes for made in self._made.values())

    @staticmethod
    def _continuation(request: Request) -> Automaton | None:
        """Return what the continuation as a whole must be, if that is asked for."""
        parts = [regular(request.regex)] if request.regex is not None else []
        parts += [only(request.allow)] if request.allow else []
        return functools.reduce(intersection, parts) if parts else None

    def after(self, prompt: Sequence[int]) -> Progress:
        """Return the progress of a text that begins after a prompt.

        Raises ConfigError if no text is allowed there, or only the empty one.
        """
        with _making:
            return self._after(prompt)

    def _after(self, prompt: Sequence[int]) -> Progress:
        if self._whole is None and self._lines is not None:
            constraint = self._constraint(0, self._lines)
            return self._checked(constraint, self._after_line(constraint, prompt))
        start, whole = 0, self._whole
        assert whole is not None  # see __init__
        if self._lines is not None:
            line = self._line(prompt).decode(errors="replace")
            start = self._lines.read(self._lines.start, line) or free_state(self._lines)
            if start not in self._made:
                whole = intersection(whole, replace(self._lines, start=start))
        constraint = self._constraint(start, whole)
        return self._checked(constraint, constraint.automaton.start)

    def _constraint(self, key: int, automaton: Automaton) -> Constraint:
        if key not in self._made:
            if not automaton.start:
                raise ConfigError(f"no text is allowed by {self.names}")
            made = Constraint(over_bytes(automaton), self._spelling, self._stop_id)
            while self._made and self.nbytes + made.nbytes > _KEPT_BYTES:
                del self._made[next(iter(self._made))]
            self._made[key] = made
        return self._made[key]

    def _checked(self, constraint: Constraint, state: int) -> Progress:
        progress = Progress(self.names, constraint, state)
        if not constraint.can_be_met(state):
            raise ConfigError(
                f"the vocabulary cannot write any text that is allowed by {self.names}"
            )
        if progress.must_end:
            raise ConfigError(f"only the empty text is allowed by {self.names}")
        return progress

    def _after_line(self, constraint: Constraint, prompt: Sequence[int]) -> int:
        """Return the state after the last line of a prompt, which may end inside a character."""
        assert self._lines is not None
        automaton, line = constraint.automaton, self._line(prompt)
        state = automaton.read(automaton.start, line)
        free = free_state(self._lines)
        for length in (3, 2, 1, 0):
            if not state and length <= len(line):
                state = automaton.read(free, line[len(line) - length :])
        return state

    def _line(self, prompt: Sequence[int]) -> bytes:
        """Return the bytes of the last line of a prompt, as far as it goes."""
        ends = boundaries(self._tokenizer)
        line = b""
        for token in reversed(prompt):
            if token in ends:
                break
            line = self._tokenizer.token_bytes(token) + line
            if b"\n" in line:
                return line.rpartition(b"\n")[2]
        return line


_kept: dict[tuple[object, ...], Constraints] = {}  # the newest last


def constraints_for(
    request: Request, tokenizer: Tokenizer, n_vocab: int, stop_id: int | None
) -> Constraints | None:
    """Return what a request asks of texts, or None if it has no constraint.

    The tables of the last few are kept, and with them their tokenizers. Raises ConfigError for a
    constraint that no text meets, and for one that needs too large tables.
    """
    if not request.constraints:
        return None
    key = (tokenizer, request.regex, request.allow, request.forbid, n_vocab, stop_id)
    with _making:
        made = _kept.pop(key, None) or Constraints(request, tokenizer, n_vocab, stop_id)
        _kept[key] = made
        while len(_kept) > 1 and (
            len(_kept) > _KEPT or sum(one.nbytes for one in _kept.values()) > _KEPT_BYTES
        ):
            del _kept[next(iter(_kept))]
    return made
