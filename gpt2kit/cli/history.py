"""history: texts that were written on this machine, kept only if the user turned it on."""

from __future__ import annotations

import datetime
import json as json_format
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2kit.cli import output
from gpt2kit.cli.options import Json

if TYPE_CHECKING:
    from gpt2kit.generation.text import Completion

LARGEST = 2**24  # bytes; above it the older half is dropped


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command("history")(history)


def history(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[WORD]...",
            help="Show only texts with all of these words, in the prompt or the continuation.",
            show_default=False,
        ),
    ] = None,
    on: Annotated[
        bool, typer.Option("--on", help="From now on, keep what generate writes.")
    ] = False,
    off: Annotated[
        bool, typer.Option("--off", help="Keep nothing more; what is kept stays.")
    ] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Delete what was kept.")] = False,
    json: Json = False,
) -> None:
    """Show what generate wrote on this machine: nothing, unless it was turned on.

    The texts are in one file of the user's own, which nobody else may read, and leave this machine
    never. A server's texts are not among them.
    """
    if on + off + clear > 1:
        raise typer.BadParameter("--on, --off and --clear exclude each other; give one of them")
    if words and (on or off or clear):
        raise typer.BadParameter("words are searched for; leave out --on, --off and --clear")
    if on:
        _append("")
        output.note(f"from now on generate keeps its texts in {output.as_typed_here(_file())}")
    elif off:
        _switch_off()
        output.note("generate keeps nothing any more; --clear deletes what is there")
    elif clear:
        _clear()
        output.note("the history is empty")
    else:
        _show([word.casefold() for word in words or ()], json)


def keep(completions: Sequence[Completion], model: str) -> None:
    """Add texts to the history, if it was turned on."""
    if not is_on():
        return
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    entries = [
        {
            "time": now,
            "model": model,
            "seed": each.seed,
            "sample": each.sample,
            "prompt": each.prompt,
            "text": each.text,
        }
        for each in completions
    ]
    _append("".join(json_format.dumps(entry) + "\n" for entry in entries))


def is_on() -> bool:
    """Whether the history was turned on: its file is there then, under its own name."""
    return _file().is_file()


def _file() -> Path:
    """Return the file of the history: in $GPT2KIT_DATA, or in the user's folder of data."""
    if chosen := os.environ.get("GPT2KIT_DATA"):
        return Path(chosen).expanduser() / "history.jsonl"
    import platformdirs

    return Path(platformdirs.user_data_dir("gpt2kit", appauthor=False)) / "history.jsonl"


def _kept_aside() -> Path:
    """Return the file in which the texts are while the history is turned off."""
    return _file().with_name("history.off.jsonl")


def _append(lines: str) -> None:
    """Add lines to the history, which makes its file if need be; only the user may read it."""
    file = _file()
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists() and _kept_aside().is_file():
        _kept_aside().rename(file)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    with open(os.open(file, flags, 0o600), "a", encoding="utf-8") as stream:
        stream.write(lines)
        size = stream.tell()
    if size > LARGEST:
        _drop_older_half(file)


def _drop_older_half(file: Path) -> None:
    """Keep the newer half of the lines."""
    data = file.read_bytes()
    newer = data[data.index(b"\n", len(data) - LARGEST // 2) + 1 :]
    part = file.with_name("history.jsonl.part")
    part.unlink(missing_ok=True)
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(newer)
    part.replace(file)


def _switch_off() -> None:
    if is_on():
        _file().replace(_kept_aside())


def _clear() -> None:
    """Delete the texts; whether the history is turned on stays as it is."""
    _kept_aside().unlink(missing_ok=True)
    if is_on():
        _file().unlink()
        _append("")


def _entries() -> Iterator[dict[str, Any]]:
    """Yield what was kept, the oldest first; lines that are damaged are left out."""
    from gpt2kit.files import read_bytes

    file = _file() if is_on() else _kept_aside()
    if not file.is_file():
        return
    for line in read_bytes(file).splitlines():
        try:
            entry = json_format.loads(line)
        except (ValueError, RecursionError):
            continue
        names = ("time", "model", "prompt", "text")
        if isinstance(entry, dict) and all(isinstance(entry.get(name), str) for name in names):
            yield entry


def _show(words: Sequence[str], json: bool) -> None:
    """Print the texts that have all words."""
    n = 0
    for entry in _entries():
        text = entry["prompt"] + entry["text"]
        if not all(word in text.casefold() for word in words):
            continue
        n += 1
        if json:
            output.print_json(entry)
        else:
            where = f"{entry['time']}  {entry['model']}  seed {entry.get('seed')}"
            output.result(output.style(where, dim=True))
            output.result(text)
            output.result()
    if not n and not json:
        turned = "" if is_on() else "; the history is off, and gpt2kit history --on turns it on"
        output.note(("no such text" if words else "no texts") + turned)
