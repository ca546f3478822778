"""Limits: tokens that a row must not be continued with, whatever the model thinks of them.

A limit looks at a row's tokens and sets the logits of forbidden tokens to minus infinity. It keeps
nothing but what follows from the tokens, so rows do not depend on each other, and a draft's rows
are limited as the model's are.

    V vocabulary
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from gpt2kit.generation.shaping.processors import RowView
from gpt2kit.tokenizers import Tokenizer, require_tokenizer

if TYPE_CHECKING:
    from gpt2kit.generation.request import Request


class Limit(Protocol):
    """Forbids tokens."""

    name: str  # of the option, for the error if nothing is left

    def forbid(self, logits: Tensor, row: RowView) -> None:
        """Set the logits (V,) of tokens that must not come next to minus infinity, in place."""


def limits_for(
    request: Request, tokenizer: Tokenizer | None, stop_id: int | None
) -> tuple[Limit, ...]:
    """Return what limits the rows of a request that end at `stop_id`.

    Only texts that are banned need the tokenizer; raises TokenizerError if there is none.
    """
    limits: list[Limit] = []
    if request.ban:
        limits.append(Bans(request.ban, require_tokenizer(tokenizer, "the model"), stop_id))
    if request.sampling.no_repeat_ngram:
        limits.append(NoRepeatedNgrams(request.sampling.no_repeat_ngram))
    if request.min_tokens and stop_id is not None:
        limits.append(MinTokens(request.min_tokens, stop_id))
    return tuple(limits)


def _forbid(logits: Tensor, ids: Tensor) -> None:
    """Set the logits (V,) of some ids to minus infinity."""
    logits[ids.to(logits.device)] = -math.inf


class MinTokens:
    """Forbids the end marker as long as a row has fewer new tokens than asked for."""

    name = "min_tokens"

    def __init__(self, least: int, stop_id: int) -> None:
        self._least = least
        self._stop_id = stop_id

    def forbid(self, logits: Tensor, row: RowView) -> None:
        if len(row.tokens) - row.prompt_length < self._least:
            logits[self._stop_id] = -math.inf


class NoRepeatedNgrams:
    """Forbids each token that would repeat n tokens of the text, its prompt included."""

    name = "no_repeat_ngram"

    def __init__(self, n: int) -> None:
        self._n = n

    def forbid(self, logits: Tensor, row: RowView) -> None:
        text = np.array(row.tokens, dtype=np.int64)  # without tokens it would be float64
        before = self._n - 1  # tokens that an n-gram has before its last one
        ends = text[before:]  # the last token of each n-gram
        same = np.ones(len(ends), dtype=bool)
        for i in range(before if len(ends) else 0):
            same &= text[i : i + len(ends)] == text[len(text) - before + i]
        found = ends[same]
        _forbid(logits, torch.from_numpy(found[found < len(logits)]))


class Bans:
    """Forbids each token whose bytes would complete a banned text.

    Exact for bytes: however a text is cut into tokens, none of them completes it. What stands
    before counts, in the prompt too, from the prompt's last end marker on.
    """

    name = "ban"

    def __init__(self, texts: Iterable[str], tokenizer: Tokenizer, stop_id: int | None) -> None:
        bans = {text.encode() for text in texts}
        self._tokens = _tokens_of(tokenizer)
        self._marker = tokenizer.stop_id
        self._longest = max(map(len, bans)) - 1  # bytes that can stand before the next token
        self._inside = self._tokens.containing(bans)
        if stop_id is not None:  # it ends the text and adds nothing to it
            self._inside = self._inside[self._inside != stop_id]
        self._stop_id = stop_id
        self._rests: dict[bytes, list[bytes]] = {}  # the beginning of a ban: what completes it
        for ban in sorted(bans):
            # A rest that is longer than every token is completed by none.
            for i in range(max(1, len(ban) - self._tokens.longest), len(ban)):
                self._rests.setdefault(ban[:i], []).append(ban[i:])
        self._lengths = sorted({len(begun) for begun in self._rests})
        self._completing: dict[bytes, Tensor] = {}

    def forbid(self, logits: Tensor, row: RowView) -> None:
        _forbid(logits, self._inside)
        end = self._end_of(row)
        for n in self._lengths:
            if n <= len(end) and (begun := end[-n:]) in self._rests:
                _forbid(logits, self._that_complete(begun))

    def _end_of(self, row: RowView) -> bytes:
        """Return the last bytes of a row's text, in which a ban may have begun."""
        end = b""
        for i in reversed(range(len(row.tokens))):
            token = row.tokens[i]
            if len(end) >= self._longest or (token == self._marker and i < row.prompt_length):
                break
            end = self._tokens.bytes_of(token) + end
        return end[-self._longest :] if self._longest else b""

    def _that_complete(self, begun: bytes) -> Tensor:
        """Return the ids of the tokens that complete a ban of which this much stands there."""
        if begun not in self._completing:
            ids = {token for rest in self._rests[begun] for token in self._tokens.starting(rest)}
            self._completing[begun] = torch.tensor(sorted(ids - {self._stop_id}), dtype=torch.long)
        return self._completing[begun]


class _TokenBytes:
    """The bytes of every token of a vocabulary, and which tokens hold or begin with some bytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._bytes = [tokenizer.token_bytes(token) for token in range(tokenizer.n_vocab)]
        self._sorted = sorted((data, token) for token, data in enumerate(self._bytes))
        self.longest = max(map(len, self._bytes))

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes of a token; of one beyond the vocabulary, none."""
        return self._bytes[token] if token < len(self._bytes) else b""

    def starting(self, start: bytes) -> list[int]:
        """Return the tokens whose bytes begin with `start`."""
        first = bisect.bisect_left(self._sorted, (start, -1))
        return [
            token
            for data, token in itertools.takewhile(
                lambda each: each[0].startswith(start), itertools.islice(self._sorted, first, None)
            )
        ]

    def containing(self, parts: set[bytes]) -> Tensor:
        """Return the tokens that have one of some byte strings inside of them, in order."""
        lengths = sorted({len(part) for part in parts})

        def holds_one(data: bytes) -> bool:
            return any(
                data[start : start + length] in parts
                for length in lengths
                for start in range(len(data) - length + 1)
            )

        ids = [token for token, data in enumerate(self._bytes) if holds_one(data)]
        return torch.tensor(ids, dtype=torch.long)


_tables: WeakKeyDictionary[Tokenizer, _TokenBytes] = WeakKeyDictionary()


def _tokens_of(tokenizer: Tokenizer) -> _TokenBytes:
    """Return the table of a vocabulary, made only once."""
    if tokenizer not in _tables:
        _tables[tokenizer] = _TokenBytes(tokenizer)
    return _tables[tokenizer]


def left_without_a_token(limits: Sequence[Limit], n_new: int) -> str:
    """Return the message for a row of which limits forbid every continuation."""
    names = " and ".join(limit.name for limit in limits)
    return (
        f"after {n_new:,} new tokens {names} leave{'s' if len(limits) == 1 else ''} no token to go "
        "on with; forbid less, or end the text before with fewer tokens (max_tokens)"
    )
