"""Who may use the server: API keys, the Host header on this machine's own address, other sites.

Each check is an ASGI application around another one, and answers for it what it refuses.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gpt2kit.errors import ConfigError, FileError
from gpt2kit.serve.body import header
from gpt2kit.serve.errors import Refusal

KEY_VARIABLE = "GPT2KIT_API_KEY"
_PUBLIC = ("/", "/health", "/health/live")
_KEY = re.compile(r"[\x21-\x7e]+")  # what a header can carry


def read_keys(given: Sequence[str]) -> tuple[str, ...]:
    """Return the API keys: those given, or that of the environment; @FILE holds one on each line.

    Raises ConfigError for a key that no header can carry, and FileError for a file without keys.
    """
    keys: list[str] = []
    for each in given or [os.environ.get(KEY_VARIABLE, "")]:
        if each.startswith("@"):
            keys += _keys_of_file(Path(each[1:]))
        elif each:
            keys.append(each)
    for key in keys:
        if not _KEY.fullmatch(key):
            raise ConfigError(
                "an API key has a space or a character that is not ASCII; expected letters, digits "
                "and signs"
            )
    return tuple(keys)


def _keys_of_file(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise FileError(path, f"the API keys cannot be read: {reason}") from None
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise FileError(path, "no API key is in it; expected one on each line")
    return keys


async def refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request with a refusal."""
    answer = Response(refusal.content, status_code=refusal.status, headers=refusal.headers)
    await answer(scope, receive, send)


class KeyCheck:
    """Lets through who sends one of the keys, and everybody to the health checks and the page."""

    def __init__(self, app: ASGIApp, keys: Collection[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _PUBLIC and not self._knows(scope):
            message = (
                "the API key is missing or wrong; send it as the header Authorization: Bearer KEY"
            )
            headers = {"www-authenticate": "Bearer"}
            raise Refusal(401, message, code="invalid_api_key", headers=headers)
        await self._app(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        kind, _, value = header(scope, "authorization").partition(" ")
        sent = value.strip(" \t") if kind.lower() == "bearer" else header(scope, "x-api-key")
        data = sent.encode("latin-1", errors="replace")
        # Every key is compared, in a time that does not tell how much of it was right.
        return sum(hmac.compare_digest(data, key) for key in self._keys) > 0


class HostCheck:
    """Refuses a foreign Host header on this machine's own address.

    A page of another site can let its name point to 127.0.0.1 (DNS rebinding), and then call a
    server there as if it were its own; but the browser tells the name.
    """

    def __init__(self, app: ASGIApp, allowed: Collection[str]) -> None:
        self._app = app
        self._allowed = {"localhost", *map(_typed_name, allowed)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_allowed(scope):
            name = header(scope, "host")[:60]
            message = (
                f"the Host header is {name!r}, expected localhost or this machine's address; "
                f"to allow it, start the server with --allowed_host"
            )
            await refuse(Refusal(403, message, code="foreign_host"), scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        server = scope.get("server")
        if not server or not is_loopback(server[0]):
            return True
        # A browser always tells the name; HTTP/1.0, in which HAProxy checks health, needs none.
        name = host_name(header(scope, "host"))
        return not name or name in self._allowed or is_loopback(name)


def host_name(host: str) -> str:
    """Return the name in a Host header, in lower case, without port and brackets."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name, _, port = host.partition(":")
    return name.removesuffix(".") if not port or port.isdecimal() else host


def _typed_name(typed: str) -> str:
    """Return the name in what a user typed, which may have a port, or be an IPv6 address."""
    try:
        return str(ipaddress.ip_address(typed))
    except ValueError:
        return host_name(typed)


def is_loopback(address: str) -> bool:
    """Whether an address can be reached from this machine only; a name is none."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address == "localhost"
    # A socket that listens on :: sees 127.0.0.1 as ::ffff:127.0.0.1.
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback


def with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Let pages of these sites read the answers; without origins, return the application itself."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],  # repeats the headers that a browser asks for
        expose_headers=["x-request-id", "retry-after"],
    )
