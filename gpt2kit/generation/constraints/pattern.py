"""Read a regular expression in Python's syntax, as a tree of single characters and what joins them.

The single characters stay as they are written, `[a-z]` or `\\w`: Python's own `re` says later which
characters they match. What a finite automaton cannot do is refused by its name.
"""

from __future__ import annotations

import functools
import re
import warnings
from dataclasses import dataclass
from typing import NoReturn

from gpt2kit.errors import ConfigError
from gpt2kit.fields import shortened


@dataclass(frozen=True)
class Character:
    """One character: a regular expression that matches a single one, and its flags."""

    pattern: str
    flags: int


@dataclass(frozen=True)
class Sequence:
    """One part after the other; without parts, the empty text."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Choice:
    """One of several parts."""

    options: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    """A part, from `least` to `most` times; most is None if there is no limit."""

    part: Node
    least: int
    most: int | None


Node = Character | Sequence | Choice | Repeat

MOST_CHARACTERS = 2**15  # of a pattern, which is read before anything else is known of it

_ESCAPE = re.compile(
    r"\\(?:0[0-7]{0,2}|[1-3][0-7]{2}|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|N\{[^}]*\}|.)",
    re.DOTALL,
)
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_QUANTIFIER = re.compile(r"(?:[*+?]|\{(?:(\d+)(,(\d*))?|,(\d*))\})([?+]?)")
_GROUP = re.compile(r"\((?:\?P<\w+>|\?([aiLmsux]*)(?:-([imsx]+))?([:)]))?")
_COMMENT = re.compile(r"\(\?#[^)]*\)")
_REFUSED = {
    "(?=": "lookahead (?=…)",
    "(?!": "lookahead (?!…)",
    "(?<": "lookbehind (?<=…)",
    "(?(": "the condition (?(…)…)",
    "(?>": "the atomic group (?>…)",
    "(?P=": "the backreference (?P=…)",
}
_FLAGS = {"a": re.ASCII, "i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL, "u": re.UNICODE}


@functools.lru_cache(maxsize=8)  # a request is made anew with each option that changes
def parse(pattern: str) -> Node:
    """Return the tree of a pattern; raises ConfigError for a wrong one and for what is refused."""
    if len(pattern) > MOST_CHARACTERS:
        raise ConfigError(
            f"regex has {len(pattern):,} characters, expected at most {MOST_CHARACTERS:,}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about classes that may once be read in another way
            re.compile(pattern)
    except (re.error, OverflowError) as error:
        raise ConfigError(f"regex is {shortened(pattern)}, which is no pattern: {error}") from None
    except RecursionError:
        raise ConfigError("regex has too many groups inside each other") from None
    return _Reader(pattern).read()


class _Reader:
    """Reads a pattern that is known to be correct, from left to right."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._offset = 0
        self._flags = 0
        self._depth = 0

    def read(self) -> Node:
        """Return the tree of the whole pattern."""
        return self._choice()

    def _choice(self) -> Node:
        options = [self._sequence()]
        while self._accept("|"):
            options.append(self._sequence())
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _sequence(self) -> Node:
        parts: list[Node] = []
        ended = False  # after $ only the end or another option may follow
        while self._offset < len(self._pattern) and self._pattern[self._offset] not in "|)":
            start = self._offset
            if anchor := self._anchor():
                if self._depth or (anchor == "start" and parts):
                    self._refuse("an anchor (^, $, \\A, \\Z) inside the pattern", start)
                ended = ended or anchor == "end"
                continue
            if ended:
                self._refuse("an anchor ($, \\Z) inside the pattern", start)
            part = self._part()
            if part is not None:
                parts.append(self._repeated(part))
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _anchor(self) -> str | None:
        """Read ^, $, \\A or \\Z, and return which end of the text it means."""
        for text, meaning in (("^", "start"), ("\\A", "start"), ("$", "end"), ("\\Z", "end")):
            if self._accept(text):
                if self._flags & re.MULTILINE:
                    self._refuse("an anchor with the flag m", self._offset)
                return meaning
        return None

    def _part(self) -> Node | None:
        """Read a character, a class or a group; None for a comment or flags of the whole."""
        character = self._pattern[self._offset]
        if character == "(":
            return self._group()
        if character == "[":
            return self._character(self._match(_CLASS)[0])
        if character == "\\":
            return self._escape()
        self._offset += 1
        return self._character("." if character == "." else re.escape(character))

    def _escape(self) -> Node:
        start = self._offset
        escape = self._match(_ESCAPE)[0]
        if len(escape) == 2 and escape[1] in "123456789":
            self._refuse(f"the backreference {escape}", start)
        if escape in ("\\b", "\\B"):
            self._refuse(f"the word boundary {escape}", start)
        return self._character(escape)

    def _group(self) -> Node | None:
        start = self._offset
        if _COMMENT.match(self._pattern, start):
            self._match(_COMMENT)
            return None
        for text, name in _REFUSED.items():
            if self._pattern.startswith(text, start):
                self._refuse(name, start)
        opened = self._match(_GROUP)
        added, removed, closing = opened.groups()
        outside = self._flags
        self._flags = self._with_flags(added or "", removed or "", start)
        if closing == ")":  # flags of the whole pattern, which stand at its beginning
            return None
        self._depth += 1
        inside = self._choice()
        self._depth -= 1
        self._accept(")")
        self._flags = outside
        return inside

    def _with_flags(self, added: str, removed: str, start: int) -> int:
        flags = self._flags
        for letter in added + removed:
            if letter not in _FLAGS:
                self._refuse(f"the flag {letter}", start)
        for letter in added:
            if letter in "au":
                flags &= ~(re.ASCII | re.UNICODE)
            flags |= _FLAGS[letter]
        for letter in removed:
            flags &= ~_FLAGS[letter]
        return int(flags)

    def _repeated(self, part: Node) -> Node:
        """Read a quantifier, if there is one."""
        start = self._offset
        found = _QUANTIFIER.match(self._pattern, start)
        if not found:
            return part
        self._offset = found.end()
        exact, comma, most, only_most, suffix = found.groups()
        if suffix == "+":
            self._refuse(f"the possessive quantifier {found[0]}", start)
        simple = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        if found[0][0] in simple:
            return Repeat(part, *simple[found[0][0]])
        if exact is None:
            return Repeat(part, 0, int(only_most) if only_most else None)
        if comma is None:
            return Repeat(part, int(exact), int(exact))
        return Repeat(part, int(exact), int(most) if most else None)

    def _character(self, pattern: str) -> Character:
        return Character(pattern, self._flags)

    def _accept(self, text: str) -> bool:
        """Read a text if it comes next, and say whether it did."""
        found = self._pattern.startswith(text, self._offset)
        self._offset += len(text) * found
        return found

    def _match(self, expected: re.Pattern[str]) -> re.Match[str]:
        found = expected.match(self._pattern, self._offset)
        if not found:
            self._refuse(f"{self._pattern[self._offset :][:8]!r}", self._offset)
        self._offset = found.end()
        return found

    def _refuse(self, what: str, offset: int) -> NoReturn:
        raise ConfigError(
            f"regex has {what} at offset {offset}, which a constraint cannot have; write the "
            "pattern without it"
        )
