"""Words as tokens, for small models trained from scratch."""

from __future__ import annotations

import difflib
import re

from gpt2kit.tokenizers.listed import ListedTokenizer

_PIECE = re.compile(r" ?\S+|\s")


class WordTokenizer(ListedTokenizer):
    """One id for each word of a text; words are separated by white space.

    A word includes the blank before it, and any other white space is a token by itself, so decoding
    returns the text exactly. A word that occurs both after a blank and at the beginning of a line
    is two tokens; if the vocabulary has only one of the two, it is used for both.

    >>> tokenizer = WordTokenizer.from_text("tre donne\\ntre rose")
    >>> [tokenizer.tokens[token] for token in tokenizer.encode("tre rose\\n")]
    ['tre', ' rose', '\\n']
    """

    kind = "word"
    what = "word"

    @classmethod
    def cut(cls, text: str) -> list[str]:
        """Return the words of a text, each with the blank before it, and other white space."""
        return _PIECE.findall(text)

    def id_of(self, piece: str) -> int | None:
        """Return the id of a word, or of the same word with or without a blank before it."""
        other = piece[1:] if piece.startswith(" ") else f" {piece}"
        return self._ids.get(piece, self._ids.get(other))

    def nearest(self, piece: str) -> list[str]:
        """Return the known words that are most similar to this one."""
        known = {token.strip(): None for token in self.tokens if not token.isspace()}
        word = piece.strip()
        same = [other for other in known if other.casefold() == word.casefold()]
        return (
            same
            + [other for other in difflib.get_close_matches(word, known, n=3) if other not in same]
        )[:3]
