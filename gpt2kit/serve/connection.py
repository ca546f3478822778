"""One connection of the server, and all of them: none waits for ever, and there is always room.

A client that asks nothing keeps a connection, and so a descriptor, of which a process has few. The
connections that have been idle for longest are cut before the system refuses new ones.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from gpt2kit.serve import settings
from gpt2kit.serve.access import refuse
from gpt2kit.serve.errors import Refusal, not_ready

ACCEPTED_AT_ONCE = 16  # connections, before the first of them is counted
_OTHER_FILES = 48  # that the process may open beside its connections


class Connections(ServerState):
    """The connections of a server."""

    def __init__(self) -> None:
        super().__init__()
        self.idle: dict[Connection, None] = {}  # without a request, the longest idle one first

    @property
    def is_full(self) -> bool:
        """Whether there are more connections than the process has descriptors for."""
        return len(self.connections) > max(1, _descriptors() - _OTHER_FILES - ACCEPTED_AT_ONCE)

    def make_room(self) -> None:
        """Cut the connection that has been idle for longest if there are too many."""
        if self.idle and self.is_full:
            oldest = next(iter(self.idle))
            del self.idle[oldest]
            self.connections.discard(oldest)  # which its end, a moment later, would do too
            oldest.transport.abort()


def _descriptors() -> int:
    """Return how many files and connections this process may have; it may change at any time."""
    if sys.platform == "win32":
        return 2**31  # its sockets are not counted
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 2**31


class Connection(H11Protocol):
    """A connection that is cut if its client does not send a request, or does not take the answer.

    The application finds under "gpt2kit.abort" in the scope what cuts it: to close it in the usual
    way would wait until the client has taken all that was written.
    """

    server_state: Connections
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        app: Any = self.app

        async def with_abort(scope: Scope, receive: Receive, send: Send) -> None:
            self._stop_clock()
            self.server_state.idle.pop(self, None)
            if self.server_state.is_full:
                await refuse(_full(), scope, receive, send)
                return
            # Whoever forwards such a request may read another end of it, and so another request
            # behind it; h11 takes it, and goes on with what follows: RFC 9112, section 6.1.
            if {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
                await refuse(_two_lengths(), scope, receive, send)
                return
            await app({**scope, "gpt2kit.abort": transport.abort}, receive, send)

        self.app = with_abort
        self._start_clock()
        self.server_state.make_room()
        self.server_state.idle[self] = None

    def data_received(self, data: bytes) -> None:
        if self._deadline is None and (self.cycle is None or self.cycle.response_complete):
            self._start_clock()  # for the next request of a connection
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        self.server_state.idle.pop(self, None)
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self.server_state.idle[self] = None
        super().on_response_complete()

    def _start_clock(self) -> None:
        """Cut the connection after a while, unless a request has come by then."""
        self._deadline = self.loop.call_later(settings.BODY_SECONDS, self.transport.abort)

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, in the shape that all errors have."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else an answer has begun
            refusal = Refusal(400, "this is not a valid HTTP request, or its headers are too long")
            headers = {**refusal.headers, "connection": "close"}
            headers["content-length"] = str(len(refusal.content))
            response = h11.Response(
                status_code=400, headers=list(headers.items()), reason=b"Bad Request"
            )
            for event in (response, h11.Data(data=refusal.content), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None:  # a request whose body is bad must not be answered, too
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()


def _full() -> Refusal:
    """Return the refusal of a request for which there are too many connections."""
    message = "the server has as many connections as it can have; try again"
    return not_ready(message, retry_after=1, headers={"connection": "close"})


def _two_lengths() -> Refusal:
    """Return the refusal of a request whose headers give the end of its body in two ways."""
    message = "the request has a Content-Length and a Transfer-Encoding, expected one of them"
    return Refusal(400, message, headers={"connection": "close"})
