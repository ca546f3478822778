"""Pictures of the layers: the residual stream, updates of it, MLP activations, the logit lens.

B batch (the first row is drawn), T tokens, C width, I width of the MLP's hidden layer,
L layers, V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2kit import inspection
from gpt2kit.errors import ConfigError
from gpt2kit.plots.canvas import (
    BLUE,
    FONT,
    GRAY,
    GREEN,
    ORANGE,
    RED,
    WIDTH,
    Array,
    Token,
    check_tokens,
    draw_spread,
    explain_colors,
    heat,
    logarithmic,
    name_numbers,
    name_positions,
    new_figure,
    numbers,
    paint,
    plain_log,
    readable,
    rooted,
    thinned,
)
from gpt2kit.plots.heads import find_layer
from gpt2kit.variants import ACTIVATION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from gpt2kit.inspection import LayerTrace, Trace
    from gpt2kit.tokenizers import Tokenizer

_LUMINANCE = (0.299, 0.587, 0.114)  # how bright red, green and blue are to the eye
_DOTS = 4000  # neurons in the picture of the activation


# --- the residual stream --------------------------------------------------------------------------


def updates(trace: Trace, tokens: Sequence[Token]) -> Figure:
    """Draw the size of attention's and MLP's updates in each layer, beside the residual stream.

    Lines are medians over the positions, bands their middle half. Raises ConfigError for a model
    without layers.
    """
    find_layer(trace, 0)
    check_tokens(tokens, trace.ids.shape[1])
    figure = new_figure("What attention and MLP add to the residual stream", 4.5)
    parts: tuple[tuple[str, str, str, Callable[[LayerTrace], Tensor]], ...] = (
        ("residual stream, as it enters", GRAY, "s", lambda layer: layer.before),
        ("update by attention", BLUE, "o", lambda layer: layer.attention_update),
        ("update by MLP", ORANGE, "^", lambda layer: layer.mlp_update),
    )
    measures: tuple[tuple[str, Callable[[Array], Array]], ...] = (
        ("Euclidean norm", lambda x: np.linalg.norm(x, axis=-1)),
        ("variance over the width", lambda x: x.var(axis=-1)),
    )
    for axes, (name, measure) in zip(figure.subplots(1, 2), measures, strict=True):
        for label, color, marker, part in parts:
            values = np.stack(
                [measure(numbers(part(layer)[0])) for layer in trace.layers]
            )  # (L, T)
            draw_spread(axes, values, label, color, marker)
        axes.set_ylabel(name)
        plain_log(axes)
        name_numbers(axes, "x", len(trace.layers), WIDTH / 2.6, "layer")
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
    )
    axes.set_title(_band(tokens), fontsize=9, loc="right")
    return figure


def _band(tokens: Sequence[Token]) -> str:
    return f"median of {len(tokens)} positions; band: their middle half" if len(tokens) > 1 else ""


def residual(trace: Trace, tokens: Sequence[Token]) -> Figure:
    """Draw the norm of the residual stream after each layer, on average and by position."""
    norms = np.stack(
        [np.linalg.norm(numbers(stream), axis=-1) for _, stream in streams(trace)]
    )  # (L + 1, T)
    check_tokens(tokens, norms.shape[1])
    names = [name for name, _ in streams(trace)]
    figure = new_figure("Norm of the residual stream", 5)
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    draw_spread(
        left,
        norms[:, 1:] if len(tokens) > 1 else norms,
        "the other positions" if len(tokens) > 1 else "the position",
        BLUE,
    )
    if len(tokens) > 1:
        left.plot(norms[:, 0], color=ORANGE, marker="s", markersize=4, label="the first position")
    left.set_ylabel("Euclidean norm")
    left.set_title(_band(tokens[1:]), fontsize=8)
    plain_log(left)
    left.legend(fontsize=8)
    _name_streams(left, "x", names, 2.6)
    heat(
        right,
        norms,
        "after each layer, at each position",
        "Euclidean norm (logarithmic)",
        norm=logarithmic(norms),
    )
    _name_streams(right, "y", names, 3.6)
    name_positions(right, "x", tokens, WIDTH / 2.6)
    return figure


def streams(trace: Trace) -> list[tuple[str, Tensor]]:
    """Return a name and the residual stream, (T, C), at the start and after each layer."""
    return [
        ("start", trace.embeddings[0]),
        *((str(number), layer.after[0]) for number, layer in enumerate(trace.layers)),
    ]


def _name_streams(axes: Axes, which: Literal["x", "y"], names: Sequence[str], room: float) -> None:
    """Label an axis of points in the residual stream: "start", then as many layers as fit."""
    crowded = which == "x" and room / len(names) < 0.33  # "start" takes the room of two
    shown = [0, *range(2 if crowded else 1, len(names), thinned(len(names), room, each=0.2))]
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(shown, [names[index] for index in shown], fontsize=8)
    axis.set_label_text("after layer")


# --- the MLP --------------------------------------------------------------------------------------


def mlp(trace: Trace, tokens: Sequence[Token], layer: int | None = None) -> Figure:
    """Draw the MLP's activations before and after its activation function, and how many are active.

    Of one layer, or of all. A neuron is active if its input to the activation function is above 0.
    Raises ConfigError for a layer that the model does not have, and for a model without an MLP.
    """
    find_layer(trace, layer or 0)
    check_tokens(tokens, trace.ids.shape[1])
    if trace.model.config.mlp == "none":
        raise ConfigError("this model has no MLP, so there is nothing to draw")
    chosen = trace.layers if layer is None else trace.layers[layer : layer + 1]
    config = trace.model.config
    function = "SwiGLU" if config.mlp == "swiglu" else config.activation_function
    which = (
        f"layer {layer}"
        if layer is not None
        else f"all {len(chosen)} layers"
        if len(chosen) > 1
        else "its only layer"
    )
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
    axes.set_title(_band(tokens), fontsize=9)
    name_numbers(axes, "x", len(layers), WIDTH / 2.6, "layer")


# --- the logit lens -------------------------------------------------------------------------------


def lens(trace: Trace, tokens: Sequence[Token], tokenizer: Tokenizer, last: int = 0) -> Figure:
    """Draw the most likely next token after each layer (the logit lens), colored by probability.

    With `last`, only that many positions at the end are drawn. Tokens are written if there is room,
    in bold where the text continues with them.
    """
    check_tokens(tokens, trace.ids.shape[1])
    ids = trace.ids[0].tolist()
    first = max(0, len(ids) - last) if last else 0
    found = inspection.lens(trace, first, tokenizer.n_vocab)
    probabilities, said = numbers(found.probabilities), found.tokens.numpy()  # (L + 1, T) each
    rows, T = said.shape
    figure = new_figure("What each layer would say next", 1.9 + 0.28 * rows)
    axes = figure.add_subplot()
    image = paint(axes, probabilities, norm=rooted(probabilities))
    explain_colors(image, [axes], "its probability (color by square root)")
    _name_streams(axes, "y", [name for name, _ in streams(trace)], 0.28 * rows)
    name_positions(axes, "x", tokens[first:], WIDTH - 2.2, first=first)
    axes.set_xlabel(f"{axes.get_xlabel()} read")
    room = int((WIDTH - 2.2) / T / 0.068)  # letters
    words = {token: readable(tokenizer.token_bytes(token)) for token in np.unique(said).tolist()}
    if room < min(4, max(map(len, words.values()))):
        axes.set_title(
            f"no room for the words of {T} positions; show fewer with --last", fontsize=9
        )
        return figure
    axes.set_title("bold: the token that follows in the text", fontsize=9)
    for row, column in np.ndindex(rows, T):
        word, following = words[said[row, column]], first + column + 1
        axes.text(
            column,
            row,
            word if len(word) <= room else word[: room - 1] + "…",
            ha="center",
            va="center",
            fontsize=8,
            fontfamily=FONT,
            parse_math=False,
            color="white"
            if np.dot(image.to_rgba(probabilities[row, column])[:3], _LUMINANCE) < 0.45
            else "black",
            fontweight="bold"
            if following < len(ids) and ids[following] == said[row, column]
            else "normal",
        )
    return figure
