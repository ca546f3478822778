"""What becomes of a text with more tokens than the model reads at once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

from gpt2kit.errors import ConfigError, ContextLengthError, Gpt2KitWarning, TokenizerError

Overflow = Literal["slide", "stop", "error"]


def fit(
    ids: Sequence[int],
    limit: int,
    overflow: Overflow,
    *,
    what: str = "the text",
    slides: bool = True,
) -> Sequence[int]:
    """Return the tokens of a text to read: all if there are at most `limit`, else by `overflow`.

    error  raises ContextLengthError
    stop   keeps the first `limit` tokens, with a warning
    slide  keeps all, for a caller that reads window after window; without `slides`, for a caller
           that reads a single one, it keeps the last `limit`, with a warning
    """
    n = len(ids)
    if n <= limit or (overflow == "slide" and slides):
        return ids
    if overflow == "error":
        check_length(n, limit, what)
    end = "first" if overflow == "slide" else "last"
    warnings.warn(
        f"{what} has {n:,} tokens, but the model reads at most {limit:,}: "
        f"the {end} {n - limit:,} are left out",
        Gpt2KitWarning,
        stacklevel=2,
    )
    return ids[-limit:] if overflow == "slide" else ids[:limit]


def check_length(n: int, limit: int, what: str = "the text") -> None:
    """Raise ContextLengthError if a text of n tokens is longer than the model can read."""
    if n > limit:
        raise ContextLengthError(
            f"{what} has {n:,} tokens, but the model reads at most {limit:,}; "
            "shorten it or use --overflow slide",
            requested=n,
            limit=limit,
        )


def check_ids(ids: Sequence[int], n_vocab: int, what: str = "the text") -> None:
    """Raise ConfigError for a text without tokens, TokenizerError for an id the model lacks."""
    if not ids:
        raise ConfigError(f"{what} has no tokens, expected at least one")
    for token in ids:
        if not 0 <= token < n_vocab:
            raise TokenizerError(f"id {token} is not in the model's vocabulary of {n_vocab:,}")
