"""LAMBADA and HellaSwag: questions with known answers, scored as in published results.

LAMBADA asks for the last word of a passage, as lm-evaluation-harness's lambada_openai does;
HellaSwag for the most likely of several endings, as llm.c's script does. The passages are read from
.jsonl files; gpt2kit brings none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2kit.data.texts import json_objects, read_file
from gpt2kit.errors import ContextLengthError, CorpusError, TokenizerError
from gpt2kit.evaluation.surprisal import (
    BATCH_SIZE,
    Progress,
    Window,
    by_length,
    exponential,
    ignore,
    standard_error,
)
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import Tokenizer, require_tokenizer


@dataclass(frozen=True)
class Lambada:
    """How often, and how well, the last word of a passage is predicted."""

    passages: int
    accuracy: float  # share of words whose every token was the most likely one
    accuracy_standard_error: float | None  # None for a single passage
    perplexity: float  # per word: exp of the mean surprisal of a whole word
    perplexity_standard_error: float | None


@dataclass(frozen=True)
class HellaSwag:
    """How often the right ending is the most likely one."""

    questions: int
    accuracy: float  # by the probability of the whole ending; "acc"
    accuracy_standard_error: float | None
    # By the mean over the ending's tokens, which does not prefer short endings; "acc_norm"
    accuracy_normalized: float
    accuracy_normalized_standard_error: float | None


def lambada(
    model: GPT2,
    tokenizer: Tokenizer | None,
    path: Path,
    *,
    batch_size: int = BATCH_SIZE,
    progress: Progress = ignore,
) -> Lambada:
    """Ask for the last word of every passage of a .jsonl file: objects with a `text`.

    The word is everything after the last white space, and is predicted with a space before it. Of a
    passage that is too long the end is read. A line that cannot be used raises CorpusError,
    TokenizerError or ContextLengthError with its number.
    """
    right, nats = lambada_items(model, tokenizer, path, batch_size=batch_size, progress=progress)
    perplexity, error = exponential(float(nats.mean())), standard_error(nats)
    return Lambada(
        len(right),
        float(right.mean()),
        standard_error(right),
        perplexity,
        None if error is None else perplexity * error,
    )


def lambada_items(
    model: GPT2,
    tokenizer: Tokenizer | None,
    path: Path,
    *,
    batch_size: int = BATCH_SIZE,
    progress: Progress = ignore,
) -> tuple[Tensor, Tensor]:
    """Return whether each passage's last word was predicted, 1 or 0, and its surprisal in nats.

    Both are (passages,) float64; see `lambada`.
    """
    passages = [(number, _lambada_line(path, number, value)) for number, value in _lines(path)]
    work = [_window(path, number, model, tokenizer, *parts) for number, parts in passages]
    found = by_length(model, work, batch_size=batch_size, progress=progress)
    nats = torch.tensor(
        [float(word.nats.double().sum()) for word in found], dtype=torch.float64
    )  # (passages,)
    right = torch.tensor(
        [bool(word.greedy.all()) for word in found], dtype=torch.float64
    )  # (passages,)
    return right, nats


def hellaswag(
    model: GPT2,
    tokenizer: Tokenizer | None,
    path: Path,
    *,
    batch_size: int = BATCH_SIZE,
    progress: Progress = ignore,
) -> HellaSwag:
    """Ask which ending follows each context of a .jsonl file.

    Its objects have `ctx`, `endings` and `label`, the index of the right ending. An ending is
    tokenized apart from its context, with a space before it; if both together are too long, their
    end is read. `progress` counts endings. A line that cannot be used raises CorpusError,
    TokenizerError or ContextLengthError with its number.
    """
    questions = [(number, *_hellaswag_line(path, number, value)) for number, value in _lines(path)]
    work = [
        _window(path, number, model, tokenizer, ctx, f" {ending}")
        for number, ctx, endings, _ in questions
        for ending in endings
    ]
    found = iter(by_length(model, work, batch_size=batch_size, progress=progress))
    right, right_normalized = [], []
    for _, _, endings, label in questions:
        answers = [next(found).nats.double() for _ in endings]
        right.append(_most_likely(answers, lambda nats: float(nats.sum())) == label)
        right_normalized.append(_most_likely(answers, lambda nats: float(nats.mean())) == label)
    plain, normalized = (
        torch.tensor(column, dtype=torch.float64) for column in (right, right_normalized)
    )  # (questions,) each
    return HellaSwag(
        len(right),
        float(plain.mean()),
        standard_error(plain),
        float(normalized.mean()),
        standard_error(normalized),
    )


def _most_likely(answers: Sequence[torch.Tensor], measure: Callable[[torch.Tensor], float]) -> int:
    return min(range(len(answers)), key=lambda index: measure(answers[index]))


# --- lines of a file ------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    found = False
    for found_line in json_objects(read_file(path), path):
        found = True
        yield found_line
    if not found:
        raise CorpusError(f"{path}: empty; expected a JSON object on each line", path=path)


def _lambada_line(path: Path, number: int, value: dict[str, Any]) -> tuple[str, str]:
    """Return a passage without its last word, and the word with a space before it."""
    text = value.get("text")
    parts = text.rsplit(maxsplit=1) if isinstance(text, str) else []
    if len(parts) < 2:
        raise _bad(path, number, '{"text": a passage of two words or more}', value)
    return parts[0], f" {parts[1]}"


def _hellaswag_line(path: Path, number: int, value: dict[str, Any]) -> tuple[str, list[str], int]:
    """Return the context, the endings and the index of the right one."""
    ctx, endings, label = (value.get(key) for key in ("ctx", "endings", "label"))
    endings = (
        endings
        if isinstance(endings, list)
        and all(isinstance(ending, str) and ending for ending in endings)
        else []
    )
    if isinstance(label, str) and label.isdecimal():  # as some copies of the data have it
        label = int(label)
    if not (
        isinstance(ctx, str)
        and ctx
        and len(endings) > 1
        and type(label) is int
        and 0 <= label < len(endings)
    ):
        raise _bad(
            path,
            number,
            '{"ctx": a text, "endings": [two texts or more], "label": the index of the right one}',
            value,
        )
    return ctx, endings, label


def _bad(path: Path, number: int, expected: str, value: dict[str, Any]) -> CorpusError:
    shown = str(value)
    return CorpusError(
        f"{path}: line {number:,}: expected {expected}, "
        f"found {shown[:77] + '…' if len(shown) > 78 else shown}",
        path=path,
    )


def _window(
    path: Path, number: int, model: GPT2, tokenizer: Tokenizer | None, context: str, answer: str
) -> Window:
    """Return the window that scores an answer after its context, cut at its beginning to fit."""
    tokenizer = require_tokenizer(tokenizer, "the model")
    try:
        before, ids = tokenizer.encode(context), tokenizer.encode(answer)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: line {number:,}: {error}") from error
    n_ctx = model.config.n_ctx
    if len(ids) > n_ctx:
        message = (
            f"{path}: line {number:,}: the answer has {len(ids):,} tokens, "
            f"but the model reads at most {n_ctx:,}"
        )
        raise ContextLengthError(message, requested=len(ids), limit=n_ctx)
    if not before or not ids:
        raise CorpusError(
            f"{path}: line {number:,}: it is empty in the model's vocabulary", path=path
        )
    return Window((before + ids)[-(n_ctx + 1) :], len(ids))
