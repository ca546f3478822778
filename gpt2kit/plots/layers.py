"""Pictures of the residual stream: its norm, its numbers, updates of it, the logit lens.

B batch (the first row is drawn), T tokens, C width, L layers, V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from gpt2kit import inspection
from gpt2kit.errors import ConfigError
from gpt2kit.inspection.measures import has_mlp
from gpt2kit.plots.canvas import (
    BLUE,
    DIVERGING,
    FONT,
    GRAY,
    ORANGE,
    WIDTH,
    Array,
    Token,
    around_zero,
    check_tokens,
    draw_along,
    draw_spread,
    explain_colors,
    heat,
    legible_on,
    logarithmic,
    name_band,
    name_numbers,
    name_positions,
    name_streams,
    new_figure,
    numbers,
    paint,
    plain_log,
    readable,
    rooted,
    write_numbers,
)
from gpt2kit.plots.heads import find_layer, find_position

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gpt2kit.inspection import LayerTrace, Trace
    from gpt2kit.tokenizers import Tokenizer

_NUMBERED = 26  # rows of the residual stream that are written as numbers


# --- the residual stream --------------------------------------------------------------------------


_Measure = tuple[str, Callable[[Array], Array]]
_MEASURES: tuple[_Measure, _Measure] = (
    ("Euclidean norm", lambda x: np.linalg.norm(x, axis=-1)),
    ("variance over the width", lambda x: x.var(axis=-1)),
)


def updates(trace: Trace, tokens: Sequence[Token], layer: int | None = None) -> Figure:
    """Draw the size of attention's and MLP's updates, beside the residual stream.

    By layer, with medians over the positions and bands of their middle half; or of one layer, by
    position. Raises ConfigError for a model without layers or without this layer.
    """
    find_layer(trace, layer or 0)
    check_tokens(tokens, trace.ids.shape[1])
    where = "" if layer is None else f" in layer {layer}"
    figure = new_figure(f"What attention and MLP add to the residual stream{where}", 4.6)
    for axes, (name, measure) in zip(figure.subplots(1, 2), _MEASURES, strict=True):
        for label, color, marker, part in _UPDATES if has_mlp(trace.model) else _UPDATES[:2]:
            values = np.stack([measure(numbers(part(each)[0])) for each in trace.layers])  # (L, T)
            if layer is None:
                draw_spread(axes, values, label, color, marker)
            else:
                draw_along(axes, values[layer], label, color, marker)
        axes.set_ylabel(f"{name} (logarithmic)")
        plain_log(axes)
        if layer is None:
            name_numbers(axes, "x", len(trace.layers), WIDTH / 2.6, "layer")
        else:
            name_positions(axes, "x", tokens, WIDTH / 2.6)
    figure.legend(
        *axes.get_legend_handles_labels(),
        title=name_band(tokens) if layer is None else None,
        title_fontsize=9,
        loc="outside lower center",
        ncols=3,
        frameon=False,
    )
    return figure


_UPDATES: tuple[tuple[str, str, str, Callable[[LayerTrace], Tensor]], ...] = (
    ("residual stream, as it enters", GRAY, "s", lambda layer: layer.before),
    ("update by attention", BLUE, "o", lambda layer: layer.attention_update),
    ("update by MLP", ORANGE, "^", lambda layer: layer.mlp_update),
)


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
    left.set_title(name_band(tokens[1:]), fontsize=8)
    plain_log(left)
    left.legend(fontsize=8)
    name_streams(left, "x", names, 2.6)
    image = heat(
        right,
        norms,
        "after each layer, at each position",
        "Euclidean norm (logarithmic)",
        norm=logarithmic(norms),
    )
    write_numbers(image, 4.0 / len(tokens), 3.9 / len(norms))
    name_streams(right, "y", names, 3.6)
    name_positions(right, "x", tokens, WIDTH / 2.6)
    return figure


def stream(
    trace: Trace,
    tokens: Sequence[Token],
    layer: int | None = None,
    position: int | None = None,
    dimensions: int = 8,
) -> Figure:
    """Draw the residual stream itself: its numbers at every position after one layer.

    With a position its numbers there, after every layer. The first dimensions are also written as
    numbers, at the last positions. Without layer and position it is the stream after the last
    layer. Raises ConfigError for a layer or a position that is not there, and for both at once.
    """
    check_tokens(tokens, trace.ids.shape[1])
    rows, where = _rows_of_stream(trace, layer, position)  # (N, C)
    shown = min(len(rows), _NUMBERED)
    first = len(rows) - shown
    part = rows[first:, :dimensions]  # (shown, dimensions)
    height = 0.2 * shown
    figure = new_figure(f"The residual stream {where}", 4.6 + height)
    above, below = figure.subplots(2, 1, height_ratios=(3, height))
    scale = around_zero(rows)
    image = paint(above, rows, DIVERGING, scale)
    above.set_title("all dimensions", fontsize=10)
    which = f"the first {part.shape[1]} of {rows.shape[1]} dimensions, in numbers"
    what = "positions" if position is None else "layers"
    end = f"; the last {shown} of {len(rows)} {what}" if first else ""
    below.set_title(which + end, fontsize=10)
    write_numbers(paint(below, part, DIVERGING, scale), (WIDTH - 2) / part.shape[1], 0.2)
    explain_colors(image, [above], "value")
    for axes, values, start, room in ((above, rows, 0, 3.0), (below, part, first, height)):
        name_numbers(axes, "x", values.shape[1], WIDTH - 2, "dimension")
        if position is None:
            name_positions(axes, "y", tokens[start : start + len(values)], room, first=start)
        else:
            name_streams(axes, "y", [name for name, _ in streams(trace)][start:], room)
    return figure


def _rows_of_stream(trace: Trace, layer: int | None, position: int | None) -> tuple[Array, str]:
    """Return rows of the residual stream, (N, C), and in words what they are."""
    points = streams(trace)
    if position is None:
        if layer is not None:
            find_layer(trace, layer)
        name, found = points[-1 if layer is None else layer + 1]
        return numbers(found), "at the start" if name == "start" else f"after layer {name}"
    if layer is not None:
        raise ConfigError("a layer or a position is drawn, expected one of them, not both")
    at = find_position(trace, position)
    return np.stack([numbers(found[at]) for _, found in points]), f"at position {position}"


def streams(trace: Trace) -> list[tuple[str, Tensor]]:
    """Return a name and the residual stream, (T, C), at the start and after each layer."""
    return [
        ("start", trace.embeddings[0]),
        *((str(number), layer.after[0]) for number, layer in enumerate(trace.layers)),
    ]


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
    name_streams(axes, "y", [name for name, _ in streams(trace)], 0.28 * rows)
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
            color=legible_on(image, float(probabilities[row, column])),
            fontweight="bold"
            if following < len(ids) and ids[following] == said[row, column]
            else "normal",
        )
    return figure
