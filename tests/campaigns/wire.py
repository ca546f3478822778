"""What a server sent, read more strictly than clients do: a sequence of whole HTTP answers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_STATUS = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) ([\t\x20-\x7e\x80-\xff]*)")
_HEADER = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e\x80-\xff\t]*?)[ \t]*", re.DOTALL
)
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")


class NotHttpError(Exception):
    """Bytes that are no answers in HTTP."""


class HalfError(NotHttpError):
    """Bytes that end within an answer."""


@dataclass(frozen=True)
class HttpAnswer:
    """One answer."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def error(self) -> str:
        """The message of a refusal in the API's shape, or an empty text."""
        try:
            found = json.loads(self.body)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            return ""
        return found if isinstance(found, str) else ""

    @property
    def choices(self) -> Any:
        """The texts of a completion, whole or streamed; None if they are not there or not whole."""
        try:
            if self.headers.get("content-type", "").startswith("application/json"):
                return [(each["index"], each["text"]) for each in json.loads(self.body)["choices"]]
            *events, done, rest = self.body.decode().split("\n\n")
            if (done, rest) != ("data: [DONE]", ""):
                return None
            texts: dict[int, str] = {}
            for event in events:
                if not event.startswith(":"):
                    for new in json.loads(event.removeprefix("data: "))["choices"]:
                        texts[new["index"]] = texts.get(new["index"], "") + new["text"]
            return sorted(texts.items())
        except (ValueError, KeyError, TypeError):
            return None


def read_answers(data: bytes, methods: Sequence[str] = ()) -> list[HttpAnswer]:
    """Return the answers to requests of these methods, of which the last ones may be missing.

    Raises HalfError if the bytes end within an answer, and NotHttpError for anything else that is
    not HTTP/1.1. Answers of status 1xx are left out, after which others follow.
    """
    found: list[HttpAnswer] = []
    while data:
        method = methods[len(found)] if len(found) < len(methods) else "GET"
        head, end, rest = data.partition(b"\r\n\r\n")
        if not end:
            raise HalfError(f"it ends within the headers: {head[:80]!r}")
        first, *lines = head.split(b"\r\n")
        if not (status := _STATUS.fullmatch(first)):
            raise NotHttpError(f"the first line is {first[:80]!r}")
        headers = _headers(lines)
        if status[1][:1] == b"1":
            data = rest
            continue
        bodiless = method == "HEAD" or status[1] in (b"204", b"304")
        if status[1] == b"400" and headers.get("content-length") == str(len(rest)):
            bodiless = False  # of a request that could not be read, the method is not known
        body, data = (b"", rest) if bodiless else _body(headers, rest)
        found.append(HttpAnswer(int(status[1]), headers, body))
    return found


def _headers(lines: Sequence[bytes]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        if not (match := _HEADER.fullmatch(line)):
            raise NotHttpError(f"a header line is {line[:80]!r}")
        name = match[1].decode().lower()
        if name in headers and name in ("content-length", "transfer-encoding", "content-type"):
            raise NotHttpError(f"the header {name} is there twice")
        headers[name] = match[2].decode("latin-1")
    return headers


def _body(headers: dict[str, str], rest: bytes) -> tuple[bytes, bytes]:
    """Return the body of an answer, and what follows it."""
    length, coding = headers.get("content-length"), headers.get("transfer-encoding")
    if (length is None) == (coding is None):
        raise NotHttpError(f"the content-length is {length}, the transfer-encoding {coding}")
    if length is not None:
        if not re.fullmatch("[0-9]{1,12}", length):
            raise NotHttpError(f"the content-length is {length[:80]!r}")
        if len(rest) < int(length):
            raise HalfError(f"the body has {len(rest):,} of {length} bytes")
        return rest[: int(length)], rest[int(length) :]
    body = b""
    while match := _CHUNK.match(rest):
        size, start = int(match[1], 16), match.end()
        if len(rest) < start + size + 2:
            break
        if rest[start + size : start + size + 2] != b"\r\n":
            raise NotHttpError(f"a chunk ends in {rest[start + size : start + size + 9]!r}")
        body, rest = body + rest[start : start + size], rest[start + size + 2 :]
        if size == 0:
            return body, rest
    if len(rest) > 20 and not match:
        raise NotHttpError(f"a chunk begins with {rest[:20]!r}")
    raise HalfError("it ends within the chunks")
