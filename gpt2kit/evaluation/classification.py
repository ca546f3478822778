"""Labels of texts, from a model that was tuned to give them, and how often they are right.

B texts of a batch, T tokens, C width, L labels
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from gpt2kit import store
from gpt2kit.checkpoints.classifiers import (
    ClassHead,
    LabelWords,
    class_head,
    restore_class_head,
)
from gpt2kit.checkpoints.device import resolve_device_and_dtype
from gpt2kit.checkpoints.load import load_vocabulary, open_checkpoint
from gpt2kit.data.example_rows import completion_ids, prompt_ids
from gpt2kit.engine.torch_engine import precise
from gpt2kit.errors import CheckpointError, ConfigError
from gpt2kit.evaluation.accuracy import Accuracy, accuracy
from gpt2kit.evaluation.beginnings import text_surprisals
from gpt2kit.evaluation.surprisal import BATCH_SIZE, Progress, check_finite, ignore
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import Tokenizer, require_tokenizer
from gpt2kit.training.adapted import build_merged, find_stack

T = TypeVar("T")

_TEXTS_AT_ONCE = 256  # of which those of similar length share a batch


@dataclass(frozen=True)
class Classifier:
    """A model with labels: a head for them, or words that complete a text.

    A text that is too long for the model loses its beginning.
    """

    model: GPT2
    tokenizer: Tokenizer
    words: LabelWords | None  # None if the model has a head

    @classmethod
    def load(
        cls,
        model: str,
        locate: Callable[[str], Path] = store.find,
        *,
        device: str = "auto",
        dtype: str = "auto",
    ) -> Classifier:
        """Load a classifier by the name of its model or run, whose adapters are merged.

        Raises CheckpointError for a model without labels.
        """
        where, number = resolve_device_and_dtype(device, dtype, None)
        stack = find_stack(model)
        checkpoint = open_checkpoint(locate(stack.base))
        words = LabelWords.read(stack.folders[-1] if stack.folders else checkpoint.folder)
        if words is None and checkpoint.class_head is None:
            raise CheckpointError(
                f"{model}: a model without labels; make one with: gpt2kit finetune TABLE "
                "--label_field COLUMN"
            )
        built = build_merged(checkpoint, stack.folders)
        if words is None:
            restore_class_head(built, checkpoint)
        tokenizer = require_tokenizer(load_vocabulary(checkpoint), model)
        return cls(built.to(device=where, dtype=number).eval(), tokenizer, words)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order of their probabilities."""
        return self.words.labels if self.words is not None else self._head.labels

    @property
    def _head(self) -> ClassHead:
        head = class_head(self.model)
        if head is None:
            raise ConfigError("the model has neither a head for labels nor words")
        return head

    def probabilities(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = BATCH_SIZE,
        progress: Progress = ignore,
    ) -> Iterator[list[float]]:
        """Yield the probability of each label for each text; they add up to 1.

        As words, a label has the probability of all its tokens and of the end after them, and what
        goes to other texts is shared out among the labels. Nothing calibrates the probabilities.
        They are the same in any batch, up to rounding. Raises TokenizerError for a text that the
        vocabulary cannot write.
        """
        done = 0
        scores = self._scores_of_words if self.words is not None else self._scores_of_head
        for some in in_parts(texts, _TEXTS_AT_ONCE):
            found = scores(some, batch_size).softmax(dim=-1)  # (texts, L)
            check_finite(found)
            yield from found.tolist()
            done += len(some)
            progress(done, len(texts))

    def _scores_of_words(self, texts: Sequence[str], batch_size: int) -> Tensor:
        """Return the log probability of each label after each text: (texts, L) float64."""
        assert self.words is not None
        labels = [completion_ids(self.tokenizer, label) for label in self.words.labels]
        most = self.model.config.n_ctx + 1  # the last token is not read
        room = most - max(map(len, labels))
        if room < 1:
            raise ConfigError(
                f"a label has {max(map(len, labels)):,} tokens, but the model reads {most - 1:,}"
            )
        prompts = [prompt_ids(self.tokenizer, text + self.words.separator) for text in texts]
        rows = [prompt[-room:] + label for prompt in prompts for label in labels]
        nats = text_surprisals(self.model, rows, batch_size=batch_size)
        lengths = [len(label) for _ in prompts for label in labels]
        sums = [-float(each[-n:].sum()) for each, n in zip(nats, lengths, strict=True)]
        return torch.tensor(sums, dtype=torch.float64).view(len(prompts), len(labels))

    @torch.inference_mode()
    def _scores_of_head(self, texts: Sequence[str], batch_size: int) -> Tensor:
        """Return what the head makes of the last token of each text: (texts, L) float64."""
        n_ctx = self.model.config.n_ctx
        rows = [prompt_ids(self.tokenizer, text)[-n_ctx:] for text in texts]
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        scores = torch.empty(len(rows), len(self.labels), dtype=torch.float64)
        for some in in_parts(order, batch_size):
            longest = len(rows[some[0]])
            ids = torch.tensor(
                [rows[index] + [0] * (longest - len(rows[index])) for index in some],
                device=self.model.device,
            )  # (B, T)
            hidden = self.model.hidden(ids)  # (B, T, C)
            ends = [len(rows[index]) - 1 for index in some]
            last = hidden[torch.arange(len(some)), ends]  # (B, C)
            scores[some] = precise(self._head(last)).double().cpu()
        return scores


def in_parts(items: Sequence[T], n: int) -> Iterator[Sequence[T]]:
    """Yield some items, n at a time."""
    return (items[start : start + n] for start in range(0, len(items), n))


# --- how often they are right ---------------------------------------------------------------------


@dataclass(frozen=True)
class Judgement:
    """How the labels that a model gave compare with the right ones."""

    right: Accuracy
    baseline: float  # accuracy of giving every text the label that is most frequent
    most_frequent: str
    confusion: dict[str, dict[str, int]]  # the right label -> the given one -> how many texts

    def as_record(self) -> dict[str, Any]:
        """Return what a report keeps of it."""
        own = {name: value for name, value in vars(self).items() if name != "right"}
        return {**vars(self.right), **own}


def judge(right: Sequence[str], given: Sequence[str], labels: Sequence[str]) -> Judgement:
    """Compare labels with the right ones, of at least one text.

    The most frequent label is that of the right ones themselves, so that the baseline is the best
    that any constant answer reaches.
    """
    pairs = Counter(zip(right, given, strict=True))
    label, count = max(Counter(right).items(), key=lambda each: each[1])
    return Judgement(
        accuracy([one == other for one, other in zip(right, given, strict=True)]),
        count / len(right),
        label,
        {one: {other: pairs[one, other] for other in labels} for one in labels},
    )


def likeliest(labels: Sequence[str], probabilities: Sequence[float]) -> str:
    """Return the label with the highest probability, the first of several."""
    return labels[max(range(len(labels)), key=lambda index: probabilities[index])]
