"""What every tokenizer can do, and what a model without one is told."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol, runtime_checkable

from gpt2kit.errors import TokenizerError

# The marker between documents in GPT-2's training data, and the token that ends a text.
END_OF_TEXT = "<|endoftext|>"


@runtime_checkable
class Tokenizer(Protocol):
    """What generation, training and evaluation need of a tokenizer."""

    @property
    def n_vocab(self) -> int:
        """The highest id plus one; a model may have more rows, as padding."""

    @property
    def stop_id(self) -> int | None:
        """The id that ends a text, or None if the vocabulary has none."""

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the ids of a text; <|endoftext|> and its like are plain text unless `special`."""

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids; bytes that are not UTF-8 become U+FFFD."""

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of one token, which may be a part of a character."""

    def files(self) -> dict[str, bytes]:
        """Return the files that define the vocabulary, by name."""

    def save(self, folder: Path) -> None:
        """Write the vocabulary into a folder, for `load_tokenizer` and for other programs."""


_NO_VOCABULARY = (
    "expected vocab.json and merges.txt there. To add those of another model, such as 124M, run: "
    "gpt2kit convert MODEL --vocabulary 124M --to FOLDER"
)


def identity(tokenizer: Tokenizer) -> str:
    """Return a sha256 that two tokenizers share only if they give equal ids for any text."""
    digest = hashlib.sha256(f"{tokenizer.n_vocab} {tokenizer.stop_id}".encode())
    for name, content in sorted(tokenizer.files().items()):
        digest.update(f"\n{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def require_tokenizer(
    tokenizer: Tokenizer | None, model: object, advice: str | None = None
) -> Tokenizer:
    """Return a model's tokenizer; raise TokenizerError if it has none.

    The error names the model and gives the advice, if there is any.
    """
    if tokenizer is None:
        advice = advice or _NO_VOCABULARY
        raise TokenizerError(f"{model}: no vocabulary beside the weights; {advice}")
    return tokenizer
