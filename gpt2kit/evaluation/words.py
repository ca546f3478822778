"""The surprisal of words: the tokens of each put together, and the space where it belongs.

    for word in gpt2kit.words(model, tokenizer, ["The dog barks."])[0]:
        print(word.text, word.surprisal, word.surprisal_corrected)

A word w of tokens j … k has the surprisal S(w), the sum of theirs. GPT-2's tokens carry the space
before them, so that S(w) contains that a word begins, but not that it ends. With b(i), minus the
log probability that the token after i begins a word, the corrected surprisal is

    S*(w) = S(w) - b(j - 1) + b(k)

and for the first word of a text S(w) + b(k): Pimentel and Meister 2024, "How to compute the
probability of a word"; Oh and Schuler 2024, "Leading whitespaces of language models' subword
vocabulary pose a confound". At an end without white space, as before split punctuation, b is 0.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gpt2kit.errors import TokenizerError
from gpt2kit.evaluation.distributions import Expected, expectation, word_beginnings
from gpt2kit.evaluation.passages import (
    Passage,
    Span,
    Unit,
    spans,
    split,
    token_pieces,
    token_texts,
)
from gpt2kit.evaluation.perplexity import default_stride
from gpt2kit.evaluation.surprisal import (
    BATCH_SIZE,
    Window,
    measured_by_length,
    windows,
)
from gpt2kit.evaluation.word_options import WordOptions
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import Tokenizer, require_tokenizer
from gpt2kit.tokenizers.listed import start_of_text

_PASSAGES_AT_ONCE = 512  # of which those of similar length share a batch
_NATS = {"2": math.log(2), "e": 1.0, "10": math.log(10)}  # one unit of each base
# White space that Unicode has beside the ASCII ones, double spaces, and a byte order mark.
_ODD_SPACE = re.compile(r"[^\S \t\n\r\v\f]|  |\ufeff|\u200b")


@dataclass(frozen=True)
class WordToken:
    """One token of a text. Figures are None for a token that nothing came before."""

    id: int
    text: str  # a character of several tokens is the text of the last one
    start: int  # offset in the text, in characters
    end: int
    surprisal: float | None
    entropy: float | None
    rank: int | None
    n_context: int  # tokens that the model had read before, <|endoftext|> included
    top: tuple[tuple[str, float], ...] = ()  # the likeliest tokens there, and their probabilities


@dataclass(frozen=True)
class Word:
    """One word of a text. Figures are None if nothing came before its first token.

    `flags` say what to look at: "no-context", the first word without a mark before it; "straddle",
    a token belongs to this word and its neighbor; "no-token", all its tokens end in the next word;
    "unknown", something in it is not in the vocabulary; "not-nfc" and "odd-space", spellings that
    change the numbers.
    """

    text: str
    start: int  # offset in the text, in characters
    end: int
    surprisal: float | None = None  # sum over its tokens
    # With its end in place of the space before it; None if no token of the vocabulary tells the end
    surprisal_corrected: float | None = None
    entropy: float | None = None  # before its first token, over all tokens
    entropy_word: float | None = None  # the same, over the tokens that begin a word
    renyi: float | None = None  # Rényi entropy before its first token, over all tokens
    rank: int | None = None  # of its first token, from 1
    n_context: int | None = None  # the fewest tokens that the model had read before one of its own
    flags: tuple[str, ...] = ()
    tokens: tuple[WordToken, ...] = ()


def words(
    model: GPT2,
    tokenizer: Tokenizer | None,
    texts: str | Iterable[str],
    *,
    options: WordOptions | None = None,
    batch_size: int = BATCH_SIZE,
) -> list[list[Word]]:
    """Measure the words of some texts, each read by itself: a list of words for each text.

    White space separates words. Figures are in bits unless the options say otherwise. Raises
    TokenizerError for a text that the vocabulary cannot spell.
    """
    options = options or WordOptions()
    texts = [texts] if isinstance(texts, str) else texts
    passages = [split(text, options.punctuation) for text in texts]
    return list(measure(model, tokenizer, passages, options, batch_size=batch_size))


def measure(
    model: GPT2,
    tokenizer: Tokenizer | None,
    passages: Iterable[Passage],
    options: WordOptions,
    *,
    batch_size: int = BATCH_SIZE,
) -> Iterator[list[Word]]:
    """Yield the wanted units of each passage, measured; some hundred passages are read together.

    Raises TokenizerError for a text that the vocabulary cannot spell.
    """
    meter = Meter(model, tokenizer, options, batch_size=batch_size)
    rest, number = iter(passages), 0
    while some := list(islice(rest, _PASSAGES_AT_ONCE)):
        for found in meter.measure(some):
            number += 1
            if found.error is not None:
                raise TokenizerError(f"text {number:,}: {found.error}") from found.error
            yield found.words


class Measured(NamedTuple):
    """The wanted units of a passage; none of them has figures if its text cannot be spelled."""

    words: list[Word]
    error: TokenizerError | None = None  # why it cannot be spelled


class Meter:
    """Measures passages with one model."""

    def __init__(
        self,
        model: GPT2,
        tokenizer: Tokenizer | None,
        options: WordOptions,
        *,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        self.model, self.options, self.batch_size = model, options, batch_size
        self.tokenizer = require_tokenizer(tokenizer, "the model")
        self._begins = word_beginnings(self.tokenizer, model.config.n_vocab, options.boundary)
        self._look = expectation(
            self._begins, renyi=options.renyi, top=min(options.top, model.config.n_vocab)
        )

    def measure(self, passages: Sequence[Passage]) -> list[Measured]:
        """Return the wanted units of each passage; equal passages are read once."""
        read = {passage: self._read(passage) for passage in dict.fromkeys(passages)}
        work = [
            window
            for each in read.values()
            if not isinstance(each, TokenizerError)
            for window in each.windows
        ]
        found = iter(measured_by_length(self.model, work, self._look, batch_size=self.batch_size))
        results: dict[Passage, Measured] = {}
        for passage, each in read.items():
            if isinstance(each, TokenizerError):
                results[passage] = Measured(_unread(passage, self.tokenizer), each)
                continue
            parts = [Expected(*next(found)) for _ in each.windows]
            results[passage] = Measured(
                _units(each, parts, self._begins, self.tokenizer, self.options)
            )
        return [results[passage] for passage in passages]

    def _read(self, passage: Passage) -> _Read | TokenizerError:
        try:
            ids = self.tokenizer.encode(passage.text)
            pieces = token_pieces(self.tokenizer, passage.text, ids)
        except TokenizerError as error:
            return error
        start = start_of_text(self.tokenizer) if self.options.first == "bos" else []
        n_ctx = self.model.config.n_ctx
        stride = default_stride(n_ctx) if self.options.stride is None else self.options.stride
        # The last id is there so that what follows the text is predicted; it is not looked at.
        everything = [*start, *ids, 0] if ids else []
        cut = list(windows(everything, n_ctx=n_ctx, stride=stride))
        contexts = [0]
        for window in cut:
            contexts += range(len(window.ids) - window.scored, len(window.ids))
        return _Read(passage, ids, cut, contexts[len(start) : -1], spans(passage, pieces))


@dataclass(frozen=True)
class _Read:
    """A passage, its tokens, and the windows that score them and one more, for the text's end."""

    passage: Passage
    ids: list[int]
    windows: list[Window]
    contexts: list[int]  # of each token: how many the model has read before
    spans: list[Span]


def _units(
    read: _Read,
    parts: Sequence[Expected],
    begins: Tensor,
    tokenizer: Tokenizer,
    options: WordOptions,
) -> list[Word]:
    """Return the wanted units of a passage with the figures of its tokens put together."""
    if not read.ids:
        return []
    n = len(read.ids)
    unit = _NATS[options.base]
    # (n + 1,) each: of every token and of the end; NaN for a token that nothing came before
    joined = {
        name: _after_unseen(torch.cat([getattr(part, name) for part in parts]).double(), n)
        for name in Expected._fields
    }
    counts = ("rank", "top")
    figures = {name: values if name in counts else values / unit for name, values in joined.items()}
    ending = figures["ending"].clone()
    ending[:-1][~begins[torch.tensor(read.ids)]] = 0.0  # no white space: the word is not over
    ending[0] = 0.0
    lists: dict[str, list[Any]] = {name: values.tolist() for name, values in figures.items()}
    lists["ending"] = ending.tolist()
    tokens = _tokens(read, lists, joined["top_nats"], tokenizer)
    return [
        _word(read.passage, each, span, tokens, lists, renyi=options.renyi is not None)
        for each, span in zip(read.passage.units, read.spans, strict=True)
        if each.wanted
    ]


def _after_unseen(values: Tensor, n: int) -> Tensor:
    """Return figures of n tokens and the end, with NaN for the first if it was not predicted."""
    missing = n + 1 - len(values)
    unseen = values.new_full((missing, *values.shape[1:]), math.nan)
    return torch.cat([unseen, values[-(n + 1) :]])


def _tokens(
    read: _Read, figures: dict[str, list[Any]], top_nats: Tensor, tokenizer: Tokenizer
) -> list[WordToken]:
    chances = (-top_nats).exp().tolist()  # [n + 1][K]
    tokens, offset = [], 0
    for index, text in enumerate(token_texts(tokenizer, read.ids)):
        seen = not math.isnan(figures["nats"][index])
        tokens.append(
            WordToken(
                id=read.ids[index],
                text=text,
                start=offset,
                end=offset + len(text),
                surprisal=figures["nats"][index] if seen else None,
                entropy=figures["entropy"][index] if seen else None,
                rank=int(figures["rank"][index]) if seen else None,
                n_context=read.contexts[index],
                top=tuple(
                    (_text(tokenizer, int(token)), chance)
                    for token, chance in zip(figures["top"][index], chances[index], strict=True)
                )
                if seen
                else (),
            )
        )
        offset += len(text)
    return tokens


def _text(tokenizer: Tokenizer, token: int) -> str:
    """Return the text of a token; a part of a character becomes U+FFFD."""
    if token >= tokenizer.n_vocab:  # padding of the head
        return ""
    return tokenizer.token_bytes(token).decode(errors="replace")


def _word(
    passage: Passage,
    unit: Unit,
    span: Span,
    tokens: Sequence[WordToken],
    figures: dict[str, list[Any]],
    *,
    renyi: bool,
) -> Word:
    first, end = span.first, span.end
    own = tuple(tokens[first:end])
    text = passage.text[unit.start : unit.end]
    seen = bool(own) and own[0].surprisal is not None
    total = math.fsum(figures["nats"][first:end])
    corrected = total - figures["ending"][first] + figures["ending"][end]
    return Word(
        text=text,
        start=unit.start,
        end=unit.end,
        surprisal=total if seen else None,
        surprisal_corrected=corrected if seen and math.isfinite(corrected) else None,
        entropy=figures["entropy"][first] if seen else None,
        entropy_word=figures["entropy_word"][first] if seen else None,
        renyi=figures["renyi"][first] if seen and renyi else None,
        rank=own[0].rank if seen else None,
        n_context=min(token.n_context for token in own) if own else None,
        flags=tuple(_flags(text, span, own)),
        tokens=own,
    )


def _flags(text: str, span: Span, own: Sequence[WordToken]) -> Iterator[str]:
    if not own:
        yield "no-token"
    elif own[0].surprisal is None:
        yield "no-context"
    if span.straddles:
        yield "straddle"
    yield from _spelling(text)


def _spelling(text: str) -> Iterator[str]:
    """Yield the flags of a word that tell of its spelling."""
    if not unicodedata.is_normalized("NFC", text):
        yield "not-nfc"
    if _ODD_SPACE.search(text) or text != text.strip(" \t\n\r\v\f"):
        yield "odd-space"


def _unread(passage: Passage, tokenizer: Tokenizer) -> list[Word]:
    """Return the wanted units of a text that cannot be spelled: without figures, but flagged."""
    ends = [0, *(unit.end for unit in passage.units)]
    words = []
    for unit, (before, end) in zip(passage.units, pairwise(ends), strict=True):
        text = passage.text[unit.start : end]
        # With the space before it, which a vocabulary of words has in its words.
        unknown = [] if _spells(tokenizer, passage.text[before:end]) else ["unknown"]
        if unit.wanted:
            words.append(Word(text, unit.start, end, flags=(*unknown, *_spelling(text))))
    return words


def _spells(tokenizer: Tokenizer, text: str) -> bool:
    """Return whether a vocabulary has everything in a text."""
    try:
        token_pieces(tokenizer, text, tokenizer.encode(text))
    except TokenizerError:
        return False
    return True
