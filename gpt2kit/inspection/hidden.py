"""The residual stream at some layers, for every token of some texts, and means over spans of it.

Layer 0 is the stream after the embeddings, layer l the stream after block l. "ln_f" is what the
head reads: the stream after the last block, normalized. (transformers' `hidden_states` are the same
up to the last one, which is that of "ln_f".)

    B windows of a batch, T tokens that a window reads, N tokens of a text, C width, L layers
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gpt2kit.errors import ConfigError
from gpt2kit.inspection.hooks import Observer, observing, spots_of
from gpt2kit.model import GPT2

Layer = int | Literal["ln_f"]
Pool = Literal["mean", "last", "first"]

LAST: Literal["ln_f"] = "ln_f"


class Reading(NamedTuple):
    """Tokens that are read at once; the vectors of the last `new` of them are wanted."""

    ids: Sequence[int]
    new: int


def parse_layers(text: str, n_layer: int) -> list[Layer]:
    """Return layers such as "0-12", "0,6,12" or "11,ln_f"; raises ConfigError for others."""
    found: list[Layer] = []
    for part in (part.strip() for part in text.split(",")):
        first, dash, last = part.partition("-")
        if part == LAST:
            found.append(LAST)
        elif first.isdecimal() and (last.isdecimal() or not dash):
            found += range(int(first), int(last or first) + 1)
        else:
            raise ConfigError(
                f"layers is {text!r}, expected such as 0-{n_layer}, 0,{n_layer} or ln_f"
            )
    if wrong := [layer for layer in found if isinstance(layer, int) and layer > n_layer]:
        raise ConfigError(
            f"there is no layer {wrong[0]}; expected from 0, after the embeddings, to {n_layer}, "
            "after the last block, or ln_f"
        )
    if not found:
        raise ConfigError(f"layers is {text!r}, which names none")
    return list(dict.fromkeys(found))


def hidden_states(
    model: GPT2, readings: Sequence[Reading], layers: Sequence[Layer], *, batch_size: int = 8
) -> Iterator[Tensor]:
    """Yield the stream of the new tokens of each reading, in order: (new, L, C) float32 on the CPU.

    A row is NaN for a token at position 0 of what is read: the model parks attention there, and its
    vector, with a norm of thousands, says little about the token. Raises ContextLengthError for a
    reading of more than n_ctx tokens.
    """
    rest = iter(readings)
    while some := list(islice(rest, batch_size)):
        longest = max(len(each.ids) for each in some)
        ids = torch.tensor(
            [[*each.ids, *[0] * (longest - len(each.ids))] for each in some], device=model.device
        )  # (B, T)
        streams = _streams(model, ids, layers)  # (B, T, C) each
        for row, each in enumerate(some):
            n = len(each.ids)
            found = torch.stack([stream[row, n - each.new : n] for stream in streams], dim=1)
            found = found.float().cpu()  # (new, L, C)
            if each.new == n:
                found[0] = math.nan
            yield found


def _streams(model: GPT2, ids: Tensor, layers: Sequence[Layer]) -> list[Tensor]:
    """Read (B, T) ids, and return the stream at each of some layers: (B, T, C) each."""
    n_layer = model.config.n_layer
    names = {
        layer: "final" if layer == n_layer else f"blocks.{layer}.hook_resid_pre"
        for layer in layers
        if layer != LAST
    }
    spots = {layer: spots_of(model, [name])[0] for layer, name in names.items()}
    observer = Observer(model, {}, [*spots.values()])
    with torch.inference_mode(), observing(observer):
        normalized = model.hidden(ids)
    return [normalized if layer == LAST else observer.recorded[spots[layer]] for layer in layers]


def pooled(states: Tensor, first: int, end: int, pool: Pool) -> Tensor:
    """Return one vector for the tokens from `first` to before `end`: (N, L, C) -> (L, C).

    Tokens without a vector are left out; NaN if none has one.
    """
    some = states[first:end]
    some = some[~some[:, 0, 0].isnan()]
    if not len(some):
        return torch.full(states.shape[1:], math.nan)
    return some.mean(dim=0) if pool == "mean" else some[-1 if pool == "last" else 0]
