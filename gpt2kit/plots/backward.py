"""Pictures of gradients: by layer for one text, and over the steps of training runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2kit.errors import ConfigError
from gpt2kit.inspection.gradients import gradient_norms
from gpt2kit.plots.canvas import (
    BLUE,
    COLORS,
    ORANGE,
    SEQUENTIAL,
    WIDTH,
    Array,
    Token,
    check_tokens,
    name_numbers,
    name_streams,
    new_figure,
    numbers,
    plain_log,
)
from gpt2kit.plots.runs import curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from gpt2kit.inspection import Trace

_MOST_NAMED = 12  # layers up to which each is in the legend
_NAME = re.compile(r"[\w.]+")  # of a part; others are no names of this program
_OUTSIDE = {
    "wte": "token embedding",
    "wpe": "position embedding",
    "ln_f": "final norm",
    "lm_head": "head",
}
_RECORDED = "gradient_norms"  # in metrics.jsonl: norms by part of the model


def gradients(trace: Trace, tokens: Sequence[Token]) -> Figure:
    """Draw the gradient of a text's loss by layer, with and without residual connections.

    Raises ConfigError for a model without layers, and for one token alone.
    """
    check_tokens(tokens, trace.ids.shape[1])
    found = gradient_norms(trace.model, trace.ids[:1])
    figure = new_figure("Gradients of the loss, with and without residual connections", 4.8)
    left, right = figure.subplots(1, 2)
    for residual, color, marker in ((True, BLUE, "o"), (False, ORANGE, "s")):
        own = ", as in this model" if residual == trace.model.config.residual else ""
        norms, words = found[residual], "with" if residual else "without"
        label = f"{words} residual connections{own} (loss {norms.loss:.2f})"
        for axes, tensor in ((left, norms.stream), (right, norms.weights)):
            values = _above_zero(numbers(tensor))
            axes.plot(values, color=color, marker=marker, markersize=4, label=label)
    left.set_ylabel("Euclidean norm (logarithmic)")
    left.set_title("of the residual stream", fontsize=10)
    right.set_title("of all weights of a layer", fontsize=10)
    L = len(trace.layers)
    for axes in (left, right):
        plain_log(axes)
    name_streams(left, "x", ["start", *map(str, range(L))], WIDTH / 2.6)
    name_numbers(right, "x", L, WIDTH / 2.6, "layer")
    figure.legend(
        *left.get_legend_handles_labels(),
        title="the same weights, the same text",
        title_fontsize=9,
        loc="outside lower center",
        frameon=False,
    )
    return figure


def _above_zero(values: Array) -> Array:
    """Return values for a logarithmic axis, on which 0 is not drawn."""
    return np.where(values > 0, values, np.nan)


# --- over the steps of a run ----------------------------------------------------------------------


def gradients_of_runs(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Draw the norms of the gradient by step: of all weights, and of each part that was recorded.

    `runs` gives the lines of a run's metrics.jsonl by the run's name; each run has a panel. Raises
    ConfigError for a run without norms.
    """
    figure = new_figure("Norms of the gradient, before clipping", 0.8 + 3.7 * len(runs))
    grid = figure.subplots(len(runs), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (name, metrics) in zip(grid, runs.items(), strict=True):
        steps, total = curve(metrics, "gradient_norm")
        parts = _parts(metrics)
        if not steps and not parts:
            raise ConfigError(f"{name}: no norms of gradients; expected lines with gradient_norm")
        _draw_parts(axes, parts)
        axes.plot(steps, total, color="black", linewidth=1.5, label="all weights")
        axes.set(ylabel="Euclidean norm (logarithmic)")
        axes.set_title(name, fontsize=10, parse_math=False)
        plain_log(axes)
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    grid[-1].set_xlabel("step")
    return figure


def _parts(metrics: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[float], list[float]]]:
    """Return the curve of each part of the model that a run recorded: h.0, h.1 …, wte, ln_f."""
    lines = [
        {"step": line.get("step"), **line[_RECORDED]}
        for line in metrics
        if isinstance(line.get(_RECORDED), Mapping)
    ]
    names = dict.fromkeys(
        name for line in lines for name in line if name != "step" and _NAME.fullmatch(name)
    )
    curves = {name: curve(lines, name) for name in names}
    return {name: found for name, found in curves.items() if found[0]}


def _draw_parts(axes: Axes, parts: Mapping[str, tuple[list[float], list[float]]]) -> None:
    """Draw layers in the colors of their order, and what is outside of them dashed."""
    import matplotlib

    layers = [name for name in parts if name.startswith("h.")]
    others = [name for name in parts if name not in layers]
    colors = matplotlib.colormaps[SEQUENTIAL](np.linspace(0, 0.9, max(1, len(layers))))
    named = {0, len(layers) - 1} if len(layers) > _MOST_NAMED else {*range(len(layers))}
    for number, (name, color) in enumerate(zip(layers, colors, strict=False)):
        label = f"layer {name.removeprefix('h.')}" if number in named else "_"
        axes.plot(*parts[name], color=color, linewidth=1, label=label)
    for name, color in zip(others, COLORS * len(others), strict=False):
        axes.plot(
            *parts[name], color=color, linewidth=1, linestyle="--", label=_OUTSIDE.get(name, name)
        )
