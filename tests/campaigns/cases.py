"""A case of a campaign: one damaged file, what came of it, and whether that is allowed."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

from campaigns.damage import Damage
from gpt2kit.errors import Gpt2KitError, OutOfMemoryError

SECONDS = 5.0
BYTES = 500 * 2**20

Outcome = Literal["same", "refused", "undetectable", "failed"]
OUTCOMES: tuple[Outcome, ...] = ("same", "refused", "undetectable", "failed")


@dataclass(frozen=True)
class Target:
    """Something that reads files: how a whole one is made, and how it is damaged.

    `make` writes into an empty folder and returns what `read` takes. `read` returns a digest of all
    that it understood. `finds_all` says that checksums let no changed file pass for another one.
    """

    name: str
    make: Callable[[Path], Path]
    damaged: Sequence[str]  # files of the folder, one of which is damaged
    read: Callable[[Path], str]
    damage: Damage
    finds_all: bool = False


@dataclass(frozen=True)
class Result:
    """What came of a case; `why` is the message of an error, or what was wrong."""

    outcome: Outcome
    why: str = ""


class TooSlow(BaseException):
    """A case took longer than it may."""


class Cases:
    """The cases of a target in a folder of their own; each is known by its seed."""

    def __init__(self, target: Target, folder: Path) -> None:
        self.target = target
        folder.mkdir(parents=True, exist_ok=True)
        self._path = target.make(folder)
        self._folder = folder
        self._files = {path for path in folder.rglob("*") if path.is_file()}
        self._whole = {str(path.relative_to(folder)): path.read_bytes() for path in self._files}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._digest, again = target.read(self._path), target.read(self._path)
        if again != self._digest:
            raise AssertionError(f"{target.name}: what is read is not the same twice")

    def bytes_of(self, seed: int) -> tuple[str, bytes]:
        """Return the name and content of the damaged file of a case."""
        draw = random.Random(f"{self.target.name} {seed}")
        name = draw.choice(self.target.damaged)
        data = self._whole[name]
        for _ in range(10):
            if (damaged := self.target.damage(data, draw)) != data:
                break
        return name, damaged

    def run(self, seed: int) -> Result:
        """Read a damaged file, and put the whole one back."""
        name, damaged = self.bytes_of(seed)
        self._replace(name, damaged)
        try:
            return self._outcome()
        finally:
            self._replace(name, self._whole[name])
            if {path for path in self._folder.rglob("*") if path.is_file()} != self._files:
                shutil.rmtree(self._folder)
                for each, data in self._whole.items():
                    (self._folder / each).parent.mkdir(parents=True, exist_ok=True)
                    (self._folder / each).write_bytes(data)

    def _replace(self, name: str, content: bytes) -> None:
        """Write a file anew: the one that was read before may still be mapped into memory."""
        path = self._folder / name
        if path.parent.exists():
            path.unlink(missing_ok=True)
            path.write_bytes(content)

    def _outcome(self) -> Result:
        try:
            with warnings.catch_warnings(), _limited_time():
                warnings.simplefilter("ignore")
                digest = self.target.read(self._path)
        except OutOfMemoryError as error:
            return Result("failed", f"memory: {error}")
        except Gpt2KitError as error:
            return Result("refused", str(error))
        except (Exception, TooSlow) as error:
            return Result("failed", f"{type(error).__name__}: {error}")
        if digest == self._digest:
            return Result("same")
        if self.target.finds_all:
            return Result("failed", "something else was read, and the damage not found")
        return Result("undetectable")


@contextlib.contextmanager
def _limited_time() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"longer than {SECONDS:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def limit_memory() -> None:
    """Let this process map no more than 500 MB beyond what it has now, if the system can say."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(
            resource.RLIMIT_AS,
            (pages * os.sysconf("SC_PAGE_SIZE") + BYTES, resource.RLIM_INFINITY),
        )
