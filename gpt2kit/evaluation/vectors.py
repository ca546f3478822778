"""Vectors of texts and of words: hidden states of their tokens, put together.

    vectors = text_vectors(model, tokenizer, ["The dog barks."], ["ln_f"])   # [(1, C)]

A long text is read in windows as its surprisal is: each token has one vector, from the first window
that has it, with at least half a window before it. <|endoftext|> before the text is read and is in
no vector.

    N tokens of a text, L layers, C width
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gpt2kit.errors import ConfigError, TokenizerError
from gpt2kit.evaluation.passages import Passage, Span, spans, token_pieces
from gpt2kit.evaluation.perplexity import default_stride
from gpt2kit.evaluation.surprisal import BATCH_SIZE, Progress, ignore, windows
from gpt2kit.evaluation.vector_options import VectorOptions
from gpt2kit.inspection.hidden import Layer, Pool, Reading, hidden_states, parse_layers, pooled
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import Tokenizer, require_tokenizer
from gpt2kit.tokenizers.listed import start_of_text

# Texts whose hidden states are in memory together; of them those of similar length share a batch.
_TEXTS_AT_ONCE = 256
_NUMBERS_AT_ONCE = 2**26  # of their hidden states, but for a single text that has more: 256 MB


def token_states(
    model: GPT2,
    tokenizer: Tokenizer,
    texts: Sequence[Sequence[int]],
    layers: Sequence[Layer],
    *,
    first: str = "bos",
    stride: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> Iterator[Tensor]:
    """Yield the hidden states of the tokens of each text, given as ids: (N, L, C).

    Row 0 is NaN if no mark was read before the text: see `hidden_states`.
    """
    start = start_of_text(tokenizer) if first == "bos" else []
    n_ctx = model.config.n_ctx
    stride = default_stride(n_ctx) if stride is None else stride
    for some in _parts(texts, _NUMBERS_AT_ONCE // (len(layers) * model.config.n_embd)):
        # The last id of a window is never read: so one more is given.
        cut = [
            [
                Reading(window.ids[:-1], window.scored)
                for window in windows([*start, *ids, 0], n_ctx=n_ctx, stride=stride)
            ]
            if ids
            else []
            for ids in some
        ]
        work = [reading for each in cut for reading in each]
        order = sorted(range(len(work)), key=lambda index: -len(work[index].ids))
        in_order = hidden_states(
            model, [work[index] for index in order], layers, batch_size=batch_size
        )
        found = dict(zip(order, in_order, strict=True))
        done = 0
        for ids, each in zip(some, cut, strict=True):
            parts = [found[index] for index in range(done, done + len(each))]
            done += len(each)
            nothing = torch.empty(0, len(layers), model.config.n_embd)
            yield torch.cat([nothing, *parts])[-len(ids) :] if ids else nothing


def _parts(texts: Sequence[Sequence[int]], most: int) -> Iterator[list[Sequence[int]]]:
    """Yield some texts at a time that have at most `most` tokens together, or a single one."""
    some: list[Sequence[int]] = []
    n = 0
    for ids in texts:
        if some and (len(some) == _TEXTS_AT_ONCE or n + len(ids) > most):
            yield some
            some, n = [], 0
        some.append(ids)
        n += len(ids)
    if some:
        yield some


def text_vectors(
    model: GPT2,
    tokenizer: Tokenizer | None,
    texts: Sequence[str],
    layers: Sequence[Layer],
    *,
    pool: Pool = "mean",
    normalize: bool = False,
    first: str = "bos",
    stride: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> Iterator[tuple[Tensor, str | None]]:
    """Yield a vector for each layer of each text, (L, C), and why it is NaN, if it is.

    `normalize` makes each vector's length 1.
    """
    tokenizer = require_tokenizer(tokenizer, "the model")
    ids, errors = list[list[int]](), list[str | None]()
    for text in texts:
        try:
            ids.append(tokenizer.encode(text))
            errors.append(None if ids[-1] else "the text is empty")
        except TokenizerError as problem:
            ids.append([])
            errors.append(str(problem))
    states = token_states(
        model, tokenizer, ids, layers, first=first, stride=stride, batch_size=batch_size
    )
    for each, error in zip(states, errors, strict=True):
        vector = pooled(each, 0, len(each), pool)  # (L, C)
        if error is None and bool(vector.isnan().any()):
            error = "the text has one token, and nothing before it"
        yield torch.nn.functional.normalize(vector, dim=-1) if normalize else vector, error


def layer_of(options: VectorOptions, model: GPT2) -> Layer:
    """Return the one layer of some options; raises ConfigError for several, or one not there."""
    layer, *more = parse_layers(options.layer, model.config.n_layer)
    if more:
        raise ConfigError("--layer is one layer; give the command once for each")
    return layer


def vector_cells(
    model: GPT2,
    tokenizer: Tokenizer | None,
    texts: Sequence[str],
    options: VectorOptions,
    *,
    batch_size: int = BATCH_SIZE,
) -> Iterator[dict[str, Any]]:
    """Yield the vector of each text as a list of numbers, and under "error" why there is none."""
    found = text_vectors(
        model,
        tokenizer,
        texts,
        [layer_of(options, model)],
        pool=options.pool,
        normalize=options.normalize,
        first=options.first,
        stride=options.stride,
        batch_size=batch_size,
    )
    for vector, error in found:
        numbers = [float(f"{number:.9g}") for number in vector[0].tolist()]
        yield {"vector": None if error else numbers, "error": error}


def word_vectors(
    model: GPT2,
    tokenizer: Tokenizer | None,
    passages: Sequence[Passage],
    layers: Sequence[Layer],
    *,
    pool: Pool = "mean",
    first: str = "bos",
    stride: int | None = None,
    batch_size: int = BATCH_SIZE,
    progress: Progress = ignore,
) -> Iterator[Tensor]:
    """Yield the vectors of the wanted units of each passage, in order: (units, L, C).

    A token that straddles two words belongs to the one in which it ends, as in their surprisal. A
    word without a token, or whose only token nothing came before, has NaN.
    """
    tokenizer = require_tokenizer(tokenizer, "the model")
    ids = [tokenizer.encode(passage.text) for passage in passages]
    states = token_states(
        model, tokenizer, ids, layers, first=first, stride=stride, batch_size=batch_size
    )
    for number, (passage, own, each) in enumerate(zip(passages, ids, states, strict=True), 1):
        found: list[Span] = (
            spans(passage, token_pieces(tokenizer, passage.text, own)) if own else []
        )
        vectors = [
            pooled(each, span.first, span.end, pool)
            for span, unit in zip(found, passage.units, strict=False)
            if unit.wanted
        ]
        missing = sum(unit.wanted for unit in passage.units) - len(vectors)
        vectors += [torch.full(each.shape[1:], math.nan)] * missing
        yield torch.stack(vectors) if vectors else each[:0]
        progress(number, len(passages))
