"""Commands with a fault each, to see that the campaign of bad luck finds it."""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from pathlib import Path
from typing import NoReturn

from campaigns.luck_cases import Luck, LuckTarget
from campaigns.luck_commands import Command
from gpt2kit.errors import FileError, Gpt2KitError
from gpt2kit.files import write_whole

CONTENT = bytes(range(256)) * 64
TARGET = Path("made/file")


def prepare(place: Path) -> None:
    (place / "made").mkdir()
    (place / "input").write_bytes(CONTENT)


def sound() -> None:
    """Has no fault, and says in one line what hinders it."""
    try:
        write_whole(TARGET, CONTENT)
    except (OSError, Gpt2KitError) as error:
        _end(error)


def _end(error: Exception) -> NoReturn:
    os.write(2, f"error: {error}\n".encode())
    raise SystemExit(1)


def in_place() -> None:
    """Writes under the final name."""
    with TARGET.open("wb", buffering=1000) as file:
        for start in range(0, len(CONTENT), 1000):
            file.write(CONTENT[start : start + 1000])


def littering() -> None:
    """Leaves its temporary file for ever when it is killed."""
    part = TARGET.with_name(f".file.{os.getpid()}.tmp")
    part.write_bytes(CONTENT)
    part.replace(TARGET)


def forgetful() -> None:
    """Takes a file that a killed process left for its own, and forgets to rename it."""
    part = TARGET.with_name(".file.tmp")
    if not part.exists():
        part.write_bytes(CONTENT)
        part.replace(TARGET)


def silent() -> None:
    """Ends well though it could not write."""
    with contextlib.suppress(OSError):
        write_whole(TARGET, CONTENT)


def mapping() -> None:
    """Reads a mapped file, which ends the process if the file is cut short meanwhile."""
    with Path("input").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
        time.sleep(0.2)
        write_whole(TARGET, bytes(data))


def unchecked() -> None:
    """Takes a file that was cut short for the whole one."""
    write_whole(TARGET, Path("input").read_bytes())


def checked() -> None:
    data = Path("input").read_bytes()
    if data != CONTENT:
        _end(FileError(Path("input"), "cut short"))
    write_whole(TARGET, data)


def target(body: object, luck: Luck) -> LuckTarget:
    """Return a target of a command that is a function."""
    assert callable(body)
    name = getattr(body, "__name__", "")
    return LuckTarget(luck, Command(name, prepare, body, inputs=("input",)))
