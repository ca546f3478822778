"""A text file as training and validation batches.

The last part of the text, or another file, is held out for validation. Batches come in an order that is a function of seed and step and
of nothing else, so that whoever knows the step can go on from there, in this process or another.

    B windows of a batch, T = block_size tokens to predict, n tokens of a split
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from gpt2kit.data.texts import Oddities, Source, Text, examine, read_texts
from gpt2kit.errors import ConfigError, CorpusError
from gpt2kit.files import check_regular, new_file
from gpt2kit.tokenizers import Tokenizer, identity

if TYPE_CHECKING:
    from torch import Tensor

Ids = NDArray[Any]  # (n,) uint16, or uint32 for more than 65,536 ids
Split = Literal["train", "val"]

ENGLISH_CHARACTERS_PER_TOKEN = (
    4.4  # OpenWebText in GPT-2's vocabulary: 39.8 GB in 9.0 billion tokens
)
_CHUNK = 2**20  # characters to encode at once, bytes or ids to check at once


@dataclass(frozen=True)
class CorpusReport:
    """What was read; `characters` and `oddities` are None for a file of tokens."""

    files: list[str]
    documents: int
    bytes: int  # of the text in UTF-8
    val_bytes: int
    characters: int | None
    val_characters: int | None
    train_tokens: int
    val_tokens: int
    oddities: Oddities | None

    @property
    def tokens(self) -> int:
        """Return the tokens of both parts."""
        return self.train_tokens + self.val_tokens

    @property
    def characters_per_token(self) -> float | None:
        """Return how much text a token holds; far below English's 4.4, GPT-2's vocabulary does not know the language."""
        return None if self.characters is None else self.characters / max(1, self.tokens)


@dataclass(frozen=True, eq=False)
class Corpus:
    """Token ids to train on and to validate with; `sha256` stands for text, split and tokenizer together."""

    train_ids: Ids
    val_ids: Ids  # empty where nothing was held out
    report: CorpusReport
    sha256: str
    _orders: dict[tuple[str, int, int, int], Ids] = field(
        default_factory=dict, init=False, repr=False
    )

    def fit_block_size(self, block_size: int) -> int:
        """Return block_size, or what makes two windows of a training text that is shorter than that."""
        return max(1, min(block_size, (len(self.train_ids) - 1) // 2))

    def batch(
        self,
        split: Split,
        step: int,
        *,
        block_size: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> Tensor:
        """Return the windows of one step as (B, T + 1) int64: tokens 0 … T-1 are read, tokens 1 … T predicted.

        Step i takes windows i·batch_size, i·batch_size + 1, … of an endless sequence that depends on the seed alone, and rank r
        every world_size-th of them from the r-th on, so a batch holds the same windows however many processes share it.

        The sequence is one epoch after the other. Each cuts the text into adjacent windows from a new random start, so that no cut
        is always at the same place, and shuffles them. What would stick out at both ends is moved inwards, over the windows beside
        it: so an epoch predicts every token, and the beginning of the text is always read as a beginning. With one small book that
        is better than windows drawn at random, of which as many miss a third of it.

        Raises CorpusError if the split is not longer than a window.
        """
        if batch_size % world_size or not 0 <= rank < world_size:
            raise ConfigError(
                f"a batch of {batch_size} windows cannot be shared evenly by {world_size} processes (rank {rank})"
            )
        ids = self._ids(split, block_size)
        per_epoch = -(-(len(ids) - 1) // block_size) + 1
        places = np.arange(step * batch_size + rank, (step + 1) * batch_size, world_size)
        starts = [
            self._order(split, seed, block_size, place // per_epoch)[place % per_epoch]
            for place in places.tolist()
        ]
        return _tensor(ids[np.asarray(starts)[:, None] + np.arange(block_size + 1)])

    def val_windows(self, block_size: int, *, batch_size: int = 1) -> Iterator[Tensor]:
        """Yield the validation text as (B, T + 1) int64, adjacent windows in order, each token but the first predicted once.

        The last one is alone and may be shorter; a mean over the split must weigh windows by their length.
        """
        whole = max(0, (len(self.val_ids) - 1) // block_size)
        for first in range(0, whole, batch_size):
            starts = np.arange(first, min(first + batch_size, whole)) * block_size
            yield _tensor(self.val_ids[starts[:, None] + np.arange(block_size + 1)])
        if len(rest := self.val_ids[whole * block_size :]) > 1:
            yield _tensor(rest[None])

    def _ids(self, split: Split, block_size: int) -> Ids:
        ids = self.train_ids if split == "train" else self.val_ids
        if block_size < 1:
            raise ConfigError(f"block_size is {block_size}, expected at least 1")
        if len(ids) <= block_size:
            raise CorpusError(
                f"the {split} split has {len(ids):,} tokens, expected more than a window of {block_size:,}; "
                f"use a --block_size of {self.fit_block_size(block_size):,} or less, or more text"
            )
        return ids

    def _order(self, split: Split, seed: int, block_size: int, epoch: int) -> Ids:
        """Return where the windows of an epoch start, shuffled."""
        key = (split, seed, block_size, epoch)
        if key not in self._orders:
            if len(self._orders) > 3:  # a batch may span two epochs
                self._orders.clear()
            n = len(self._ids(split, block_size))
            n_windows = -(-(n - 1) // block_size) + 1
            # The raw output of a bit generator is the same in all versions of NumPy, which promises that for no permutation of its own.
            random = np.random.PCG64([seed, epoch]).random_raw(n_windows + 1)
            starts = np.arange(n_windows) * block_size - int(random[-1] % block_size)
            self._orders[key] = np.clip(starts, 0, n - 1 - block_size)[
                np.argsort(random[:-1], kind="stable")
            ]
        return self._orders[key]


def _tensor(ids: Ids) -> Tensor:
    import torch  # here, so that reading a corpus needs no torch

    return torch.from_numpy(ids.astype(np.int64))


# --- reading ---------------------------------------------------------------------------------------------------------


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
    """Read a corpus: what `read_texts` takes or gave, or a file of ids (.npy with uint16 or uint32, or .bin with little-endian uint16).

    The last `val_fraction` of the characters are held out, from the next end of a document or line on, or all of `val` is. The
    tokenizer's stop_id separates documents. With `cache`, a folder, ids are kept there under the sha256 of text and tokenizer, and mapped
    into memory from there. Raises CorpusError for what cannot be read, is empty, or has ids that the tokenizer does not know.
    """
    if not 0 <= val_fraction < 1:
        raise ConfigError(f"val_fraction is {val_fraction}, expected at least 0 and less than 1")
    key = identity(tokenizer)
    if not isinstance(source, Text) and (path := _token_file(source)) is not None:
        return _load_tokens(path, tokenizer, key, val_fraction, None if val is None else Path(val))
    text = (
        source
        if isinstance(source, Text)
        else read_texts(source, encoding=encoding, text_field=text_field)
    )
    held_out = None if val is None else read_texts(val, encoding=encoding, text_field=text_field)
    if held_out is None:
        files, parts = text.files, split_documents(text.documents, val_fraction)
    else:
        files, parts = text.files + held_out.files, (list(text.documents), list(held_out.documents))
    digests = [_digest(part, key) for part in parts]
    train_ids, val_ids = (
        _encode_cached(part, tokenizer, digest, cache)
        for part, digest in zip(parts, digests, strict=True)
    )
    if held_out is None and val_fraction and len(val_ids) < 2:  # too little to predict anything in
        return load_corpus(text, tokenizer, val_fraction=0.0, cache=cache)
    if len(train_ids) < 2:
        raise CorpusError(
            f"{files[0]}: {len(train_ids)} token, expected two at least: one to read and one to predict",
            path=files[0],
        )
    characters = [sum(map(len, part)) for part in parts]
    n_bytes = [sum(len(document.encode()) for document in part) for part in parts]
    report = CorpusReport(
        files=[str(file) for file in files],
        documents=len(text.documents) + (len(held_out.documents) if held_out else 0),
        bytes=sum(n_bytes),
        val_bytes=n_bytes[1],
        characters=sum(characters),
        val_characters=characters[1],
        train_tokens=len(train_ids),
        val_tokens=len(val_ids),
        oddities=examine([*parts[0], *parts[1]]),
    )
    return Corpus(train_ids, val_ids, report, hashlib.sha256("".join(digests).encode()).hexdigest())


def split_documents(documents: Sequence[str], val_fraction: float) -> tuple[list[str], list[str]]:
    """Return documents up to the last `val_fraction` of their characters, and from there on.

    The cut is moved on, by a quarter of the held-out part at most, to the next end of a document, else of a line, else of a word.
    """
    total = sum(map(len, documents))
    cut = int(total * (1 - val_fraction))
    reach = cut + (total - cut) // 4
    before = 0  # characters of the documents before
    for number, document in enumerate(documents):
        if before + len(document) > cut:
            place = _good_cut(document, cut - before, reach - before)
            train, val = (
                [*documents[:number], document[:place]],
                [document[place:], *documents[number + 1 :]],
            )
            return [part for part in train if part], [part for part in val if part]
        before += len(document)
    return list(documents), []


def _good_cut(document: str, place: int, reach: int) -> int:
    if place == 0 or len(document) <= reach:
        return 0 if place == 0 else len(document)
    if (line_end := document.find("\n", place - 1, reach)) >= 0:
        return line_end + 1
    blank = document.find(" ", place, reach)
    return blank if blank >= 0 else place


def _digest(documents: Sequence[str], key: str) -> str:
    digest = hashlib.sha256(key.encode())
    for document in documents:
        data = document.encode()
        digest.update(b"%d\n" % len(data))
        digest.update(data)
    return digest.hexdigest()


# --- ids -------------------------------------------------------------------------------------------------------------


def encode_documents(documents: Sequence[str], tokenizer: Tokenizer) -> Ids:
    """Return the ids of documents with the tokenizer's stop_id between them, or a line end where it has none."""
    dtype = np.uint16 if tokenizer.n_vocab <= 2**16 else np.uint32
    separator = tokenizer.stop_id
    pieces: list[Ids] = []
    for number, document in enumerate(documents):
        if number:
            pieces.append(
                np.array(tokenizer.encode("\n") if separator is None else [separator], dtype)
            )
        pieces += [np.array(tokenizer.encode(chunk), dtype) for chunk in _chunks(document)]
    return np.concatenate(pieces) if pieces else np.empty(0, dtype)


def _chunks(document: str) -> Iterator[str]:
    """Cut a long text before single line ends between words, where no token of any of our tokenizers crosses."""
    start = 0
    while len(document) - start > 2 * _CHUNK:
        found = re.compile(r"(?<=\S)(?=\n\S)").search(document, start + _CHUNK)
        if found is None:
            break
        yield document[start : found.start()]
        start = found.start()
    yield document[start:]


def _encode_cached(
    documents: Sequence[str], tokenizer: Tokenizer, digest: str, cache: Path | None
) -> Ids:
    """Return the ids of documents, from the cache where they are there."""
    if cache is None or not documents:
        return encode_documents(documents, tokenizer)
    path = Path(cache) / f"{digest}.npy"
    if path.exists():
        with contextlib.suppress(CorpusError):  # damaged: made again
            return _read_ids(path, tokenizer.n_vocab)
    ids = encode_documents(documents, tokenizer)
    _write_ids(path, ids)
    return _read_ids(path, tokenizer.n_vocab)


def _write_ids(path: Path, ids: Ids) -> None:
    """Write a file of ids that appears whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as file:
            np.save(file, ids)
    except OSError as error:
        raise CorpusError(
            f"{path}: cannot write the encoded text: {error.strerror}; choose another cache folder",
            path=path,
        ) from error


def _token_file(source: Source) -> Path | None:
    """Return the one file that a source is, if it holds ids instead of text."""
    if (
        isinstance(source, str | Path)
        and Path(source).suffix in (".npy", ".bin")
        and not Path(source).is_dir()
    ):
        return Path(source)
    return None


def _read_ids(path: Path, n_vocab: int) -> Ids:
    """Map a file of ids into memory; raise CorpusError unless every one is below n_vocab."""
    try:
        size = check_regular(path, error=CorpusError)
        if path.suffix == ".bin" and size % 2:
            raise CorpusError(
                f"{path}: {size:,} bytes, an odd number; expected two for each id (little-endian uint16)",
                path=path,
            )
        if not size:
            raise CorpusError(f"{path}: empty; expected token ids", path=path)
        ids: Ids = (
            np.memmap(path, "<u2", "r")
            if path.suffix == ".bin"
            else np.load(path, mmap_mode="r", allow_pickle=False)
        )
    except OSError as error:
        raise CorpusError(
            f"{path}: cannot be read: {error.strerror or error}", path=path
        ) from error
    except (ValueError, EOFError) as error:
        raise CorpusError(f"{path}: not a whole .npy file: {error}", path=path) from error
    if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype not in (np.uint16, np.uint32):
        found = (
            f"{ids.dtype} of shape {list(ids.shape)}"
            if isinstance(ids, np.ndarray)
            else "an archive of arrays"
        )
        raise CorpusError(f"{path}: {found}, expected one row of uint16 or uint32 ids", path=path)
    for start in range(0, len(ids), _CHUNK):
        wrong = ids[start : start + _CHUNK] >= n_vocab
        if wrong.any():
            place = start + int(wrong.argmax())
            raise CorpusError(
                f"{path}: id {ids[place]:,} at position {place:,}, but the vocabulary has {n_vocab:,}; is it another tokenizer's file?",
                path=path,
                offset=place * ids.dtype.itemsize,
            )
    return ids


def _load_tokens(
    path: Path, tokenizer: Tokenizer, key: str, val_fraction: float, val: Path | None
) -> Corpus:
    """Load a corpus that was encoded before."""
    ids = _read_ids(path, tokenizer.n_vocab)
    if val is None:
        cut = int(len(ids) * (1 - val_fraction))
        parts = (ids[:cut], ids[cut:]) if len(ids) - cut > 1 else (ids, ids[:0])
    elif _token_file(val) is None:
        raise CorpusError(
            f"{val}: expected a .npy or .bin file of ids to validate with, as {path.name} is one",
            path=val,
        )
    else:
        parts = (ids, _read_ids(val, tokenizer.n_vocab))
    if len(parts[0]) < 2:
        raise CorpusError(
            f"{path}: {len(parts[0])} token to train on, expected two at least", path=path
        )
    digest = hashlib.sha256(key.encode())
    stops = 0
    for part in parts:
        digest.update(b"%d\n" % len(part))
        for start in range(0, len(part), _CHUNK):
            digest.update(part[start : start + _CHUNK].tobytes())
        stops += (
            0 if tokenizer.stop_id is None else int(np.count_nonzero(part == tokenizer.stop_id))
        )
    n_bytes = [_text_bytes(part, tokenizer) for part in parts]
    report = CorpusReport(
        files=[str(file) for file in (path, val) if file is not None],
        documents=stops + 1,
        bytes=sum(n_bytes),
        val_bytes=n_bytes[1],
        characters=None,
        val_characters=None,
        train_tokens=len(parts[0]),
        val_tokens=len(parts[1]),
        oddities=None,
    )
    return Corpus(parts[0], parts[1], report, digest.hexdigest())


def _text_bytes(ids: Ids, tokenizer: Tokenizer) -> int:
    """Return how many bytes of text ids stand for, separators aside."""
    counts = np.zeros(tokenizer.n_vocab, np.int64)
    for start in range(0, len(ids), _CHUNK):
        counts += np.bincount(ids[start : start + _CHUNK], minlength=tokenizer.n_vocab)
    return sum(
        int(counts[token]) * len(tokenizer.token_bytes(token))
        for token in np.flatnonzero(counts).tolist()
        if token != tokenizer.stop_id
    )
