"""Pictures of the MLPs: the activation function, neurons, and what they read and add.

B batch (the first row is drawn), T tokens, C width, I width of the MLP's hidden layer, L layers
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2kit.inspection.measures import active_shares, check_mlp, mlp_input
from gpt2kit.plots.canvas import (
    BLUE,
    BROAD,
    GRAY,
    GREEN,
    ORANGE,
    RED,
    WIDTH,
    Array,
    Token,
    check_tokens,
    draw_along,
    draw_spread,
    heat,
    name_band,
    name_numbers,
    new_figure,
    numbers,
    readable,
)
from gpt2kit.plots.heads import find_position
from gpt2kit.variants import ACTIVATION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from gpt2kit.inspection import LayerTrace, Trace

_Function = Callable[[Tensor], Tensor]
_DOTS = 4000  # at most, in a picture of single values
_MOST_BINS = 25
_NAMED = 6  # dimensions, at most, whose dots have their number
_APART = 0.05  # share of the axes by which these are apart, at least


def mlp(trace: Trace, tokens: Sequence[Token], layer: int | None = None) -> Figure:
    """Draw the MLP's activations before and after its activation function, and how many are active.

    Of one layer, or of all. A neuron is active if its input to the activation function is above 0.
    Raises ConfigError for a layer that the model does not have.
    """
    chosen, which = _choose(trace, tokens, layer)
    config = trace.model.config
    function = "SwiGLU" if config.mlp == "swiglu" else _NAMES[config.activation_function]
    figure = new_figure(f"Activations of the MLP ({function}), {which}", 7)
    (before, after), (curve, active) = figure.subplots(2, 2)
    for axes, when, color, part in (
        (before, "before", BLUE, [layer.mlp_before[0] for layer in chosen]),
        (after, "after", ORANGE, [layer.mlp_after[0] for layer in chosen]),
    ):
        shares, edges = histogram([numbers(values) for values in part])
        axes.stairs(shares, edges, fill=True, color=color)
        axes.set(yscale="log", xlabel="activation", ylabel="share of the activations")
        axes.set_title(f"{when} the activation function", fontsize=10)
    _draw_curve(curve, trace, chosen)
    _draw_active(active, trace.layers, tokens)
    return figure


def _choose(
    trace: Trace, tokens: Sequence[Token], layer: int | None
) -> tuple[Sequence[LayerTrace], str]:
    """Return the layers that are drawn, and in words which they are; check layer and tokens."""
    check_mlp(trace.model, layer or 0)
    check_tokens(tokens, trace.ids.shape[1])
    if layer is not None:
        return trace.layers[layer : layer + 1], f"layer {layer}"
    n = len(trace.layers)
    return trace.layers, f"all {n} layers" if n > 1 else "its only layer"


def histogram(parts: Sequence[Array], bins: int = 80) -> tuple[Array, Array]:
    """Return the share of all values in each bin, and the bins' edges: (bins,), (bins + 1,)."""
    low, high = min(part.min() for part in parts), max(part.max() for part in parts)
    edges = np.histogram_bin_edges([low, high], bins=bins)
    counts = np.stack([np.histogram(part, edges)[0] for part in parts]).sum(axis=0)
    return counts / sum(part.size for part in parts), edges


def _draw_curve(axes: Axes, trace: Trace, chosen: Sequence[LayerTrace]) -> None:
    """Draw some neurons' values before and after as dots, on the curve of the activation function.

    With SwiGLU the dots are off the curve: they are multiplied by another factor.
    """
    every = max(1, sum(layer.mlp_before[0].numel() for layer in chosen) // _DOTS)
    x = np.concatenate([numbers(layer.mlp_before[0].reshape(-1)[::every]) for layer in chosen])
    y = np.concatenate([numbers(layer.mlp_after[0].reshape(-1)[::every]) for layer in chosen])
    axes.plot(
        x, y, ".", color=GREEN, markersize=3, alpha=0.5, label=f"{len(x):,} of the activations"
    )
    grid = torch.linspace(float(x.min()), float(x.max()), 200)
    gated = trace.model.config.mlp == "swiglu"
    function = F.silu if gated else ACTIVATION[trace.model.config.activation_function]
    axes.plot(
        numbers(grid),
        numbers(function(grid)),
        color=GRAY,
        linewidth=1,
        label="SiLU, before the gate" if gated else "the function",
    )
    axes.set(xlabel="before", ylabel="after")
    axes.set_title("the activation function", fontsize=10)
    axes.legend(fontsize=8)


def _draw_active(axes: Axes, layers: Sequence[LayerTrace], tokens: Sequence[Token]) -> None:
    active = [numbers(layer.mlp_before[0] > 0) for layer in layers]  # (T, I) each
    draw_spread(
        axes, np.stack([layer.mean(axis=1) for layer in active]), "active, of one token", BLUE
    )
    axes.plot(
        [1 - layer.max(axis=0).mean() for layer in active],
        color=RED,
        marker="s",
        markersize=4,
        label="never active in this text",
    )
    axes.set(ylim=(0, 1), ylabel="share of the neurons")
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    axes.set_title(name_band(tokens), fontsize=9)
    name_numbers(axes, "x", len(layers), WIDTH / 2.6, "layer")


# --- the activation function ----------------------------------------------------------------------


def activation(trace: Trace, tokens: Sequence[Token], layer: int | None = None) -> Figure:
    """Draw the model's activation function and its slope beside ReLU and GELU, and what it reads.

    Of one layer, or of all. Raises ConfigError for a layer that the model does not have.
    """
    chosen, which = _choose(trace, tokens, layer)
    name, own = _own_function(trace)
    figure = new_figure(f"The activation function, {name}, beside others", 4.4, WIDTH * 1.2)
    curves, slopes, values = figure.subplots(1, 3)
    functions: dict[str, tuple[_Function, str, str]] = {
        "ReLU": (F.relu, RED, "--"),
        "GELU": (F.gelu, BLUE, "-"),
    }
    for axes, what in ((curves, _values), (slopes, _slopes)):
        axes.plot(
            _GRID,
            what(own),
            color=GREEN,
            alpha=0.4,
            linewidth=BROAD,
            label=f"{name}, as in this model",
        )
        for label, (function, color, style) in functions.items():
            axes.plot(_GRID, what(function), color=color, linestyle=style, label=label)
        axes.grid(alpha=0.3)
        axes.set_xlabel("input")
    curves.set(ylabel="output")
    curves.set_title("the functions", fontsize=10)
    curves.legend(fontsize=8)
    slopes.set(ylabel="slope")
    slopes.set_title("their slopes, which gradients pass", fontsize=10)
    read = [numbers(each.mlp_before[0]) for each in chosen]
    below = sum(int((part <= 0).sum()) for part in read) / sum(part.size for part in read)
    shares, edges = histogram(read)
    values.stairs(shares, edges, fill=True, color=GREEN)
    values.axvline(0, color=GRAY, linewidth=1)
    values.set(yscale="log", xlabel="input", ylabel="share of the inputs (logarithmic)")
    values.set_title(f"its inputs in {which}: {below:.0%} not above 0", fontsize=10)
    return figure


_GRID = np.linspace(-4, 4, 400, dtype=np.float32)
_NAMES = {
    "gelu_new": "GELU by tanh",
    "gelu": "GELU",
    "quick_gelu": "quick GELU",
    "relu": "ReLU",
    "silu": "SiLU",
    "tanh": "tanh",
}


def _own_function(trace: Trace) -> tuple[str, _Function]:
    """Return the model's activation function, with its name; of SwiGLU it is the gate's."""
    config = trace.model.config
    if config.mlp == "swiglu":
        return "SiLU in SwiGLU", F.silu
    return _NAMES[config.activation_function], ACTIVATION[config.activation_function]


def _values(function: _Function) -> Array:
    return numbers(function(torch.from_numpy(_GRID)))


def _slopes(function: _Function) -> Array:
    x = torch.from_numpy(_GRID).requires_grad_()
    (slopes,) = torch.autograd.grad(function(x).sum(), x)
    return numbers(slopes)


# --- what the MLP reads and adds ------------------------------------------------------------------


def mlp_in_out(
    trace: Trace, tokens: Sequence[Token], layer: int = 0, position: int | None = None
) -> Figure:
    """Draw what a layer's MLP reads and what it adds, dimension by dimension, at one position.

    Without a position it is the last. Raises ConfigError for a layer or a position that is not
    there.
    """
    check_mlp(trace.model, layer)
    check_tokens(tokens, trace.ids.shape[1])
    at = find_position(trace, position)
    read, added = numbers(mlp_input(trace, layer)[0]), numbers(trace.layers[layer].mlp_update[0])
    where = f"at position {at} ({readable(tokens[at])})"
    figure = new_figure(f"What the MLP of layer {layer} reads and what it adds, {where}", 7)
    grid = figure.add_gridspec(2, 2)
    along = figure.add_subplot(grid[0, :])
    for values, label, color in (
        (read[at], "input: what the MLP reads", BLUE),
        (added[at], "output: what it adds to the residual stream", ORANGE),
    ):
        draw_along(along, values, label, color)
    along.axhline(0, color=GRAY, linewidth=0.5)
    along.set_ylabel("value")
    along.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize=9)
    name_numbers(along, "x", read.shape[1], WIDTH - 1, "dimension")
    panels = [figure.add_subplot(grid[1, column]) for column in range(2)]
    _draw_dots(panels[0], read[at], added[at], f"{where}: a dot for each dimension")
    _draw_dots(panels[1], read.ravel(), added.ravel(), f"at all {len(read)} positions")
    _name_largest(panels[0], read[at], added[at])
    return figure


def _draw_dots(axes: Axes, x: Array, y: Array, title: str) -> None:
    """Draw input against output as dots, and say how they correlate."""
    every = max(1, x.size // _DOTS)
    axes.plot(x[::every], y[::every], ".", color=GREEN, markersize=4, alpha=0.5)
    both_vary = x.std() > 0 and y.std() > 0
    correlation = (
        f"; correlation {round(np.corrcoef(x, y)[0, 1], 2) + 0.0:.2f}" if both_vary else ""
    )
    axes.set(xlabel="input", ylabel="output")
    axes.set_title(title + correlation, fontsize=9, parse_math=False)
    axes.grid(alpha=0.3)


def _name_largest(axes: Axes, x: Array, y: Array) -> None:
    """Write the dimension beside the dots of the largest outputs, but not over another's."""
    scale = np.array([np.ptp(x), np.ptp(y)]) + 1e-30
    named: list[Array] = []
    for dimension in np.argsort(-np.abs(y))[:_NAMED].tolist():
        point = np.array([x[dimension], y[dimension]]) / scale
        if all((abs(point - other) > _APART).any() for other in named):
            axes.annotate(f" {dimension}", (x[dimension], y[dimension]), fontsize=7, va="center")
            named.append(point)


# --- neurons --------------------------------------------------------------------------------------


def bins_of_shares(T: int) -> Array:
    """Return edges of bins for shares of T positions; each holds equally many possible shares."""
    wide = math.ceil((T + 1) / _MOST_BINS)
    return (np.arange(0, T + 1 + wide, wide) - 0.5) / T


def neurons(trace: Trace, tokens: Sequence[Token], layer: int | None = None) -> Figure:
    """Draw the share of the positions at which each neuron is active, of one layer or of all.

    A neuron is active if its input to the activation function is above 0. Raises ConfigError for a
    layer that the model does not have.
    """
    _, which = _choose(trace, tokens, layer)
    shares = numbers(active_shares(trace))  # (L, I)
    chosen = shares if layer is None else shares[layer : layer + 1]
    T = len(tokens)
    text = f"{T} positions" if T > 1 else "1 position"
    figure = new_figure(f"How often each neuron is active at {text}, {which}", 4.6)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    if layer is None:
        heat(left, -np.sort(-shares), "of each layer, sorted", "share of the positions")
        name_numbers(left, "y", len(shares), 3.4, "layer")
        name_numbers(left, "x", shares.shape[1], WIDTH / 2.2, "neurons, the most active first")
    else:
        left.plot(chosen[0], ".", color=BLUE, markersize=4, alpha=0.6)
        left.set(ylim=(-0.02, 1.02), ylabel="share of the positions")
        left.set_title("each neuron", fontsize=10)
        name_numbers(left, "x", chosen.size, WIDTH / 2.2, "neuron")
    counts, edges = np.histogram(chosen, bins=bins_of_shares(T))
    right.stairs(counts / chosen.size, edges, fill=True, color=ORANGE)
    right.set(xlabel="share of the positions", ylabel="share of the neurons")
    never, always = float((chosen == 0).mean()), float((chosen == 1).mean())
    right.set_title(f"never active: {never:.0%}; always: {always:.0%}", fontsize=10)
    from matplotlib.ticker import PercentFormatter

    for axis in (right.xaxis, right.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    return figure
