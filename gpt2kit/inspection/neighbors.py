"""Which tokens are alike: cosine similarity of token embeddings, and arithmetic with them.

V tokens of the vocabulary, C width, k tokens of a word
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2kit.errors import ConfigError, TokenizerError
from gpt2kit.tokenizers import Tokenizer

_ROWS = 4096  # of the embedding that are converted to float64 at once


@dataclass(frozen=True)
class Term:
    """A word as tokens, to be added to a sum of words or subtracted from it."""

    text: str  # as it was encoded, perhaps with a space before it
    ids: tuple[int, ...]
    sign: int = 1  # 1 or -1


@dataclass(frozen=True)
class Neighbor:
    """A token, and the cosine of the angle between its embedding and what was asked for."""

    token: int
    similarity: float  # from -1 to 1


def find_term(word: str, tokenizer: Tokenizer, *, space: bool | None = None, sign: int = 1) -> Term:
    """Return a word as the tokens that stand for it in a text.

    Most words of a text follow a space, and GPT-2 has other tokens for " king" than for "king".
    `space` says whether to put one before the word; if it is None, the form with fewer tokens is
    taken, and of two equal ones that with a space. A word that begins with a space is taken as it
    is. Raises TokenizerError for a word that the vocabulary cannot write, ConfigError for an empty
    one.
    """
    if not word:
        raise ConfigError("a word is empty, expected at least one character")
    both = (f" {word}", word)
    forms = both if space is None and not word.startswith(" ") else (both[0] if space else word,)
    found: list[Term] = []
    for form in forms:
        try:
            ids = tuple(tokenizer.encode(form))
        except TokenizerError:
            if form == forms[-1] and not found:
                raise
            continue
        if ids:
            # A vocabulary of words may have the word in its other form only.
            text = tokenizer.decode(list(ids)) if len(ids) == 1 else form
            found.append(Term(text, ids, sign))
    if not found:
        raise TokenizerError(f"{word!r} has no tokens in this vocabulary")
    return min(found, key=lambda term: len(term.ids))


def embedding_of(term: Term, embeddings: Tensor) -> Tensor:
    """Return the mean of the embeddings of a word's tokens: (V, C) -> (C,) float64."""
    return embeddings[list(term.ids)].double().mean(dim=0)  # (k, C) -> (C,)


def combine(terms: Sequence[Term], embeddings: Tensor) -> Tensor:
    """Return a sum of words: (V, C) -> (C,) float64.

    Each word's embedding is divided by its length first, so that none counts for more than another
    only because it is longer (as in word2vec's analogies: Mikolov et al. 2013).
    """
    if not terms:
        raise ConfigError("no word was given, expected at least one")
    return torch.stack([term.sign * _unit(embedding_of(term, embeddings)) for term in terms]).sum(
        dim=0
    )  # (n, C) -> (C,)


def similarity(first: Tensor, second: Tensor) -> float:
    """Return the cosine of the angle between two vectors, (C,); 0 if one of them is zero."""
    return float(_unit(first.double()) @ _unit(second.double()))


def nearest(
    vector: Tensor, embeddings: Tensor, *, top: int = 10, without: Collection[int] = ()
) -> list[Neighbor]:
    """Return the `top` tokens whose embeddings are most similar to a vector, the nearest first.

    `embeddings` is (V, C) in any dtype: give the rows of the tokenizer's tokens only, since a model
    may have more rows, as padding. Tokens in `without` are left out. Similarities are computed in
    float64; of equal ones the lower id comes first.
    """
    direction = _unit(vector.double().cpu())  # (C,)
    similarities = torch.cat(
        [_unit(rows.double().cpu()) @ direction for rows in torch.split(embeddings, _ROWS)]
    )  # (V,)
    order = similarities.sort(descending=True, stable=True).indices.tolist()
    kept = itertools.islice((token for token in order if token not in without), top)
    return [Neighbor(token, float(similarities[token])) for token in kept]


def own_tokens(terms: Sequence[Term], tokenizer: Tokenizer) -> set[int]:
    """Return the tokens of some words, with and without the space before them, to leave out."""
    own = {token for term in terms for token in term.ids}
    for term in terms:
        word = term.text.removeprefix(" ")
        for form in (word, f" {word}"):
            try:
                ids = tokenizer.encode(form)
            except TokenizerError:
                continue
            own |= set(ids) if len(ids) == 1 else set()
    return own


def _unit(vectors: Tensor) -> Tensor:
    """Return vectors of length 1, (…, C); one of length 0 stays as it is."""
    lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)  # (…, 1)
    return vectors / torch.where(lengths > 0, lengths, torch.ones_like(lengths))
