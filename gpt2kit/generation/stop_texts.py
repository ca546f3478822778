"""Texts that end a text: found as it is written, and never shown, not even half of one."""

from __future__ import annotations

from array import array
from collections.abc import Sequence


class StopTexts:
    """Let text through up to the first stop text, holding back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._matches = [_Match(stop) for stop in stops]
        self._held = ""
        self.found = False

    def feed(self, text: str, *, may_stop: bool = True) -> str:
        """Return what is certain not to belong to a stop text.

        Sets `found` once a stop text is complete; after it there is no text. Unless it `may_stop`,
        a stop text that this text completes is let through.
        """
        if self.found:
            return ""
        before = len(self._held)
        ends = [(match.feed(text), len(match.stop)) for match in self._matches]
        starts = [before + end - length for end, length in ends if end and may_stop]
        self.found = bool(starts)
        text = self._held + text
        # The longest end of the text that begins a stop text may still become that stop text.
        held = max((match.length for match in self._matches), default=0)
        end = min(starts) if starts else len(text) - held
        self._held = text[end:]
        return text[:end]

    def finish(self) -> str:
        """Return what was held back and did not become a stop text."""
        held, self._held = self._held, ""
        return "" if self.found else held


class _Match:
    """How much of one stop text a growing text ends with (Knuth, Morris and Pratt 1977).

    Each character is looked at about twice, however long the stop text is and whatever comes.
    """

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.length = 0  # of the longest end of the text that begins the stop text, but is not all
        # How much of the stop text its first 1, 2, ... characters end with, as far as needed.
        self._borders = array("l", [0])

    def feed(self, text: str) -> int:
        """Add text, and return where in it the first stop text ends; 0 if none does."""
        found = 0
        for i, character in enumerate(text, 1):
            self.length = self._longer(self.length, character)
            if self.length == len(self.stop):
                found = found or i
                self.length = self._border(self.length)
        return found

    def _longer(self, length: int, character: str) -> int:
        """Return how much of the stop text stands there if a character follows that much of it."""
        while length and self.stop[length] != character:
            length = self._border(length)
        return length + 1 if self.stop[length] == character else 0

    def _border(self, length: int) -> int:
        """Return how much of the stop text its first `length` characters end with."""
        while len(self._borders) < length:
            self._borders.append(self._longer(self._borders[-1], self.stop[len(self._borders)]))
        return self._borders[length - 1]
