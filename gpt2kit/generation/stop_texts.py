"""Texts that end a text: found as it is written, and never shown, not even half of one."""

from __future__ import annotations

from collections.abc import Sequence


class StopTexts:
    """Let text through up to the first stop text, holding back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
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
        text = self._held + text
        found = [text.find(stop, max(0, before - len(stop) + 1)) for stop in self._stops]
        starts = [start for start in found if start >= 0 and may_stop]
        self.found = bool(starts)
        # The longest end of the text that begins a stop text may still become that stop text.
        held = max(
            (
                n
                for stop in self._stops
                for n in range(1, min(len(stop), len(text) + 1))
                if text.endswith(stop[:n])
            ),
            default=0,
        )
        end = min(starts) if starts else len(text) - held
        self._held = text[end:]
        return text[:end]

    def finish(self) -> str:
        """Return what was held back and did not become a stop text."""
        held, self._held = self._held, ""
        return "" if self.found else held
