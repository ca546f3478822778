"""Activation patching: what one text's activations do in the run of another.

Two prompts differ in a little, the clean and the corrupted one. A part of an activation from one
run is put into the other, and the difference of two logits after the last token tells how much of
the behavior came with it (Vig et al. 2020; Meng et al. 2022; Heimersheim and Nanda 2024).

    T tokens, C width, H heads, S keys, N cells of a sweep
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2kit.errors import ConfigError
from gpt2kit.inspection.edits import Edit
from gpt2kit.inspection.hooks import Observer, by_spot, observing
from gpt2kit.inspection.patch_options import PatchOptions
from gpt2kit.inspection.places import Place
from gpt2kit.inspection.running import Run, run
from gpt2kit.model import GPT2

_AT_ONCE = 4096  # tokens in one call of a layer: their MLP takes 50 MB in 124M
_GROUPS = 8  # of positions that are read together, from the first of them on


@dataclass(frozen=True)
class Pair:
    """Two prompts of one length, and the two next tokens whose logits are compared."""

    clean: Sequence[int]
    corrupted: Sequence[int]
    answer: int
    wrong: int

    def __post_init__(self) -> None:
        if len(self.clean) != len(self.corrupted):
            raise ConfigError(
                f"the prompts have {len(self.clean)} and {len(self.corrupted)} tokens; expected as "
                "many, so that each position has its counterpart"
            )

    def difference(self, logits: Tensor) -> Tensor:
        """Return the logit of the answer minus that of the wrong token: (…, V) -> (…)."""
        return logits[..., self.answer] - logits[..., self.wrong]

    def prompts(self, direction: str) -> tuple[Tensor, Tensor]:
        """Return the prompt that is patched, and that which activations come from: (1, T) each."""
        clean, corrupted = torch.tensor([self.clean]), torch.tensor([self.corrupted])
        return (corrupted, clean) if direction == "denoise" else (clean, corrupted)

    def unpatched(self, direction: str, base: Run, other: Run) -> dict[str, float]:
        """Return the differences in the runs of both prompts, by "clean" and "corrupted"."""
        names = ("corrupted", "clean") if direction == "denoise" else ("clean", "corrupted")
        runs = zip(names, (base, other), strict=True)
        return {name: float(self.difference(each.logits[0, -1])) for name, each in runs}


@dataclass(frozen=True)
class Cell:
    """What patching one part did."""

    layer: int
    head: int | None  # None: all of them, or there are none
    position: int | None  # None: all of them
    logit_diff: float
    recovered: float | None  # 1 is the clean prompt's, 0 the corrupted one's; None if both agree
    estimate: float | None = None  # of logit_diff, by the gradient


@dataclass(frozen=True)
class Patching:
    """A sweep over layers, heads and positions."""

    clean: float  # differences of the logits without any patch
    corrupted: float
    direction: str
    cells: tuple[Cell, ...]

    def agreement(self) -> tuple[float, float]:
        """Return correlation and largest difference of estimates and measurements.

        The correlation is NaN if all measurements or all estimates are equal.
        """
        pairs = [(each.logit_diff, each.estimate) for each in self.cells]
        measured, estimated = torch.tensor(pairs, dtype=torch.float64).T  # (N,) each
        largest = float((measured - estimated).abs().max())
        if len(pairs) < 2:
            return math.nan, largest
        return float(torch.corrcoef(torch.stack([measured, estimated]))[0, 1]), largest


def recovered(value: float, clean: float, corrupted: float) -> float | None:
    """Return where a difference lies between the corrupted prompt's (0) and the clean one's (1)."""
    return None if clean == corrupted else (value - corrupted) / (clean - corrupted)


def patch(model: GPT2, pair: Pair, options: PatchOptions | None = None) -> Patching:
    """Patch an activation at every layer, and every head or position or both, each by itself.

    Every number is that of a run with one edit: `run(model, base, [Edit(…)])`. It costs less: many
    cells are computed at once, each begins at its layer, and nothing is computed at positions
    before the patched ones. Raises ConfigError for an activation that the model does not have.
    """
    options = options or PatchOptions()
    into, source = pair.prompts(options.direction)
    base = run(model, into, record=["before", "keys", "values"])
    other = run(model, source, record=[options.at])
    found = pair.unpatched(options.direction, base, other)
    estimates = attribution(model, pair, options, other) if options.attribution else {}
    T = len(pair.clean)
    heads = range(model.config.n_head) if options.by_head else [None]
    size = -(-T // _GROUPS)
    cells: list[Cell] = []
    for first in range(0, T, size) if options.by_position else [0]:
        positions = range(first, min(first + size, T)) if options.by_position else [None]
        todo = [
            (layer, head, position)
            for layer in range(model.config.n_layer)
            for head in heads
            for position in positions
        ]
        rows = max(1, _AT_ONCE // (T - first))
        for start in range(0, len(todo), rows):
            part = todo[start : start + rows]
            logits = _logit_diffs(pair, base, other, options.place, first, part)
            cells += [
                Cell(*where, value, recovered(value, **found), estimates.get(where))
                for where, value in zip(part, logits, strict=True)
            ]
    cells.sort(key=lambda each: (each.layer, each.head or 0, each.position or 0))
    return Patching(found["clean"], found["corrupted"], options.direction, tuple(cells))


Where = tuple[int, int | None, int | None]  # layer, head, position


def _logit_diffs(
    pair: Pair, base: Run, other: Run, place: Place, first: int, cells: Sequence[Where]
) -> list[float]:
    """Return the difference of the logits for each cell, computed from position `first` on.

    A cell's row begins at its layer, with the stream that enters it in the base run. So the batch
    grows from layer to layer. Cells come in the order of their layers.
    """
    model = base.model
    edits = [
        Edit(
            f"layers.{layer}.{place.name}",
            row=row,
            head=head,
            position=position,
            value=other[place.name, layer],
        )
        for row, (layer, head, position) in enumerate(cells)
    ]
    observer = Observer(model, by_spot(model, edits), length=base.ids.shape[1])
    observer.starts = (first,)
    beginning = _Beginning(base, first)
    mask = beginning.mask(base.ids.shape[1] - first) if first else None
    counts = {layer: len([*group]) for layer, group in groupby(cells, key=lambda cell: cell[0])}
    x = base["before", 0][:0, first:]  # (0, T - first, C)
    with torch.no_grad(), observing(observer):
        for layer in range(min(counts), model.config.n_layer):
            joining = base["before", layer][:, first:].expand(counts.get(layer, 0), -1, -1)
            x = torch.cat([x, joining])  # (N so far, T - first, C)
            x = model.h[layer](x, mask, beginning if first else None)
        last = model.ln_f(x[:, -1])  # (N, C)
        return _difference(model, pair, last).tolist()


def _difference(model: GPT2, pair: Pair, hidden: Tensor) -> Tensor:
    """Return the difference of two logits of hidden states, and no others: (N, C) -> (N,).

    Each other logit would cost as much.
    """
    if model.config.head == "none" or model.is_quantized:
        return pair.difference(model.head(hidden))
    tokens = [pair.answer, pair.wrong]
    bias = None if model.head_bias is None else model.head_bias[tokens]
    logits = F.linear(hidden, model.head_weight[tokens], bias)  # (N, 2)
    return logits[:, 0] - logits[:, 1]


class _Beginning:
    """The first tokens of a run, as a cache for rows that all continue them."""

    def __init__(self, base: Run, length: int) -> None:
        self._base = base
        self._length = length

    def positions(self, n: int) -> Tensor:
        """See Cache: (n,)."""
        return torch.arange(self._length, self._length + n, device=self._base.ids.device)

    def mask(self, n: int) -> Tensor:
        """See Cache: (n, S)."""
        keys = torch.arange(self._length + n, device=self._base.ids.device)
        return keys <= self.positions(n)[:, None]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See Cache: (N, H, n, D) twice -> (N, H, S, D) twice; nothing is kept."""
        before = [
            self._base[name, layer][:, :, : self._length].expand(len(keys), -1, -1, -1)
            for name in ("keys", "values")
        ]
        return torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)

    def advance(self, n: int) -> None:
        """Do nothing: every layer reads the same positions."""


def mean_patching(found: Sequence[Patching]) -> Patching:
    """Return the mean over several pairs, whose sweeps have the same cells."""
    clean, corrupted = (
        fmean(each.clean for each in found),
        fmean(each.corrupted for each in found),
    )
    cells = []
    for same in zip(*(each.cells for each in found), strict=True):
        value = fmean(cell.logit_diff for cell in same)
        estimates = [cell.estimate for cell in same if cell.estimate is not None]
        cells.append(
            replace(
                same[0],
                logit_diff=value,
                recovered=recovered(value, clean, corrupted),
                estimate=fmean(estimates) if estimates else None,
            )
        )
    return Patching(clean, corrupted, found[0].direction, tuple(cells))


def attribution(
    model: GPT2, pair: Pair, options: PatchOptions, other: Run | None = None
) -> dict[Where, float]:
    """Estimate every cell of a sweep by (layer, head, position), with one backward pass.

    The estimate is the base run's difference of logits, plus the difference of both runs'
    activations times the gradient (attribution patching: Nanda 2023). `other` is the run that
    activations are taken from, if it is there already.
    """
    into, source = pair.prompts(options.direction)
    other = other or run(model, source, record=[options.at])
    base = run(model, into, record=[options.at], gradients=True)
    metric = pair.difference(base.logits[0, -1])
    gradients = base.gradients(metric)
    start = float(metric.detach())
    found: dict[Where, float] = {}
    for layer in range(model.config.n_layer):
        name = options.place.name, layer
        change = (other[name] - base[name].detach())[0] * gradients[name][0]
        parts = change.sum(dim=-1)  # (H, T), or (T,) without heads
        parts = parts if parts.dim() == 2 else parts[None]
        parts = parts if options.by_head else parts.sum(dim=0, keepdim=True)
        parts = parts if options.by_position else parts.sum(dim=1, keepdim=True)
        for where, value in _named(parts, options):
            found[(layer, *where)] = start + value
    return found


def _named(
    parts: Tensor, options: PatchOptions
) -> Iterator[tuple[tuple[int | None, int | None], float]]:
    """Yield the numbers of a layer with their head and position: (H or 1, T or 1)."""
    for head, row in enumerate(parts.tolist()):
        for position, value in enumerate(row):
            where = (head if options.by_head else None, position if options.by_position else None)
            yield where, value
