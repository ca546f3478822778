"""A small model and its trace of a few tokens, blanks and half characters among them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from conftest import make_model
from matplotlib.figure import Figure

from gpt2kit.config import GPT2Config
from gpt2kit.inspection import Trace, trace
from gpt2kit.tokenizers import BPETokenizer

IDS = [72, 256, 10, 1, 300, 72, 400, 220, 199]


@dataclass
class Seen:
    trace: Trace
    tokens: list[bytes]
    tokenizer: BPETokenizer


def look(tokenizer: BPETokenizer, ids: list[int] = IDS, **fields: Any) -> Seen:
    """Return what a small model with these fields computes for ids."""
    config = GPT2Config(n_vocab=512, n_ctx=max(32, len(ids)), n_embd=16, n_head=2, n_layer=3)
    found = trace(make_model(replace(config, **fields)), torch.tensor([ids]))
    return Seen(found, [tokenizer.token_bytes(token) for token in ids], tokenizer)


def panels(figure: Figure) -> list[Any]:
    """Return the axes of a figure, whose artists a test may ask for what they draw."""
    return list(figure.axes)
