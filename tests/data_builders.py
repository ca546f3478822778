"""A tokenizer with one merge, for the tests of texts and ids."""

from __future__ import annotations

from gpt2kit.tokenizers import BPETokenizer
from gpt2kit.tokenizers.bpe import byte_characters


def byte_tokenizer() -> BPETokenizer:
    """GPT-2's tokenizer without merges, but for one: the 256 bytes, "he", and the marker."""
    vocab = {character: byte for byte, character in byte_characters().items()} | {
        "he": 256,
        "<|endoftext|>": 257,
    }
    return BPETokenizer(vocab, ["h e"])
