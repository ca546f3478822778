"""Move the bytes of one file: resumed, checked, and never waiting for ever.

What a server sends is appended to what an earlier process left only if it is surely the rest of the same version, and gets the file's name
only when size and hashes are right. Where files come from and where they go is known to `sources` and `gpt2kit.download`.
"""

from __future__ import annotations

import contextlib
import email.utils
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import httpx2

from gpt2kit.errors import DownloadError
from gpt2kit.store.parts import Part, RemoteFile

T = TypeVar("T")

_RETRIED = {408, 425, 429, 500, 502, 503, 504}
_MOST_REDIRECTS = 10
_PAGE = re.compile(rb"\s*<(!doctype|html|head|body|\?xml|error)", re.IGNORECASE)


class Progress(Protocol):
    """What a download tells while it works; every call is on the thread that called `download`."""

    def started(self, file: str, total: int, already: int) -> None:
        """A file begins with `already` of its bytes here; called again for the same file when that changes."""

    def advanced(self, n: int) -> None:
        """So many more bytes of the file have arrived."""

    def finished(self, file: str) -> None:
        """The file is complete and verified."""

    def note(self, text: str) -> None:
        """A wait, a retry, or anything else that takes time or was unexpected, in one line."""


class Silent:
    """A Progress that tells nobody."""

    def started(self, file: str, total: int, already: int) -> None: ...

    def advanced(self, n: int) -> None: ...

    def finished(self, file: str) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait for what, in seconds, and how often to try; every wait of a download is bounded by one of these."""

    connect: float = 10.0
    read: float = 30.0  # without a single byte
    stall: float = 30.0  # the time over which the speed must reach the floor
    floor: int = 2_000  # bytes per second; slower than this for `stall` seconds is a stall
    tries: int = 6  # in a row without progress
    lookups: int = 3  # the same for the small questions before the first file, so that being offline is told soon
    progress: int = 65_536  # bytes that one try must bring to count as progress
    give_up: float = 600.0  # after so long without progress, whatever the number of tries
    backoff: float = 1.0  # before the second try; doubled for each one after it
    longest_backoff: float = 30.0
    longest_retry_after: float = 60.0  # what a server may ask for


class Interrupted(Exception):
    """A try failed in a way that another one may not."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class WrongContent(Exception):
    """What the server sends is not the file."""


class Tries:
    """Failures in a row: waits after each, and gives up after too many."""

    def __init__(self, patience: Patience, progress: Progress, most: int) -> None:
        self._patience = patience
        self._progress = progress
        self._most = most
        self.start_again()

    def start_again(self) -> None:
        """Forget the failures: something has worked."""
        self._failures = 0
        self._since = time.monotonic()

    def failed(self, failure: Interrupted, url: str) -> None:
        """Wait before the next try, or raise DownloadError if there shall be none."""
        self._failures += 1
        if self._failures >= self._most or time.monotonic() - self._since > self._patience.give_up:
            raise DownloadError(
                f"{shown(url)}: {failure}; gave up after {self._failures} tries. Try again later",
                url=shown(url),
            ) from failure
        wait = min(
            self._patience.backoff * 2 ** (self._failures - 1), self._patience.longest_backoff
        )
        if failure.retry_after is not None:
            wait = min(max(wait, failure.retry_after), self._patience.longest_retry_after)
        self._progress.note(f"{failure}; trying again in {wait:.0f} s")
        time.sleep(wait)


def shown(url: str) -> str:
    """Return an address as messages may show it: without user, password, signature or token."""
    parsed = httpx2.URL(url)
    port = f":{parsed.port}" if parsed.port else ""
    return f"{parsed.scheme}://{parsed.host}{port}{parsed.path}"


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return call(), or raise TimeoutError if it takes longer.

    The timeouts of HTTP clients are per read, and asking for an address has none. The thread is left behind to end by itself.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            result = call()
        except BaseException as error:  # not handled here, but carried to the waiting thread
            outcome.set_exception(error)
        else:
            outcome.set_result(result)

    threading.Thread(target=run, daemon=True).start()
    return outcome.result(timeout=seconds)


class Transfer:
    """Fetches files over HTTP; `headers` go to `endpoint` and to nowhere else.

    `refusal` words what an answer of 400 and above means, given the response.
    """

    def __init__(
        self,
        *,
        endpoint: str,
        headers: Mapping[str, str],
        refusal: Callable[[httpx2.Response], str],
        patience: Patience,
        progress: Progress,
    ) -> None:
        self._origin = _origin(httpx2.URL(endpoint))
        self._headers = dict(headers)
        self._refusal = refusal
        self._patience = patience
        self._progress = progress
        timeout = httpx2.Timeout(patience.read, connect=patience.connect)
        self._client = httpx2.Client(
            timeout=timeout, follow_redirects=False, headers={"User-Agent": "gpt2kit"}
        )

    def __enter__(self) -> Transfer:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def head(self, url: str) -> httpx2.Headers:
        """Return what the server tells about a file without sending it."""
        tries = Tries(self._patience, self._progress, self._patience.lookups)
        while True:
            try:
                with self._answer("HEAD", url, {}) as response:
                    _refuse_page(response, url)
                    return response.headers
            except Interrupted as failure:
                tries.failed(failure, url)

    def fetch(self, file: RemoteFile, directory: Path, *, verify: bool = True) -> str:
        """Leave the file in the directory, complete and with the size and digests it must have; return its sha256.

        Goes on with what an earlier call left there. Raises DownloadError; the part stays for the next call unless its bytes were wrong.
        """
        part = Part(directory, file)
        part.reopen()
        for last in (False, True):
            try:
                self._complete(part, file)
                problem = part.problem(verify=verify)
            except WrongContent as wrong:
                problem = str(wrong)
            if problem is None:
                break
            part.discard()
            if last:
                raise DownloadError(
                    f"{problem}; so it was twice, and is deleted. Does the server or something in between change it?",
                    url=shown(file.url),
                )
            self._progress.note(f"{problem}; fetching it again from the start")
        part.finish()
        self._progress.finished(file.name)
        return part.sha256

    def _complete(self, part: Part, file: RemoteFile) -> None:
        """Make requests until the part has the size of the file, or more."""
        tries = Tries(self._patience, self._progress, self._patience.tries)
        furthest = part.size
        self._progress.started(file.name, file.size, part.size)
        while part.size < file.size or not part.exists():
            try:
                self._request_rest(part, file)
            except Interrupted as failure:
                # Only bytes never reached before count, or a server without ranges that always breaks off would be asked for ever.
                if part.size >= furthest + self._patience.progress:
                    tries.start_again()
                furthest = max(furthest, part.size)
                tries.failed(failure, file.url)
            finally:
                part.close()

    def _request_rest(self, part: Part, file: RemoteFile) -> None:
        """Append what one request brings; raise Interrupted if that was not all."""
        wanted = (
            {"Range": f"bytes={part.size}-", "If-Range": part.etag}
            if part.size and part.etag
            else {}
        )
        with self._answer("GET", file.url, wanted) as response:
            _refuse_page(response, file.url)
            if not (wanted and _continues(response, part, file)):
                if part.size:
                    part.discard()
                    self._progress.started(file.name, file.size, 0)
                if response.status_code != 200:
                    raise Interrupted(
                        f"{file.name}: the server answered {response.status_code} with another part than the one asked for"
                    )
                _check_length(response, file)
                part.restart(response.headers.get("ETag"))
            self._receive(response, part, file)
        if part.size < file.size:
            raise Interrupted(
                f"{file.name}: the connection was closed after {part.size:,} of {file.size:,} bytes"
            )

    def _receive(self, response: httpx2.Response, part: Part, file: RemoteFile) -> None:
        """Append the body to the part; stop where it is longer than the file or slower than the floor."""
        window_start, in_window = time.monotonic(), 0
        chunks = response.iter_raw()
        while part.size <= file.size:
            try:
                chunk = next(chunks, None)
            except httpx2.HTTPError as error:
                raise Interrupted(
                    f"{file.name}: {plainly(error)} after {part.size:,} of {file.size:,} bytes"
                ) from error
            if chunk is None:
                return
            if part.size == 0 and _PAGE.match(chunk):
                part.discard()
                raise _page_error(file.url)
            part.append(chunk)
            self._progress.advanced(len(chunk))
            in_window += len(chunk)
            elapsed = time.monotonic() - window_start
            if elapsed > self._patience.stall:
                if in_window < self._patience.floor * elapsed and part.size < file.size:
                    raise Interrupted(
                        f"{file.name}: only {in_window:,} bytes came in {elapsed:.0f} s"
                    )
                window_start, in_window = time.monotonic(), 0

    @contextlib.contextmanager
    def _answer(
        self, method: str, url: str, headers: Mapping[str, str]
    ) -> Iterator[httpx2.Response]:
        """Follow redirects to an answer of 200 or 206; raise Interrupted for what may pass, DownloadError for what will not."""
        current = httpx2.URL(url)
        for _ in range(_MOST_REDIRECTS):
            response = self._send(method, current, headers)
            try:
                if response.has_redirect_location:
                    current = _redirected(current, response)
                    continue
                # 416: what we have is longer than the file on the server. It is for the caller to start again.
                if response.status_code not in (200, 206, 416):
                    raise judge(response, url, self._refusal)
                yield response
                return
            finally:
                response.close()
        raise DownloadError(
            f"{shown(url)}: redirected more than {_MOST_REDIRECTS} times", url=shown(url)
        )

    def _send(self, method: str, url: httpx2.URL, headers: Mapping[str, str]) -> httpx2.Response:
        own = self._headers if _origin(url) == self._origin else {}
        # Without identity, a server may compress, and neither the offsets nor the hashes would be those of the file.
        request = self._client.build_request(
            method, url, headers={**own, **headers, "Accept-Encoding": "identity"}
        )
        try:
            return within(
                self._patience.connect + self._patience.read,
                lambda: self._client.send(request, stream=True),
            )
        except (httpx2.HTTPError, TimeoutError) as error:
            raise Interrupted(plainly(error)) from error


def judge(
    response: httpx2.Response, url: str, refusal: Callable[[httpx2.Response], str]
) -> Interrupted | DownloadError:
    """Return the error that an answer other than success is: Interrupted if another try may succeed."""
    if response.status_code in _RETRIED:
        return Interrupted(
            f"the server answered {response.status_code}", _retry_after(response.headers)
        )
    return DownloadError(refusal(response), url=shown(url))


def _continues(response: httpx2.Response, part: Part, file: RemoteFile) -> bool:
    """Whether the answer is surely the rest of the version that the part is the beginning of."""
    if response.status_code != 206 or response.headers.get("ETag", part.etag) != part.etag:
        return False
    match = re.fullmatch(
        r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", "").strip()
    )
    return (
        match is not None
        and int(match[1]) == part.size
        and int(match[2]) == file.size - 1
        and match[3] in ("*", str(file.size))
    )


def _check_length(response: httpx2.Response, file: RemoteFile) -> None:
    declared = response.headers.get("Content-Length")
    if declared is not None and declared != str(file.size):
        raise WrongContent(f"{file.name} has {declared} bytes on the server, expected {file.size}")


def _refuse_page(response: httpx2.Response, url: str) -> None:
    if response.headers.get("Content-Type", "").split(";")[0].strip().lower() in (
        "text/html",
        "application/xhtml+xml",
    ):
        raise _page_error(url)


def _page_error(url: str) -> DownloadError:
    return DownloadError(
        f"{shown(url)} answered with a web page: is there a proxy or login page in between?",
        url=shown(url),
    )


def _redirected(url: httpx2.URL, response: httpx2.Response) -> httpx2.URL:
    try:
        target = url.join(response.headers["Location"])
    except (httpx2.InvalidURL, ValueError) as error:
        raise DownloadError(
            f"{shown(str(url))}: redirected to something that is no address", url=shown(str(url))
        ) from error
    if target.scheme not in ("http", "https") or (
        url.scheme == "https" and target.scheme != "https"
    ):
        raise DownloadError(
            f"{shown(str(url))}: redirected from https to {target.scheme}, which is not followed",
            url=shown(str(url)),
        )
    return target


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _retry_after(headers: httpx2.Headers) -> float | None:
    """Return the seconds that the server asks to wait, given as a number or as a date."""
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def plainly(error: Exception) -> str:
    """Name a network failure in a few words."""
    if isinstance(error, (httpx2.TimeoutException, TimeoutError)):
        return "no answer in time"
    if isinstance(error, httpx2.ConnectError):
        return f"no connection ({error})"
    return (
        f"the connection broke ({error or type(error).__name__})"
        if str(error)
        else "the connection broke"
    )
