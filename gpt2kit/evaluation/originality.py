"""How much of a text is copied from a corpus: the passages that are in both, word for word.

A model trained long enough on one book knows it by heart. But every author repeats phrases, so
compare the figure with that of a similar text that is not in the corpus: measure the validation
text against the training text.

    index = Index(corpus.train_ids)  # takes seconds for a megabyte; reuse it for many texts
    measure(sample_ids, index).copied, measure(corpus.val_ids, index).copied

Without a tokenizer, `measure_text(text, TextIndex(book))` compares words, whatever the white space,
punctuation and case.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpt2kit.data.texts import split_documents
from gpt2kit.errors import ConfigError

Ints = NDArray[np.int64]

# Of the last tenths of the Comedy and of tiny Shakespeare, 0.1 to 0.7% is in runs of at least this
# length that the rest has, too.
MIN_TOKENS = 12  # of GPT-2's vocabulary; characters need many more
MIN_WORDS = 5


@dataclass(frozen=True)
class Passage:
    """A passage of a text that is also in the corpus, as long as possible."""

    start: int  # offset in the text, in tokens
    length: int  # in tokens
    offset: int  # of its first occurrence in the corpus, in tokens
    occurrences: int  # in the corpus


@dataclass(frozen=True)
class TextPassage:
    """A passage of words that is also in the corpus, as long as possible."""

    start: int  # offset in the text, in characters
    length: int  # in words
    text: str
    document: int  # of its first occurrence in the corpus, from 0
    offset: int  # in that document, in characters
    line: int  # of that document, from 1
    occurrences: int  # in the corpus


P = TypeVar("P", Passage, TextPassage)


@dataclass(frozen=True)
class Originality(Generic[P]):
    """What of a text is in a corpus."""

    length: int  # of the text, in tokens or words, as all lengths here
    min_run: int
    copied: float  # the share of the text in passages of min_run or more
    longest: int  # length of the longest passage, even if shorter than min_run
    passages: list[P]  # of min_run or more, the longest first


@dataclass(frozen=True)
class Matches:
    """For each position of a text, the longest run from there on that is in the corpus."""

    lengths: Ints
    low: Ints  # Index.offsets(low, high) are the run's offsets in the corpus
    high: Ints


class Index:
    """The suffix array of a corpus, with tables to look up many texts; about 100 bytes a token.

    Built by prefix doubling (Manber and Myers, 1993): level k numbers each run of 2^k tokens by its
    rank among all such runs, from 1; 0 stands for a run behind the end. A run of 2^(k+1) tokens is
    a pair of ranks. Once all ranks differ, they are the ranks of the suffixes.
    """

    def __init__(self, ids: ArrayLike) -> None:
        corpus = np.asarray(ids)
        self.n_tokens = len(corpus)
        # For each level, the rank of the run that begins at each position, and behind the end
        self._levels: list[NDArray[np.int32]] = []
        # For each level, what the ranks stand for, in order: tokens, then pairs of ranks
        self._keys: list[NDArray[Any]] = []
        keys, names = np.unique(corpus, return_inverse=True)
        while True:
            self._keys.append(keys)
            self._levels.append(np.append(names + 1, 0).astype(np.int32))
            if len(keys) == self.n_tokens:
                break
            keys, names = np.unique(
                self._pairs(self._levels[-1], len(self._levels) - 1), return_inverse=True
            )
        self._suffixes = np.argsort(names)  # positions, sorted by the text from there on

    def _pairs(self, names: NDArray[np.int32], level: int) -> Ints:
        """Return a number for each run of 2^(level+1): its pair of ranks, in the same order."""
        second = np.zeros(len(names), np.int64)
        second[: -(2**level)] = names[2**level :]
        return (names.astype(np.int64) * (self.n_tokens + 1) + second)[:-1]

    def matches(self, ids: ArrayLike) -> Matches:
        """Return the longest match from each position of a text, in O(n log² n) for any matches."""
        text = np.asarray(ids)
        n = len(text)
        names = self._names_of(text)
        lengths, low, high = (
            np.zeros(n, np.int64),
            np.zeros(n, np.int64),
            np.full(n, self.n_tokens, np.int64),
        )
        for level in reversed(range(len(names))):
            # Suffixes low to high begin with the match so far: they are sorted by what follows.
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

    def offsets(self, low: int, high: int) -> Ints:
        """Return the offsets in the corpus of the suffixes from low to high."""
        return self._suffixes[low:high]

    def _names_of(self, text: NDArray[Any]) -> list[Ints]:
        """Return for each level the ranks of a text's runs, 0 for those not in the corpus."""
        n = len(text)
        levels = [np.append(_find(self._keys[0], text), 0)]
        while levels[-1].any():
            level = len(levels) - 1
            first, second = levels[-1][:-1], np.zeros(n, np.int64)
            second[: max(0, n - 2**level)] = levels[-1][2**level : n]
            if level + 1 < len(self._levels):
                named = _find(self._keys[level + 1], first * (self.n_tokens + 1) + second)
            else:  # all runs differ: the second half must follow the first half's only occurrence
                after = np.minimum(
                    self._suffixes[np.maximum(first - 1, 0)] + 2**level, self.n_tokens
                )
                named = np.where(self._levels[-1][after] == second, first, 0)
            levels.append(np.append(np.where((first > 0) & (second > 0), named, 0), 0))
        return levels[:-1]

    def _bisect(
        self, names: NDArray[np.int32], wanted: Ints, offsets: Ints, low: Ints, high: Ints
    ) -> Ints:
        """Return for each row the first suffix from low to high with a rank of `wanted` or more.

        The rank is that of the run `offset` tokens after the suffix begins; `high` if there is
        none.
        """
        low, high = low.copy(), high.copy()
        while (open_ := low < high).any():
            middle = (low + high) // 2
            starts = self._suffixes[np.minimum(middle, self.n_tokens - 1)] + offsets
            less = names[np.minimum(starts, self.n_tokens)] < wanted
            low = np.where(open_ & less, middle + 1, low)
            high = np.where(open_ & ~less, middle, high)
        return low


def _find(keys: NDArray[Any], values: NDArray[Any]) -> Ints:
    """Return the index of each value among sorted keys, counted from 1; 0 for a missing one."""
    if not len(keys):
        return np.zeros(len(values), np.int64)
    indices = np.minimum(np.searchsorted(keys, values), len(keys) - 1)
    return np.where(keys[indices] == values, indices + 1, 0)


def measure(
    ids: ArrayLike, corpus: Index | ArrayLike, *, min_run: int = MIN_TOKENS
) -> Originality[Passage]:
    """Return which parts of some ids are in a corpus of ids."""
    if min_run < 1:
        raise ConfigError(f"min_run is {min_run}, expected at least 1")
    index = corpus if isinstance(corpus, Index) else Index(corpus)
    matches = index.matches(ids)
    lengths, n = matches.lengths, len(matches.lengths)
    # A match that is one shorter than the previous one is that one without its first token.
    is_whole = np.append(True, lengths[1:] >= lengths[:-1])[:n]
    starts = np.flatnonzero(is_whole & (lengths >= min_run))
    edges = np.zeros(n + 1, np.int64)  # +1 where a passage begins, -1 where it ends
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + lengths[starts], -1)
    passages = []
    for start in sorted(starts.tolist(), key=lambda start: (-lengths[start], start)):
        found = index.offsets(matches.low[start], matches.high[start])
        passages.append(Passage(start, int(lengths[start]), int(found.min()), len(found)))
    copied = int(np.count_nonzero(edges[:n].cumsum()))
    return Originality(n, min_run, copied / max(1, n), int(lengths.max(initial=0)), passages)


# --- texts ----------------------------------------------------------------------------------------

_WORD = re.compile(r"\w+(?:['’]\w+)*")


class TextIndex:
    """The words of a text or of several documents, indexed to look up many texts."""

    def __init__(self, corpus: str | Sequence[str]) -> None:
        self._documents = [corpus] if isinstance(corpus, str) else list(corpus)
        self._ids: dict[str, int] = {}
        self._starts: list[tuple[int, int]] = []  # of each word: document, offset in characters
        ids = []
        for number, document in enumerate(self._documents):
            for word in _WORD.finditer(document):
                ids.append(self._ids.setdefault(word[0].casefold(), len(self._ids)))
                self._starts.append((number, word.start()))
            ids.append(_BETWEEN)
            self._starts.append((number, len(document)))
        self._index = Index(ids)

    def measure(self, text: str, *, min_run: int = MIN_WORDS) -> Originality[TextPassage]:
        """Return which passages are in the corpus, ignoring white space, punctuation and case."""
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
            document, offset = self._starts[passage.offset]
            line = self._documents[document].count("\n", 0, offset) + 1
            passages.append(
                TextPassage(
                    start,
                    passage.length,
                    text[start:end],
                    document,
                    offset,
                    line,
                    passage.occurrences,
                )
            )
        return Originality(found.length, min_run, found.copied, found.longest, passages)


_BETWEEN, _UNKNOWN = -2, -1  # ids that are no word: between documents, and not in the corpus


def measure_text(
    text: str, corpus: TextIndex | str | Sequence[str], *, min_run: int = MIN_WORDS
) -> Originality[TextPassage]:
    """Return which passages are in a corpus, ignoring white space, punctuation and case."""
    return (corpus if isinstance(corpus, TextIndex) else TextIndex(corpus)).measure(
        text, min_run=min_run
    )


def baseline(
    documents: Sequence[str], *, min_run: int = MIN_WORDS
) -> Originality[TextPassage] | None:
    """Return which passages of a corpus's last tenth are in the rest of it.

    This is what a text of its kind shares without being copied. None if the last tenth is no longer
    than one run.
    """
    rest, held_out = split_documents(documents, 0.1)
    found = measure_text("\n".join(held_out), rest, min_run=min_run)
    return found if found.length > min_run else None


@dataclass(frozen=True)
class ListOriginality:
    """Which entries of a list, such as names, are in a corpus of such entries."""

    new: list[str]  # each once
    known: list[str]  # each once
    repeated: int  # entries that occur earlier in the list

    @property
    def share_new(self) -> float:
        """The share of new entries among all different ones."""
        return len(self.new) / max(1, len(self.new) + len(self.known))


def measure_list(entries: Iterable[str], corpus: Iterable[str]) -> ListOriginality:
    """Sort entries into those in a corpus and new ones; strips white space, ignores empty ones."""
    there = {entry.strip() for entry in corpus}
    stripped = [entry.strip() for entry in entries if entry.strip()]
    different = list(dict.fromkeys(stripped))
    return ListOriginality(
        new=[entry for entry in different if entry not in there],
        known=[entry for entry in different if entry in there],
        repeated=len(stripped) - len(different),
    )
