"""What a plan needs of a published model that is not on this machine: its shape and a vocabulary.

If no model here has GPT-2's vocabulary either, tokens are estimated from characters.
"""

from __future__ import annotations

import math
from pathlib import Path

from gpt2kit import store
from gpt2kit.config import SIZES, GPT2Config
from gpt2kit.data.corpus import ENGLISH_CHARACTERS_PER_TOKEN
from gpt2kit.errors import CheckpointNotFoundError, TokenizerError
from gpt2kit.store.catalogue import canonical_size

N_VOCAB = GPT2Config().n_vocab


class RoughTokenizer:
    """Stands for GPT-2's vocabulary when it is not here: as many tokens as English text would have.

    All ids are 0, so it is of no use for training.
    """

    n_vocab = N_VOCAB
    stop_id = N_VOCAB - 1

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return about as many ids as the text has tokens."""
        return [0] * math.ceil(len(text) / ENGLISH_CHARACTERS_PER_TOKEN)

    def decode(self, ids: list[int]) -> str:
        """Return nothing: the text of the ids is not known."""
        return ""

    def token_bytes(self, token: int) -> bytes:
        """Return as many bytes as a token has on average."""
        return b" " * round(ENGLISH_CHARACTERS_PER_TOKEN)

    def files(self) -> dict[str, bytes]:
        """Return no files."""
        return {}

    def save(self, folder: Path) -> None:
        """Refuse: there is no vocabulary."""
        raise TokenizerError(f"{folder}: the vocabulary to save is only an estimate")


def published_config(model: str) -> GPT2Config | None:
    """Return the shape of a published model, or None if no such model is known."""
    size = canonical_size(model)
    return None if size is None else SIZES[size]


def is_here(model: str) -> bool:
    """Return whether a model is on this machine; raise CheckpointError if its name is unknown."""
    try:
        store.find(model)
    except CheckpointNotFoundError:
        if published_config(model) is None:
            raise
        return False
    return True
