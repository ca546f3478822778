"""Whether a file that was just written holds the model that it was made of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2kit.checkpoints.stored import Checkpoint, StoredTensor
from gpt2kit.errors import CheckpointFormatError
from gpt2kit.model import GPT2

# Largest difference of two computations of float32 logits, relative to the largest logit.
TOLERANCE = 2e-5
_TINY = 2**-19  # what a scale in float16 may lose of any number
_TOKENS = 16
_CHUNK = 2**18  # numbers that are compared at once
_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Comparison:
    """What a comparison found."""

    n_equal: int  # tensors with the same numbers
    n_rounded: int  # tensors with numbers that were rounded
    difference: float  # the largest one of the logits
    spread: float  # the standard deviation of the logits

    def __str__(self) -> str:
        total = self.n_equal + self.n_rounded
        rounded = f", {self.n_rounded} rounded" if self.n_rounded else ""
        return (
            f"read back: {self.n_equal} of {total} tensors equal{rounded}; logits, which spread "
            f"over {self.spread:.3g}, differ by at most {self.difference:.2g}"
        )


def compare_written(
    checkpoint: Checkpoint,
    tensors: Mapping[str, StoredTensor],
    found: Checkpoint,
    errors: Mapping[str, float],
    *,
    compute: Callable[[Tensor], Tensor] | None = None,
    tolerance: float = TOLERANCE,
) -> Comparison:
    """Compare a file that was read back with the checkpoint that it was made of.

    - `tensors`: what was to be written
    - `errors`: the largest error of each by its rounding, relative to its largest number
    - `compute`: another program that computes the logits of (1, T) ids from the file, (1, T, V)
    - `tolerance`: the largest difference of its logits, relative to the largest one

    Raises CheckpointFormatError if a tensor differs by more, if the logits do although no tensor
    was rounded, and if they are no numbers.
    """
    n_rounded = 0
    for name, stored in tensors.items():
        difference, largest = _largest_difference(stored, found.tensors[name])
        n_rounded += difference > 0
        tiny = _TINY if errors[name] > TOLERANCE else 0.0
        if not difference <= errors[name] * largest + tiny:
            detail = f"{name} was not written as it is: numbers differ by {difference:.3g}"
            raise CheckpointFormatError(found.path, detail)
    generator = torch.Generator().manual_seed(0)
    n = min(_TOKENS, checkpoint.config.n_ctx)
    ids = torch.randint(checkpoint.config.n_vocab, (1, n), generator=generator)
    ours = logits(checkpoint, ids)
    theirs = compute(ids) if compute else logits(found, ids)
    off = float((ours - theirs).abs().max())
    # What rounding changes of the logits is not known, but they stay numbers.
    most = _LARGEST if n_rounded else tolerance * max(1.0, float(ours.abs().max()))
    if not off <= most:
        detail = f"the file gives other logits than the model: they differ by {off:.3g}"
        raise CheckpointFormatError(found.path, detail)
    spread = float(ours.std()) if ours.numel() > 1 else 0.0
    return Comparison(len(tensors) - n_rounded, n_rounded, off, spread)


def _largest_difference(one: StoredTensor, other: StoredTensor) -> tuple[float, float]:
    """Return the largest difference of two tensors, and the first one's largest number.

    The first one is in memory, and of the other one a piece if its format has pieces.
    """
    difference = largest = torch.zeros((), dtype=torch.float64)
    whole, done = one.read(), 0
    for piece in other.pieces(_CHUNK):
        a, b = whole[done : done + len(piece)].reshape(-1), piece.reshape(-1)
        for x, y in zip(torch.split(a, _CHUNK), torch.split(b, _CHUNK), strict=True):
            x, y = x.double(), y.double()
            difference = difference.maximum((x - y).abs().max())  # NaN if one of them is
            largest = largest.maximum(x.abs().max())
        done += len(piece)
    return float(difference), float(largest)


@torch.inference_mode()
def logits(checkpoint: Checkpoint, ids: Tensor) -> Tensor:
    """Return the float32 logits of (1, T) ids, (1, T, V), with one block in memory at a time."""
    with torch.device("meta"):
        model = GPT2(checkpoint.config).eval()

    def filled(name: str) -> nn.Module:
        """Return a copy of a module of the model with its weights."""
        module = copy.deepcopy(model.get_submodule(name))
        state = {
            each: checkpoint.tensors[f"{name}.{each}"].read_as(torch.float32)
            for each in module.state_dict()
        }
        module.load_state_dict(state, assign=True)
        return module

    positions = torch.arange(ids.shape[1])
    x = filled("wte")(ids)  # (1, T, C)
    x = x + filled("wpe")(positions).to(x.dtype)
    for layer in range(checkpoint.config.n_layer):
        x = filled(f"h.{layer}")(x, None, None)  # (1, T, C)
    x = filled("ln_f")(x)
    if checkpoint.config.head == "none":
        return x  # type: ignore[no-any-return]
    head = "lm_head.weight" if checkpoint.config.has_own_head else "wte.weight"
    bias = (
        checkpoint.tensors["lm_head.bias"].read().float() if checkpoint.config.head_bias else None
    )
    return F.linear(x, checkpoint.tensors[head].read_as(torch.float32), bias)  # (1, T, V)
