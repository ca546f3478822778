"""Pictures of the model's input: token ids, embeddings of tokens and positions, and their sum.

B batch (the first row is drawn), T tokens, C width
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpt2kit.errors import ConfigError
from gpt2kit.plots.canvas import (
    BLUE,
    DIVERGING,
    FONT,
    GREEN,
    ORANGE,
    SEQUENTIAL,
    WIDTH,
    Array,
    Token,
    around_zero,
    check_tokens,
    heat,
    label_size,
    name_numbers,
    name_positions,
    new_figure,
    numbers,
    readable,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    from gpt2kit.inspection import Trace

_SIZE = 8.0  # points, font size of a label
_APART = 3.0  # points between a dot and its label
_ROOM = WIDTH - 1  # inches of an axis as wide as the picture


def tokens(trace: Trace, tokens: Sequence[Token]) -> Figure:
    """Draw the ids of a text over its positions."""
    ids = trace.ids[0].cpu().numpy()  # (T,)
    check_tokens(tokens, len(ids))
    figure = new_figure(
        f"{len(ids):,} tokens of a vocabulary of {trace.model.config.n_vocab:,}", 4.5
    )
    axes = figure.add_subplot()
    axes.vlines(np.arange(len(ids)), 0, ids, color=BLUE, alpha=0.3, linewidth=1)
    axes.plot(ids, "o", color=BLUE, markersize=5 if len(ids) <= 100 else 3)
    axes.set(ylabel="id", ylim=(0, None))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    name_positions(axes, "x", tokens, _ROOM)
    return figure


def positions(trace: Trace, tokens: Sequence[Token]) -> Figure:
    """Draw the embeddings of a text's positions, and the cosine of every two.

    Raises ConfigError for a model without position embeddings.
    """
    if trace.model.config.positions == "none":
        raise ConfigError("this model has no position embeddings, so there is nothing to draw")
    table = numbers(trace.position_embeddings)  # (T, C)
    check_tokens(tokens, len(table))
    figure = new_figure(f"Embeddings of the first {len(table):,} positions", 4.5)
    left, right = figure.subplots(1, 2)
    heat(
        left,
        table,
        "the embeddings, number by number",
        "value",
        cmap=DIVERGING,
        norm=around_zero(table),
    )
    heat(
        right,
        cosines(table),
        "cosine between every two",
        "cosine",
        cmap=DIVERGING,
        norm=_from_minus_one(),
    )
    name_numbers(left, "x", table.shape[1], WIDTH / 3, "dimension")
    name_numbers(left, "y", len(table), 3.5, "position")
    name_numbers(right, "x", len(table), WIDTH / 3, "position")
    name_numbers(right, "y", len(table), 3.5, "position")
    return figure


def _from_minus_one() -> Normalize:
    from matplotlib.colors import Normalize

    return Normalize(-1, 1)


def cosines(vectors: Array) -> Array:
    """Return the cosine of the angle between every two rows: (N, C) -> (N, N)."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    alike: Array = unit @ unit.T
    return alike


def norms(trace: Trace, tokens: Sequence[Token]) -> Figure:
    """Draw the norms of the embeddings of tokens, positions and their sum, along the text."""
    parts = _parts(trace)
    check_tokens(tokens, len(parts["position"]))
    figure = new_figure("Norms of the embeddings", 4.5)
    axes = figure.add_subplot()
    marker = "o" if len(tokens) <= 100 else None
    for (part, vectors), color in zip(parts.items(), (BLUE, ORANGE, GREEN), strict=True):
        axes.plot(
            np.linalg.norm(vectors, axis=1),
            color=color,
            marker=marker,
            markersize=4,
            linewidth=1,
            label=part,
        )
    axes.set(ylabel="Euclidean norm", ylim=(0, None))
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False)
    name_positions(axes, "x", tokens, _ROOM)
    return figure


def embeddings(trace: Trace, tokens: Sequence[Token]) -> Figure:
    """Draw the embeddings of tokens, positions and their sums in a plane (PCA)."""
    parts = _parts(trace)
    check_tokens(tokens, len(parts["position"]))
    labels = [readable(token) for token in tokens]
    figure = new_figure(
        "Embeddings in the plane of their first two principal components", 4.2, WIDTH * 1.3
    )
    panels = figure.subplots(1, 3)
    for axes, (part, vectors) in zip(panels, parts.items(), strict=True):
        points, shares = principal_components(vectors)
        order = np.arange(len(points))
        dots = axes.scatter(points[:, 0], points[:, 1], c=order, cmap=SEQUENTIAL, s=18, zorder=2)
        axes.set(
            xlabel=f"first component ({shares[0]:.0%} of the variance)",
            ylabel=f"second component ({shares[1]:.0%})",
            title=part,
        )
        axes.margins(0.12)
    figure.colorbar(dots, ax=list(panels), label="position in the text")
    figure.draw_without_rendering()  # lays the axes out: only then is it known which labels overlap
    for axes, part in zip(panels, parts, strict=True):
        _label_points(
            axes,
            [str(position) for position in range(len(tokens))] if part == "position" else labels,
            once=part == "token",
        )
    return figure


def _parts(trace: Trace) -> dict[str, Array]:
    """Return the embeddings of tokens, positions and both together, (T, C) each."""
    embedded = (trace.token_embeddings[0], trace.position_embeddings, trace.embeddings[0])
    return dict(zip(("token", "position", "token + position"), map(numbers, embedded), strict=True))


def principal_components(vectors: Array) -> tuple[Array, Array]:
    """Project rows on their two directions of largest variance: (T, C) -> (T, 2), (2,).

    The second result is each direction's share of the variance. Missing directions, as of a single
    row, give zeros.
    """
    centered = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    u, s, _ = np.linalg.svd(centered, full_matrices=False)  # (T, K), (K,): K = min(T, C)
    points, shares = np.zeros((len(vectors), 2)), np.zeros(2)
    n = min(2, len(s))
    points[:, :n] = u[:, :n] * s[:n]
    shares[:n] = s[:n] ** 2 / max(float((s**2).sum()), 1e-300)
    return points, shares


def _label_points(axes: Axes, labels: Sequence[str], *, once: bool) -> None:
    """Label the points in order, leaving out labels that would cover another point or label."""
    offsets = np.asarray(axes.collections[0].get_offsets())
    to_points = 72 / float(axes.get_figure(root=True).dpi)  # type: ignore[union-attr]  # 1/72 inch
    points = axes.transData.transform(offsets) * to_points
    frame = np.asarray(axes.get_window_extent().extents) * to_points  # left, bottom, right, top
    taken = np.concatenate([points - 1.5, points + 1.5], axis=1)  # boxes of dots, then of labels
    written: set[str] = set()
    for number, label in enumerate(labels):
        if once and label in written:
            continue
        size = label_size(label, _SIZE)
        # Right above the point, left above, right below, left below
        for corner in ((0, 0), (-1, 0), (0, -1), (-1, -1)):
            shift = np.where(np.array(corner) == 0, _APART, -_APART) + np.array(corner) * size
            box = np.concatenate([points[number] + shift, points[number] + shift + size])
            inside = (box[:2] >= frame[:2]).all() and (box[2:] <= frame[2:]).all()
            if (
                inside
                and not ((taken[:, :2] < box[2:]) & (taken[:, 2:] > box[:2])).all(axis=1).any()
            ):
                text = axes.annotate(
                    label,
                    offsets[number],
                    xytext=tuple(shift),
                    textcoords="offset points",
                    va="bottom",
                    fontsize=_SIZE,
                    fontfamily=FONT,
                    parse_math=False,
                )
                text.set_in_layout(False)  # measuring hundreds of them takes a minute
                taken = np.concatenate([taken, box[None]])
                written.add(label)
                break
