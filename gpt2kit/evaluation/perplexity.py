"""How well a model predicts a text: perplexity, bits per byte, and the probability of single lines.

    evaluation = evaluate(model, tokenizer, Path("book.txt"))
    print(evaluation.perplexity, evaluation.bits_per_byte)

A text is one sequence of tokens, as in training: documents follow one another with the tokenizer's
stop_id between them. That id is scored as any other token, and the first token of a document is
predicted from it and from the end of the document before, as far as the window reaches. Every token
but the very first is scored once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gpt2kit.data.corpus import load_corpus
from gpt2kit.data.ids import Ids
from gpt2kit.data.texts import Text
from gpt2kit.data.window import Overflow, fit
from gpt2kit.errors import CorpusError, TokenizerError
from gpt2kit.evaluation.surprisal import (
    BATCH_SIZE,
    Progress,
    Window,
    by_length,
    exponential,
    ignore,
    standard_error,
    surprisals,
    windows,
)
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import END_OF_TEXT, Tokenizer, require_tokenizer
from gpt2kit.tokenizers.listed import boundaries, start_of_text

_LINES_AT_ONCE = 512  # of which those of similar length share a batch


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a text.

    Only figures per byte, character or word compare models with different tokenizers.
    """

    tokens: int  # scored
    bytes: int  # UTF-8 bytes of the scored text, without separators of documents
    characters: int
    words: int  # separated by white space
    n_ctx: int  # tokens that a window reads
    stride: int  # tokens from the beginning of a window to that of the next
    loss: float  # nats per token
    standard_error: float | None  # of the loss, for independent tokens; None for a single token
    perplexity: float  # per token
    perplexity_per_word: float | None  # None, as the next two, for a text without any
    bits_per_byte: float | None
    bits_per_character: float | None


def evaluate(
    model: GPT2,
    tokenizer: Tokenizer | None,
    text: str | Path | Text | Ids,
    *,
    stride: int | None = None,
    batch_size: int = BATCH_SIZE,
    progress: Progress = ignore,
) -> Evaluation:
    """Measure a model on a text: a string, the Path of what `load_corpus` reads, a Text, or ids.

    `surprisal.windows` says which tokens each window reads and scores; the default stride is half
    of n_ctx. `batch_size` windows are read at once. Raises CorpusError for fewer than two tokens,
    TokenizerError for text that the vocabulary cannot represent.
    """
    tokenizer = require_tokenizer(tokenizer, "the model")
    ids = text if isinstance(text, np.ndarray) else text_ids(text, tokenizer)
    n_ctx = model.config.n_ctx
    stride = default_stride(n_ctx) if stride is None else stride
    nats = token_surprisals(model, ids, stride=stride, batch_size=batch_size, progress=progress)
    n_bytes, characters, words = _sizes(ids[1:], tokenizer)
    total, loss = float(nats.sum()), float(nats.mean())
    return Evaluation(
        tokens=len(nats),
        bytes=n_bytes,
        characters=characters,
        words=words,
        n_ctx=n_ctx,
        stride=stride,
        loss=loss,
        standard_error=standard_error(nats),
        perplexity=exponential(loss),
        perplexity_per_word=exponential(total / words) if words else None,
        bits_per_byte=total / math.log(2) / n_bytes if n_bytes else None,
        bits_per_character=total / math.log(2) / characters if characters else None,
    )


def text_ids(text: str | Path | Text, tokenizer: Tokenizer) -> Ids:
    """Return a text's ids, with stop_id between documents; raises CorpusError below two ids."""
    if isinstance(text, str):
        documents = tuple(document for document in text.split(END_OF_TEXT) if document.strip())
        if not documents:
            raise CorpusError("the text is empty; expected at least two tokens")
        text = Text(documents, (Path("the text"),), len(text.encode()))
    return load_corpus(text, tokenizer, val_fraction=0.0).train_ids


def token_surprisals(
    model: GPT2, ids: Ids, *, stride: int, batch_size: int = BATCH_SIZE, progress: Progress = ignore
) -> Tensor:
    """Return the surprisal of every token but the first, in nats: n ids -> (n - 1,) float64."""
    nats = torch.empty(len(ids) - 1, dtype=torch.float64)
    done = 0
    for surprisal in surprisals(
        model, windows(ids, n_ctx=model.config.n_ctx, stride=stride), batch_size=batch_size
    ):
        nats[done : done + len(surprisal.nats)] = surprisal.nats
        done += len(surprisal.nats)
        progress(done, len(nats))
    return nats


def default_stride(n_ctx: int) -> int:
    """Return half of n_ctx: every token is read twice, with half a window of context or more."""
    return max(1, n_ctx // 2)


def _sizes(ids: Ids, tokenizer: Tokenizer) -> tuple[int, int, int]:
    """Return the number of bytes, characters and words that ids stand for, without separators."""
    different, indices = np.unique(ids, return_inverse=True)
    # A separator ends a word, as a line end does, but is not part of the text.
    outside: dict[int | None, bytes] = dict.fromkeys(boundaries(tokenizer), b"")
    outside[tokenizer.stop_id] = b"\n"
    pieces = [
        outside[token] if token in outside else tokenizer.token_bytes(token)
        for token in different.tolist()
    ]
    text = b"".join(map(pieces.__getitem__, indices.tolist()))
    separators = 0 if tokenizer.stop_id is None else int(np.count_nonzero(ids == tokenizer.stop_id))
    # Every byte but a continuation byte begins a character.
    characters = len(text) - len(re.findall(rb"[\x80-\xbf]", text))
    return (
        len(text) - separators,
        characters - separators,
        len(text.decode(errors="replace").split()),
    )


# --- lines ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """How likely a model holds one line."""

    line: int  # its number, from 1
    text: str
    tokens: int  # scored
    logprob: float  # of all scored tokens together, in nats
    logprob_per_token: float | None  # None if no token was scored


def score(
    model: GPT2,
    tokenizer: Tokenizer | None,
    lines: Sequence[str],
    *,
    overflow: Overflow = "slide",
    special: bool = False,
    batch_size: int = BATCH_SIZE,
) -> Iterator[Line]:
    """Yield the log probability of each line that is not blank, each read as a text of its own.

    The first token of a line is predicted from the tokenizer's stop_id; a tokenizer without one
    leaves it unscored. A line of more than n_ctx tokens is scored in windows that overlap by half
    (`slide`), in its first window only, with a warning (`stop`), or not at all: ContextLengthError
    (`error`).
    """
    tokenizer = require_tokenizer(tokenizer, "the model")
    numbered = ((number, text) for number, text in enumerate(lines, 1) if text.strip())
    while some := list(islice(numbered, _LINES_AT_ONCE)):
        cut = [
            _line_windows(number, text, model.config.n_ctx, tokenizer, overflow, special)
            for number, text in some
        ]
        found = iter(
            by_length(model, [window for line in cut for window in line], batch_size=batch_size)
        )
        for (number, text), line in zip(some, cut, strict=True):
            nats = [next(found).nats.double() for _ in line]
            total, tokens = 0.0 - sum(float(part.sum()) for part in nats), sum(map(len, nats))
            yield Line(number, text, tokens, total, total / tokens if tokens else None)


def _line_windows(
    number: int, text: str, n_ctx: int, tokenizer: Tokenizer, overflow: Overflow, special: bool
) -> list[Window]:
    try:
        ids = tokenizer.encode(text, special=special)
    except TokenizerError as error:
        raise TokenizerError(f"line {number:,}: {error}") from error
    start = start_of_text(tokenizer)
    ids = start + ids
    ids = [*ids[:1], *fit(ids[1:], n_ctx, overflow, what=f"line {number:,}")]
    return list(windows(ids, n_ctx=n_ctx, stride=default_stride(n_ctx)))
