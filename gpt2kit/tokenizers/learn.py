"""A small byte-pair vocabulary learned from a text, in GPT-2's format.

The text is cut into words as GPT-2 cuts it. Then the most frequent pair of neighboring tokens is
merged into a new token, again and again, until the vocabulary has the requested size.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise

import regex

from gpt2kit.errors import ConfigError
from gpt2kit.tokenizers.bpe import PATTERN, BPETokenizer, byte_characters
from gpt2kit.tokenizers.bpe_files import MOST_TOKENS
from gpt2kit.tokenizers.protocol import END_OF_TEXT

Pair = tuple[str, str]


def learn_bpe(documents: Iterable[str], n_vocab: int) -> BPETokenizer:
    """Learn a tokenizer of at most n_vocab tokens: the 256 bytes, merges, and <|endoftext|>.

    Of equally frequent pairs, the one that sorts first is merged first: the same text always gives
    the same vocabulary. Raises ConfigError unless n_vocab is from 257 to MOST_TOKENS.
    """
    if not 257 <= n_vocab <= MOST_TOKENS:
        raise ConfigError(
            f"n_vocab is {n_vocab:,}, expected 257 to {MOST_TOKENS:,}, "
            f"of which 256 are bytes and one is {END_OF_TEXT}"
        )
    characters = byte_characters()
    words = Counter(word for document in documents for word in regex.findall(PATTERN, document))
    pieces = [[characters[byte] for byte in word.encode()] for word in words]
    times = list(words.values())  # how often each word occurs
    counts: Counter[Pair] = Counter()
    words_with: defaultdict[Pair, set[int]] = defaultdict(set)  # pair -> words that may hold it
    for word, piece in enumerate(pieces):
        _count(piece, word, times[word], counts, words_with)
    merges: list[Pair] = []
    tokens = {character: number for number, character in enumerate(characters.values())}
    while counts and len(merges) < n_vocab - 257:
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        if counts[best] < 2:
            break
        if "".join(best) in tokens:
            # Another merge has made the same token, and the format allows one merge for each token.
            del counts[best]
            continue
        merges.append(best)
        tokens["".join(best)] = len(tokens)
        for word in words_with.pop(best):
            _count(pieces[word], word, -times[word], counts, words_with)
            pieces[word] = _merge(pieces[word], best)
            _count(pieces[word], word, times[word], counts, words_with)
    return BPETokenizer(
        {**tokens, END_OF_TEXT: len(tokens)}, [f"{first} {second}" for first, second in merges]
    )


def _count(
    tokens: list[str],
    word: int,
    times: int,
    counts: Counter[Pair],
    words_with: defaultdict[Pair, set[int]],
) -> None:
    """Add the pairs of a word to the counts; a negative `times` subtracts them."""
    for pair in pairwise(tokens):
        counts[pair] += times
        if times > 0:
            words_with[pair].add(word)
        elif not counts[pair]:
            del counts[pair]


def _merge(tokens: list[str], pair: Pair) -> list[str]:
    """Return the tokens with every occurrence of the pair merged, from left to right."""
    merged, index = [], 0
    while index < len(tokens):
        is_pair = tuple(tokens[index : index + 2]) == pair
        merged.append("".join(pair) if is_pair else tokens[index])
        index += 2 if is_pair else 1
    return merged
