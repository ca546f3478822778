"""Examples as training and validation batches: packed into rows, each read as if it were alone.

A row holds as many whole examples as fit into it, one after another. A model that is given the
positions below reads each example from position 0 and without the others, as it reads a prompt
later. Only what completes the prompts is predicted. Which rows a batch has depends on the seed and
the step alone.

    B rows of a batch, T = block_size tokens of a row, n tokens of an example
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gpt2kit.data.corpus import CorpusReport, ExampleReport, Split, check_share
from gpt2kit.data.examples import Example, Examples
from gpt2kit.data.ids import Ids
from gpt2kit.data.oddities import examine
from gpt2kit.errors import CorpusError
from gpt2kit.tokenizers import Tokenizer, identity
from gpt2kit.tokenizers.listed import ListedTokenizer, start_of_text

if TYPE_CHECKING:
    from torch import Tensor

NOTHING = -100  # the target of a token after which nothing is predicted, as in transformers
EXAMPLES_IN_STEP = 8  # about as many, by default


class Encoded(NamedTuple):
    """The tokens of an example that are read, and what each is to be followed by."""

    ids: Ids  # (n,)
    targets: Ids  # (n,): tokens, or after the last one the number of a label; else NOTHING

    @property
    def n_predicted(self) -> int:
        return int((self.targets != NOTHING).sum())


@dataclass(frozen=True)
class ExampleCorpus:
    """Examples to train on and to validate with; `sha256` also identifies their tokenizer."""

    train: Sequence[Encoded]
    val: Sequence[Encoded]
    report: CorpusReport
    sha256: str
    _rows: dict[tuple[Split, int], list[list[int]]] = field(
        default_factory=dict, init=False, repr=False
    )

    def usual_block_size(self, least: int) -> int:
        """Return the block size in which every example fits, at least this one."""
        return max(least, *(len(each.ids) for each in (*self.train, *self.val)))

    def usual_batch_size(self, block_size: int, _: int) -> int:
        """Return how many rows have about EXAMPLES_IN_STEP examples."""
        return max(1, round(EXAMPLES_IN_STEP * len(self._packed("train", block_size)) / self.count))

    @property
    def count(self) -> int:
        """The number of examples to train with."""
        return len(self.train)

    def fit_block_size(self, block_size: int) -> int:
        """Return block_size: rows have any length."""
        return block_size

    def epoch_tokens(self, block_size: int) -> int:
        """Return how many tokens the rows of a pass have room for."""
        return len(self._packed("train", block_size)) * block_size

    def predicted_in_row(self, block_size: int) -> int:
        """Return how many tokens or labels of a row to train with are predicted, on average."""
        rows = self._packed("train", block_size)
        predicted = sum(self.train[index].n_predicted for row in rows for index in row)
        return math.ceil(predicted / len(rows))

    def shortened(self, block_size: int) -> int:
        """Return how many examples lose the beginning of their prompt."""
        examples = (*self.train, *self.val)
        return sum(len(each.ids) > block_size >= each.n_predicted for each in examples)

    def batch(
        self,
        split: Split,
        step: int,
        *,
        block_size: int,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        stride: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> Tensor:
        """Return the rows of one step: (B, 3, T) int64, in each ids, targets and positions.

        There is one endless sequence of rows for a seed, which the steps and processes take theirs
        from as from the windows of a text. A pass has every row once, in an order of its own;
        without `shuffle` it is always the same one. `stride` has no meaning here.
        """
        check_share(batch_size, rank, world_size)
        rows = self._packed(split, block_size)
        chosen = []
        for number in range(step * batch_size + rank, (step + 1) * batch_size, world_size):
            epoch, index = divmod(number, len(rows))
            chosen.append(rows[_order(seed, epoch, len(rows))[index] if shuffle else index])
        return self._tensor(split, chosen, block_size)

    def eval_windows(
        self, split: Split, block_size: int, *, batch_size: int = 1, most_tokens: int | None = None
    ) -> Iterator[Tensor]:
        """Yield the rows to measure a split's loss with, (B, 3, T), always the same ones.

        If the validation rows are more than `most_tokens`, evenly spaced ones are used, and of the
        training rows as many.
        """
        n_rows = len(self._packed("val", block_size)) if self.val else 0
        if most_tokens is not None:
            n_rows = min(n_rows, max(1, most_tokens // block_size))
        rows = self._packed(split, block_size) if n_rows else []
        n_rows = min(n_rows, len(rows))
        some = [rows[number * len(rows) // n_rows] for number in range(n_rows)]
        for start in range(0, n_rows, batch_size):
            yield self._tensor(split, some[start : start + batch_size], block_size)

    def _packed(self, split: Split, block_size: int) -> list[list[int]]:
        """Return the examples of each row, by their index in the split."""
        key = split, block_size
        if key not in self._rows:
            examples = self.train if split == "train" else self.val
            fitting = {
                index: min(len(each.ids), block_size)
                for index, each in enumerate(examples)
                if each.n_predicted <= block_size
            }
            if not fitting:
                raise CorpusError(
                    f"no example of the {split} split has a completion of at most {block_size:,} "
                    "tokens; use a larger --block_size"
                )
            self._rows[key] = pack(fitting, block_size)
        return self._rows[key]

    def left_out(self, block_size: int) -> int:
        """Return how many examples have a completion that is longer than a row."""
        return sum(each.n_predicted > block_size for each in (*self.train, *self.val))

    def _tensor(self, split: Split, rows: Sequence[Sequence[int]], block_size: int) -> Tensor:
        """Return rows of examples: (B, 3, T) int64."""
        import torch  # here, because reading a corpus needs no torch

        examples = self.train if split == "train" else self.val
        found = np.zeros((len(rows), 3, block_size), np.int64)  # a filler is read at position 0
        found[:, 1] = NOTHING
        for row, indices in zip(found, rows, strict=True):
            start = 0
            for index in indices:
                ids, targets = examples[index]
                end = start + min(len(ids), block_size)
                # What is too long loses its beginning: the targets are at the end.
                row[0, start:end] = ids[-block_size:]
                row[1, start:end] = targets[-block_size:]
                row[2, start:end] = np.arange(end - start)
                start = end
        return torch.from_numpy(found)


def pack(lengths: dict[int, int], size: int) -> list[list[int]]:
    """Return rows of keys whose lengths add up to at most `size`, itself at least each length.

    Each key, in order, goes into the row with the least room that has room for it.
    """
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # what is left in a row, and its index, sorted
    for key, length in lengths.items():
        at = bisect.bisect_left(rooms, (length, -1))
        if at < len(rooms):
            room, row = rooms.pop(at)
        else:
            room, row = size, len(rows)
            rows.append([])
        rows[row].append(key)
        if room > length:
            bisect.insort(rooms, (room - length, row))
    return rows


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, n_rows: int) -> Ids:
    """Return the order of the rows in a pass, (n_rows,)."""
    # NumPy promises that the raw output of a bit generator stays the same in all its versions.
    random = np.random.PCG64([seed, epoch]).random_raw(n_rows)
    return np.argsort(random, kind="stable")


# --- from texts to tokens -------------------------------------------------------------------------


def load_examples(
    examples: Examples,
    tokenizer: Tokenizer,
    parts: tuple[Sequence[Example], Sequence[Example]],
    *,
    val: Examples | None = None,
    with_head: bool = False,
) -> ExampleCorpus:
    """Return the ids of examples, in two parts: to train with, and to validate with.

    The second part is of `val` if that is given. A completion is encoded by itself and ends with
    the tokenizer's stop_id, or with a newline if it has none; all of it is predicted. `with_head`
    predicts the number of the label after the last token of the text instead. Raises TokenizerError
    for what the tokenizer cannot write, CorpusError for a label of `val` alone.
    """
    numbers = {label: number for number, label in enumerate(examples.labels)}
    if val is not None and (new := sorted({*val.labels} - numbers.keys())):
        raise CorpusError(f"{val.files[0]}: the label {new[0]!r} is not in {examples.files[0]}")
    train, held_out = (
        [
            _labeled(each, tokenizer, numbers) if with_head else _completed(each, tokenizer)
            for each in part
        ]
        for part in parts
    )
    report = _report(examples, val, parts, (train, held_out))
    return ExampleCorpus(train, held_out, report, _sha256(parts, tokenizer, with_head))


def completion_ids(tokenizer: Tokenizer, completion: str) -> list[int]:
    """Return the tokens that complete a prompt: those of a text and of its end."""
    end = [] if tokenizer.stop_id is None else [tokenizer.stop_id]
    if isinstance(tokenizer, ListedTokenizer) and tokenizer.after:
        end = [*tokenizer.after]
    return tokenizer.encode(completion) + (end or tokenizer.encode("\n"))


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Return the tokens of a prompt as `generate` reads it: an empty one is the mark of a start.

    Raises CorpusError for an empty prompt if the vocabulary has no such mark.
    """
    ids = tokenizer.encode(prompt) if prompt else start_of_text(tokenizer)
    if not ids:
        raise CorpusError(
            "a prompt is empty, and the vocabulary has no mark to start a text with; add a "
            "--separator"
        )
    return ids


def _completed(example: Example, tokenizer: Tokenizer) -> Encoded:
    prompt = prompt_ids(tokenizer, example.prompt)
    completion = completion_ids(tokenizer, example.completion)
    ids = np.array(prompt + completion, np.int32)
    targets = ids[1:].copy()
    targets[: len(prompt) - 1] = NOTHING
    return Encoded(ids[:-1], targets)


def _labeled(example: Example, tokenizer: Tokenizer, numbers: dict[str, int]) -> Encoded:
    ids = np.array(prompt_ids(tokenizer, example.prompt), np.int32)
    targets = np.full_like(ids, NOTHING)
    targets[-1] = numbers[example.completion]
    return Encoded(ids, targets)


def _report(
    examples: Examples,
    val: Examples | None,
    parts: Sequence[Sequence[Example]],
    encoded: Sequence[Sequence[Encoded]],
) -> CorpusReport:
    texts = [[each.prompt + each.completion for each in part] for part in parts]
    sizes = [sum(len(text.encode()) for text in part) for part in texts]
    characters = [sum(map(len, part)) for part in texts]
    tokens = [sum(len(each.ids) for each in part) for part in encoded]
    return CorpusReport(
        files=[str(file) for file in (*examples.files, *(val.files if val else ()))],
        documents=sum(map(len, parts)),
        bytes=sum(sizes),
        val_bytes=sizes[1],
        characters=sum(characters),
        val_characters=characters[1],
        train_tokens=tokens[0],
        val_tokens=tokens[1],
        oddities=examine([text for part in texts for text in part]),
        examples=ExampleReport(
            train=len(parts[0]),
            val=len(parts[1]),
            predicted_tokens=sum(each.n_predicted for part in encoded for each in part),
            left_out=examples.left_out + (val.left_out if val else 0),
            labels=_label_counts(examples.labels, *parts),
            val_labels=_label_counts(examples.labels, parts[1]),
        ),
    )


def _label_counts(labels: Sequence[str], *parts: Sequence[Example]) -> dict[str, int]:
    """Return how many examples have each of these labels."""
    counts = Counter(each.completion for part in parts for each in part)
    return {label: counts[label] for label in labels}


def _sha256(parts: Sequence[Sequence[Example]], tokenizer: Tokenizer, with_head: bool) -> str:
    """Return what identifies examples, their split, the tokenizer, and what is predicted."""
    digest = hashlib.sha256(f"examples {with_head} {identity(tokenizer)}".encode())
    for part in parts:
        digest.update(b"%d\n" % len(part))
        for text in (text for each in part for text in (each.prompt, each.completion)):
            digest.update(b"%d\n" % len(text.encode()) + text.encode())
    return digest.hexdigest()
