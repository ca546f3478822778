"""What all campaigns share: a target, its cases, what may come of a case, and the limits of one."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Generic, Literal, Protocol, TypeVar

BYTES = 500 * 2**20

Outcome = Literal["same", "refused", "undetectable", "failed"]
OUTCOMES: tuple[Outcome, ...] = ("same", "refused", "undetectable", "failed")


@dataclass(frozen=True)
class Result:
    """What came of a case.

    `why` is the message of an error, or what was wrong; `comparisons` how much was compared.
    """

    outcome: Outcome
    why: str = ""
    comparisons: int = 1


class Cases(Protocol):
    """The cases of a target, made ready in a folder of their own; each is known by its seed."""

    def describe(self, seed: int) -> tuple[str, bytes]:
        """Return a case in a few words, and the file that it gives to the program, if any."""
        ...

    def run(self, seed: int) -> Result:
        """Do one case; afterwards all is as it was before."""
        ...

    def close(self) -> None:
        """End what the cases have started: servers, and other processes."""
        ...


class Target(Protocol):
    """Something that a campaign tries.

    Its name begins with the row of the table that counts it: `GGUF: sizes` is counted in `GGUF`.
    """

    @property
    def name(self) -> str: ...

    @property
    def limits_memory(self) -> bool:
        """Whether the process of the cases may take no more than BYTES."""
        ...

    @property
    def stuck(self) -> float:
        """Seconds after which a case that does not even stop by itself is ended, and has failed."""
        ...

    def prepare(self, folder: Path) -> Cases:
        """Make ready, in an empty folder, what all cases need."""
        ...


AnyTarget = TypeVar("AnyTarget", bound=Target)


@dataclass(frozen=True)
class Campaign(Generic[AnyTarget]):
    """Targets, the cases of each in a full dose, and the cases that one process does.

    Of targets whose names end with one of `slow`, a twentieth of the cases is done.
    """

    targets: Sequence[AnyTarget]
    full: int
    chunk: int
    slow: tuple[str, ...] = ()

    def cases_of(self, target: AnyTarget, cases: int) -> int:
        """Return how many cases of a target are done if most have `cases`."""
        return max(1, cases // 20) if target.name.endswith(self.slow) else cases


class TooSlow(BaseException):
    """A case took longer than it may."""


@contextlib.contextmanager
def limited_time(seconds: float) -> Iterator[None]:
    """Raise TooSlow in this block after that many seconds."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"longer than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
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
