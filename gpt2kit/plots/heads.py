"""Pictures of attention: one head, the heads of a layer, or all heads of the model.

B batch (the first row is drawn), T tokens, H heads, D head size
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch.nn.functional as F

from gpt2kit.errors import ConfigError
from gpt2kit.inspection.explanation import check_head
from gpt2kit.inspection.measures import check_layer, score_spreads
from gpt2kit.plots.canvas import (
    BLUE,
    DIVERGING,
    FONT,
    GREEN,
    ORANGE,
    WIDTH,
    Array,
    Token,
    around_zero,
    check_tokens,
    draw_spread,
    explain_colors,
    heat,
    name_numbers,
    name_positions,
    new_figure,
    numbers,
    paint,
    plain_log,
    readable,
    rooted,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gpt2kit.inspection import LayerTrace, Trace

_FINEST = 128  # cells across one head's map in a picture of many
_MOST_BARS = 12  # positions in a picture of bars
MEANING = "attention weight (color by square root)"


def attention(
    trace: Trace, tokens: Sequence[Token], layer: int | None = None, head: int | None = None
) -> Figure:
    """Draw one head from scores to output, or the weights of a layer's or the model's heads.

    Raises ConfigError for a layer or head that the model does not have, and for a head without its
    layer.
    """
    check_tokens(tokens, trace.ids.shape[1])
    if layer is None:
        if head is not None:
            raise ConfigError(f"head {head} of which layer? Expected a layer, too")
        find_layer(trace, 0)
        return _every_head(trace)
    if head is None:
        return _heads_of(find_layer(trace, layer), tokens, layer)
    check_head(trace.model, layer, head)
    return _one_head(trace.layers[layer], tokens, layer, head)


def find_layer(trace: Trace, layer: int) -> LayerTrace:
    """Return a layer of a trace; raises ConfigError if the model does not have it."""
    check_layer(trace.model, layer)
    return trace.layers[layer]


def find_position(trace: Trace, position: int | None) -> int:
    """Return a position of a trace, the last for None; raises ConfigError if it is not there."""
    T = trace.ids.shape[1]
    if position is not None and not 0 <= position < T:
        raise ConfigError(f"position is {position}, expected {f'0 to {T - 1}' if T > 1 else '0'}")
    return T - 1 if position is None else position


def hide_later(values: Array) -> Array:
    """Mask the entries above the diagonal, of keys after the query: (…, T, T)."""
    return np.ma.masked_where(
        np.broadcast_to(np.triu(np.ones(values.shape[-2:], dtype=bool), k=1), values.shape), values
    )


def _one_head(layer: LayerTrace, tokens: Sequence[Token], number: int, head: int) -> Figure:
    figure = new_figure(f"Attention of layer {number}, head {head}", 8.2)
    (before, after), (weights, output) = figure.subplots(2, 2)
    scores, y = (
        numbers(layer.scores[0, head]),
        numbers(layer.head_outputs[0, head]),
    )  # (T, T), (T, D)
    visible = hide_later(scores)
    heat(
        before,
        scores,
        "scores: how well a query (row) fits a key",
        "score",
        cmap=DIVERGING,
        norm=around_zero(scores),
    )
    heat(
        after,
        visible,
        "after the mask: no looking ahead",
        "score",
        cmap=DIVERGING,
        norm=around_zero(scores),
    )
    shares = hide_later(numbers(layer.weights[0, head]))
    heat(weights, shares, "weights: softmax of each row", MEANING, norm=rooted(shares))
    heat(
        output,
        y,
        "output: the values, mixed by the weights",
        "value",
        cmap=DIVERGING,
        norm=around_zero(y),
    )
    for axes in (before, after, weights):
        name_positions(axes, "x", tokens, 2.9)
        name_positions(axes, "y", tokens, 2.9)
        axes.set_xlabel("looks at")
    name_numbers(output, "x", y.shape[1], 2.9, "dimension of the head")
    name_positions(output, "y", tokens, 2.9)
    return figure


def _heads_of(layer: LayerTrace, tokens: Sequence[Token], number: int) -> Figure:
    maps = hide_later(numbers(layer.weights[0]))  # (H, T, T)
    scale = rooted(maps)
    across = math.ceil(math.sqrt(len(maps)))
    down = math.ceil(len(maps) / across)
    size = (WIDTH - 1.5) / across  # inches of a map
    figure = new_figure(f"Attention of layer {number}: the weights of each head", 1.2 + size * down)
    panels = figure.subplots(down, across, squeeze=False)
    for place, axes in enumerate(panels.flat):
        if place >= len(maps):
            axes.remove()
            continue
        image = paint(axes, maps[place], norm=scale)
        axes.set_title(f"head {place}", fontsize=9)
        name_positions(axes, "x", tokens, size - 0.4)
        name_positions(axes, "y", tokens, size - 0.4)
        is_left, is_bottom = place % across == 0, place + across >= len(maps)
        axes.tick_params(labelleft=is_left, labelbottom=is_bottom)
        axes.set(
            xlabel="looks at" if is_bottom else "", ylabel=axes.get_ylabel() if is_left else ""
        )
    explain_colors(image, list(panels.flat)[: len(maps)], MEANING)
    return figure


def _every_head(trace: Trace) -> Figure:
    H, L, T = trace.model.config.n_head, len(trace.layers), trace.ids.shape[1]
    size = min(1.6, (WIDTH - 1.5) / H, 40 / L)  # inches of a map
    figure = new_figure(
        f"Attention weights of {T} tokens, every head of every layer",
        1.5 + size * L,
        max(5.0, 1.5 + size * H),
    )
    axes = figure.add_subplot()
    tiles = np.concatenate(
        [np.concatenate(_tiles(layer), axis=1) for layer in trace.layers]
    )  # (L (t + 1), H (t + 1))
    image = paint(axes, tiles, norm=rooted(tiles), extent=(-0.5, H - 0.5, L - 0.5, -0.5))
    name_numbers(axes, "x", H, size * H, "head")
    name_numbers(axes, "y", L, size * L, "layer")
    axes.set_title(
        "in each map: a row for each token, a column for each that it looks at", fontsize=9
    )
    explain_colors(image, [axes], MEANING)
    return figure


def _tiles(layer: LayerTrace) -> list[Array]:
    """Return each head's map with a pale edge, (t + 1, t + 1).

    Of a long text, a cell is the largest weight of several neighbors.
    """
    weights = layer.weights[0]  # (H, T, T)
    maps = numbers(
        weights if weights.shape[-1] <= _FINEST else F.adaptive_max_pool2d(weights, _FINEST)
    )  # (H, t, t)
    maps[:, np.triu(np.ones(maps.shape[1:], dtype=bool), k=1)] = np.nan
    return [np.pad(each, (0, 1), constant_values=np.nan) for each in maps]


def attention_bars(trace: Trace, tokens: Sequence[Token], layer: int = 0, head: int = 0) -> Figure:
    """Draw what each position of a head attends to, as bars; of a long text, some positions only.

    Raises ConfigError for a layer or head that the model does not have.
    """
    T = trace.ids.shape[1]
    check_tokens(tokens, T)
    check_head(trace.model, layer, head)
    weights = numbers(trace.layers[layer].weights[0, head])  # (T, T)
    shown = [int(each) for each in np.unique(np.linspace(0, T - 1, min(T, _MOST_BARS)).round())]
    which = "each token looks" if len(shown) == T else f"{len(shown)} of {T} tokens look"
    figure = new_figure(
        f"Attention of layer {layer}, head {head}: where {which}", 1.6 + 0.6 * len(shown)
    )
    panels = figure.subplots(len(shown), 1, squeeze=False, sharex=True)[:, 0]
    for axes, position in zip(panels, shown, strict=True):
        shares = weights[position, : position + 1]
        axes.stairs(shares, np.arange(position + 2) - 0.5, fill=True, color=BLUE)
        axes.axvline(position, color=ORANGE, linewidth=1, zorder=0)  # itself
        axes.set(ylim=(0, shares.max()), yticks=[shares.max()])
        axes.yaxis.set_major_formatter(f"{shares.max():.2g}" if shares.max() < 0.995 else "1")
        axes.tick_params(axis="y", labelsize=7)
        axes.tick_params(axis="x", bottom=False)
        axes.spines[["top", "right"]].set_visible(False)
        name = f"{position} {readable(tokens[position])}"
        axes.set_ylabel(
            name, rotation=0, ha="right", va="center", fontfamily=FONT, fontsize=8, parse_math=False
        )
    panels[0].set_xlim(-0.5, T - 0.5)
    panels[0].set_title(
        "share of its attention, each to its own scale; the line is the token itself", fontsize=9
    )
    name_positions(panels[-1], "x", tokens, WIDTH - 2)
    panels[-1].tick_params(axis="x", bottom=True)
    panels[-1].set_xlabel("looks at")
    return figure


# --- the factor of the scores ---------------------------------------------------------------------


def scores(trace: Trace, tokens: Sequence[Token]) -> Figure:
    """Draw the variance of attention scores with and without the division by the root of D.

    Beside it the largest weight, which the division keeps below 1. Lines are medians over the
    heads, bands their middle half. Raises ConfigError for a model without layers, and for one token
    alone.
    """
    check_tokens(tokens, trace.ids.shape[1])
    found = score_spreads(trace)
    size = trace.model.config.head_size
    lines = {"plain": ("not divided", ORANGE, "^"), "divided": (f"divided by √{size}", BLUE, "o")}
    own = next((name for name in lines if found[name].factor == found["own"].factor), "own")
    lines.setdefault(own, ("with another factor", GREEN, "s"))
    figure = new_figure(
        f"Attention scores with and without division by √{size}, the root of the head size", 4.6
    )
    variance, largest = figure.subplots(1, 2)
    for name, (words, color, marker) in lines.items():
        label = f"{words}, as in this model" if name == own else words
        draw_spread(variance, numbers(found[name].variance), label, color, marker)
        draw_spread(largest, numbers(found[name].largest), label, color, marker)
    plain_log(variance)
    variance.set(ylabel="variance (logarithmic)", title="variance of a head's scores")
    largest.set(ylabel="weight", ylim=(0, 1.02), title="largest weight of a query, on average")
    largest.grid(alpha=0.3)
    for axes in (variance, largest):
        axes.title.set_fontsize(10)
        name_numbers(axes, "x", len(trace.layers), WIDTH / 2.6, "layer")
    H = trace.model.config.n_head
    band = f"median of {H} heads; band: their middle half" if H > 1 else None
    handles, labels = variance.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        title=band,
        title_fontsize=9,
        loc="outside lower center",
        ncols=3,
        frameon=False,
    )
    return figure
