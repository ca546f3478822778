"""Everything that the command line shows: the one module that writes to a terminal.

    result      what the user asked for, on stdout: exactly those characters in a pipe or file
    print_json  the same as one JSON object per line
    note        progress, timings, advice, on stderr
    warn, error one line on stderr that begins with "warning: " or "error: "

Texts, file names and tensor names come from anywhere, and a terminal obeys the control characters
in them: it can be made to change its title, its colors, even its keyboard. So everything on stderr,
and on stdout if that is a terminal, is shown with control characters written out (`\\x1b`); only
newlines and tabs stay. Colors are asked for beside the text, with `Styled`, never as escape
sequences in it.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TextIO

if TYPE_CHECKING:
    from rich.console import Console

Color = Literal["red", "green", "yellow"]
_SGR = {"red": "31", "green": "32", "yellow": "33"}


class Styled(NamedTuple):
    """A piece of text and how it looks, in the terminal's SGR parameters, such as "1;31"."""

    text: str
    sgr: str


Part = str | Path | Styled  # a path is always shown on one line
Cleaning = Callable[[str], str]


def style(text: str, color: Color | None = None, *, dim: bool = False) -> Styled:
    """Return a text in a color, or dim."""
    return Styled(text, ";".join(["2"] * dim + ([_SGR[color]] if color else [])))


# --- writing --------------------------------------------------------------------------------------


def result(*parts: Part, end: str = "\n", color: bool | None = None) -> None:
    """Write a part of the result to stdout: exactly in a pipe or file, harmless on a terminal.

    `color` says whether `Styled` parts are colored; by default they are on a terminal that shows
    colors.
    """
    color = shows_colors(sys.stdout) if color is None else color
    clean = harmless if color or sys.stdout.isatty() else None
    sys.stdout.write("".join(_rendered(part, clean, color=color) for part in parts) + end)
    sys.stdout.flush()


def print_json(value: dict[str, Any]) -> None:
    """Write an object as one line of JSON to stdout, control characters as \\u escapes."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False).translate(_IN_JSON) + "\n")
    sys.stdout.flush()


def note(*parts: Part, end: str = "\n", color: Color | None = None, dim: bool = False) -> None:
    """Write a line to stderr, in a color or dim if it is a terminal; without parts an empty one.

    A newline in it is written out: it can only come from a name. A stderr that cannot be written
    to, such as a log on a full disk, does not stop the work.
    """
    _write_note(parts, end, style("", color, dim=dim).sgr, one_line)


def note_text(text: str, *, dim: bool = False) -> None:
    """Write a text of several lines to stderr."""
    _write_note([text], "\n", style("", dim=dim).sgr, harmless)


def _write_note(parts: Sequence[Part], end: str, sgr: str, clean: Cleaning) -> None:
    color = shows_colors(sys.stderr)
    styled = [part if isinstance(part, Styled) else Styled(str(part), sgr) for part in parts]
    with contextlib.suppress(OSError):
        sys.stderr.write("".join(_rendered(part, clean, color=color) for part in styled) + end)
        sys.stderr.flush()


def warn(message: object) -> None:
    """Write a warning to stderr, as one line."""
    note(f"warning: {one_line(str(message))}", color="yellow")


def error(message: object) -> None:
    """Write an error to stderr, as one line."""
    note(f"error: {one_line(str(message))}", color="red")


def status(text: str = "") -> None:
    """Replace the last line of the terminal; does nothing if stderr is not a terminal."""
    if sys.stderr.isatty():
        with contextlib.suppress(OSError):
            sys.stderr.write(f"\r{one_line(text)}\x1b[K")
            sys.stderr.flush()


def ask(prompt: str) -> str:
    """Return a line that the user types; raises EOFError at the end of input.

    The prompt never goes into a file or pipe.
    """
    if sys.stdout.isatty():
        return input(one_line(prompt))  # readline must know the prompt, to edit behind it
    note(prompt, end="")
    return input()


def confirm(question: str) -> bool:
    """Ask a question that is answered with y or n, on stderr; anything but y means no."""
    note(f"{one_line(question)} [y/N]: ", end="")
    try:
        return input().strip().lower() in ("y", "yes")
    except EOFError:
        note()
        return False


@functools.cache
def console() -> Console:
    """Return rich's console on stderr for progress bars, which makes what they show harmless."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class HarmlessConsole(Console):
        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterable[Segment]:
            for text, look, control in super().render(renderable, options):
                yield Segment(text if control else harmless(text), look, control)

    return HarmlessConsole(stderr=True, highlight=False, markup=False)


def shows_colors(stream: TextIO) -> bool:
    """Whether a stream is a terminal that shows colors, and the user has not set NO_COLOR."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def prepare_streams() -> None:
    """Let stdout and stderr write any text, and a stream that was closed by our caller swallow it.

    A character that a stream's encoding does not have becomes a question mark. A byte of a file's
    name that is not UTF-8, which Python holds as a lone surrogate, becomes that byte again.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    codecs.register_error("gpt2kit", _replacement)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="gpt2kit")


def _replacement(failure: UnicodeError) -> tuple[bytes | str, int]:
    """Return what stands for the first character that cannot be encoded, and where to go on."""
    if not isinstance(failure, UnicodeEncodeError):
        raise failure
    code = ord(failure.object[failure.start])
    is_byte = 0xDC80 <= code <= 0xDCFF
    return bytes([code - 0xDC00]) if is_byte else "?", failure.start + 1


def _rendered(part: Part, clean: Cleaning | None, *, color: bool) -> str:
    """Return a part as it is written: clean, and in its colors if `color`.

    Newlines are not colored, so that no background runs to the edge of the terminal.
    """
    text, sgr = part if isinstance(part, Styled) else (str(part), "")
    if clean:
        text = one_line(text) if isinstance(part, Path) else clean(text)
    if not (color and sgr):
        return text
    return "\n".join(f"\x1b[{sgr}m{line}\x1b[0m" if line else "" for line in text.split("\n"))


# --- harmless text --------------------------------------------------------------------------------

_JOINERS = "\u200c\u200d"  # invisible, but Persian, Indic scripts and emoji are written with them


class _Escapes(dict[int, str]):
    """A table for `str.translate` that writes out the characters that a terminal may obey."""

    def __init__(self, kept: str, *, json: bool = False) -> None:
        super().__init__()
        self._kept = kept
        self._json = json

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if character.isprintable() or character in self._kept or _is_space(character):
            shown = character
        else:
            shown = json.dumps(character)[1:-1] if self._json else ascii(character)[1:-1]
        self[code] = shown
        return shown


def _is_space(character: str) -> bool:
    """Whether a character is a space of Unicode's that Python calls not printable."""
    return unicodedata.category(character) == "Zs"


_IN_TEXT = _Escapes("\n\t" + _JOINERS)
_IN_LINE = _Escapes(_JOINERS)
_IN_JSON = _Escapes("\n" + _JOINERS, json=True)


def harmless(text: str) -> str:
    """Return a text with control and direction characters written out, but newlines and tabs."""
    return text if text.isprintable() else text.translate(_IN_TEXT)


def one_line(text: str) -> str:
    """Return a text with all its control characters written out: a name, a path or a message."""
    return text if text.isprintable() else text.translate(_IN_LINE)


# --- figures and tables ---------------------------------------------------------------------------


def count(n: int, noun: str) -> str:
    """Return a number with its noun: 1 step, 2,000 steps."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def human_size(n: float) -> str:
    """Return a number of bytes as people write it: 548.1 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n < 1000 or unit == "GB":
            break
        n /= 1000
    return f"{n:.0f} {unit}" if unit == "bytes" else f"{n:.1f} {unit}"


def human_time(seconds: float) -> str:
    """Return a duration as people say it: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def as_typed_here(path: Path) -> Path:
    """Return a path as one would type it: below the working directory, from there."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def table(
    rows: Iterable[Sequence[object]], *, right: Sequence[int] = (), gap: int = 2
) -> list[str]:
    """Return rows of cells as lines with aligned columns; those in `right` are set flush right."""
    from rich.cells import cell_len

    cells = [[one_line(str(cell)) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = []
        for number, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - cell_len(cell))
            padded.append(space + cell if number in right else cell + space)
        lines.append((" " * gap).join(padded).rstrip())
    return lines
