"""Text to token ids and back: byte-level BPE, and vocabularies of characters or words."""

from __future__ import annotations

from pathlib import Path

from gpt2kit.tokenizers.bpe import BPETokenizer
from gpt2kit.tokenizers.char import CharTokenizer
from gpt2kit.tokenizers.listed import read_listed
from gpt2kit.tokenizers.protocol import END_OF_TEXT, Tokenizer, identity, require_tokenizer
from gpt2kit.tokenizers.stream import StreamDecoder
from gpt2kit.tokenizers.word import WordTokenizer

__all__ = [
    "END_OF_TEXT",
    "BPETokenizer",
    "CharTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "WordTokenizer",
    "identity",
    "load_tokenizer",
    "require_tokenizer",
]


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """Return the tokenizer whose vocabulary is in a folder, or None if there is none.

    Raises TokenizerError for a damaged vocabulary.
    """
    kinds = {"char": CharTokenizer, "word": WordTokenizer}
    return read_listed(folder, kinds) or BPETokenizer.from_folder(folder)
