"""Turn tokens into text one at a time, never half a character."""

from __future__ import annotations

import codecs
from collections.abc import Callable


class StreamDecoder:
    """Turn token ids into text one at a time, holding back incomplete characters.

    The joined results of every `feed` and of the final `finish` equal the text of all ids decoded
    at once.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """Return the text that this token completes, which may be empty."""
        return self._utf8.decode(self._token_bytes(token))

    def finish(self) -> str:
        """Return what is still held back: U+FFFD for a character that was never completed."""
        return self._utf8.decode(b"", final=True)
