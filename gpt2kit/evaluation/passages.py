"""Texts, the words in them, and which tokens belong to which word.

Spans are found from the bytes of tokens, since one character may be several tokens and one token a
part of a character. White space belongs to the word after it. A token belongs to the word in which
it ends; if it began in another one, both words are marked.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from gpt2kit.errors import TokenizerError
from gpt2kit.evaluation.word_options import Punctuation
from gpt2kit.tokenizers import StreamDecoder, Tokenizer

# Only ASCII white space separates words: a no-break space does not, as its name says.
_WHITE = " \t\n\r\v\f"
_WORD = re.compile(f"[^{_WHITE}]+")


@dataclass(frozen=True)
class Unit:
    """A span of a text, in characters, that has a surprisal of its own."""

    start: int
    end: int
    wanted: bool = True  # False for what is read, but not reported: a context, dropped punctuation


@dataclass(frozen=True)
class Passage:
    """A text and its units, in order, none overlapping."""

    text: str
    units: tuple[Unit, ...]


@dataclass(frozen=True)
class Span:
    """Which tokens a unit has: from `first` to before `end`."""

    first: int
    end: int
    straddles: bool  # whether a token belongs to this unit and to another one


def whole(text: str) -> Passage:
    """Return a text as a single unit."""
    return Passage(text, (Unit(0, len(text)),) if text else ())


def split(text: str, punctuation: Punctuation = "keep") -> Passage:
    """Return a text with its words as units; white space separates them."""
    units = [
        unit
        for found in _WORD.finditer(text)
        for unit in _pieces(found[0], found.start(), punctuation)
    ]
    return Passage(text, tuple(units))


def joined(
    cells: Sequence[str], separator: str = " ", punctuation: Punctuation = "keep"
) -> tuple[Passage, list[int]]:
    """Return the text of some cells, and of each wanted unit the index of its cell.

    A cell of white space alone is left out; with "drop", a cell of punctuation alone has no unit
    that is wanted. Cells are not split: "split" is treated as "keep".
    """
    units, owners, pieces = list[Unit](), list[int](), list[str]()
    offset = 0
    for index, cell in enumerate(cells):
        if not cell.strip(_WHITE):
            continue
        if pieces:
            pieces.append(separator)
            offset += len(separator)
        found = _pieces(cell, offset, "drop" if punctuation == "drop" else "keep")
        for unit in found:
            units.append(unit)
            if unit.wanted:
                owners.append(index)
        pieces.append(cell)
        offset += len(cell)
    return Passage("".join(pieces), tuple(units)), owners


def target(context: str, target: str, separator: str = " ") -> Passage:
    """Return a text whose only wanted unit is a target after its context.

    No separator is added where one of the two has white space already, or if there is no context.
    White space at the end of the context belongs to the target.
    """
    if not target.strip(_WHITE):
        return Passage(context, ())
    seen = context.rstrip(_WHITE)
    if not context or seen != context or target[0] in _WHITE:
        separator = ""
    before = context + separator
    text = before + target
    measured = Unit(len(before), len(text))
    return Passage(text, (Unit(0, len(seen), wanted=False), measured) if seen else (measured,))


def _pieces(word: str, offset: int, punctuation: Punctuation) -> Iterator[Unit]:
    """Yield a word as one unit, or apart from the punctuation before and after it."""
    if punctuation == "keep":
        yield Unit(offset, offset + len(word))
        return
    marks = [is_punctuation(character) for character in word]
    if all(marks):
        yield Unit(offset, offset + len(word), wanted=punctuation == "split")
        return
    start = marks.index(False)
    end = len(word) - marks[::-1].index(False)
    for first, last in pairwise((0, start, end, len(word))):
        if first < last:
            wanted = punctuation == "split" or first == start
            yield Unit(offset + first, offset + last, wanted)


def is_punctuation(character: str) -> bool:
    """Return whether Unicode calls a character punctuation."""
    return unicodedata.category(character).startswith("P")


# --- tokens ---------------------------------------------------------------------------------------


def spans(passage: Passage, pieces: Sequence[bytes]) -> list[Span]:
    """Return which tokens each unit has, given the bytes of all tokens of the text."""
    ends = _byte_ends(passage)  # of units
    token_ends = list(accumulate(map(len, pieces)))
    starts = [0, *token_ends][: len(pieces)]
    owners = [_owner(ends, start, end) for start, end in zip(starts, token_ends, strict=True)]
    straddling: set[int] = set()
    for start, owner in zip(starts, owners, strict=True):
        began = bisect_right(ends, start)
        if began < owner < len(ends):
            straddling |= set(range(began, owner + 1))
    return [
        Span(bisect_left(owners, unit), bisect_right(owners, unit), unit in straddling)
        for unit in range(len(ends))
    ]


def _owner(ends: Sequence[int], start: int, end: int) -> int:
    """Return the index of a token's unit; len(ends) for white space at the end of the text."""
    owner = bisect_left(ends, end)
    if owner == len(ends) and ends and start < ends[-1]:
        return owner - 1  # it began in the last word and ends in the white space after it
    return owner


def _byte_ends(passage: Passage) -> list[int]:
    """Return the offsets in bytes at which the units end."""
    cuts = [0, *(unit.end for unit in passage.units)]
    sizes = (len(passage.text[start:end].encode()) for start, end in pairwise(cuts))
    return list(accumulate(sizes))


def token_pieces(tokenizer: Tokenizer, text: str, ids: Sequence[int]) -> list[bytes]:
    """Return the bytes of the tokens of a text; raises TokenizerError if they do not spell it."""
    pieces = [tokenizer.token_bytes(token) for token in ids]
    if b"".join(pieces) == b" " + text.encode():
        pieces[0] = pieces[0].removeprefix(b" ")  # SentencePiece begins every text with a space
    if b"".join(pieces) != text.encode():
        raise TokenizerError(
            "the tokens of the text do not spell it, so its words cannot be found among them; "
            "expected a vocabulary that has every character of the text"
        )
    return pieces


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Return the text of each token: a character of several tokens is the text of its last one.

    Joined, they are the text.
    """
    decoder = StreamDecoder(tokenizer.token_bytes)
    return [decoder.feed(token) for token in ids]
