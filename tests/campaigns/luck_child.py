"""A command in a process forked from one that has imported everything, and what befalls it there.

A fork takes some milliseconds, a new Python with torch more than a second. The child calls the
command line itself; the changes that it makes to files are counted, and one of them may be its
last, or be refused, with all that follow.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import errno
import faulthandler
import gc
import io
import json
import mmap
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

Kind = Literal["kill", "full", "refuse", "vanish", "clock", "memory", "cut"]

# What a full disk refuses; names can still be changed and deleted.
_NEEDS_SPACE = {"open", "write", "mkdir", "link", "symlink", "fsync"}
_CHANGES = ("rename", "replace", "unlink", "remove", "rmdir", "mkdir", "link", "symlink")
_FOR_WRITING = os.O_WRONLY | os.O_RDWR

# Variables of the environment that say where gpt2kit keeps things, and folders for them in a place.
FOLDERS = {"GPT2KIT_WEIGHTS": "weights", "GPT2KIT_DATA": "data", "XDG_CACHE_HOME": "cache"}


@dataclass(frozen=True)
class Trouble:
    """What befalls a command, from its `nth` change of files on, or during all of it."""

    kind: Kind
    nth: int = 0  # the change at which it happens, from 0
    number: int = 0  # a signal, the errno of what is refused, or megabytes
    seed: int = 0
    folder: str = "made"  # what vanishes, below the place
    file: str = ""  # what is cut short, when it is opened for the nth time, and to how many bytes


@dataclass(frozen=True)
class Ended:
    """How a command ended: an exit code, or minus a signal; and what it wrote to stderr."""

    code: int
    said: str


@dataclass(frozen=True)
class Seen:
    """What an undisturbed run did."""

    changes: int  # of files
    opened: dict[str, int]  # how often each file was opened to be read
    modules: list[str]  # those that it imported
    named: list[tuple[str, str]]  # names that a file got when it was whole, and its digest then


class Child:
    """A running command."""

    def __init__(
        self,
        body: Callable[[], Any],
        place: Path,
        trouble: Trouble | None = None,
        *,
        digest: Callable[[Path], str] | None = None,
    ) -> None:
        """Start it; with `digest`, note what it does, for `seen`."""
        self._log = place.with_name(f"{place.name}.{time.monotonic_ns()}.stderr")
        self._notes = self._log.with_suffix(".notes")
        watch = Watch(place, trouble)
        ready, told = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # pytest may have threads
            self.pid = os.fork()
        if self.pid == 0:
            if digest is not None:
                watch.note_in(self._notes, digest)
            _be(body, place, self._log, told, watch)
        self._watch = watch
        os.close(told)
        os.read(ready, 1)
        os.close(ready)
        self.started = time.monotonic()
        self._status: int | None = None

    def has_ended(self) -> bool:
        """Whether the command has ended."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = status if pid else None
        return self._status is not None

    def send(self, number: int, *, draw: random.Random) -> None:
        """Send a signal to the process, or to one of those that it has started."""
        pids = [self.pid, *_children(self.pid)]
        with contextlib.suppress(ProcessLookupError):
            os.kill(draw.choice(pids), number)

    def end(self, seconds: float) -> Ended:
        """Wait for the end, and stop what takes too long."""
        deadline = time.monotonic() + seconds
        pause = 0.001
        while not self.has_ended():
            if time.monotonic() > deadline:
                for pid in (*_children(self.pid), self.pid):
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                self._log.unlink()
                return Ended(-signal.SIGALRM, f"longer than {seconds:.0f} s")
            time.sleep(pause)
            pause = min(pause * 1.2, 0.02)
        said = self._log.read_text(errors="replace")
        self._log.unlink()
        assert self._status is not None
        return Ended(os.waitstatus_to_exitcode(self._status), said)

    def seen(self) -> Seen:
        """Return what the command did, now that it has ended."""
        lines = [json.loads(line) for line in self._notes.read_text().splitlines()]
        self._notes.unlink()
        ended = next(line for line in lines if isinstance(line, dict))
        return Seen(
            self._watch.changes,
            ended["opened"],
            ended["modules"],
            [(name, digest) for name, digest in (line for line in lines if isinstance(line, list))],
        )


def _children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _be(body: Callable[[], Any], place: Path, log: Path, told: int, watch: Watch) -> NoReturn:
    """Be the child: the command, and nothing of what the parent would do at its end."""
    code = 70
    try:
        try:
            _settle(place, log)
            watch.begin()
            os.write(told, b"x")
            body()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        with contextlib.suppress(Exception):
            atexit._run_exitfuncs()
            sys.stderr.flush()
            watch.finish()
    finally:
        os._exit(code)  # also when a late SIGINT interrupts what comes before: this is a fork


def _settle(place: Path, log: Path) -> None:
    """Give the child streams, folders, signals and processes of its own."""
    atexit._clear()
    gc.freeze()  # or every page with an object would be copied
    # A watchdog of the parent has no thread here; to cancel it would wait for that thread for ever.
    faulthandler.disable()
    os.setpgid(0, 0)
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.dup2(descriptor, 2)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", 1)
    for variable, name in FOLDERS.items():
        os.environ[variable] = str(place / name)
    os.environ["GPT2KIT_QUICK_EXIT"] = "0"
    os.chdir(place)
    both = (signal.SIGTERM, signal.SIGINT)
    os.register_at_fork(  # a new program would begin without the handlers of this one, too
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, both),
        after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, both),
        after_in_child=_begin_anew,
    )
    context = multiprocessing.get_context
    # Workers are forked, too: nothing of torch has started a thread here.
    multiprocessing.get_context = lambda method=None: context("fork")  # type: ignore[assignment]


def _begin_anew() -> None:
    """Let signals do to a forked worker what they do to a new program."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))


class Watch:
    """Counts the changes of files in a place, and lets one of them go wrong."""

    def __init__(self, place: Path, trouble: Trouble | None) -> None:
        self._count = mmap.mmap(-1, 8)  # shared with the processes that the command starts
        self._opened_files: dict[str, int] = {}
        self._digest: Callable[[Path], str] | None = None
        self._place = str(place)
        self._trouble = trouble
        self._kind = trouble.kind if trouble else None

    def begin(self) -> None:
        """Watch from now on."""
        for name in _CHANGES:
            setattr(os, name, self._counted(name, getattr(os, name)))
        self._fsync, self._os_open, self._open = os.fsync, os.open, io.open
        os.fsync = self._synced  # type: ignore[assignment]
        os.open = self._os_opened
        io.open = builtins.open = self._opened
        if self._trouble and self._kind == "clock":
            self._jump(random.Random(self._trouble.seed))
        if self._trouble and self._kind == "memory":
            pages = int(self._open("/proc/self/statm").read().split()[0])
            most = pages * os.sysconf("SC_PAGE_SIZE") + self._trouble.number * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (most, most))

    @property
    def changes(self) -> int:
        """How many changes there were until now."""
        return int.from_bytes(self._count[:], "little")

    def note_in(self, path: Path, digest: Callable[[Path], str]) -> None:
        """Note what happens in a file."""
        self._digest = digest
        self._notes = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def _note(self, what: object) -> None:
        os.write(self._notes, (json.dumps(what) + "\n").encode())

    def finish(self) -> None:
        """Note what is only known at the end."""
        if self._digest is not None:
            self._note({"opened": self._opened_files, "modules": sorted(sys.modules)})

    def change(self, what: str) -> bool:
        """Count a change before it is made; return whether it is the last, or half of it."""
        mine = self.changes
        self._count[:] = (mine + 1).to_bytes(8, "little")
        trouble = self._trouble
        if trouble is None or mine < trouble.nth:
            return False
        if self._kind == "vanish" and mine == trouble.nth:
            shutil.rmtree(os.path.join(self._place, trouble.folder), ignore_errors=True)
        if self._kind == "kill":
            return mine == trouble.nth
        if self._kind == "full":
            return what in _NEEDS_SPACE
        if self._kind == "refuse":
            return mine == trouble.nth or (trouble.number != errno.EIO and what != "fsync")
        return False

    def strike(self) -> None:
        """Let it happen."""
        assert self._trouble is not None
        if self._kind == "kill":
            os.kill(os.getpid(), self._trouble.number)
            time.sleep(0)  # where the handler of a signal runs
            return
        number = errno.ENOSPC if self._kind == "full" else self._trouble.number
        raise OSError(number, os.strerror(number))

    def is_inside(self, path: Any, options: dict[str, Any]) -> bool:
        """Whether a file is in the place; one that is named from an open folder is."""
        if isinstance(path, int):
            with contextlib.suppress(OSError):
                path = os.readlink(f"/proc/self/fd/{path}")
        if options.get("dir_fd") is not None:
            return True
        return not isinstance(path, int) and os.path.abspath(os.fsdecode(path)).startswith(
            self._place + os.sep
        )

    def _counted(self, name: str, function: Any) -> Any:
        def call(*paths: Any, **options: Any) -> Any:
            if self.is_inside(paths[0], options) and self.change(name):
                self.strike()
            found = function(*paths, **options)
            if name in ("rename", "replace", "link"):
                self._named(Path(paths[1]))
            return found

        return call

    def _named(self, path: Path) -> None:
        if self._digest is None:
            return
        below = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
        for each in below:
            self._note([os.path.relpath(each, self._place), self._digest(each)])

    def _synced(self, descriptor: int) -> None:
        if self.is_inside(descriptor, {}) and self.change("fsync"):
            self.strike()

    def _os_opened(self, path: Any, flags: int, *rest: Any, **options: Any) -> int:
        is_new = flags & _FOR_WRITING and (flags & os.O_CREAT)
        if is_new and self.is_inside(path, options) and self.change("open"):
            self.strike()
        return self._os_open(path, flags, *rest, **options)

    def _opened(
        self, file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **how: Any
    ) -> Any:
        if not self.is_inside(file, {}):
            return self._open(file, mode, buffering, *rest, **how)
        if not set(mode) & set("wax+"):
            found = self._open(file, mode, buffering, *rest, **how)
            self._note_opened(file)
            return found
        if self.change("open"):
            self.strike()
        text = dict(zip(("encoding", "errors", "newline"), rest[:3], strict=False)) | how
        raw = _Counted(
            file,
            mode.replace("b", "").replace("t", ""),
            text.pop("closefd", True),
            text.pop("opener", None),
        )
        raw.watch = self
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, **text)

    def _note_opened(self, file: Any) -> None:
        if isinstance(file, int):
            return
        name = os.path.relpath(os.fsdecode(file), self._place)
        count = self._opened_files[name] = self._opened_files.get(name, 0) + 1
        trouble = self._trouble
        if trouble and self._kind == "cut" and name == trouble.file and count == trouble.nth:
            os.truncate(file, trouble.number)

    def _jump(self, draw: random.Random) -> None:
        """Let the clock jump by years, forwards and backwards, whenever it is asked."""
        now = time.time
        years = [0.0, 0.0]

        def jumping() -> float:
            if draw.random() < 0.3:
                years[0] = draw.uniform(-10, 30) * 3.15e7
            return now() + years[0]

        time.time = jumping
        time.time_ns = lambda: int(jumping() * 1e9)


class _Counted(io.FileIO):
    """A file whose writes are counted; of one that goes wrong, half is written."""

    watch: Watch

    def write(self, data: Any) -> int:
        if self.watch.change("write"):
            half = memoryview(data).cast("B")[: len(memoryview(data).cast("B")) // 2]
            super().write(half)
            self.watch.strike()
            return len(half)
        return super().write(data)
