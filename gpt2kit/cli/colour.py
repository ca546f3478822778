"""Tokens on a terminal: coloured by their surprisal, visible, and cut to a known width."""

from __future__ import annotations

import itertools
import os
import sys
from typing import Annotated, Literal

import typer

Choice = Literal["auto", "always", "never"]
Colour = Annotated[
    Choice,
    typer.Option(
        "--colour",
        "--color",
        help="Colour tokens by how surprising the model finds them; auto: on a terminal, unless NO_COLOR is set.",
    ),
]

# From pale yellow to dark red, of the 256 colours that terminals share: the first bits from which on it is used, background, text.
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
    """Whether to colour standard output."""
    if choice != "auto":
        return choice == "always"
    return (
        sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    )


def paint(text: str, bits: float | None) -> str:
    """Return a text in the colour of its surprisal; line ends stay plain, so that no colour runs to the edge of the terminal."""
    if bits is None:
        return text
    _, background, foreground = next(
        step for step in reversed(_STEPS) if bits >= step[0] or step[0] == 0
    )
    on, off = f"\x1b[48;5;{background};38;5;{foreground}m", "\x1b[0m"
    return "\n".join(f"{on}{line}{off}" if line else "" for line in text.split("\n"))


def legend() -> str:
    """Return a line that says which colour means what."""
    lowest = [step[0] for step in _STEPS]
    names = [f"{start}-{end}" for start, end in itertools.pairwise(lowest)] + [
        f"{lowest[-1]} and more"
    ]
    return (
        " ".join(paint(f" {name} ", start) for name, start in zip(names, lowest, strict=True))
        + " bits"
    )


def visible(piece: bytes) -> str:
    """Return a token so that everything in it can be seen, on one line: ␣ for a space, ⏎ for a line end, \\xf0 for half a character."""
    text = piece.decode("utf-8", errors="backslashreplace")
    return "".join(_VISIBLE.get(character) or harmless(character) for character in text)


def harmless(text: str) -> str:
    """Return a text whose control characters and other invisible ones, line ends aside, are written out."""
    return "".join(
        character
        if character.isprintable() or character in "\n\t\u200d"
        else ascii(character)[1:-1]
        for character in text
    )


def fit(text: str, width: int) -> str:
    """Return a text that takes exactly this many columns: padded, or cut with an ellipsis; wide characters count for two."""
    from rich.cells import cell_len, set_cell_size

    return (
        set_cell_size(text, width)
        if cell_len(text) <= width
        else set_cell_size(text, width - 1) + "…"
    )
