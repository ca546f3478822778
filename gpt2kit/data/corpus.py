"""A corpus as training and validation batches.

The end of the text, or another file, is held out for validation. Which windows a batch has depends
on the seed and the step alone, so that training can continue at any step, in any process.

    B windows of a batch, T = block_size tokens to predict, n tokens of a split
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gpt2kit.data.ids import Ids, MappedFile, encode_cached, ids_file, read_ids, text_bytes
from gpt2kit.data.oddities import Oddities, examine
from gpt2kit.data.texts import Source, Text, read_texts, split_documents
from gpt2kit.errors import ConfigError, CorpusError
from gpt2kit.tokenizers import Tokenizer, identity

if TYPE_CHECKING:
    from torch import Tensor

Split = Literal["train", "val"]

_CHUNK = 2**20  # ids to hash at once

# OpenWebText in GPT-2's vocabulary: 39.8 GB in 9.0 billion tokens.
ENGLISH_CHARACTERS_PER_TOKEN = 4.4


@dataclass(frozen=True)
class ExampleReport:
    """What was read of a table of examples."""

    train: int  # examples to train with
    val: int
    predicted_tokens: int  # of all that are read
    left_out: int  # rows without a completion or label
    labels: dict[str, int]  # how many examples have each label; empty if there are none
    val_labels: dict[str, int]  # the same of those to validate with


@dataclass(frozen=True)
class CorpusReport:
    """What was read; `characters` and `oddities` are None for a file of token ids."""

    files: list[str]
    documents: int
    bytes: int  # of the text in UTF-8
    val_bytes: int
    characters: int | None
    val_characters: int | None
    train_tokens: int
    val_tokens: int
    oddities: Oddities | None
    examples: ExampleReport | None = None  # None for a text

    @property
    def tokens(self) -> int:
        """Return the number of tokens of both splits."""
        return self.train_tokens + self.val_tokens

    @property
    def characters_per_token(self) -> float | None:
        """Return how many characters a token stands for.

        Far fewer than 4.4, as in English, mean that the vocabulary was made for other languages.
        """
        return None if self.characters is None else self.characters / max(1, self.tokens)


@dataclass(frozen=True, eq=False)
class Corpus:
    """Token ids to train on and to validate with.

    `sha256` identifies text, split and tokenizer together.
    """

    train_ids: Ids
    val_ids: Ids  # empty if nothing was held out
    report: CorpusReport
    sha256: str
    _orders: dict[tuple[str, int, int, int, int], Ids] = field(
        default_factory=dict, init=False, repr=False
    )
    _files: list[MappedFile] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        self._files.extend(filter(None, map(MappedFile.of, (self.train_ids, self.val_ids))))

    def fit_block_size(self, block_size: int) -> int:
        """Return block_size, or less if the training text is shorter than two such windows."""
        return max(1, min(block_size, (len(self.train_ids) - 1) // 2))

    def usual_block_size(self, least: int) -> int:
        """Return the block size by default, which for a text depends on the model alone."""
        return least

    def usual_batch_size(self, block_size: int, usual: int) -> int:
        """Return the windows of a batch by default."""
        return usual

    def epoch_tokens(self, block_size: int) -> int:
        """Return how many tokens a pass has."""
        return len(self.train_ids)

    def predicted_in_row(self, _: int) -> None:
        """Return None: every token of a window is predicted."""

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
        """Return the windows of one step: (B, T + 1) int64, tokens 0 … T-1 the input of 1 … T.

        There is one endless sequence of windows for a seed. Step i takes windows i·batch_size,
        i·batch_size + 1, … of it, and rank r every world_size-th of these, from the r-th on, so
        that a batch has the same windows whatever the number of processes.

        The sequence consists of epochs. Each cuts the text into adjacent windows from a new random
        start, so that the cuts are not always at the same positions, and shuffles them. A window
        that would reach beyond either end of the text is moved inside, where it overlaps the next:
        an epoch predicts every token at least once, and the beginning of the text is always read as
        a beginning. That is better for one small book than windows drawn at random: as many of
        those would miss a third of it.

        Without `shuffle` an epoch begins at the beginning of the text, and its windows come in the
        order of the text. With `stride` a window begins that many tokens after the one before,
        which it overlaps by the rest; by default this is block_size.

        Raises ConfigError for a stride that would leave tokens out, CorpusError if the split is not
        longer than a window, and if another program has changed the file that the ids are mapped
        from.
        """
        check_share(batch_size, rank, world_size)
        ids = self._ids(split, block_size)
        stride = block_size if stride is None else stride
        if not 1 <= stride <= block_size:
            raise ConfigError(
                f"stride is {stride}, expected from 1 to {block_size}, the block_size"
            )
        last = len(ids) - 1 - block_size  # where the last window starts
        # A shuffled epoch has one window more than fit, since it begins anywhere.
        per_epoch = -(-last // stride) + (2 if shuffle else 1)
        starts = []
        for number in range(step * batch_size + rank, (step + 1) * batch_size, world_size):
            epoch, index = divmod(number, per_epoch)
            if shuffle:
                starts.append(self._order(split, seed, block_size, stride, epoch, per_epoch)[index])
            else:
                starts.append(min(index * stride, last))
        return self._tensor(ids, np.asarray(starts)[:, None] + np.arange(block_size + 1))

    def eval_windows(
        self, split: Split, block_size: int, *, batch_size: int = 1, most_tokens: int | None = None
    ) -> Iterator[Tensor]:
        """Yield the windows to measure a split's loss with, (B, T + 1) int64, always the same ones.

        The validation text is cut into adjacent windows, which predict each token but the first
        once. If it is longer than `most_tokens`, evenly spaced batches of them are used. The last
        window comes alone and may be shorter, so a mean must weight windows by their lengths.

        Of the training text there are as many windows of the same lengths, evenly spaced from its
        beginning to its end, so that both losses are measured on equally many tokens. They begin at
        multiples of block_size, too: where a text of equal lines has its lines.
        """
        ids = self.val_ids
        batches = _val_batches(len(ids), block_size, batch_size, most_tokens)
        if split == "train" and batches:
            ids = self._ids("train", block_size)
            batches = _spread(batches, len(ids), block_size)
        for starts, length in batches:
            yield self._tensor(ids, starts[:, None] + np.arange(length + 1))

    def _tensor(self, ids: Ids, offsets: Ids) -> Tensor:
        """Return the ids at some offsets: (B, T + 1) int64."""
        import torch  # here, because reading a corpus needs no torch

        for file in self._files:
            file.check()
        return torch.from_numpy(ids[offsets].astype(np.int64))

    def _ids(self, split: Split, block_size: int) -> Ids:
        """Return the ids of a split that is longer than a window."""
        ids = self.train_ids if split == "train" else self.val_ids
        if block_size < 1:
            raise ConfigError(f"block_size is {block_size}, expected at least 1")
        if len(ids) <= block_size:
            raise CorpusError(
                f"the {split} split has {len(ids):,} tokens, expected more than a window of "
                f"{block_size:,}; use a --block_size of {self.fit_block_size(block_size):,} or "
                "less, or more text"
            )
        return ids

    def _order(
        self, split: Split, seed: int, block_size: int, stride: int, epoch: int, n_windows: int
    ) -> Ids:
        """Return the offsets where the windows of an epoch start, shuffled."""
        key = (split, seed, block_size, stride, epoch)
        if key not in self._orders:
            if len(self._orders) > 3:  # a batch may have windows of two epochs
                self._orders.clear()
            last = len(self._ids(split, block_size)) - 1 - block_size
            # NumPy promises that the raw output of a bit generator stays the same in all its
            # versions, which it does not promise for its permutations.
            random = np.random.PCG64([seed, epoch]).random_raw(n_windows + 1)
            starts = np.arange(n_windows) * stride - int(random[-1] % stride)
            starts = np.clip(starts, 0, last)
            self._orders[key] = starts[np.argsort(random[:-1], kind="stable")]
        return self._orders[key]


def check_share(batch_size: int, rank: int, world_size: int) -> None:
    """Raise ConfigError if a batch cannot be shared by some processes, of which this is one."""
    if batch_size % world_size or not 0 <= rank < world_size:
        raise ConfigError(
            f"a batch of {batch_size} windows cannot be shared evenly by {world_size} "
            f"processes (rank {rank})"
        )


def _val_batches(
    n: int, block_size: int, batch_size: int, most_tokens: int | None
) -> list[tuple[Ids, int]]:
    """Return batches of adjacent windows of n tokens: where each starts, and what it predicts."""
    whole, rest = divmod(max(0, n - 1), block_size)
    n_batches = -(-whole // batch_size)
    every = 1 if most_tokens is None else max(1, math.ceil(n / most_tokens))
    batches: list[tuple[Ids, int]] = []
    for number in range(0, n_batches + (rest > 0), every):
        if number == n_batches:
            batches.append((np.array([whole * block_size]), rest))
        else:
            first = number * batch_size
            starts = np.arange(first, min(first + batch_size, whole)) * block_size
            batches.append((starts, block_size))
    return batches


def _spread(batches: Sequence[tuple[Ids, int]], n: int, block_size: int) -> list[tuple[Ids, int]]:
    """Return batches of the same sizes whose windows are evenly spaced over n tokens."""
    n_windows = sum(len(starts) for starts, _ in batches)
    last = n - 1 - batches[-1][1]  # where the last window may start
    spread, before = [], 0
    for starts, length in batches:
        numbers = np.arange(before, before + len(starts))
        evenly = np.minimum(numbers * last // max(1, n_windows - 1), n - 1 - length)
        spread.append((evenly // block_size * block_size, length))
        before += len(starts)
    return spread


# --- reading -------------------------------------------------------------------------------------


def load_corpus(
    source: Source | Text,
    tokenizer: Tokenizer,
    *,
    encoding: str = "utf-8",
    val_fraction: float = 0.1,
    val: Path | None = None,
    text_field: str = "text",
    cache: Path | None = None,
) -> Corpus:
    """Read a corpus: what `read_texts` takes or returned, or a file of token ids.

    Such a file is a .npy of uint16 or uint32, or a .bin of little-endian uint16. The last
    `val_fraction` of the characters are held out, from the next end of a document or line on, or
    all of the file `val` is. The tokenizer's stop_id separates documents. In `cache`, a folder,
    encoded texts are kept under the sha256 of text and tokenizer. Raises CorpusError for a file
    that cannot be read, is empty, or has ids that the tokenizer does not know.
    """
    if not 0 <= val_fraction < 1:
        raise ConfigError(f"val_fraction is {val_fraction}, expected at least 0 and less than 1")
    key = identity(tokenizer)
    if (path := ids_file(source)) is not None:
        return _load_ids(path, tokenizer, key, val_fraction, None if val is None else Path(val))
    if not isinstance(source, Text):
        source = read_texts(source, encoding=encoding, text_field=text_field)
    files = source.files
    if val is None:
        train, held_out = split_documents(source.documents, val_fraction)
    else:
        other = read_texts(val, encoding=encoding, text_field=text_field)
        files += other.files
        train, held_out = list(source.documents), list(other.documents)
    digests = [_digest(part, key) for part in (train, held_out)]
    train_ids = encode_cached(train, tokenizer, digests[0], cache)
    val_ids = encode_cached(held_out, tokenizer, digests[1], cache)
    if val is None and val_fraction and len(val_ids) < 2:  # too short to predict anything
        return load_corpus(source, tokenizer, val_fraction=0.0, cache=cache)
    if len(train_ids) < 2:
        raise CorpusError(
            f"{files[0]}: {len(train_ids)} token, expected at least two: "
            "one to read and one to predict",
            path=files[0],
        )
    n_documents = len(source.documents) + (0 if val is None else len(held_out))
    return Corpus(
        train_ids,
        val_ids,
        CorpusReport(
            files=[str(file) for file in files],
            documents=n_documents,
            oddities=examine([*train, *held_out]),
            train_tokens=len(train_ids),
            val_tokens=len(val_ids),
            **_sizes(train, held_out),
        ),
        hashlib.sha256("".join(digests).encode()).hexdigest(),
    )


def _sizes(train: Sequence[str], held_out: Sequence[str]) -> dict[str, Any]:
    """Return the bytes and characters of both parts together, and of the second."""
    characters = [sum(map(len, part)) for part in (train, held_out)]
    n_bytes = [sum(len(document.encode()) for document in part) for part in (train, held_out)]
    return {
        "bytes": sum(n_bytes),
        "val_bytes": n_bytes[1],
        "characters": sum(characters),
        "val_characters": characters[1],
    }


def _digest(documents: Sequence[str], key: str) -> str:
    """Return the sha256 of documents and the key of a tokenizer."""
    digest = hashlib.sha256(key.encode())
    for document in documents:
        data = document.encode()
        digest.update(b"%d\n" % len(data))
        digest.update(data)
    return digest.hexdigest()


def _load_ids(
    path: Path, tokenizer: Tokenizer, key: str, val_fraction: float, val: Path | None
) -> Corpus:
    """Load a corpus that was encoded before."""
    ids = read_ids(path, tokenizer.n_vocab)
    if val is None:
        cut = int(len(ids) * (1 - val_fraction))
        train, held_out = (ids[:cut], ids[cut:]) if len(ids) - cut > 1 else (ids, ids[:0])
    elif ids_file(val) is None:
        raise CorpusError(
            f"{val}: expected a .npy or .bin file of ids to validate with, as {path.name} is one",
            path=val,
        )
    else:
        train, held_out = ids, read_ids(val, tokenizer.n_vocab)
    if len(train) < 2:
        raise CorpusError(
            f"{path}: {len(train)} token to train on, expected at least two", path=path
        )
    digest = hashlib.sha256(key.encode())
    for part in (train, held_out):
        digest.update(b"%d\n" % len(part))
        for start in range(0, len(part), _CHUNK):
            digest.update(part[start : start + _CHUNK].tobytes())
    val_bytes = text_bytes(held_out, tokenizer)
    report = CorpusReport(
        files=[str(file) for file in (path, val) if file is not None],
        documents=_separators(train, tokenizer) + _separators(held_out, tokenizer) + 1,
        bytes=text_bytes(train, tokenizer) + val_bytes,
        val_bytes=val_bytes,
        characters=None,
        val_characters=None,
        train_tokens=len(train),
        val_tokens=len(held_out),
        oddities=None,
    )
    return Corpus(train, held_out, report, digest.hexdigest())


def _separators(ids: Ids, tokenizer: Tokenizer) -> int:
    """Return how many separators of documents are among some ids."""
    return 0 if tokenizer.stop_id is None else int(np.count_nonzero(ids == tokenizer.stop_id))
