"""Text to token ids and back: the protocol that every tokenizer keeps, and finding the one of a directory."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Protocol, runtime_checkable

from gpt2kit.tokenizers.bpe import BPETokenizer
from gpt2kit.tokenizers.char import CharTokenizer
from gpt2kit.tokenizers.listed import find_listed
from gpt2kit.tokenizers.stream import StreamDecoder
from gpt2kit.tokenizers.word import WordTokenizer

__all__ = [
    "BPETokenizer",
    "CharTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "WordTokenizer",
    "identity",
    "load_tokenizer",
]


@runtime_checkable
class Tokenizer(Protocol):
    """What generation, training and evaluation need of a tokenizer."""

    @property
    def n_vocab(self) -> int:
        """The highest id and one; a model may have more rows, for padding."""

    @property
    def stop_id(self) -> int | None:
        """The id that ends a text, or None where there is none."""

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the ids of a text. Markers such as <|endoftext|> in it are plain text unless `special`."""

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids; bytes that are not UTF-8 become U+FFFD."""

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that one id stands for, which may be half a character."""

    def save(self, folder: Path) -> None:
        """Write the vocabulary into a folder, so that `load_tokenizer` finds it there."""


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """Return the tokenizer whose vocabulary is in a folder, or None where there is none.

    Raises TokenizerError for a damaged vocabulary.
    """
    return find_listed(folder, {"char": CharTokenizer, "word": WordTokenizer}) or BPETokenizer.find(
        folder
    )


def identity(tokenizer: Tokenizer) -> str:
    """Return a sha256 that two tokenizers share only if they make the same ids of every text: that of what they save."""
    digest = hashlib.sha256(f"{tokenizer.n_vocab} {tokenizer.stop_id}".encode())
    with tempfile.TemporaryDirectory(prefix="gpt2kit-") as folder:
        tokenizer.save(Path(folder))
        for file in sorted(Path(folder).iterdir()):
            digest.update(f"\n{file.name} {file.stat().st_size}\n".encode() + file.read_bytes())
    return digest.hexdigest()
