"""Characters as tokens, for small models trained from scratch."""

from __future__ import annotations

import unicodedata

from gpt2kit.tokenizers.listed import ListedTokenizer


class CharTokenizer(ListedTokenizer):
    """One id for each character of a text.

    >>> tokenizer = CharTokenizer.from_text("abba")
    >>> tokenizer.encode("baa")
    [1, 0, 0]
    >>> tokenizer.decode([1, 0])
    'ba'
    """

    kind = "char"
    what = "character"

    @classmethod
    def cut(cls, text: str) -> list[str]:
        """Return the characters of a text."""
        return list(text)

    def nearest(self, piece: str) -> list[str]:
        """Return the known characters that differ only in case or accent.

        If there are none: those of the same Unicode category with the nearest codes.
        """
        known = [token for token in self.tokens if len(token) == 1]
        alike = [token for token in known if _bare(token) == _bare(piece)]
        same_kind = [
            token
            for token in known
            if unicodedata.category(token)[0] == unicodedata.category(piece)[0]
        ]
        return sorted(alike or same_kind, key=lambda token: abs(ord(token) - ord(piece)))[:3]


def _bare(character: str) -> str:
    """Return a letter without case and accent."""
    return unicodedata.normalize("NFKD", character)[0].casefold()
