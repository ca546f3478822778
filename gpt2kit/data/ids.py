"""Token ids: texts encoded into them, and files of them (.npy, .bin)."""

from __future__ import annotations

import contextlib
import re
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt2kit.errors import CorpusError
from gpt2kit.files import check_regular, new_file
from gpt2kit.tokenizers import Tokenizer
from gpt2kit.tokenizers.listed import ListedTokenizer, boundaries

Ids = NDArray[Any]  # (n,) uint16, or uint32 for more than 65,536 ids

CHUNK = 2**20  # characters to encode at once, ids to check at once


# --- texts ---------------------------------------------------------------------------------------


def encode_documents(documents: Sequence[str], tokenizer: Tokenizer) -> Ids:
    """Return the ids of documents, (n,), with the tokenizer's stop_id between them.

    A tokenizer without one has a newline between them. One with markers for the beginning or the
    end of documents has these around each of them.
    """
    dtype = np.uint16 if tokenizer.n_vocab <= 2**16 else np.uint32
    before: Sequence[int] = ()
    after: Sequence[int] = ()
    whole = getattr(tokenizer, "needs_whole_text", False)
    if isinstance(tokenizer, ListedTokenizer):
        before, after = tokenizer.before, tokenizer.after
    pieces: list[Ids] = []
    for document in documents:
        if pieces and not before and not after:
            stop_id = tokenizer.stop_id
            separator = tokenizer.encode("\n") if stop_id is None else [stop_id]
            pieces.append(np.array(separator, dtype))
        chunks = [document] if whole else _chunks(document)
        encoded = (before, *map(tokenizer.encode, chunks), after)
        pieces += [np.array(ids, dtype) for ids in encoded]
    return np.concatenate(pieces) if pieces else np.empty(0, dtype)


def _chunks(document: str) -> Iterator[str]:
    """Split a long text before newlines between words: there every tokenizer starts a token."""
    start = 0
    while len(document) - start > 2 * CHUNK:
        found = re.compile(r"(?<=\S)(?=\n\S)").search(document, start + CHUNK)
        if found is None:
            break
        yield document[start : found.start()]
        start = found.start()
    yield document[start:]


def encode_cached(
    documents: Sequence[str], tokenizer: Tokenizer, key: str, cache: Path | None
) -> Ids:
    """Return the ids of documents; with `cache`, a folder, they are kept there as `key`.npy."""
    if cache is None or not documents:
        return encode_documents(documents, tokenizer)
    path = Path(cache) / f"{key}.npy"
    if path.exists():
        with contextlib.suppress(CorpusError):  # a damaged file is made anew
            return read_ids(path, tokenizer.n_vocab)
    _write_ids(path, encode_documents(documents, tokenizer))
    return read_ids(path, tokenizer.n_vocab)


def _write_ids(path: Path, ids: Ids) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as file:
            np.save(file, ids)
    except OSError as error:
        raise CorpusError(
            f"{path}: cannot write the encoded text: {error.strerror}; choose another cache folder",
            path=path,
        ) from error


def text_bytes(ids: Ids, tokenizer: Tokenizer) -> int:
    """Return how many bytes of text some ids stand for, without separators."""
    outside = boundaries(tokenizer)
    counts = np.zeros(tokenizer.n_vocab, np.int64)
    for start in range(0, len(ids), CHUNK):
        counts += np.bincount(ids[start : start + CHUNK], minlength=tokenizer.n_vocab)
    return sum(
        int(counts[token]) * len(tokenizer.token_bytes(token))
        for token in np.flatnonzero(counts).tolist()
        if token not in outside
    )


# --- files ---------------------------------------------------------------------------------------


def ids_file(source: object) -> Path | None:
    """Return the path of a file of ids if a source is one, else None."""
    if isinstance(source, str | Path):
        path = Path(source)
        if path.suffix in (".npy", ".bin") and not path.is_dir():
            return path
    return None


def read_ids(path: Path, n_vocab: int) -> Ids:
    """Map a file of ids into memory: a .npy of uint16 or uint32, or a .bin of little-endian uint16.

    Raises CorpusError for anything else, and unless every id is below n_vocab.
    """
    size = check_regular(path, error=CorpusError)
    if path.suffix == ".bin" and size % 2:
        raise CorpusError(
            f"{path}: {size:,} bytes, expected two for each id (little-endian uint16)", path=path
        )
    if not size:
        raise CorpusError(f"{path}: empty, expected token ids", path=path)
    ids = _mapped(path)
    if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype not in (np.uint16, np.uint32):
        is_array = isinstance(ids, np.ndarray)
        found = f"{ids.dtype} of shape {list(ids.shape)}" if is_array else "an archive of arrays"
        raise CorpusError(f"{path}: {found}, expected one row of uint16 or uint32 ids", path=path)
    for start in range(0, len(ids), CHUNK):
        wrong = ids[start : start + CHUNK] >= n_vocab
        if wrong.any():
            offset = start + int(wrong.argmax())
            raise CorpusError(
                f"{path}: id {ids[offset]:,} at offset {offset:,}, but the vocabulary has "
                f"{n_vocab:,}; was it made with another tokenizer?",
                path=path,
                offset=offset * ids.dtype.itemsize,
            )
    return ids


def _mapped(path: Path) -> Ids:
    """Map the array of a file, whatever it is."""
    try:
        if path.suffix == ".bin":
            return np.memmap(path, "<u2", "r")
        _check_header(path)
        found: Ids = np.load(path, mmap_mode="r", allow_pickle=False)
        return found
    except OSError as error:
        reason = error.strerror or error
        raise CorpusError(f"{path}: cannot be read: {reason}", path=path) from error
    except (ValueError, EOFError, SyntaxError, tokenize.TokenError) as error:
        # NumPy parses the header with Python's own parser, whose errors are no ValueErrors.
        raise CorpusError(f"{path}: not a complete .npy file: {error}", path=path) from error


def _check_header(path: Path) -> None:
    """Raise ValueError if the header of a .npy file is longer than the file.

    NumPy would reserve memory for all that it says, up to 4 GB.
    """
    with path.open("rb") as file:
        start = file.read(12)
    digits = 2 if start[6:7] == b"\x01" else 4  # of its length, which follows two bytes of version
    header = int.from_bytes(start[8 : 8 + digits], "little")
    if start.startswith(b"\x93NUMPY") and 8 + digits + header > path.stat().st_size:
        raise ValueError(f"its header is said to have {header:,} bytes, which it does not")


@dataclass(frozen=True)
class MappedFile:
    """A file that an array is mapped from, to notice when another program writes to it.

    What such a program writes shows up in the array, and reading what it has cut off kills the
    process (SIGBUS). A file that is replaced or deleted is no problem: the mapping keeps the old
    one.
    """

    path: Path
    inode: int
    version: tuple[int, int]  # size, and time of the last change in nanoseconds

    @classmethod
    def of(cls, ids: Ids) -> MappedFile | None:
        """Return the file that an array is mapped from, or None if it is in memory."""
        filename = getattr(ids, "filename", None)
        if filename is None:
            return None
        status = Path(filename).stat()
        return cls(Path(filename), status.st_ino, (status.st_size, status.st_mtime_ns))

    def check(self) -> None:
        """Raise CorpusError if the file has been written to."""
        try:
            now = self.path.stat()
        except OSError:  # deleted
            return
        if now.st_ino == self.inode and (now.st_size, now.st_mtime_ns) != self.version:
            raise CorpusError(
                f"{self.path}: another program has changed this file while it was in use; "
                "start again with the new one",
                path=self.path,
            )
