"""A small byte-pair vocabulary learned from a text, in GPT-2's format.

The text is cut into words as GPT-2 cuts it; then, again and again, the pair of neighbours that occurs most often becomes a token.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise

import regex

from gpt2kit.errors import ConfigError
from gpt2kit.tokenizers.bpe import END_OF_TEXT, PATTERN, BPETokenizer, byte_characters

Pair = tuple[str, str]


def learn_bpe(documents: Iterable[str], n_vocab: int) -> BPETokenizer:
    """Return a tokenizer of n_vocab tokens or fewer: the 256 bytes, the merges that the documents suggest, and <|endoftext|>.

    Of pairs that are equally frequent the one that sorts first is merged first, so the same text gives the same vocabulary.
    """
    if not 257 <= n_vocab <= 2**20:
        raise ConfigError(
            f"n_vocab is {n_vocab}, expected 257 or more: 256 bytes and {END_OF_TEXT}"
        )
    characters = byte_characters()
    words = Counter(word for document in documents for word in regex.findall(PATTERN, document))
    pieces = [[characters[byte] for byte in word.encode()] for word in words]
    times = list(words.values())
    counts: Counter[Pair] = Counter()
    places: defaultdict[Pair, set[int]] = defaultdict(set)  # pair -> the words that may hold it
    for word, piece in enumerate(pieces):
        _count(piece, word, times[word], counts, places)
    merges: list[Pair] = []
    tokens = {character: number for number, character in enumerate(characters.values())}
    while counts and len(merges) < n_vocab - 257:
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        if counts[best] < 2:
            break
        if (
            "".join(best) in tokens
        ):  # the same token made in another way, which the format has no place for
            del counts[best]
            continue
        merges.append(best)
        tokens["".join(best)] = len(tokens)
        for word in places.pop(best):
            _count(pieces[word], word, -times[word], counts, places)
            pieces[word] = _merge(pieces[word], best)
            _count(pieces[word], word, times[word], counts, places)
    return BPETokenizer(
        {**tokens, END_OF_TEXT: len(tokens)}, [f"{first} {second}" for first, second in merges]
    )


def _count(
    tokens: list[str],
    word: int,
    times: int,
    counts: Counter[Pair],
    places: defaultdict[Pair, set[int]],
) -> None:
    """Add a word's pairs to the counts, or with negative `times` take them off."""
    for pair in pairwise(tokens):
        counts[pair] += times
        if times > 0:
            places[pair].add(word)
        elif not counts[pair]:
            del counts[pair]


def _merge(tokens: list[str], pair: Pair) -> list[str]:
    merged, place = [], 0
    while place < len(tokens):
        joined = tuple(tokens[place : place + 2]) == pair
        merged.append("".join(pair) if joined else tokens[place])
        place += 2 if joined else 1
    return merged
