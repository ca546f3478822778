"""Tokens to text one at a time, never half a character."""

from __future__ import annotations

import codecs
from collections.abc import Callable


class StreamDecoder:
    """Turn token ids into text one at a time, holding back incomplete characters.

    The pieces that `feed` and the last `finish` return, joined, are what decoding all ids at once gives.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """Return the text that this token completes."""
        return self._utf8.decode(self._token_bytes(token))

    def finish(self) -> str:
        """Return what is still held back, as U+FFFD where a character was never completed."""
        return self._utf8.decode(b"", final=True)
