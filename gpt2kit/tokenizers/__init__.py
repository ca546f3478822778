"""Text to token ids and back: byte-level BPE, characters, words, and what others train."""

from __future__ import annotations

from pathlib import Path

from gpt2kit.tokenizers.bpe import BPETokenizer
from gpt2kit.tokenizers.char import CharTokenizer
from gpt2kit.tokenizers.library import LibraryTokenizer
from gpt2kit.tokenizers.listed import read_listed
from gpt2kit.tokenizers.protocol import END_OF_TEXT, Tokenizer, identity, require_tokenizer
from gpt2kit.tokenizers.sentencepiece_model import SentencePieceTokenizer
from gpt2kit.tokenizers.stream import StreamDecoder
from gpt2kit.tokenizers.word import WordTokenizer

__all__ = [
    "END_OF_TEXT",
    "BPETokenizer",
    "CharTokenizer",
    "LibraryTokenizer",
    "SentencePieceTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "WordTokenizer",
    "identity",
    "load_tokenizer",
    "require_tokenizer",
]


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """Return the tokenizer whose vocabulary is in a folder, or None if there is none.

    Raises TokenizerError for a damaged vocabulary, and MissingDependencyError for one that needs
    gpt2kit[tokenizers] if that is not installed.
    """
    kinds = {"char": CharTokenizer, "word": WordTokenizer}
    if listed := read_listed(folder, kinds):
        return listed
    return (
        LibraryTokenizer.from_folder(folder)
        or BPETokenizer.from_folder(folder)
        or SentencePieceTokenizer.from_folder(folder)
    )
