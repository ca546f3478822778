"""Models that classify texts: by a head beside the model, or by words that it completes texts with.

The head is that of transformers' GPT2ForSequenceClassification: one row of numbers for each label
in `score.weight`, multiplied with what the model makes of the last token. Its labels are in
config.json. The words are in a file of our own, labels.json.

    B texts, C width, L labels
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gpt2kit.checkpoints.config_json import CONFIG_FILE
from gpt2kit.checkpoints.names import CLASS_HEAD
from gpt2kit.checkpoints.stored import Checkpoint, check_finite
from gpt2kit.errors import CheckpointError, CheckpointFormatError, ConfigError
from gpt2kit.files import read_json
from gpt2kit.model import GPT2

WORDS_FILE = "labels.json"


class ClassHead(nn.Linear):
    """Scores of labels, from what the model makes of a token: (B, C) -> (B, L)."""

    def __init__(self, n_embd: int, labels: Sequence[str]) -> None:
        super().__init__(n_embd, len(labels), bias=False)
        self.labels = tuple(labels)


def add_class_head(
    model: GPT2, labels: Sequence[str], *, seed: int = 0, weight: Tensor | None = None
) -> None:
    """Give a model a head for labels, `model.score`, with this weight or with random numbers.

    A language model's own head is not trained then, and stays as it is.
    """
    head = ClassHead(model.config.n_embd, labels)
    if weight is None:
        weight = torch.empty(len(labels), model.config.n_embd, device="cpu")  # (L, C)
        weight.normal_(0.0, 0.02, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        head.weight.copy_(weight)
    model.score = head.to(device=model.device, dtype=model.dtype)
    for name, parameter in model.named_parameters():
        if name.startswith("lm_head."):
            parameter.requires_grad_(False)


def class_head(model: nn.Module) -> ClassHead | None:
    """Return the head for labels of a model, or None if it has none."""
    head = getattr(model, CLASS_HEAD.partition(".")[0], None)
    return head if isinstance(head, ClassHead) else None


def labels_of_head(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the labels of a checkpoint's head, in order; none if it has no such head.

    Raises CheckpointFormatError if config.json does not name each of them by another name.
    """
    if checkpoint.class_head is None:
        return ()
    shape, config = checkpoint.class_head.shape, checkpoint.folder / CONFIG_FILE
    named = read_json(config, error=CheckpointError).get("id2label")
    if named is None and len(shape) == 2:  # as transformers calls them then
        named = {str(number): f"LABEL_{number}" for number in range(shape[0])}
    expected = [str(number) for number in range(len(named))] if isinstance(named, dict) else []
    width = checkpoint.config.n_embd
    if (
        not isinstance(named, dict)
        or sorted(named, key=lambda key: (len(key), key)) != expected
        or not all(isinstance(label, str) for label in named.values())
        or len({*named.values()}) < len(named)
        or shape != (len(named), width)
    ):
        raise CheckpointFormatError(
            config,
            f"id2label does not name a different label for each row of {CLASS_HEAD}, whose shape "
            f"is {list(shape)}",
        )
    return tuple(named[key] for key in expected)


def read_class_head(checkpoint: Checkpoint, labels: Sequence[str]) -> Tensor:
    """Return the weight of a checkpoint's head, (L, C), in the order of these labels, its own.

    Raises CheckpointFormatError for damage, also for a NaN or an infinity.
    """
    assert checkpoint.class_head is not None
    weight = checkpoint.class_head.read()
    check_finite(checkpoint.path, CLASS_HEAD, weight)
    own = labels_of_head(checkpoint)
    return weight[[own.index(label) for label in labels]]


def restore_class_head(model: GPT2, checkpoint: Checkpoint) -> None:
    """Give a model the head for labels of its checkpoint, if that has one.

    Raises CheckpointFormatError for damage, and for a head of a single label.
    """
    labels = labels_of_head(checkpoint)
    if len(labels) == 1:
        detail = f"{CLASS_HEAD} has one row, so it gives a number; expected two labels or more"
        raise CheckpointFormatError(checkpoint.path, detail)
    if labels:
        add_class_head(model, labels, weight=read_class_head(checkpoint, labels))


@dataclass(frozen=True)
class LabelWords:
    """Labels as words that complete a text, after a separator."""

    labels: tuple[str, ...]
    separator: str

    def write(self, folder: Path) -> None:
        """Write them into an existing folder."""
        content = {"labels": self.labels, "separator": self.separator}
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / WORDS_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> LabelWords | None:
        """Return those of a folder, None if it has none; raise CheckpointFormatError for damage."""
        path = folder / WORDS_FILE
        if not path.exists():
            return None
        content = read_json(path, error=CheckpointError)
        labels, separator = content.get("labels"), content.get("separator")
        if (
            not isinstance(labels, list)
            or len(labels) < 2
            or not all(isinstance(label, str) and label for label in labels)
            or len({*labels}) < len(labels)
            or not isinstance(separator, str)
        ):
            raise CheckpointFormatError(
                path, "expected two labels or more, all different, and a separator"
            )
        return cls(tuple(labels), separator)


def words_of_either(a: Checkpoint, b: Checkpoint) -> LabelWords | None:
    """Return the words by which two models label texts; raise ConfigError if they differ."""
    first, second = LabelWords.read(a.folder), LabelWords.read(b.folder)
    if first is not None and second is not None and first != second:
        raise ConfigError(
            f"{a.folder} labels texts with {', '.join(first.labels)}, and {b.folder} with "
            f"{', '.join(second.labels)}; expected the same labels and separator"
        )
    return first or second
