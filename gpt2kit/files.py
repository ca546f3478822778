"""Files that appear complete or not at all, and small ones that are read with care."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gpt2kit.errors import CheckpointFormatError, CheckpointNotFoundError, Gpt2KitError

# How files begin that are not what their names say: the cause of most "damaged" weights.
_IMPOSTORS = {
    b"version https://git-lfs": "this is a git-lfs pointer, not the file itself; run: git lfs pull",
    b"<": "this is a web page or an XML error saved under this name; download the file again",
}


def check_regular(path: Path) -> int:
    """Return the size in bytes of a file, links followed; raise unless it is one (a pipe or device would block for ever)."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise CheckpointNotFoundError(
            f"{path}: no such file", path=path, missing=[path.name]
        ) from None
    except OSError as error:
        raise CheckpointFormatError(path, f"cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointFormatError(path, "expected a file, found a folder, pipe or device")
    return status.st_size


def read_start(path: Path, n: int = 64) -> bytes:
    """Return the first n bytes of a regular file."""
    check_regular(path)
    try:
        with path.open("rb") as file:
            return file.read(n)
    except OSError as error:
        raise CheckpointFormatError(path, f"cannot be read: {error.strerror}") from error


def impostor(start: bytes) -> str | None:
    """Say what a file really is that begins like this, where it is a web page or a git-lfs pointer."""
    return next(
        (what for first, what in _IMPOSTORS.items() if start.lstrip().startswith(first)), None
    )


def read_text(path: Path, *, largest: int) -> str:
    """Return the text of a UTF-8 file of at most `largest` bytes."""
    size = check_regular(path)
    if size > largest:
        raise CheckpointFormatError(path, f"{size:,} bytes, expected at most {largest:,}")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise CheckpointFormatError(path, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CheckpointFormatError(
            path, f"not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}"
        ) from error


def read_json(path: Path, *, largest: int = 2**20, unique: bool = True) -> dict[str, Any]:
    """Return the object in a JSON file; damage, also a key given twice where they must be unique, is a CheckpointFormatError."""
    text = read_text(path, largest=largest)
    if explanation := impostor(text[:64].encode()):
        raise CheckpointFormatError(path, explanation)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a key is given twice")
        return result

    try:
        value = json.loads(text, object_pairs_hook=once if unique else None)
    except (ValueError, RecursionError) as error:
        raise CheckpointFormatError(path, f"not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointFormatError(path, f"expected a JSON object, found a {type(value).__name__}")
    return value


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a small file, text as UTF-8, so that after a crash it is the old one or the new one."""
    with new_file(path, part=path.with_name(f"{path.name}.tmp")) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def new_file(path: Path, *, part: Path | None = None) -> Iterator[BinaryIO]:
    """Give a file to write, which becomes `path` when the block ends, and vanishes if it fails.

    Until then it is `part`, which nobody else may be writing, or else has a name of this thread's own. A pipe or device such as
    /dev/stdout is written straight, for nothing may take its place.
    """
    if path.exists() and not path.is_file():
        with path.open("wb") as file:  # raises for a folder
            yield file
        return
    part = part or path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        fsync_directory(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def new_directory(
    target: Path, *, replace: bool = False, error: Callable[[str], Gpt2KitError] = Gpt2KitError
) -> Iterator[Path]:
    """Give an empty folder to write in, which becomes `target` when the block ends, and vanishes if it fails.

    What a killed process left of its own attempt goes at the next one. Raises `error` where the target exists and may not be
    replaced, or where the disk refuses.
    """
    target = Path(os.path.abspath(target))
    restore(target)
    if target.is_dir() and os.path.samefile(target, os.curdir):
        raise error(f"{target} is the folder you are in, and would be replaced; name another one")
    if (
        not replace
        and os.path.lexists(target)
        and not (target.is_dir() and not any(target.iterdir()))
    ):
        raise error(f"{target} already exists; name another folder, or add --force to replace it")
    building = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        _sweep(target)
        building.mkdir(parents=True)
        yield building
        for path in building.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        put_in_place(building, target)
    except OSError as failure:
        raise error(f"cannot write {target}: {failure.strerror or failure}") from failure
    finally:
        shutil.rmtree(building, ignore_errors=True)


def put_in_place(finished: Path, target: Path) -> None:
    """Rename a finished folder to `target`; what stood there stays whole until then, and is deleted after.

    Two renames are needed: a kill exactly between them leaves the older folder as `previous(target)`.
    """
    old = previous(target)
    fsync_directory(finished)
    if os.path.lexists(target):
        if os.path.lexists(old):  # left by a kill after an earlier swap
            delete(old)
        os.rename(target, old)
    try:
        os.rename(finished, target)
    except OSError:
        if os.path.lexists(old):
            os.rename(old, target)
        raise
    fsync_directory(target.parent)
    if os.path.lexists(old):
        delete(old)


def previous(target: Path) -> Path:
    """Return where the older folder is while a new one takes its place."""
    return target.with_name(f".{target.name}.old")


def restore(target: Path) -> None:
    """Give the older folder its name back, if a kill came between the two renames of `put_in_place`."""
    if os.path.lexists(previous(target)) and not os.path.lexists(target):
        os.rename(previous(target), target)


def _sweep(target: Path) -> None:
    """Delete what processes that were killed left beside the target."""
    for path in target.parent.glob(f".{target.name}.*.new"):
        process = path.name.removesuffix(".new").rpartition(".")[2]
        if process.isdigit() and int(process) != os.getpid() and not _is_running(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def delete(path: Path) -> None:
    """Delete a folder so that a kill half-way leaves no part of it under its name; a link or file is just unlinked."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    aside = path.with_name(f".{path.name.removeprefix('.')}.removed")
    shutil.rmtree(aside, ignore_errors=True)  # left by an earlier kill
    os.rename(path, aside)
    shutil.rmtree(aside)


def fsync_directory(directory: Path) -> None:
    """Make renames in the folder survive a power cut, where the system can."""
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
