"""Tokens on a terminal: colored by their surprisal, visible, and cut to a known width."""

from __future__ import annotations

import itertools
import sys
from typing import Annotated, Literal

import typer

from gpt2kit.cli import output
from gpt2kit.cli.output import Part, Styled

Choice = Literal["auto", "always", "never"]
# The old spelling is understood too, and not shown.
Color = Annotated[
    Choice,
    typer.Option(
        "--color",
        help="Color tokens by how surprising the model finds them; "
        "auto: on a terminal, unless NO_COLOR is set.",
        rich_help_panel="Output",
    ),
]

# From pale yellow to dark red, of the 256 colors that terminals share:
# the surprisal in bits from which on a color is used, its background, its text.
_STEPS = (
    (0, 230, 16),
    (1, 229, 16),
    (2, 222, 16),
    (4, 215, 16),
    (6, 208, 16),
    (9, 196, 231),
    (12, 88, 231),
)
_VISIBLE = {" ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥"}


def wanted(choice: Choice = "auto") -> bool:
    """Whether to color standard output."""
    return output.shows_colors(sys.stdout) if choice == "auto" else choice == "always"


def paint(text: str, bits: float | None) -> Part:
    """Return a text in the color of its surprisal, or as it is if there is none."""
    if bits is None:
        return text
    _, background, foreground = next(
        step for step in reversed(_STEPS) if bits >= step[0] or step[0] == 0
    )
    return Styled(text, f"48;5;{background};38;5;{foreground}")


def legend() -> list[Part]:
    """Return the parts of a line that shows which color means how many bits."""
    lowest = [step[0] for step in _STEPS]
    names = [f"{start}-{end}" for start, end in itertools.pairwise(lowest)]
    names.append(f"{lowest[-1]} and more")
    parts: list[Part] = []
    for name, start in zip(names, lowest, strict=True):
        parts += [paint(f" {name} ", start), " "]
    return [*parts, "bits"]


def visible(piece: bytes) -> str:
    """Return a token on one line with everything in it visible.

    ␣ is a space, ⏎ a newline, and \\xf0 a byte that is only a part of a character.
    """
    text = piece.decode("utf-8", errors="backslashreplace")
    return "".join(
        _VISIBLE.get(character)
        or (character if character.isprintable() else ascii(character)[1:-1])
        for character in text
    )


def fit(text: str, width: int) -> str:
    """Return a text of exactly this many columns: padded, or cut with an ellipsis.

    Wide characters, such as Chinese ones, take two columns.
    """
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width:
        return set_cell_size(text, width)
    return set_cell_size(text, width - 1) + "…"
