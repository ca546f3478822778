"""A picture of what LayerNorm or RMSNorm does to the numbers of one layer.

B batch (the first row is drawn), T tokens, C width
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpt2kit.inspection.measures import norms_of
from gpt2kit.plots.canvas import (
    BLUE,
    BROAD,
    GREEN,
    ORANGE,
    WIDTH,
    Token,
    check_tokens,
    draw_along,
    name_positions,
    new_figure,
    numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from gpt2kit.inspection import Trace
    from gpt2kit.inspection.measures import NormTrace

_BINS = 80  # at most
_WORDS = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}


def layernorm(trace: Trace, tokens: Sequence[Token], layer: int = 0) -> Figure:
    """Draw a layer's numbers before and after both of its norms: histogram, mean and deviation.

    Raises ConfigError for a layer that the model does not have, and for a model without norms.
    """
    check_tokens(tokens, trace.ids.shape[1])
    found = norms_of(trace, layer)
    config = trace.model.config
    has_bias = config.bias and config.norm == "layernorm"
    after = f"after its weight{' and bias' if has_bias else ''}"
    side = "before" if config.norm_first else "after"
    figure = new_figure(
        f"{_WORDS[config.norm]} in layer {layer}", 0.9 + 3 * len(found), WIDTH * 1.25
    )
    grid = figure.subplots(len(found), 3, squeeze=False)
    parts = {"ln_1": "attention", "ln_2": "the MLP"}
    for (name, norm), panels in zip(found.items(), grid, strict=True):
        _draw_norm(panels, norm, after, tokens)
        panels[0].set_title(f"{name}, {side} {parts[name]}: all numbers", fontsize=10)
    normalized, before, last = grid[0, 1].lines
    figure.legend(
        handles=[before, normalized, last], loc="outside lower center", ncols=3, frameon=False
    )
    return figure


def _draw_norm(
    panels: Sequence[Axes], norm: NormTrace, after: str, tokens: Sequence[Token]
) -> None:
    """Draw the numbers, means and deviations that a norm reads and returns in three panels."""
    steps = {
        "normalized": (norm.normalized, GREEN, "^"),
        "before": (norm.before, ORANGE, "s"),
        after: (norm.after, BLUE, "o"),
    }
    values, means, deviations = panels
    for label, (tensor, color, marker) in steps.items():
        x, broad = numbers(tensor[0]), label == "normalized"  # (T, C)
        counts, edges = np.histogram(x, bins=min(_BINS, 10 + math.isqrt(x.size) // 2))
        values.stairs(
            counts / x.size,
            edges,
            color=color,
            linewidth=BROAD if broad else 1.3,
            alpha=0.4 if broad else 1,
        )
        draw_along(means, x.mean(axis=-1), label, color, marker, broad=broad)
        draw_along(deviations, x.std(axis=-1), label, color, marker, broad=broad)
    values.set(xlabel="value", ylabel="share of the numbers (log.)", yscale="log")
    means.set(ylabel="mean over the width")
    means.set_title("mean at each position", fontsize=10)
    deviations.set(ylabel="deviation over the width", ylim=(0, None))
    deviations.set_title("standard deviation at each position", fontsize=10)
    for axes in (means, deviations):
        axes.grid(alpha=0.3)
        name_positions(axes, "x", tokens, WIDTH * 1.25 / 3 - 0.8)
