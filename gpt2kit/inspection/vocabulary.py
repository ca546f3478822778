"""What a vocabulary consists of: its size, its kinds of tokens, the special and the longest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from gpt2kit.tokenizers import (
    BPETokenizer,
    LibraryTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
)
from gpt2kit.tokenizers.listed import ListedTokenizer

_LONGEST = 5
_SAMPLE = 12


@dataclass(frozen=True)
class TokenEntry:
    """One token. Its bytes are the truth: a token may be a part of a character, which is no text.

    A special token, such as <|endoftext|>, is never made from the same characters in a text.
    """

    id: int
    piece: bytes
    special: bool

    @property
    def text(self) -> str | None:
        """The token as text, or None if its bytes are not whole characters of UTF-8."""
        try:
            return self.piece.decode("utf-8")
        except UnicodeDecodeError:
            return None


@dataclass(frozen=True)
class VocabularySummary:
    """What a vocabulary consists of. One token may count among several of the kinds."""

    tokenizer: str  # "byte-level BPE", "characters", "words" or "WordPiece of …"
    n_vocab: int
    special: tuple[TokenEntry, ...]
    kinds: dict[str, int]  # number of tokens by kind
    longest: tuple[TokenEntry, ...]  # by bytes, the longest first
    sample: tuple[TokenEntry, ...]  # from the whole vocabulary, at equal distances


def entries(tokenizer: Tokenizer) -> Iterator[TokenEntry]:
    """Yield every token of a vocabulary in the order of ids; gaps in the ids are left out."""
    special = special_ids(tokenizer)
    gaps = _gaps(tokenizer)
    for token in range(tokenizer.n_vocab):
        if token not in gaps:
            yield TokenEntry(token, tokenizer.token_bytes(token), token in special)


def special_ids(tokenizer: Tokenizer) -> set[int]:
    """Return the ids of the tokens that no plain text makes."""
    known = BPETokenizer | LibraryTokenizer | ListedTokenizer | SentencePieceTokenizer
    if isinstance(tokenizer, known):
        return set(tokenizer.special.values())
    return set() if tokenizer.stop_id is None else {tokenizer.stop_id}


def summarize_vocabulary(tokenizer: Tokenizer) -> VocabularySummary:
    """Count the kinds of tokens of a vocabulary.

    - `single bytes`: one byte long
    - `single characters`: one character of Unicode
    - `letters`: nothing else
    - `a space and letters`: in GPT-2's vocabulary, most whole words
    - `digits`: nothing else, or after a space
    - `white space`: nothing else
    - `begin with a space`: and are more than that
    - `not whole characters`: bytes that are no whole UTF-8

    Special tokens are counted under none of them.
    """
    every = list(entries(tokenizer))
    plain = [entry for entry in every if not entry.special]
    kinds: Counter[str] = Counter(dict.fromkeys(_KINDS, 0))
    for entry in plain:
        kinds.update(_kinds(entry))
    step = max(1, len(plain) // _SAMPLE)
    return VocabularySummary(
        tokenizer=_name(tokenizer),
        n_vocab=tokenizer.n_vocab,
        special=tuple(entry for entry in every if entry.special),
        kinds=dict(kinds),
        longest=tuple(sorted(plain, key=lambda entry: (-len(entry.piece), entry.id))[:_LONGEST]),
        sample=tuple(plain[step // 2 :: step][:_SAMPLE]),
    )


_KINDS = (
    "single bytes",
    "single characters",
    "letters",
    "a space and letters",
    "digits",
    "white space",
    "begin with a space",
    "not whole characters",
)


def _kinds(entry: TokenEntry) -> Iterator[str]:
    """Yield the kinds that a token belongs to."""
    if len(entry.piece) == 1:
        yield "single bytes"
    if entry.text is None:
        yield "not whole characters"
        return
    if len(entry.text) == 1:
        yield "single characters"
    bare = entry.text.removeprefix(" ")
    if bare.isalpha():
        yield "letters" if bare == entry.text else "a space and letters"
    if bare.isdecimal():
        yield "digits"
    if entry.text.isspace():
        yield "white space"
    elif entry.text.startswith(" "):
        yield "begin with a space"


def _name(tokenizer: Tokenizer) -> str:
    if isinstance(tokenizer, ListedTokenizer):
        return f"{tokenizer.what}s"
    if isinstance(tokenizer, LibraryTokenizer | SentencePieceTokenizer):
        return tokenizer.description
    return "byte-level BPE"


def _gaps(tokenizer: Tokenizer) -> set[int]:
    """Return the ids below n_vocab that stand for no token, which a BPE's files may leave out."""
    return tokenizer.gaps() if isinstance(tokenizer, BPETokenizer | LibraryTokenizer) else set()
