"""The body of a request: JSON of limited size, from clients that may be slow or hostile."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from starlette.types import Message, Receive, Scope

from gpt2kit.serve import settings
from gpt2kit.serve.errors import Refusal, not_ready


class ClientGoneError(Exception):
    """The client closed the connection before it had sent its request."""


def header(scope: Scope, name: str) -> str:
    """Return the first header with this name, in lower case, or an empty text."""
    wanted = name.encode()
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == wanted), "")


class Bodies:
    """Reads bodies, which all together take a bounded part of the memory."""

    def __init__(self) -> None:
        self.held = 0  # bytes beyond what is small of each body

    @contextlib.asynccontextmanager
    async def object(self, scope: Scope, receive: Receive) -> AsyncIterator[dict[str, Any]]:
        """Give the JSON object that a client sends; at the end of the block it counts no more.

        Raises Refusal for everything else, and ClientGoneError if the client closes the connection.
        """
        _check_kind(scope)
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(settings.BODY_SECONDS):
                    await self._read(body, scope, receive)
            except TimeoutError:
                raise Refusal(
                    408,
                    f"the body did not arrive within {settings.BODY_SECONDS:.0f} seconds",
                    headers={"connection": "close"},
                ) from None
            yield parse_object(bytes(body))
        finally:
            self.held -= _beyond_small(len(body))

    async def _read(self, body: bytearray, scope: Scope, receive: Receive) -> None:
        announced = header(scope, "content-length")
        if announced.isdecimal() and int(announced[:20]) > settings.BODY_BYTES:
            raise _too_large()
        while True:
            message: Message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            before = _beyond_small(len(body))
            body += message.get("body", b"")
            self.held += _beyond_small(len(body)) - before
            if len(body) > settings.BODY_BYTES:
                raise _too_large()
            if self.held > settings.BODIES_BYTES:
                raise _too_many()
            if not message.get("more_body", False):
                return


def _check_kind(scope: Scope) -> None:
    """Raise Refusal for a body that is not said to be plain JSON."""
    kind = header(scope, "content-type").partition(";")[0].strip().lower()
    if kind != "application/json":
        # A page of another site can send forms and plain text without asking, but not this type.
        raise Refusal(415, f"the content-type is {kind[:60]!r}, expected application/json")
    if coding := header(scope, "content-encoding").strip().lower().replace("identity", ""):
        raise Refusal(415, f"the content-encoding is {coding[:60]!r}; send the body uncompressed")


def _beyond_small(size: int) -> int:
    """Return by how many bytes a body of this size is larger than a small one."""
    return max(0, size - settings.SMALL_BODY_BYTES)


def _too_many() -> Refusal:
    return not_ready(
        "clients send too many large bodies at once; try again",
        retry_after=1,
        headers={"connection": "close"},
    )


def _too_large() -> Refusal:
    return Refusal(
        413,
        f"the body has more than {settings.BODY_BYTES:,} bytes; send fewer prompts at once",
        headers={"connection": "close"},
    )


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object that bytes hold; raises Refusal if they hold none.

    A key that is there twice is refused, and so are NaN and Infinity, which are not JSON.
    """
    try:
        found = json.loads(
            body.decode("utf-8-sig"),  # json itself would guess UTF-16 and UTF-32 too
            parse_constant=_refuse_constant,
            object_pairs_hook=_without_duplicates,
        )
    except RecursionError:
        raise Refusal(400, "the body's JSON is nested too deeply") from None
    except UnicodeDecodeError:
        raise Refusal(400, "the body is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise Refusal(
            400, f"the body is not JSON: {error.msg}, at character {error.pos:,}"
        ) from None
    except ValueError:  # a number of more digits than Python converts
        raise Refusal(400, "a number in the body has too many digits") from None
    if not isinstance(found, dict):
        raise Refusal(400, "the body is not a JSON object, such as {}")
    return found


def _refuse_constant(name: str) -> None:
    raise Refusal(400, f"the body has {name}, which is not JSON")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise Refusal(400, f"the key {twice[:40]!r} is there twice", param=twice[:40])
    return found
