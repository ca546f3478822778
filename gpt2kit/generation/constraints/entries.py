"""The lines that a constraint lists, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpt2kit.errors import ConfigError
from gpt2kit.fields import shortened


def checked_lines(name: str, lines: Any) -> tuple[str, ...] | None:
    """Return the different lines of a list, without empty ones; None if there is no list."""
    if lines is None:
        return None
    is_list = isinstance(lines, Sequence) and not isinstance(lines, str)
    if not is_list or not all(isinstance(line, str) for line in lines):
        raise ConfigError(f"{name} is {shortened(lines)}, expected a list of lines")
    kept = tuple(dict.fromkeys(line for line in lines if line))
    if not kept:
        raise ConfigError(f"{name} has no lines, expected one at least that is not empty")
    whole = "".join(kept)
    if "\n" in whole:
        raise ConfigError(f"{name} has a line with a line end in it; expected single lines")
    if not whole.isprintable() and any("\ud800" <= each < "\ue000" for each in whole):
        raise ConfigError(f"{name} has half of a surrogate pair, which is no character")
    return kept
