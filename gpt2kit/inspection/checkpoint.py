"""What is inside a checkpoint: its tensors, its parameters by part, its memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from gpt2kit.checkpoints.stored import Checkpoint
from gpt2kit.config import GPT2Config

_PARTS = (
    # A piece of the name, and the part that it is counted under; the first match counts.
    ("wte.", "token embedding"),
    ("wpe.", "position embedding"),
    (".attn.", "attention"),
    (".mlp.", "MLP"),
    ("ln_", "normalization"),
    ("lm_head.", "head"),
)
_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}


@dataclass(frozen=True)
class TensorSummary:
    """Name, shape, dtype and the size of the numbers of one tensor of a checkpoint."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    norm: float  # Euclidean
    mean: float
    largest: float  # in absolute value


def summarize(checkpoint: Checkpoint) -> Iterator[TensorSummary]:
    """Read a checkpoint's tensors one by one and summarize each, in forward order."""
    for name in checkpoint.config.shapes():
        stored = checkpoint.tensors[name]
        tensor = stored.read().double()
        yield TensorSummary(
            name=name,
            shape=stored.shape,
            dtype=str(stored.dtype).removeprefix("torch."),
            norm=float(torch.linalg.vector_norm(tensor)),
            mean=float(tensor.mean()),
            largest=float(tensor.abs().max()),
        )


def part_of(name: str) -> str:
    """Return the part of the model that a tensor belongs to: "attention", "MLP" …"""
    return next(part for piece, part in _PARTS if piece in name)


def count_parameters(config: GPT2Config) -> dict[str, int]:
    """Return the number of parameters of each part of the model; a tied head has none."""
    counts: dict[str, int] = {}
    for name, shape in config.shapes().items():
        part = part_of(name)
        counts[part] = counts.get(part, 0) + math.prod(shape)
    return counts


def memory(config: GPT2Config) -> dict[str, tuple[int, int]]:
    """Return for each dtype the bytes of the weights, and of one token in the cache."""
    cache = 2 * config.n_layer * config.n_embd
    return {
        dtype: (int(config.n_params * size), int(cache * size)) for dtype, size in _BYTES.items()
    }
