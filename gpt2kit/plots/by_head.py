"""Pictures of a number for each head: a map of layers and heads with the numbers written in it.

L layers, H heads
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpt2kit.errors import ConfigError
from gpt2kit.plots.canvas import (
    DIVERGING,
    SEQUENTIAL,
    WIDTH,
    Array,
    around_zero,
    heat,
    legible_on,
    name_numbers,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from gpt2kit.inspection.ablation import Effect
    from gpt2kit.inspection.heads import HeadScores

_CELL = 0.38  # inches, width of a head whose number is written in it
_MARGIN = 1.7  # inches beside a map, for its labels and colors
_ROW = 0.24  # inches, height of a layer


def by_head(panels: Mapping[str, Array], title: str, meaning: str) -> Figure:
    """Draw maps of numbers by head (columns) and layer (rows): (L, H) under each panel's title.

    NaN is pale. Numbers of both signs are colored from zero, others from 0 to 1. Raises ConfigError
    if there is nothing to draw.
    """
    if not panels or min(values.size for values in panels.values()) == 0:
        raise ConfigError("there are no heads to draw")
    L, H = next(iter(panels.values())).shape
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    width = max(WIDTH, across * (_MARGIN + _CELL * H))
    height = max(1.0, _ROW * L)
    figure = new_figure(title, 0.7 + down * (height + 0.8), width)
    grid = figure.subplots(down, across, squeeze=False).flat
    for axes, (name, values) in zip(grid, panels.items(), strict=False):
        image = heat(axes, values, name, meaning, cmap=_colors(values), norm=_norm(values))
        room = width / across - _MARGIN
        name_numbers(axes, "x", H, room, "head")
        name_numbers(axes, "y", L, height, "layer")
        if room / H >= _CELL * 0.9:
            _write(image, values)
    for axes in list(grid)[len(panels) :]:
        axes.remove()
    return figure


def _write(image: AxesImage, values: Array) -> None:
    """Write each number into its cell, in a color that is legible there."""
    for (layer, head), value in np.ndenumerate(values):
        if np.isfinite(value):
            color = legible_on(image, value)
            image.axes.text(
                head, layer, f"{value:z.2f}", ha="center", va="center", fontsize=7, color=color
            )


def _colors(values: Array) -> str:
    return DIVERGING if np.nanmin(values) < 0 else SEQUENTIAL


def _norm(values: Array) -> Normalize:
    from matplotlib.colors import Normalize as Plain

    if np.nanmin(values) < 0:
        return around_zero(values)
    return Plain(0, 1 if np.nanmax(values) <= 1 else float(np.nanmax(values)))


def head_kinds(scores: Sequence[HeadScores]) -> Figure:
    """Draw what kind of head each head is, from `gpt2kit.inspection.head_scores`."""
    if not scores:
        raise ConfigError("there are no heads to draw")
    L, H = scores[-1].layer + 1, scores[-1].head + 1
    columns: dict[str, list[float | None]] = {
        "previous token": [each.previous for each in scores],
        "duplicate token": [each.duplicate for each in scores],
        "induction": [each.induction for each in scores],
        "OV copying": [each.copying for each in scores],
    }
    maps = {
        name: np.array(values, dtype=float).reshape(L, H)
        for name, values in columns.items()
        if None not in values
    }
    return by_head(maps, "What kind of head each head is", "score")


def ablations(effects: Sequence[Effect], replacement: str) -> Figure:
    """Draw what the ablation of each head by itself changes, from `Ablation.effects`.

    Raises ConfigError for effects of other parts than single heads.
    """
    if not effects or any([part.kind for part in each.parts] != ["head"] for each in effects):
        raise ConfigError("expected the effects of single heads, all of a model")
    places = [(each.parts[0].layer, each.parts[0].index or 0) for each in effects]
    L, H = (max(place[axis] for place in places) + 1 for axis in (0, 1))
    changes = np.full((L, H), np.nan)
    for place, each in zip(places, effects, strict=True):
        changes[place] = each.change
    what = effects[0].what
    return by_head(
        {f"change of the {what}": changes}, f"Without each head ({replacement})", "change"
    )
