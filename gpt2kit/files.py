"""Small files read with care, and files and folders that appear complete or not at all."""

from __future__ import annotations

import contextlib
import difflib
import glob
import itertools
import json
import os
import shutil
import socket
import stat
import threading
import zlib
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from gpt2kit.errors import FileError, Gpt2KitError

# How a file begins that is something else than its name says: the usual cause of "damaged" weights.
_IMPOSTORS = {
    b"version https://git-lfs": "this is a git-lfs pointer, not the file itself; run: git lfs pull",
    b"<": "this is a web page or an XML error saved under this name; download the file again",
}
_KINDS = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}

# The class whose `for_file` makes the error that a reader raises: FileError unless the caller names
# another one, such as TokenizerError.
Error = type[Gpt2KitError]


def check_regular(path: Path, *, error: Error = FileError) -> int:
    """Return a file's size in bytes; raise `error` unless it is a regular file, links followed.

    Reading a pipe would wait for its other end, and reading a device may never end.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            detail = f"a link to {os.readlink(path)}, which does not exist"
            raise error.for_file(path, detail, missing=True) from None
        raise error.for_file(path, f"no such file{_similar(path)}", missing=True) from None
    except (OSError, ValueError) as failure:  # ValueError: the name has a null character
        raise error.for_file(path, _cannot_be_read(failure)) from failure
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "device")
        raise error.for_file(path, f"expected a file, found a {kind}")
    return status.st_size


def _similar(path: Path) -> str:
    """Return the end of the message for a missing file: the most similar name in its folder."""
    with contextlib.suppress(OSError):
        names = [each.name for each in itertools.islice(os.scandir(path.parent), 1000)]
        if near := difflib.get_close_matches(path.name, names, 1, 0.75):
            return f"; did you mean {path.with_name(near[0])}?"
    return ""


@contextlib.contextmanager
def open_regular(path: Path, *, error: Error = FileError) -> Iterator[BufferedReader]:
    """Open a regular file to read bytes; raise `error` if opening or reading it fails."""
    check_regular(path, error=error)
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            yield file
    except OSError as failure:
        raise error.for_file(path, _cannot_be_read(failure)) from failure


def _without_waiting(path: str, flags: int) -> int:
    """Open a descriptor without waiting, even if a pipe replaced the file after the check."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _cannot_be_read(failure: Exception) -> str:
    """Return the detail of an error of the operating system."""
    return f"cannot be read: {getattr(failure, 'strerror', None) or failure}"


def read_bytes(path: Path, *, largest: int | None = None, error: Error = FileError) -> bytes:
    """Return the content of a regular file, which may have at most `largest` bytes."""
    size = check_regular(path, error=error)
    with open_regular(path, error=error) as file:
        if largest is None:
            return file.read()
        data = file.read(min(size, largest) + 1)
        if len(data) > size:  # it has grown since
            data += file.read(largest - size)
    if (found := max(size, len(data))) > largest:
        raise error.for_file(path, f"{found:,} bytes, expected at most {largest:,}")
    return data


def read_start(path: Path, n: int = 64, *, error: Error = FileError) -> bytes:
    """Return the first n bytes of a regular file."""
    with open_regular(path, error=error) as file:
        return file.read(n)


def impostor(start: bytes) -> str | None:
    """Say what is wrong with a file that starts as web pages and git-lfs pointers do, else None."""
    return next(
        (what for first, what in _IMPOSTORS.items() if start.lstrip().startswith(first)), None
    )


def read_text(path: Path, *, largest: int, error: Error = FileError) -> str:
    """Return the text of a UTF-8 file of at most `largest` bytes, without a byte order mark."""
    try:
        return read_bytes(path, largest=largest, error=error).decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        detail = f"not UTF-8 text: byte {failure.start} is 0x{failure.object[failure.start]:02x}"
        raise error.for_file(path, detail) from failure


def read_json(
    path: Path, *, largest: int = 2**20, unique: bool = True, error: Error = FileError
) -> dict[str, Any]:
    """Return the object in a JSON file of at most `largest` bytes.

    Raises `error` for anything else, and for a key that is given twice if keys must be `unique`.
    """
    text = read_text(path, largest=largest, error=error)
    if explanation := impostor(text[:64].encode()):
        raise error.for_file(path, explanation)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a key is given twice")
        return result

    try:
        value = json.loads(text, object_pairs_hook=once if unique else None)
    except (ValueError, RecursionError) as failure:
        raise error.for_file(path, f"not valid JSON: {failure}") from failure
    if not isinstance(value, dict):
        detail = f"expected a JSON object, found a {type(value).__name__}"
        raise error.for_file(path, detail)
    return value


def write_whole(path: Path, content: str | bytes, *, part: Path | None = None) -> None:
    """Write a small file, text as UTF-8, so that after a crash it is the old one or the new one.

    `part` is its name until then, as of `new_file`.
    """
    with new_file(path, part=part) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def new_file(path: Path, *, part: Path | None = None) -> Iterator[BinaryIO]:
    """Give a file to write, which becomes `path` when the block ends; deleted if the block fails.

    Until then its name is `part`, which nobody else may be writing, or by default a name of this
    thread's own; what killed processes left under theirs is deleted. A pipe or device such as
    /dev/stdout is written directly, since nothing may replace it.
    """
    if path.exists() and not path.is_file():
        with naming(path), path.open("wb") as file:  # raises for a folder
            yield file
        return
    if part is None:
        part = part_of(path)
        sweep_parts(path)
    try:
        with naming(path), part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        fsync_directory(path.parent)
    finally:
        part.unlink(missing_ok=True)


def part_of(path: Path) -> Path:
    """Return the name of a file while this thread writes it."""
    return path.with_name(f"{_parts_of(path)}{os.getpid()}-{threading.get_ident()}.part")


def _parts_of(path: Path) -> str:
    """Return how the names begin that `part_of` gives on this machine."""
    return f".{path.name}.{zlib.crc32(socket.gethostname().encode()):08x}-"


def sweep_parts(path: Path) -> None:
    """Delete what processes of this machine that no longer run left under their `part_of`."""
    start = _parts_of(path)
    for left in path.parent.glob(f"{glob.escape(start)}*.part"):
        process = left.name.removeprefix(start).partition("-")[0]
        if process.isdigit() and int(process) != os.getpid() and not _is_running(int(process)):
            with contextlib.suppress(OSError):
                left.unlink()


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the system that names no file, such as that of a full disk, name this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def new_directory(
    target: Path, *, replace: bool = False, error: Callable[[str], Gpt2KitError] = Gpt2KitError
) -> Iterator[Path]:
    """Give an empty folder to write in, which becomes `target` when the block ends.

    It is deleted if the block fails; what a killed process left of it is deleted by the next call.
    Raises `error` if the target exists and may not be replaced, or if the file system refuses.
    """
    target = Path(os.path.abspath(target))
    restore(target)
    if target.is_dir() and os.path.samefile(target, os.curdir):
        raise error(f"{target} is the current folder, which cannot be replaced; name another one")
    if (
        not replace
        and os.path.lexists(target)
        and not (target.is_dir() and not any(target.iterdir()))
    ):
        raise error(f"{target} already exists; name another folder, or add --force to replace it")
    building = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        sweep(target)
        building.mkdir(parents=True)
        yield building
        for path in filter(Path.is_file, building.rglob("*")):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        put_in_place(building, target)
    except OSError as failure:
        raise error(f"cannot write {target}: {failure.strerror or failure}") from failure
    finally:
        shutil.rmtree(building, ignore_errors=True)


def put_in_place(finished: Path, target: Path) -> None:
    """Rename a finished folder to `target`, whose previous content is deleted afterwards.

    This takes two renames. If the process is killed between them, the older folder is left whole as
    `previous(target)`, and `restore` gives it its name back.
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
    """Return the name of the older folder while a new one takes its place."""
    return target.with_name(f".{target.name}.old")


def restore(target: Path) -> None:
    """Undo half a `put_in_place`, killed between its two renames: rename the older folder back."""
    if os.path.lexists(previous(target)) and not os.path.lexists(target):
        os.rename(previous(target), target)


def leftovers(target: Path) -> list[Path]:
    """Return what killed processes left beside a folder, that nothing needs any more.

    These are folders that were being written for it by processes that no longer run, its previous
    content if the new one is in place, and what a deletion had not finished.
    """
    old = previous(target)
    found = [path for path in (_aside(target), _aside(old)) if os.path.lexists(path)]
    if os.path.lexists(old) and os.path.lexists(target):
        found.append(old)
    for path in target.parent.glob(f".{glob.escape(target.name)}.*.new"):
        process = path.name.removesuffix(".new").rpartition(".")[2]
        if process.isdigit() and int(process) != os.getpid() and not _is_running(int(process)):
            found.append(path)
    return found


def sweep(target: Path) -> None:
    """Delete the `leftovers` of a folder, as far as the system allows."""
    for path in leftovers(target):
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _is_running(process: int) -> bool:
    """Whether there is a process with this id."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def delete(path: Path) -> None:
    """Delete a folder, or unlink anything else.

    The folder is renamed first: if the process is killed, no half of it is left under its name.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    aside = _aside(path)
    shutil.rmtree(aside, ignore_errors=True)  # left by an earlier kill
    os.rename(path, aside)
    shutil.rmtree(aside, ignore_errors=True)  # another process may be sweeping it
    if os.path.lexists(aside):
        shutil.rmtree(aside)  # raises, and names the reason


def _aside(path: Path) -> Path:
    """Return the name of a folder while it is deleted."""
    return path.with_name(f".{path.name.removeprefix('.')}.removed")


def fsync_directory(directory: Path) -> None:
    """Make renames in the folder survive a power cut, on systems that can."""
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
