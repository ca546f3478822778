"""Pictures of patching: what each layer, head and position carries of a behavior.

L layers, H heads, T tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpt2kit.errors import ConfigError
from gpt2kit.plots.by_head import by_head
from gpt2kit.plots.canvas import (
    DIVERGING,
    WIDTH,
    Token,
    around_zero,
    explain_colors,
    heat,
    name_numbers,
    name_positions,
    new_figure,
    paint,
    write_numbers,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gpt2kit.inspection.patching import Patching
    from gpt2kit.inspection.paths import PathPatching

_MEANING = "recovered: 0 corrupted, 1 clean"
_ROW = 0.3  # inches, height of a layer


def patching(found: Patching, tokens: Sequence[Token], name: str) -> Figure:
    """Draw how much of the difference each cell of a sweep recovers.

    `tokens` are those of the clean prompt, or empty if several pairs have no tokens in common; then
    positions are numbered. `name` is what was patched. Heads and positions together
    are a map for each layer, one below the other. Raises ConfigError if the prompts agree, or if
    there are no layers.
    """
    _check([each.recovered for each in found.cells])
    title = f"{found.direction.removesuffix('e')}ing {name}"
    title = title[0].upper() + title[1:]
    L = found.cells[-1].layer + 1
    values = np.array([each.recovered for each in found.cells], dtype=float)
    if found.cells[0].position is None:
        return by_head({"": values.reshape(L, -1)}, title, _MEANING)
    T = found.cells[-1].position or 0
    maps = values.reshape(-1, T + 1)  # (L, T) or (L H, T)
    height = max(2.6, _ROW * L if len(maps) == L else min(40.0, 0.12 * len(maps)))
    figure = new_figure(title, 1.6 + height)
    axes = figure.add_subplot()
    image = paint(axes, maps, DIVERGING, around_zero(maps), extent=(-0.5, T + 0.5, L - 0.5, -0.5))
    if len(maps) == L:
        write_numbers(image, (WIDTH - 2.5) / (T + 1), height / L)
    if any(tokens):
        name_positions(axes, "x", tokens, WIDTH - 2.5, numbered=True)
    else:
        name_numbers(axes, "x", T + 1, WIDTH - 2.5, "position")
    heads = len(maps) // L
    rows = "layer" if heads == 1 else f"layer, each with its {heads} heads from top to bottom"
    name_numbers(axes, "y", L, height, rows)
    explain_colors(image, [axes], _MEANING)
    return figure


def paths(found: PathPatching) -> Figure:
    """Draw how much of the difference each direct path into a receiver recovers.

    A row for each layer: its heads, and in the last column its MLP, if the model has MLPs. Raises
    ConfigError if the prompts agree.
    """
    _check([each.recovered for each in found.paths])
    senders = [each.sender for each in found.paths]
    L = 1 + max((sender.layer or 0 for sender in senders), default=0)
    H = 1 + max((sender.head or 0 for sender in senders), default=0)
    columns = [*map(str, range(H))]
    if any(sender.layer is not None and sender.head is None for sender in senders):
        columns.append("MLP")
    maps = np.full((L, len(columns)), np.nan)
    title = f"Direct paths to {found.receiver.name}"
    for path in found.paths:
        if path.sender.layer is None:
            title += f" (embeddings: {path.recovered:z.2f})"
        else:
            column = H if path.sender.head is None else path.sender.head
            maps[path.sender.layer, column] = path.recovered
    height = max(2.6, _ROW * L)
    figure = new_figure(title, 1.6 + height)
    axes = figure.add_subplot()
    image = heat(axes, maps, "", _MEANING, cmap=DIVERGING, norm=around_zero(maps))
    write_numbers(image, (WIDTH - 2.5) / len(columns), height / L)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_xlabel("head")
    name_numbers(axes, "y", L, height, "layer")
    return figure


def _check(values: Sequence[float | None]) -> None:
    if not values:
        raise ConfigError("there are no layers to draw")
    if None in values:
        raise ConfigError("the model prefers neither prompt, so there is nothing to recover")
