"""The process that serves: a socket, uvicorn, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Iterator

import uvicorn

from gpt2kit.errors import ConfigError
from gpt2kit.serve.asgi import Application
from gpt2kit.serve.connection import ACCEPTED_AT_ONCE, Connection, Connections
from gpt2kit.serve.settings import Address

_HEADER_BYTES = 16 * 1024
_WAITING = 1024  # connections that the system keeps until they are accepted
# The HTTP thread must not hold the interpreter for long while the engine waits for it between two
# steps: Python's own 5 ms are as long as a step.
_SWITCH_SECONDS = 0.0005


def bind(address: Address) -> socket.socket:
    """Return a socket that is bound to an address; raises ConfigError if that cannot be had."""
    shown = f"{address.host}:{address.port}"
    try:
        family, *_, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not the name of a machine"
        raise ConfigError(f"cannot listen on {shown}: {reason}") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(where)
        bound.listen(_WAITING)
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"cannot listen on {shown}: {error.strerror}; choose another --port"
        ) from None
    return bound


def url_of(bound: socket.socket) -> str:
    """Return the address of a bound socket, as one types it into a browser."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(
    app: Application, bound: socket.socket, *, when_ready: Callable[[], None] = lambda: None
) -> int:
    """Serve until a signal comes or the engine fails, and return the process's exit code.

    The first SIGINT or SIGTERM lets running requests end: 0. A second one ends at once: 130 or 143.
    If the first model cannot be loaded or the engine fails, the log says why: 1.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        return asyncio.run(Server(app, when_ready).run_until_end(bound))
    finally:
        sys.setswitchinterval(before)


class Server(uvicorn.Server):
    """uvicorn's server, with our own way to end."""

    def __init__(self, app: Application, when_ready: Callable[[], None] = lambda: None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                h11_max_incomplete_event_size=_HEADER_BYTES,
                backlog=ACCEPTED_AT_ONCE,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=2,
            )
        )
        self.server_state = Connections()
        self._app = app
        self._when_ready = when_ready
        self._code = 0
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run_until_end(self, bound: socket.socket) -> int:
        """Serve on a bound socket as `run` does, in the event loop that is running."""
        self._loop = loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, self._signaled, number)
        watch = asyncio.create_task(self._watch())
        await self.serve(sockets=[bound])
        watch.cancel()
        return self._code or int(self._app.service.life.state == "failed")

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        for bound in sockets or ():  # asyncio lets only as many wait as it accepts at once
            bound.listen(_WAITING)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to this class: uvicorn would close the listening socket at once."""
        yield

    async def _watch(self) -> None:
        """Tell when the model is loaded, and end the process if the server fails."""
        life = self._app.service.life
        while life.state in ("new", "loading"):
            await asyncio.sleep(0.01)
        if life.state == "ready":
            self._when_ready()
        await life.ended.wait()
        await asyncio.sleep(0.2)  # let running requests tell their clients
        self.should_exit = True

    def stop(self) -> None:
        """Do what SIGTERM does, from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._signaled, signal.SIGTERM)

    def _signaled(self, number: int) -> None:
        if self._draining is not None:
            self._code = 128 + number
            self.should_exit = self.force_exit = True
            return
        self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        await self._app.service.drain()
        self.should_exit = True
