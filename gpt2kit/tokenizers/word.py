"""Words as tokens, for small models trained from scratch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

from gpt2kit.errors import TokenizerError
from gpt2kit.tokenizers.listed import ListedTokenizer, Unknown
from gpt2kit.tokenizers.protocol import END_OF_TEXT
from gpt2kit.tokenizers.word_replacements import Replacement, Replacements

MARKERS = ("<PAD>", "<BOS>", "<EOS>", "<UNK>")

_PIECE = re.compile(r" ?\S+|\s")


class WordTokenizer(ListedTokenizer):
    """One id for each word of a text; words are separated by white space.

    A word includes the blank before it, and any other white space is a token by itself, so decoding
    returns the text exactly. A word that occurs both after a blank and at the beginning of a line
    is two tokens; if the vocabulary has only one of the two, it is used for both.

    `replace` are regular expressions, each with the marker that replaces what it finds, in texts to
    learn from and in texts to encode; decoding gives the marker. `markers` are some of MARKERS:
    <BOS> begins every document of a training text and <EOS> ends it, which ends generation, too;
    <UNK> stands for every word that is not in the vocabulary; <PAD> is reserved and never used.

    >>> tokenizer = WordTokenizer.from_text("tre donne\\ntre rose")
    >>> [tokenizer.tokens[token] for token in tokenizer.encode("tre rose\\n")]
    ['tre', ' rose', '\\n']
    >>> tokenizer = WordTokenizer.from_text("nel 1300", replace=[("[0-9]+", "<NUM>")])
    >>> tokenizer.decode(tokenizer.encode("nel 1321"))
    'nel <NUM>'
    """

    kind = "word"
    what = "word"

    def __init__(
        self,
        tokens: Sequence[str],
        *,
        unknown: Unknown = "error",
        replace: Sequence[Replacement] = (),
        markers: Sequence[str] = (),
    ) -> None:
        self.markers = _in_order(markers)
        self._replacements = Replacements(replace)
        super().__init__(tokens, unknown=unknown)
        if missing := [marker for marker in self.markers if marker not in self.special]:
            raise TokenizerError(f"the marker {missing[0]} is not among the tokens")
        self.before = [self.special["<BOS>"]] if "<BOS>" in self.special else []
        self.after = [self.special["<EOS>"]] if "<EOS>" in self.special else []
        self.stop_id = self.special.get("<EOS>", self.stop_id)
        self.unknown_id = self.special.get("<UNK>")
        self.needs_whole_text = bool(replace)

    @classmethod
    def from_text(
        cls, text: str, *, replace: Sequence[Replacement] = (), markers: Sequence[str] = ()
    ) -> Self:
        """Make the vocabulary of a text: markers, its sorted words, <|endoftext|> if it occurs."""
        documents = text.split(END_OF_TEXT)
        return cls.from_documents(
            documents, separated=len(documents) > 1, replace=replace, markers=markers
        )

    @classmethod
    def from_documents(
        cls,
        documents: Sequence[str],
        *,
        separated: bool,
        replace: Sequence[Replacement] = (),
        markers: Sequence[str] = (),
    ) -> Self:
        """Make the vocabulary of documents, with <|endoftext|> if they are to be `separated`.

        If <BOS> or <EOS> is among the markers, it separates documents in place of <|endoftext|>.
        Raises TokenizerError if there are no words, and if a marker is a word of the text, too.
        """
        markers = _in_order(markers)
        replaced = map(Replacements(replace).apply, documents)
        words = {piece for document in replaced for piece in cls.cut(document)}
        if not words:
            raise TokenizerError("an empty text has no vocabulary")
        if taken := [marker for marker in markers if {marker, f" {marker}"} & words]:
            raise TokenizerError(
                f"{taken[0]} is a word of the text, so it cannot be a marker; leave it out of the "
                "markers, or write the word differently"
            )
        end = [END_OF_TEXT] * (separated and not {"<BOS>", "<EOS>"} & {*markers})
        return cls([*markers, *sorted(words), *end], replace=replace, markers=markers)

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> Self:
        """Return the tokenizer that the object in gpt2kit_tokenizer.json describes."""
        replace, markers = content.get("replace", []), content.get("markers", [])
        if not (
            isinstance(replace, list)
            and all(isinstance(pair, list) and [*map(type, pair)] == [str, str] for pair in replace)
            and isinstance(markers, list)
            and all(isinstance(marker, str) for marker in markers)
        ):
            raise TokenizerError('expected "replace": [[regex, marker], …] and "markers": [texts]')
        pairs = [(pattern, marker) for pattern, marker in replace]
        return cls(content["tokens"], replace=pairs, markers=markers)

    def content(self) -> dict[str, Any]:
        """Return the object that is written to gpt2kit_tokenizer.json."""
        content = super().content()
        if self._replacements.pairs:
            content["replace"] = [list(pair) for pair in self._replacements.pairs]
        return content | ({"markers": list(self.markers)} if self.markers else {})

    @classmethod
    def cut(cls, text: str) -> list[str]:
        """Return the words of a text, each with the blank before it, and other white space."""
        return _PIECE.findall(text)

    def pieces(self, text: str) -> list[str]:
        """Return the words of a text in which everything to replace is replaced."""
        return self.cut(self._replacements.apply(text))

    def id_of(self, piece: str) -> int | None:
        """Return the id of a word, or of the same word with or without a blank before it."""
        other = piece[1:] if piece.startswith(" ") else f" {piece}"
        return self._ids.get(piece, self._ids.get(other))

    def nearest(self, piece: str) -> list[str]:
        """Return the known words that are most similar to this one."""
        known = {token.strip(): None for token in self._ids if not token.isspace()}
        word = piece.strip()
        same = [other for other in known if other.casefold() == word.casefold()]
        return (
            same
            + [other for other in difflib.get_close_matches(word, known, n=3) if other not in same]
        )[:3]


def parse_markers(typed: str) -> tuple[str, ...]:
    """Return the markers of "pad,bos,eos,unk", in any case; raise TokenizerError for another."""
    return _in_order([f"<{name.strip(' <>').upper()}>" for name in typed.split(",") if name])


def _in_order(markers: Sequence[str]) -> tuple[str, ...]:
    """Return some of MARKERS in their order; raise TokenizerError if one is unknown or twice."""
    if unknown := [marker for marker in markers if marker not in MARKERS]:
        raise TokenizerError(
            f"there is no marker {unknown[0][:40]}; there are {', '.join(MARKERS)}: "
            "--markers pad,bos,eos,unk"
        )
    if len(set(markers)) != len(markers):
        raise TokenizerError(f"a marker is given twice: {', '.join(markers)}")
    return tuple(marker for marker in MARKERS if marker in markers)
