"""How much of a text is copied from a corpus: the passages that are in both, word for word.

A model trained on one book ends by knowing it by heart. Every author repeats phrases too, so a figure says something only beside
that of a text of the same kind which was not in the corpus: measure the validation text against the training text.

    index = Index(corpus.train_ids)                    # seconds for a megabyte; keep it for many texts
    measure(sample_ids, index).copied, measure(corpus.val_ids, index).copied

Or without a tokenizer: `measure_text(text, TextIndex(book))`, which compares words and marks, whatever the white space between them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpt2kit.data.corpus import split_documents
from gpt2kit.errors import ConfigError

Ints = NDArray[np.int64]

# In runs from this length on are 0.1 to 0.7% of the last tenths of the Comedy and of tiny Shakespeare, when the rest is the corpus.
MIN_TOKENS = 12  # of GPT-2's vocabulary; much more for characters
MIN_WORDS = 5


@dataclass(frozen=True)
class Passage:
    """A passage of a text that is in the corpus too, and in no longer one that is."""

    start: int  # in the text
    length: int
    place: int  # in the corpus; the first of them
    occurrences: int  # in the corpus


@dataclass(frozen=True)
class TextPassage:
    """The same of words: `start` and `place` count characters, `length` words."""

    start: int
    length: int
    text: str
    document: int  # of the corpus, from 0
    place: int  # in that document
    line: int  # of that document, from 1
    occurrences: int


P = TypeVar("P", Passage, TextPassage)


@dataclass(frozen=True)
class Originality(Generic[P]):
    """What of a text is in a corpus."""

    length: int  # of the text, in tokens or words, as all that follows
    min_run: int
    copied: float  # the share of the text in passages of min_run or more
    longest: int  # passage, be it shorter than min_run
    passages: list[P]  # of min_run or more, the longest first


@dataclass(frozen=True)
class Matches:
    """For each position of a text: the longest run of tokens from there on that is in the corpus."""

    lengths: Ints
    low: Ints  # the run is at Index.places(low, high)
    high: Ints


class Index:
    """The suffix array of a corpus, and all that is needed to look up many texts at once; about 100 bytes for each token.

    Made by prefix doubling (Manber and Myers, 1993): level k names each run of 2^k tokens by its rank among all of them, from 1 on;
    0 is what begins behind the end. Runs of 2^(k+1) are pairs of names. When all names differ, they are the ranks of the suffixes.
    """

    def __init__(self, ids: ArrayLike) -> None:
        corpus = np.asarray(ids)
        self.n_tokens = len(corpus)
        self._levels: list[
            NDArray[np.int32]
        ] = []  # names of the runs that begin at each position and behind the end
        self._keys: list[
            NDArray[Any]
        ] = []  # what the names stand for, in their order: tokens, then pairs of names
        keys, names = np.unique(corpus, return_inverse=True)
        while True:
            self._keys.append(keys)
            self._levels.append(np.append(names + 1, 0).astype(np.int32))
            if len(keys) == self.n_tokens:
                break
            keys, names = np.unique(
                self._pairs(self._levels[-1], len(self._levels) - 1), return_inverse=True
            )
        self._suffixes = np.argsort(names)  # positions, by what follows from there on

    def _pairs(self, names: NDArray[np.int32], level: int) -> Ints:
        """Return one number for the two names of each run of 2^(level+1), which sort as the pairs do."""
        second = np.zeros(len(names), np.int64)
        second[: -(2**level)] = names[2**level :]
        return (names.astype(np.int64) * (self.n_tokens + 1) + second)[:-1]

    def matches(self, ids: ArrayLike) -> Matches:
        """Return the longest match from each position of a text on, in O(n log² n) however long the matches are."""
        text = np.asarray(ids)
        n = len(text)
        names = self._names_of(text)
        lengths, low, high = (
            np.zeros(n, np.int64),
            np.zeros(n, np.int64),
            np.full(n, self.n_tokens, np.int64),
        )
        for level in reversed(range(len(names))):
            # The suffixes from low to high begin with what has matched, so they are in the order of the run after it.
            corpus_names = self._levels[min(level, len(self._levels) - 1)]
            wanted = names[level][np.arange(n) + lengths]
            rows = np.flatnonzero(wanted)
            wanted = wanted[rows]
            left = self._bisect(corpus_names, wanted, lengths[rows], low[rows], high[rows])
            right = self._bisect(corpus_names, wanted + 1, lengths[rows], left, high[rows])
            found = right > left
            rows = rows[found]
            low[rows], high[rows] = left[found], right[found]
            lengths[rows] += 2**level
        return Matches(lengths, low, high)

    def places(self, low: int, high: int) -> Ints:
        """Return the places in the corpus of the suffixes from low to high."""
        return self._suffixes[low:high]

    def _names_of(self, text: NDArray[Any]) -> list[Ints]:
        """Return for each level the names of the runs of a text, 0 where a run is not in the corpus, until there is none left."""
        n = len(text)
        levels = [np.append(_find(self._keys[0], text), 0)]
        while levels[-1].any():
            level = len(levels) - 1
            first, second = levels[-1][:-1], np.zeros(n, np.int64)
            second[: max(0, n - 2**level)] = levels[-1][2**level : n]
            if level + 1 < len(self._levels):
                named = _find(self._keys[level + 1], first * (self.n_tokens + 1) + second)
            else:  # all runs in the corpus differ: the second half must be what follows the first one's only place
                after = np.minimum(
                    self._suffixes[np.maximum(first - 1, 0)] + 2**level, self.n_tokens
                )
                named = np.where(self._levels[-1][after] == second, first, 0)
            levels.append(np.append(np.where((first > 0) & (second > 0), named, 0), 0))
        return levels[:-1]

    def _bisect(
        self, names: NDArray[np.int32], wanted: Ints, offsets: Ints, low: Ints, high: Ints
    ) -> Ints:
        """Return for each row the first suffix in low … high whose name, `offset` tokens on, is `wanted` or greater; else high."""
        low, high = low.copy(), high.copy()
        while (open_ := low < high).any():
            middle = (low + high) // 2
            places = self._suffixes[np.minimum(middle, self.n_tokens - 1)] + offsets
            less = names[np.minimum(places, self.n_tokens)] < wanted
            low = np.where(open_ & less, middle + 1, low)
            high = np.where(open_ & ~less, middle, high)
        return low


def _find(keys: NDArray[Any], values: NDArray[Any]) -> Ints:
    """Return the place of each value among sorted keys, from 1 on; 0 where it is not there."""
    if not len(keys):
        return np.zeros(len(values), np.int64)
    places = np.minimum(np.searchsorted(keys, values), len(keys) - 1)
    return np.where(keys[places] == values, places + 1, 0)


def measure(
    ids: ArrayLike, corpus: Index | ArrayLike, *, min_run: int = MIN_TOKENS
) -> Originality[Passage]:
    """Return what of some ids is in a corpus of ids."""
    if min_run < 1:
        raise ConfigError(f"min_run is {min_run}, expected at least 1")
    index = corpus if isinstance(corpus, Index) else Index(corpus)
    matches = index.matches(ids)
    lengths, n = matches.lengths, len(matches.lengths)
    is_whole = np.append(True, lengths[1:] >= lengths[:-1])[
        :n
    ]  # else it is the previous match without its first token
    starts = np.flatnonzero(is_whole & (lengths >= min_run))
    edges = np.zeros(n + 1, np.int64)  # where passages begin and end
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + lengths[starts], -1)
    passages = []
    for start in sorted(starts.tolist(), key=lambda start: (-lengths[start], start)):
        places = index.places(matches.low[start], matches.high[start])
        passages.append(Passage(start, int(lengths[start]), int(places.min()), len(places)))
    copied = int(np.count_nonzero(edges[:n].cumsum()))
    return Originality(n, min_run, copied / max(1, n), int(lengths.max(initial=0)), passages)


# --- texts -----------------------------------------------------------------------------------------------------------

_WORD = re.compile(r"\w+(?:['’]\w+)*")


class TextIndex:
    """The words of a text, or of several documents, to look up many texts in."""

    def __init__(self, corpus: str | Sequence[str]) -> None:
        self._documents = [corpus] if isinstance(corpus, str) else list(corpus)
        self._ids: dict[str, int] = {}
        self._places: list[tuple[int, int]] = []  # of each word: document and character
        ids = []
        for number, document in enumerate(self._documents):
            for word in _WORD.finditer(document):
                ids.append(self._ids.setdefault(word[0].casefold(), len(self._ids)))
                self._places.append((number, word.start()))
            ids.append(_BETWEEN)
            self._places.append((number, len(document)))
        self._index = Index(ids)

    def measure(self, text: str, *, min_run: int = MIN_WORDS) -> Originality[TextPassage]:
        """Return what of a text is in the corpus, word for word, whatever the white space, punctuation and case."""
        words = list(_WORD.finditer(text))
        found = measure(
            [self._ids.get(word[0].casefold(), _UNKNOWN) for word in words],
            self._index,
            min_run=min_run,
        )
        passages = []
        for passage in found.passages:
            start, end = (
                words[passage.start].start(),
                words[passage.start + passage.length - 1].end(),
            )
            document, place = self._places[passage.place]
            line = self._documents[document].count("\n", 0, place) + 1
            passages.append(
                TextPassage(
                    start,
                    passage.length,
                    text[start:end],
                    document,
                    place,
                    line,
                    passage.occurrences,
                )
            )
        return Originality(found.length, min_run, found.copied, found.longest, passages)


_BETWEEN, _UNKNOWN = -2, -1  # ids of no word: what no text has, and what no corpus has


def measure_text(
    text: str, corpus: TextIndex | str | Sequence[str], *, min_run: int = MIN_WORDS
) -> Originality[TextPassage]:
    """Return what of a text is in a corpus, word for word, whatever the white space, punctuation and case."""
    return (corpus if isinstance(corpus, TextIndex) else TextIndex(corpus)).measure(
        text, min_run=min_run
    )


def baseline(
    documents: Sequence[str], *, min_run: int = MIN_WORDS
) -> Originality[TextPassage] | None:
    """Return what of a corpus's last tenth is in the rest of it: what a text of its kind shares that was not copied.

    None where the last tenth is no longer than such a run.
    """
    rest, held_out = split_documents(documents, 0.1)
    found = measure_text("\n".join(held_out), rest, min_run=min_run)
    return found if found.length > min_run else None


@dataclass(frozen=True)
class ListOriginality:
    """Which entries of a list, such as names, are in a corpus of them."""

    new: list[str]  # each once
    known: list[str]  # each once
    repeated: int  # entries that the list had before

    @property
    def share_new(self) -> float:
        """Return the share of the different entries that are new."""
        return len(self.new) / max(1, len(self.new) + len(self.known))


def measure_list(entries: Iterable[str], corpus: Iterable[str]) -> ListOriginality:
    """Sort entries into those that a corpus has and those it has not; white space around them and empty ones do not count."""
    there = {entry.strip() for entry in corpus}
    stripped = [entry.strip() for entry in entries if entry.strip()]
    different = list(dict.fromkeys(stripped))
    return ListOriginality(
        new=[entry for entry in different if entry not in there],
        known=[entry for entry in different if entry in there],
        repeated=len(stripped) - len(different),
    )
