"""Cases of clients: one hostile session with a server, and an honest request beside it."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from campaigns.cases import Result, TooSlow, limited_time
from campaigns.served import KEY, SECONDS, Served, Server, State, state_of
from campaigns.wire import HttpAnswer, NotHttpError, read_answers

CASE_SECONDS = 30.0
HONEST_SECONDS = 3.0  # in which an honest request is answered, also on a busy machine
LEAVE_SECONDS = 5.0  # after which the server must have noticed that its clients have left
EVERY = 50  # cases after which the server is searched for what it has lost
GROWTH = 128 * 2**20  # bytes of memory that a server may need more than after its first cases
POOL = 40  # threads that asyncio starts when they are needed, and keeps
REFUSED = {400, 401, 403, 404, 405, 408, 413, 415, 429, 431, 501, 503}

Body = dict[str, Any]
BODIES: Sequence[Body] = (
    {"prompt": "The dog", "max_tokens": 6, "seed": 3},
    {"prompt": "A", "max_tokens": 4, "seed": 4, "stream": True},
    {"prompt": ["The", " a"], "max_tokens": 3, "seed": 5, "n": 2},
    {"prompt": [3, 4, 5], "max_tokens": 5, "temperature": 0, "stream": True, "logprobs": 2},
)
ENDLESS: Body = {"prompt": "The", "max_tokens": 20_000, "overflow": "slide", "ignore_eos": True}


class WrongError(Exception):
    """Something that the server did, and must not do."""


def head(
    *lines: str, method: str = "POST", target: str = "/v1/completions", key: str | None = KEY
) -> bytes:
    """Return a request's first line and headers; `lines` are further headers."""
    first = [f"{method} {target} HTTP/1.1", "Host: localhost"]
    first += [f"Authorization: Bearer {key}"] if key else []
    return "\r\n".join([*first, *lines, "", ""]).encode("latin-1")


def posted(body: Body | bytes, *lines: str, **how: Any) -> bytes:
    """Return a whole request that posts JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    about = ("Content-Type: application/json", f"Content-Length: {len(content)}")
    return head(*about, *lines, **how) + content


class Session:
    """What an attack can do with a server, and what it may get."""

    def __init__(self, server: Server, known: Sequence[Any]) -> None:
        self.server = server
        self.known = known  # the right texts for BODIES
        self._open: list[socket.socket] = []

    def connect(self, *, buffer: int = 0) -> socket.socket:
        """Connect, perhaps with a small buffer for what is received."""
        found = socket.socket()
        self._open.append(found)
        found.settimeout(HONEST_SECONDS)
        if buffer:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        found.connect(("127.0.0.1", self.server.port))
        return found

    def close(self) -> None:
        """Leave."""
        for each in self._open:
            each.close()
        self._open.clear()

    def talk(self, data: bytes, methods: Sequence[str] = ("POST",)) -> list[HttpAnswer]:
        """Send something at once, and return all answers."""
        connection = self.connect()
        send(connection, data)
        return self.answers(connection, methods)

    def answers(
        self, connection: socket.socket, methods: Sequence[str] = ("POST",)
    ) -> list[HttpAnswer]:
        """Return the answers that come until the connection ends or is silent.

        A connection that stays open must have answered something, or end soon.
        """
        data, end = b"", time.monotonic() + HONEST_SECONDS + 2 * SECONDS
        ended = False
        while not ended:
            if time.monotonic() > end:
                raise WrongError(f"the connection neither ends nor is silent: {data[-80:]!r}")
            try:
                connection.settimeout(0.1 if is_whole(data, methods) else 2 * HONEST_SECONDS)
                more = connection.recv(65536)
                ended, data = not more, data + more
            except ConnectionError:
                ended = True
            except TimeoutError:
                if is_whole(data, methods):
                    break
                raise WrongError(f"no answer, and no end: {data[:80]!r}") from None
        if b"Traceback" in data:
            raise WrongError(f"a traceback in the answer: {data[:200]!r}")
        try:
            return read_answers(data, methods)
        except NotHttpError as error:
            raise WrongError(f"no HTTP: {error}") from None

    def judge(self, answer: HttpAnswer, texts: Any = None, *, method: str = "POST") -> str:
        """Return what an answer comes to; raises WrongError for one that is never allowed.

        `texts` are the right ones for a request that is answered, if they are known.
        """
        if answer.status in REFUSED:
            if method != "HEAD" and not answer.error:
                raise WrongError(f"status {answer.status} without a reason: {answer.body[:80]!r}")
            return "refused"
        if answer.status != 200:
            raise WrongError(f"status {answer.status}: {answer.body[:200]!r}")
        if texts is not None and answer.choices != texts:
            raise WrongError(f"another text, {answer.choices!r}, than {texts!r}")
        return "same"

    def ask(self, body: Body | bytes) -> HttpAnswer:
        """Ask as an honest client does, and return the answer, which must come soon."""
        began = time.monotonic()
        answers = self.talk(posted(body, "Connection: close"))
        if len(answers) != 1:
            raise WrongError(f"{len(answers)} answers to an honest request")
        if time.monotonic() - began > HONEST_SECONDS:
            raise WrongError("an honest request had to wait")
        return answers[0]

    def probe(self, which: int, *, may_be_refused: bool = False) -> None:
        """Check that an honest request is answered at once, and right."""
        answer = self.ask(BODIES[which % len(BODIES)])
        outcome = self.judge(answer, self.known[which % len(BODIES)])
        if outcome != "same" and not (may_be_refused and answer.status in (429, 503)):
            raise WrongError(f"an honest request was refused: {answer.status} {answer.error}")

    def wait_until_idle(self) -> None:
        """Wait until the server works for nobody; raises WrongError if it goes on for too long."""
        end = time.monotonic() + LEAVE_SECONDS
        while time.monotonic() < end:
            (answer,) = self.talk(head("Connection: close", method="GET", target="/metrics"))
            lines = answer.body.decode().splitlines()
            gauges = dict(line.rsplit(" ", 1) for line in lines if line[:1] not in ("#", ""))
            counts = [gauges[f"gpt2kit_requests_{name}"] for name in ("running", "waiting")]
            if not any(map(float, counts)):
                return
            time.sleep(0.02)
        raise WrongError(f"{counts} requests run and wait after their clients have left")


def is_whole(data: bytes, methods: Sequence[str]) -> bool:
    """Whether these are whole answers to all of the requests."""
    try:
        return len(read_answers(data, methods)) >= len(methods)
    except NotHttpError:
        return False


def send(connection: socket.socket, data: bytes) -> None:
    """Send to somebody who may hang up meanwhile."""
    with contextlib.suppress(ConnectionError, TimeoutError):
        connection.sendall(data)


def reset(connection: socket.socket) -> None:
    """Leave without the usual goodbye."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


Attack = Callable[[Session, random.Random, int], str]


@dataclass(frozen=True)
class ClientTarget:
    """A kind of hostile client; `attack` returns the outcome, or raises WrongError."""

    name: str
    attack: Attack
    seconds: float = SECONDS  # that the server waits for its clients
    crowds: bool = False  # whether honest clients may be told that the server is full
    growth: int = GROWTH
    limits_memory: bool = False  # it is the server's that counts
    stuck: float = 3 * CASE_SECONDS

    def prepare(self, folder: Path) -> ClientCases:
        """Start a server."""
        return ClientCases(self, Served(folder, self.seconds))


class ClientCases:
    """Hostile sessions with one server, each known by its seed."""

    def __init__(self, target: ClientTarget, server: Server) -> None:
        self.target = target
        self._server = server
        self._size = 0  # of the log that was read
        asking = Session(server, [None] * len(BODIES))
        self._known = [asking.ask(body).choices for body in BODIES]
        if None in self._known:
            server.close()
            raise AssertionError("the server does not answer honest requests")
        asking.close()
        self._first = self._settled() if sys.platform == "linux" else None

    def describe(self, seed: int) -> tuple[str, bytes]:
        """Return the kind of client; there is no file."""
        return f"session {seed}", b""

    def run(self, seed: int) -> Result:
        """Be one hostile client, and an honest one beside it."""
        session = Session(self._server, self._known)
        draw = random.Random(f"{self.target.name} {seed}")
        try:
            with limited_time(CASE_SECONDS):
                outcome = self.target.attack(session, draw, seed)
                session.probe(seed, may_be_refused=self.target.crowds)
                session.close()
                self._check_log()
                if seed % EVERY == EVERY - 1:
                    self.check_losses()
        except WrongError as error:
            return Result("failed", str(error))
        except (Exception, TooSlow) as error:
            return Result("failed", f"{type(error).__name__}: {error}")
        finally:
            session.close()
        return Result("same" if outcome == "same" else "refused", outcome)

    def _check_log(self) -> None:
        """Raise WrongError for an error that the server has logged, and for its end."""
        new = self._server.log()[self._size :]
        self._size += len(new)
        if not self._server.is_alive():
            raise WrongError(f"the server has ended: {new[-300:]}")
        for sign in ("Traceback", "ERROR", "CRITICAL"):
            if sign in new:
                raise WrongError(f"in the server's log: {new[new.index(sign) :][-400:]}")

    def check_losses(self) -> None:
        """Raise WrongError if the server has lost slots, descriptors, threads or memory."""
        session = Session(self._server, self._known)
        session.wait_until_idle()
        session.close()
        if self._first is None:
            return
        found, first = self._settled(), self._first
        if found.descriptors > first.descriptors:
            raise WrongError(f"{found.descriptors} descriptors are open, after {first.descriptors}")
        if found.threads > first.threads + POOL:
            raise WrongError(f"{found.threads} threads, after {first.threads}")
        if found.memory > first.memory + self.target.growth:
            raise WrongError(f"{found.memory:,} bytes of memory, after {first.memory:,}")

    def _settled(self) -> State:
        """Return the server's state once its connections have ended, but do not wait for long."""
        end = time.monotonic() + LEAVE_SECONDS
        before, found = None, state_of(self._server.process)
        while before != found.descriptors and time.monotonic() < end:
            time.sleep(0.1)
            before, found = found.descriptors, state_of(self._server.process)
        return found

    def close(self) -> None:
        """End the server, and raise WrongError if it has lost something before."""
        try:
            self._check_log()
            self.check_losses()
        finally:
            self._server.close()
