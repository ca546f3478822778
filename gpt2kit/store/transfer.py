"""Move the bytes of one file: resumed, checked, and with a bound on every wait.

What a server sends is appended to the part that an earlier process left only if it is certainly the
rest of the same version. The part becomes the file when its size and hashes are right. `sources`
knows where files come from, `download` where they go.
"""

from __future__ import annotations

import contextlib
import email.utils
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx2

from gpt2kit.errors import DownloadError
from gpt2kit.store.parts import Part, RemoteFile
from gpt2kit.store.retries import (
    Interrupted,
    Patience,
    Progress,
    Tries,
    plainly,
    shown,
    try_later,
    within,
)

_RETRIED = {408, 425, 429, 500, 502, 503, 504}
_MOST_REDIRECTS = 10
_PAGE = re.compile(rb"\s*<(!doctype|html|head|body|\?xml|error)", re.IGNORECASE)


class WrongContent(Exception):
    """The server sends something else than the file."""


class Transfer:
    """Fetches files over HTTP; `headers` are sent to `endpoint` and to no other server.

    `refusal` says what a response with a status of 400 or above means. `advice` says what else
    the user can do after giving up, given whether the server was unreachable.
    """

    def __init__(
        self,
        *,
        endpoint: str,
        headers: Mapping[str, str],
        refusal: Callable[[httpx2.Response], str],
        patience: Patience,
        progress: Progress,
        advice: Callable[[bool], str] = try_later,
    ) -> None:
        self._origin = _origin(httpx2.URL(endpoint))
        self._headers = dict(headers)
        self._refusal = refusal
        self._patience = patience
        self._progress = progress
        self._advice = advice
        timeout = httpx2.Timeout(patience.read, connect=patience.connect)
        self._client = httpx2.Client(
            timeout=timeout, follow_redirects=False, headers={"User-Agent": "gpt2kit"}
        )

    def __enter__(self) -> Transfer:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def head(self, url: str) -> httpx2.Headers:
        """Return the headers of a file without its content."""
        tries = Tries(self._patience, self._progress, self._patience.lookups, self._advice)
        while True:
            try:
                with self._answer("HEAD", url, {}) as response:
                    _refuse_page(response, url)
                    return response.headers
            except Interrupted as failure:
                tries.failed(failure, url)

    def read(self, url: str, *, largest: int) -> bytes:
        """Return a small document; raises DownloadError if it has more bytes than `largest`."""
        tries = Tries(self._patience, self._progress, self._patience.lookups, self._advice)
        while True:
            try:
                with self._answer("GET", url, {}) as response:
                    _refuse_page(response, url)
                    if response.status_code != 200:
                        raise judge(response, url, self._refusal)
                    return self._read(response, url, largest)
            except Interrupted as failure:
                tries.failed(failure, url)

    def _read(self, response: httpx2.Response, url: str, largest: int) -> bytes:
        """Return the body of a response; raise Interrupted if it does not come in time."""
        end, body = time.monotonic() + self._patience.connect + self._patience.read, bytearray()
        try:
            for chunk in response.iter_raw():
                body += chunk
                if len(body) > largest:
                    raise DownloadError(
                        f"{shown(url)} answered with more than {largest:,} bytes: is there a proxy "
                        "or login page in between?",
                        url=shown(url),
                    )
                if time.monotonic() > end:
                    raise Interrupted("the answer did not end in time")
        except httpx2.HTTPError as error:
            raise Interrupted.by(error) from error
        return bytes(body)

    def fetch(self, file: RemoteFile, directory: Path, *, verify: bool = True) -> str:
        """Put the file in the directory, with the right size and digests; return its sha256.

        Continues the part that an earlier call left there. Raises DownloadError; the part then
        stays for the next call, unless its bytes were wrong.
        """
        part = Part(directory, file)
        part.reopen(verify=verify)
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
                    f"{problem}; this happened twice, and the file is deleted. "
                    "Does the server, or a proxy in between, change it?",
                    url=shown(file.url),
                )
            self._progress.note(f"{problem}; fetching it again from the start")
        part.finish()
        self._progress.finished(file.name)
        return part.sha256

    def _complete(self, part: Part, file: RemoteFile) -> None:
        """Make requests until the part has the size of the file, or more."""
        tries = Tries(self._patience, self._progress, self._patience.tries, self._advice)
        furthest = part.size
        self._progress.started(file.name, file.size, part.size)
        while part.size < file.size or not part.exists():
            try:
                self._request_rest(part, file)
            except Interrupted as failure:
                # Only bytes that were never reached before count: a server that does not resume
                # and always breaks off would otherwise be asked for ever.
                if part.size >= furthest + self._patience.progress:
                    tries.start_again()
                furthest = max(furthest, part.size)
                tries.failed(failure, file.url)
            finally:
                part.close()

    def _request_rest(self, part: Part, file: RemoteFile) -> None:
        """Append what one request brings; raise Interrupted if that is not all."""
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
                        f"{file.name}: the server answered {response.status_code} "
                        "with another part than the one asked for"
                    )
                _check_length(response, file)
                part.restart(response.headers.get("ETag"))
            self._receive(response, part, file)
        if part.size < file.size:
            raise Interrupted(
                f"{file.name}: the connection was closed after {part.size:,} of {file.size:,} bytes"
            )

    def _receive(self, response: httpx2.Response, part: Part, file: RemoteFile) -> None:
        """Append the body to the part; stop if it is longer than the file, or too slow."""
        window_start, in_window = time.monotonic(), 0
        chunks = response.iter_raw()
        while part.size <= file.size:
            try:
                chunk = next(chunks, None)
            except httpx2.HTTPError as error:
                when = f" after {part.size:,} of {file.size:,} bytes"
                raise Interrupted(f"{file.name}: {plainly(error)}{when}") from error
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
        """Follow redirects to a response of 200, 206 or 416.

        Raises Interrupted for a failure that may pass, DownloadError for one that will not.
        """
        current = httpx2.URL(url)
        for _ in range(_MOST_REDIRECTS):
            response = self._send(method, current, headers)
            try:
                if response.has_redirect_location:
                    current = _redirected(current, response)
                    continue
                # 416: our part is longer than the file on the server; the caller starts again.
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
        """Send one request; raise Interrupted if no response begins in time."""
        own = self._headers if _origin(url) == self._origin else {}
        # Otherwise the server may compress, and offsets and hashes would not be those of the file.
        request = self._client.build_request(
            method, url, headers={**own, **headers, "Accept-Encoding": "identity"}
        )
        try:
            return within(
                self._patience.connect + self._patience.read,
                lambda: self._client.send(request, stream=True),
            )
        except (httpx2.HTTPError, TimeoutError) as error:
            raise Interrupted.by(error) from error
        except UnicodeError as error:  # of the name of a host, in a redirect
            message = f"{shown(str(url))}: redirected to an invalid address"
            raise DownloadError(message, url=shown(str(url))) from error


def judge(
    response: httpx2.Response, url: str, refusal: Callable[[httpx2.Response], str]
) -> Interrupted | DownloadError:
    """Return the error for a failed response: Interrupted if another try may succeed."""
    if response.status_code in _RETRIED:
        return Interrupted(
            f"the server answered {response.status_code}", _retry_after(response.headers)
        )
    return DownloadError(refusal(response), url=shown(url))


def _continues(response: httpx2.Response, part: Part, file: RemoteFile) -> bool:
    """Whether the response is certainly the rest of the version that the part belongs to."""
    if response.status_code != 206 or response.headers.get("ETag", part.etag) != part.etag:
        return False
    match = re.fullmatch(
        r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)",
        response.headers.get("Content-Range", "").strip(),
    )
    return (
        match is not None
        and int(match[1]) == part.size
        and int(match[2]) == file.size - 1
        and match[3] in ("*", str(file.size))
    )


def _check_length(response: httpx2.Response, file: RemoteFile) -> None:
    """Raise WrongContent if the server declares another size."""
    declared = response.headers.get("Content-Length")
    if declared is not None and declared != str(file.size):
        raise WrongContent(f"{file.name} has {declared} bytes on the server, expected {file.size}")


def _refuse_page(response: httpx2.Response, url: str) -> None:
    """Raise DownloadError for a web page in place of a file."""
    if response.headers.get("Content-Type", "").split(";")[0].strip().lower() in (
        "text/html",
        "application/xhtml+xml",
    ):
        raise _page_error(url)


def _page_error(url: str) -> DownloadError:
    """Return the error for a web page in place of a file."""
    return DownloadError(
        f"{shown(url)} answered with a web page: is there a proxy or login page in between?",
        url=shown(url),
    )


def _redirected(url: httpx2.URL, response: httpx2.Response) -> httpx2.URL:
    """Return where a redirect leads; never from https to http."""
    try:
        target = url.join(response.headers["Location"])
    except (httpx2.InvalidURL, ValueError) as error:
        raise DownloadError(
            f"{shown(str(url))}: redirected to an invalid address", url=shown(str(url))
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
    """Return scheme, host and port: what tells servers apart."""
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _retry_after(headers: httpx2.Headers) -> float | None:
    """Return how many seconds the server asks to wait; it says so as a number or as a date."""
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
