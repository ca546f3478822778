"""What all pictures share: figures without a screen, token labels, colors for everyone's eyes."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from gpt2kit.errors import ConfigError, MissingDependencyError
from gpt2kit.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.ft2font import FT2Font
    from matplotlib.image import AxesImage

Token = bytes | str
Array = np.ndarray[Any, np.dtype[Any]]

WIDTH = 9.0  # inches
FONT = "DejaVu Sans"  # of token labels; it comes with matplotlib, so its characters are known
# Okabe and Ito's palette, which color-blind people can tell apart, too.
BLUE, ORANGE, GREEN, PURPLE, SKY, RED = COLORS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
)
GRAY, PALE = "0.45", "0.9"
SEQUENTIAL, DIVERGING = "viridis", "PuOr_r"
_SUFFIXES = (".png", ".svg", ".pdf")
_LABEL = 0.16  # inches, height of a line of a label
_LETTER = 0.085  # inches, width of a letter
_CELLS = 64  # rows or columns up to which each is drawn sharply
_LONGEST = 12  # characters of a token's label
_LUMINANCE = (0.299, 0.587, 0.114)  # how bright red, green and blue are to the eye
BROAD = 5.0  # points, width of a pale line below another
_DIGIT = 0.075  # inches, width of a digit in a cell
_FEW = 60  # positions up to which each has a marker on a line
_EXTREME = 0.998  # quantile where a color scale ends, so that outliers do not darken the rest
_BLANKS = {" ": "␣", "\n": "⏎", "\t": "⇥"}


def new_figure(title: str, height: float, width: float = WIDTH) -> Figure:
    """Return an empty figure, sizes in inches; raises MissingDependencyError without matplotlib."""
    check_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, parse_math=False)
    return figure


def check_matplotlib() -> None:
    """Raise MissingDependencyError unless matplotlib is installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise MissingDependencyError("matplotlib", extra="plots") from None


def check_picture(path: Path) -> None:
    """Raise ConfigError unless the name ends in .png, .svg or .pdf and its folder exists.

    Raises MissingDependencyError without matplotlib.
    """
    check_matplotlib()
    if path.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"{path}: expected a name that ends in .png, .svg or .pdf")
    if not path.parent.is_dir():
        raise ConfigError(
            f"{path}: there is no folder {path.parent}; make it first, or name another file"
        )


def save(figure: Figure, path: Path, *, dpi: int = 150) -> None:
    """Write a figure as PNG, SVG or PDF, by the file's name; equal figures give equal bytes."""
    import matplotlib

    check_picture(path)
    kind = path.suffix.lower().removeprefix(".")
    undated: dict[str, dict[str, Any]] = {
        "png": {},
        "svg": {"Date": None},
        "pdf": {"CreationDate": None},
    }
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "gpt2kit"}):
        figure.savefig(content, format=kind, dpi=dpi, metadata=undated[kind])
    write_whole(path, content.getvalue())


def numbers(tensor: Tensor) -> Array:
    """Return a tensor as an array of float32."""
    return tensor.detach().float().cpu().numpy()


def check_tokens(tokens: Sequence[Token], T: int) -> None:
    """Raise ConfigError unless there is a token for every position."""
    if len(tokens) != T:
        raise ConfigError(
            f"{len(tokens)} tokens for {T} positions; expected the tokens of the traced ids"
        )


# --- labels ---------------------------------------------------------------------------------------


def readable(token: Token, longest: int = _LONGEST) -> str:
    """Return a token as a short label: visible white space, escapes for what cannot be drawn."""
    text = token.decode("utf-8", errors="backslashreplace") if isinstance(token, bytes) else token
    pieces = [_visible(character) for character in text]
    if sum(map(len, pieces)) > longest:
        while sum(map(len, pieces)) > longest - 1 and len(pieces) > 1:
            pieces.pop()
        pieces.append("…")
    return "".join(pieces) or "''"


def _visible(character: str) -> str:
    if character in _BLANKS:
        return _BLANKS[character]
    if character.isprintable() and ord(character) in _drawable():
        return character
    return character.encode("unicode_escape").decode()


@functools.cache
def _drawable() -> frozenset[int]:
    """Return the code points that the labels' font can draw."""
    return frozenset(_font().get_charmap())


@functools.cache
def _font() -> FT2Font:
    from matplotlib.font_manager import findfont, get_font

    return get_font(findfont(FONT))


def label_size(label: str, size: float) -> Array:
    """Return width and height of a label, in the unit of its font size."""
    font = _font()
    font.set_size(size, 72)
    font.set_text(label, 0.0)
    # Wider by a tenth: letters are rounded up to whole pixels.
    return np.array([font.get_width_height()[0] / 64 * 1.1 + 1, size * 1.35])


def name_positions(
    axes: Axes,
    which: Literal["x", "y"],
    tokens: Sequence[Token],
    room: float,
    first: int = 0,
    *,
    numbered: bool = False,
) -> None:
    """Label an axis of positions with their tokens, or with as many as fit into `room` inches.

    If only some positions have a label, or with `numbered`, it begins with the position, which
    counts from `first`.
    """
    step = thinned(len(tokens), room)
    numbered = numbered or step > 1
    shown = range(0, len(tokens), step)
    labels = [
        f"{first + index} {readable(tokens[index], 8)}" if numbered else readable(tokens[index])
        for index in shown
    ]
    axis = axes.xaxis if which == "x" else axes.yaxis
    upright = which == "y" or room / len(labels) > _LETTER * (max(map(len, labels)) + 0.7)
    axis.set_ticks(
        list(shown),
        labels,
        rotation=0 if upright else 90,
        fontfamily=FONT,
        fontsize=8,
        parse_math=False,
    )
    axis.set_label_text("position and token" if numbered else "token")


def name_numbers(axes: Axes, which: Literal["x", "y"], n: int, room: float, label: str) -> None:
    """Label an axis with whole numbers from 0, as many as fit into `room` inches."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(range(0, n, thinned(n, room, each=_LABEL if which == "y" else 3 * _LABEL)))
    axis.set_label_text(label)


def name_streams(axes: Axes, which: Literal["x", "y"], names: Sequence[str], room: float) -> None:
    """Label an axis of points in the residual stream: "start", then as many layers as fit."""
    crowded = which == "x" and room / len(names) < 0.33  # "start" takes the room of two
    shown = [0, *range(2 if crowded else 1, len(names), thinned(len(names), room, each=0.2))]
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(shown, [names[index] for index in shown], fontsize=8)
    axis.set_label_text("after layer")


def thinned(n: int, room: float, each: float = _LABEL) -> int:
    """Return the smallest step of 1, 2, 5, 10, 20, … at which n labels fit into `room` inches."""
    needed = max(1.0, n * each / room)
    scale = 10 ** math.floor(math.log10(needed))
    return int(next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= needed))


# --- heat maps ------------------------------------------------------------------------------------


def paint(
    axes: Axes,
    values: Array,
    cmap: str = SEQUENTIAL,
    norm: Normalize | None = None,
    extent: Sequence[float] | None = None,
) -> AxesImage:
    """Draw a matrix as colors, masked cells and NaN pale. `extent` is left, right, bottom, top."""
    import matplotlib

    colors = matplotlib.colormaps[cmap].with_extremes(bad=PALE)
    corners = None if extent is None else (extent[0], extent[1], extent[2], extent[3])
    # A few rows, such as layers, must not blur into each other.
    smooth = "auto" if min(values.shape) > _CELLS else "nearest"
    return axes.imshow(
        np.ma.masked_invalid(values),
        cmap=colors,
        norm=norm,
        aspect="auto",
        extent=corners,
        interpolation=smooth,
    )


def heat(
    axes: Axes,
    values: Array,
    title: str,
    meaning: str,
    *,
    cmap: str = SEQUENTIAL,
    norm: Normalize | None = None,
) -> AxesImage:
    """Draw a matrix as colors, with a title and a color bar labeled `meaning`."""
    image = paint(axes, values, cmap, norm)
    axes.set_title(title, fontsize=10)
    explain_colors(image, [axes], meaning)
    return image


def explain_colors(image: AxesImage, panels: Sequence[Axes], meaning: str) -> None:
    """Add the color bar of one or more panels; a pointed end shows that values exceed it."""
    values: Array = np.ma.masked_invalid(np.ma.asarray(image.get_array())).compressed()
    low, high = image.get_clim()
    above = high is not None and bool((values > high * (1 + 1e-6)).any())
    below = low is not None and bool((values < low - abs(low) * 1e-6).any())
    extend = ("both" if below else "max") if above else "min" if below else "neither"
    bar = panels[0].figure.colorbar(
        image, ax=list(panels), label=meaning, extend=extend, fraction=0.05
    )
    if bar.ax.get_yscale() == "log":
        plain_numbers(bar.ax.yaxis)


def legible_on(image: AxesImage, value: float) -> str:
    """Return the color, black or white, in which text is legible on the color of a value."""
    return "white" if np.dot(image.to_rgba(np.array(value))[:3], _LUMINANCE) < 0.45 else "black"


def write_numbers(image: AxesImage, width: float, height: float) -> bool:
    """Write its number into each cell of a heat map, if cells of this size (inches) have room.

    Return whether they have.
    """
    masked: Any = np.ma.masked_invalid(np.ma.asarray(image.get_array()))
    values: Array = masked.filled(0)
    # As many decimals for all as give a typical number three digits, and the largest four at most
    sizes = np.abs(values)
    typical = max(float(np.median(sizes)), float(sizes.max()) / 5, 1e-6)
    decimals = max(0, 2 - math.floor(math.log10(typical)))
    there = ~np.ma.getmaskarray(masked)  # a cell without a number stays empty
    words = {
        cell: f"{value:z.{decimals}f}" for cell, value in np.ndenumerate(values) if there[cell]
    }
    longest = max(map(len, words.values()), default=0)
    if width < _DIGIT * (longest + 0.5) or height < _LABEL:
        return False
    for (row, column), word in words.items():
        color = legible_on(image, float(values[row, column]))
        image.axes.text(column, row, word, ha="center", va="center", fontsize=7, color=color)
    return True


def draw_along(
    axes: Axes, values: Array, label: str, color: str, marker: str = "o", *, broad: bool = False
) -> None:
    """Draw a value of each position as a line: (T,) values; with markers if they are few.

    A broad line is pale, and can still be seen if another lies on it.
    """
    few = len(values) <= _FEW
    axes.plot(
        values,
        color=color,
        alpha=0.4 if broad else 1,
        marker=marker if few and not broad else "",
        markersize=4,
        linewidth=BROAD if broad else 1.5 if few else 0.8,
        label=label,
    )


def around_zero(values: Array) -> Normalize:
    """Return a color scale for numbers of both signs, with zero in the middle."""
    from matplotlib.colors import Normalize

    largest = _almost_largest(np.abs(values))
    return Normalize(-largest, largest)


def rooted(values: Array) -> Normalize:
    """Return a color scale for probabilities, by square root, to tell small ones apart."""
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, 0, _almost_largest(values))


def _almost_largest(values: Array) -> float:
    finite = np.ma.masked_invalid(values).compressed()
    return float(np.quantile(finite, _EXTREME, method="higher")) or 1.0 if finite.size else 1.0


def logarithmic(values: Array) -> Normalize:
    """Return a logarithmic color scale, for norms, which can differ by a factor of 100."""
    from matplotlib.colors import LogNorm

    high = float(values.max()) or 1.0
    return LogNorm(min(max(float(values.min()), high / 1e6), high * 0.999), high)


def spread(values: Array) -> tuple[Array, Array, Array]:
    """Return lower quartile, median and upper quartile of each row: (N, T) -> (N,) each."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=1)
    return low, middle, high


def draw_spread(axes: Axes, values: Array, label: str, color: str, marker: str = "o") -> None:
    """Draw the median of each layer as a line and its middle half as a band: (L, T) values."""
    low, middle, high = spread(values)
    layers = np.arange(len(values))
    axes.plot(layers, middle, color=color, marker=marker, markersize=4, label=label)
    axes.fill_between(layers, low, high, color=color, alpha=0.2, linewidth=0)


def name_band(tokens: Sequence[Token]) -> str:
    """Return what `draw_spread` shows of a text, in words; nothing for one token."""
    return f"median of {len(tokens)} positions; band: their middle half" if len(tokens) > 1 else ""


def plain_log(axes: Axes) -> None:
    """Give the y axis a logarithmic scale with plain numbers."""
    axes.set_yscale("log")
    plain_numbers(axes.yaxis)
    axes.grid(alpha=0.3)


def plain_numbers(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers, on a short one also at 2 and 5 times 10^n."""
    low, high = axis.get_view_interval()
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(
        lambda x, _: f"{x:g}" if high / low < 300 and f"{x:e}"[0] in "25" else ""
    )
