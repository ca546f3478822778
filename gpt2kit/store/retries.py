"""How a download waits, tries again and gives up, and what it tells meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, TypeVar

import httpx2

from gpt2kit.errors import DownloadError

T = TypeVar("T")


class Progress(Protocol):
    """What a download tells while it works, always from the thread that called `download`."""

    def started(self, file: str, total: int, already: int) -> None:
        """A file begins, `already` of its `total` bytes here; repeated if it starts again."""

    def advanced(self, n: int) -> None:
        """Another n bytes of the file have arrived."""

    def finished(self, file: str) -> None:
        """The file is complete and verified."""

    def note(self, text: str) -> None:
        """One line about a wait, a retry, or anything else that takes time or was unexpected."""


class Silent:
    """A Progress that shows nothing."""

    def started(self, file: str, total: int, already: int) -> None: ...

    def advanced(self, n: int) -> None: ...

    def finished(self, file: str) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait, in seconds, and how often to try; every wait has one of these bounds."""

    connect: float = 10.0
    read: float = 30.0  # without a single byte
    stall: float = 30.0  # the time over which the speed must reach the floor
    floor: int = 2_000  # bytes per second; a slower transfer is interrupted
    tries: int = 6  # in a row without progress
    lookups: int = 3  # the same before the first file, so that being offline is noticed soon
    progress: int = 65_536  # bytes that count as progress
    give_up: float = 600.0  # without progress, whatever the number of tries
    backoff: float = 1.0  # before the second try, doubled for each one after it
    longest_backoff: float = 30.0
    longest_retry_after: float = 60.0  # of what a server asks for


class Interrupted(Exception):
    """A try failed in a way that the next one may not."""

    def __init__(
        self, message: str, retry_after: float | None = None, *, unreachable: bool = False
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after  # seconds that the server asks to wait
        self.unreachable = unreachable  # whether the server was not reached at all

    @classmethod
    def by(cls, error: Exception, when: str = "") -> Interrupted:
        """Return the interruption that a network error is."""
        unreachable = isinstance(
            error, (httpx2.ConnectError, httpx2.TimeoutException, httpx2.ProxyError, TimeoutError)
        )
        return cls(plainly(error) + when, unreachable=unreachable)


def plainly(error: Exception) -> str:
    """Name a network error in a few words."""
    if isinstance(error, (httpx2.TimeoutException, TimeoutError)):
        return "no answer in time"
    if isinstance(error, httpx2.ConnectError):
        return f"no connection ({error})"
    return f"the connection broke ({error})" if str(error) else "the connection broke"


class Tries:
    """Failures in a row: waits after each one, and gives up after too many.

    `advice` says what else the user can do, given whether the server was unreachable.
    """

    def __init__(
        self, patience: Patience, progress: Progress, most: int, advice: Callable[[bool], str]
    ) -> None:
        self._patience = patience
        self._progress = progress
        self._most = most
        self._advice = advice
        self.start_again()

    def start_again(self) -> None:
        """Forget the failures: something has worked."""
        self._failures = 0
        self._since = time.monotonic()

    def failed(self, failure: Interrupted, url: str) -> None:
        """Wait before the next try; raise DownloadError if there were too many."""
        self._failures += 1
        if self._failures >= self._most or time.monotonic() - self._since > self._patience.give_up:
            tries = f"gave up after {self._failures} tries"
            advice = self._advice(failure.unreachable)
            raise DownloadError(
                f"{shown(url)}: {failure}; {tries}. {advice}", url=shown(url)
            ) from failure
        wait = min(
            self._patience.backoff * 2 ** (self._failures - 1), self._patience.longest_backoff
        )
        if failure.retry_after is not None:
            wait = min(max(wait, failure.retry_after), self._patience.longest_retry_after)
        self._progress.note(f"{failure}; trying again in {wait:.0f} s")
        time.sleep(wait)


def try_later(unreachable: bool) -> str:
    """Return the advice for a download that no other server has."""
    return "Check the connection" if unreachable else "Try again later"


def shown(url: str) -> str:
    """Return an address for messages, without user, password, signature or token."""
    parsed = httpx2.URL(url)
    port = f":{parsed.port}" if parsed.port else ""
    return f"{parsed.scheme}://{parsed.host}{port}{parsed.path}"


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return call(), or raise TimeoutError if it takes longer.

    An HTTP client's timeout is per read, and resolving a name has none. The thread that makes the
    call is then left to end by itself.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            result = call()
        except BaseException as error:  # passed to the waiting thread
            outcome.set_exception(error)
        else:
            outcome.set_result(result)

    threading.Thread(target=run, daemon=True).start()
    return outcome.result(timeout=seconds)
