"""What a text consists of: its tokens counted, its lines, and a passage of it.

V tokens of the vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpt2kit.data.corpus import Corpus
from gpt2kit.data.ids import CHUNK, Ids
from gpt2kit.tokenizers import Tokenizer


@dataclass(frozen=True)
class TokenCount:
    """How often a token occurs in a text."""

    token: int
    piece: bytes
    count: int


def count_tokens(corpus: Corpus, tokenizer: Tokenizer) -> list[TokenCount]:
    """Count the tokens of a corpus, training and validation text together.

    Returns those that occur, the most frequent first; of equally frequent ones the lower id. The
    counts sum to `corpus.report.tokens`.
    """
    counts = np.zeros(tokenizer.n_vocab, np.int64)  # (V,)
    for ids in (corpus.train_ids, corpus.val_ids):
        for start in range(0, len(ids), CHUNK):
            counts += np.bincount(ids[start : start + CHUNK], minlength=tokenizer.n_vocab)
    order: Ids = np.argsort(-counts, kind="stable")
    return [
        TokenCount(token, tokenizer.token_bytes(token), int(counts[token]))
        for token in order.tolist()
        if counts[token]
    ]


def count_lines(documents: Sequence[str]) -> int:
    """Count the lines of documents; the last one of each need not end with a newline."""
    return sum(
        document.count("\n") + (not document.endswith("\n")) for document in documents if document
    )


def passage(text: str, *, least: int = 30, most: int = 60) -> str:
    """Return the first line of a text that has `least` characters, cut between words to `most`.

    A text without such a line gives its longest one.
    """
    lines = [line.strip() for line in text.splitlines()]
    line = next((line for line in lines if len(line) >= least), max(lines, key=len, default=""))
    if len(line) <= most:
        return line
    cut = line.rfind(" ", 0, most + 1)
    return line[: cut if cut > 0 else most]
