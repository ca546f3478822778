"""The server behind a real port: the official client, raw sockets, disconnects, the end."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from builders import add_vocabulary, write_hub
from serve_builders import CONFIG, ENDLESS, events_of, running, tiny, wait_until

from gpt2kit.errors import ConfigError
from gpt2kit.serve import connection, rows
from gpt2kit.serve import settings as limits
from gpt2kit.serve.asgi import Application, application
from gpt2kit.serve.life import State
from gpt2kit.serve.server import Server, bind, run, url_of
from gpt2kit.serve.settings import Address, Settings

PLAIN = {"prompt": "The dog", "max_tokens": 6, "seed": 3}


@pytest.fixture(scope="module")
def app() -> Application:
    return application(tiny(), settings=Settings(parallel=4))


@pytest.fixture(scope="module")
def url(app: Application) -> Iterator[str]:
    with running(app=app) as found:
        yield found


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as found:
        yield found


def connect(url: str) -> socket.socket:
    at = urlsplit(url)
    assert at.hostname
    assert at.port
    return socket.create_connection((at.hostname, at.port), timeout=20)


def raw_request(body: Any, *, length: int | None = None) -> bytes:
    content = json.dumps(body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content) if length is None else length}\r\n\r\n"
    )
    return head.encode() + content


def post(url: str, body: Any) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    connection.request(
        "POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"}
    )
    answer = connection.getresponse()
    found = answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    connection.close()
    return found


def is_idle(app: Application) -> bool:
    """Whether the server has no request, and the engine no row."""
    batch = app.service.models.entries[0].loaded.batch  # type: ignore[union-attr]
    return not app.service.limits.requests and not batch.has_work and not batch.running


class Started:
    """A server in a thread, to be stopped by the test."""

    def __init__(
        self, app: Application, bound: socket.socket | None = None, *, state: State = "ready"
    ) -> None:
        bound = bound or bind(Address(port=0))
        self.url = url_of(bound)
        self.server = Server(app)
        self._codes: list[int] = []
        work = self.server.run_until_end(bound)
        self._thread = threading.Thread(target=lambda: self._codes.append(asyncio.run(work)))
        self._thread.start()
        wait_until(lambda: app.service.life.state == state)

    @property
    def code(self) -> int:
        """The exit code, once the server has ended."""
        self._thread.join(15)
        return self._codes[0]


def rest_of(connection: socket.socket) -> bytes:
    """Return what comes until the connection ends."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            received += data
    return received


def is_writing(app: Application) -> bool:
    """Whether the engine writes a text."""
    return bool(app.service.models.entries[0].loaded.batch.running)  # type: ignore[union-attr]


# --- the official client --------------------------------------------------------------------------


def test_the_official_client_gets_completions(client: openai.OpenAI) -> None:
    found = client.completions.create(
        model="model",
        prompt=["The dog", "A"],
        n=2,
        max_tokens=5,
        seed=1,
        logprobs=2,
        logit_bias={"7": 1},
        stop=["zz"],
        user="me",
    )
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    assert found.usage is not None
    assert found.usage.completion_tokens == 20
    assert found.choices[0].logprobs is not None
    assert len(found.choices[0].logprobs.tokens or []) == 5


def test_the_official_client_gets_streams(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "model", "prompt": "The dog", "max_tokens": 20, "seed": 1}
    whole = client.completions.create(**asked)
    chunks = list(
        client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].text
    assert chunks[-1].usage == whole.usage


def test_the_official_client_knows_the_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length") as caught:
        client.completions.create(model="model", prompt="a " * 400)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.completions.create(model="gpt-4", prompt="a")
    with pytest.raises(openai.NotFoundError, match="no chat template"):
        client.chat.completions.create(model="model", messages=[{"role": "user", "content": "a"}])
    assert [model.id for model in client.models.list()] == ["model"]


def test_the_official_client_waits_and_tries_again_if_the_queue_is_full() -> None:
    settings = Settings(parallel=1, queue=0)
    app = application(tiny(), settings=settings)
    with running(app=app) as url, connect(url) as busy:
        busy.sendall(raw_request(ENDLESS))
        wait_until(lambda: is_writing(app))
        status, headers, body = post(url, PLAIN)
        assert status == 429
        assert int(headers["retry-after"]) >= 1
        assert json.loads(body)["error"]["type"] == "rate_limit_error"

        def let_in() -> None:
            wait_until(lambda: app.service.metrics.refused.value(reason="queue") == 2)
            busy.close()

        threading.Thread(target=let_in).start()
        with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=3) as client:
            assert client.completions.create(model="model", prompt="a").choices


# --- streams, byte by byte ------------------------------------------------------------------------


def test_a_stream_ends_at_once_and_says_so_to_proxies(url: str) -> None:
    status, headers, body = post(url, {**PLAIN, "stream": True})
    assert status == 200
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"
    assert "server" not in headers
    text = "".join(event["choices"][0]["text"] for event in events_of(body.decode()))
    assert text == json.loads(post(url, PLAIN)[2])["choices"][0]["text"]


def test_a_waiting_stream_gets_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "COMMENT_SECONDS", 0.02)
    app = application(tiny(), settings=Settings(parallel=1))
    with running(app=app) as url, connect(url) as busy, connect(url) as waiting:
        busy.sendall(raw_request(ENDLESS))
        wait_until(lambda: is_writing(app))
        waiting.sendall(raw_request({**PLAIN, "stream": True}))
        received = b""
        while b": waiting\n\n" not in received:
            received += waiting.recv(1000)
        assert received.startswith(b"HTTP/1.1 200")
        busy.close()
        while b"[DONE]" not in received:
            received += waiting.recv(10_000)


def test_a_request_that_waits_too_long_is_refused() -> None:
    app = application(tiny(), settings=Settings(parallel=1, queue_timeout=0.1))
    with running(app=app) as url, connect(url) as busy:
        busy.sendall(raw_request(ENDLESS))
        wait_until(lambda: is_writing(app))
        status, headers, body = post(url, PLAIN)
        assert (status, "retry-after" in headers) == (503, True)
        assert "waited too long" in json.loads(body)["error"]["message"]
        assert app.service.metrics.refused.value(reason="queue_timeout") == 1


def test_prompts_that_an_answer_repeats_are_bounded(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A megabyte of prompt, echoed in 128 choices, made an answer of more than 100 MB."""
    monkeypatch.setattr(rows, "REPEATED_BYTES", 90)
    asked = {"prompt": "The dog", "max_tokens": 1, "echo": True}
    for n, status in ((12, 200), (13, 400)):
        assert post(url, {**asked, "n": n})[0] == status
    assert post(url, {**asked, "n": 13, "echo": False})[0] == 200
    found = post(url, {**asked, "n": 13, "echo": False, "return_token_ids": True})
    assert (found[0], json.loads(found[2])["error"]["param"]) == (400, "n")


# --- clients that leave ---------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("reset", [True, False])
def test_a_client_that_leaves_frees_its_slot(
    url: str, app: Application, stream: bool, reset: bool
) -> None:
    """Others go on writing for clients that have left, above all if nothing was sent yet."""
    before = app.service.metrics.cancelled.value()
    with connect(url) as left:
        left.sendall(raw_request({**ENDLESS, "n": 6, "stream": stream}))  # two of them wait
        wait_until(lambda: not is_idle(app))
        if stream:
            assert left.recv(100)
        if reset:
            left.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: is_idle(app), seconds=5)
    wait_until(lambda: app.service.metrics.cancelled.value() == before + 1)


def test_a_client_that_leaves_before_its_turn_is_forgotten() -> None:
    app = application(tiny(), settings=Settings(parallel=1))
    with running(app=app) as url, connect(url) as busy:
        busy.sendall(raw_request(ENDLESS))
        wait_until(lambda: is_writing(app))
        with connect(url) as waiting:
            waiting.sendall(raw_request(PLAIN))
            wait_until(lambda: app.service.limits.requests == 2)
        wait_until(lambda: app.service.limits.requests == 1, seconds=5)


def test_half_a_body_costs_nothing_and_is_given_up(
    url: str, app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.1)
    with connect(url) as half:
        half.sendall(raw_request(PLAIN, length=1000))
        received = b""
        while data := half.recv(1000):
            received += data
    assert received.startswith(b"HTTP/1.1 408")
    assert is_idle(app)


def test_a_connection_without_a_request_is_closed(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.05)
    with connect(url) as silent, contextlib.suppress(ConnectionResetError):
        silent.sendall(b"POST /v1/compl")
        assert silent.recv(100) == b""
    with connect(url) as second:  # the same holds for the second request of a connection
        second.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = b""
        while b'"ok"}' not in received:
            received += second.recv(1000)
        second.sendall(b"GET /hea")
        with contextlib.suppress(ConnectionResetError):
            assert second.recv(100) == b""


@pytest.mark.parametrize(
    "asked",
    [
        {**ENDLESS, "n": 4, "logprobs": 100},
        {"prompt": "x" * 500_000, "max_tokens": 0, "echo": True, "overflow": "slide", "n": 64},
    ],
    ids=["new tokens", "prompts alone"],
)
def test_a_client_that_takes_nothing_is_cut(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    """The engine waits for nobody, and what a client does not take is not kept for ever.

    A stream of prompts alone was: some of its clients filled the queue for good.
    """
    monkeypatch.setattr(limits, "UNREAD_SECONDS", 0.2)
    app = application(tiny(), settings=Settings(parallel=4, drain=0))
    bound = bind(Address(port=0))
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # its connections have that, too
    started = Started(app, bound)
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(bound.getsockname())
        slow.sendall(raw_request({**asked, "stream": True}))
        wait_until(lambda: not is_idle(app))
        wait_until(lambda: is_idle(app))
        # The connection is gone; it does not wait until everything was taken.
        rest_of(slow)
    started.server.stop()
    assert started.code == 0


def test_what_is_no_http_is_answered_in_the_shape_of_all_errors(url: str) -> None:
    long = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 20_000
    for data in (b"GARBAGE\r\n\r\n", long):
        with connect(url) as raw:
            raw.sendall(data)
            received = b""
            with contextlib.suppress(ConnectionResetError):
                while more := raw.recv(10_000):
                    received += more
        head, _, body = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400")
        assert json.loads(body)["error"]["type"] == "invalid_request_error"


def test_what_is_no_http_is_answered_with_a_length_and_once(url: str) -> None:
    """Without a length nobody can tell a whole answer from the beginning of one.

    A bad chunk after the answer was a traceback in the server's log: it wanted to answer again.
    """
    with connect(url) as raw:
        raw.sendall(b"GARBAGE\r\n\r\n")
        head, _, body = rest_of(raw).partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head.lower()
    with connect(url) as raw:
        raw.sendall(
            b"GET /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        received = raw.recv(10_000)
        raw.sendall(b"no chunk\r\n")
        received += rest_of(raw)
    assert received.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("first", ["Content-Length: 5", "Transfer-Encoding: chunked"])
def test_a_body_whose_end_is_given_in_two_ways_is_refused(url: str, first: str) -> None:
    """What a proxy took for the body could be another request for the server: it was answered."""
    lines = ["POST /v1/completions HTTP/1.1", "Host: localhost", first]
    lines += [{"C": "Transfer-Encoding: chunked", "T": "Content-Length: 5"}[first[0]], "", ""]
    with connect(url) as raw:
        raw.sendall(
            "\r\n".join(lines).encode() + b"0\r\n\r\nGET /health HTTP/1.1\r\nHost: a\r\n\r\n"
        )
        received = rest_of(raw)
    assert received.startswith(b"HTTP/1.1 400")
    assert b"a Content-Length and a Transfer-Encoding" in received
    assert received.count(b"HTTP/1.1") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="counts descriptors")
@pytest.mark.parametrize("half", [b"", b"GET /hea", b"POST /tokenize HTTP/1.1\r\nHost: a\r\n"])
def test_idle_connections_give_way_to_new_ones(
    monkeypatch: pytest.MonkeyPatch, half: bytes
) -> None:
    """Once they had all descriptors, nobody was answered until they were cut after 30 seconds."""
    monkeypatch.setattr(connection, "_descriptors", lambda: 90)
    with running() as url, contextlib.ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(connect(url)).sendall(half)
        assert post(url, PLAIN)[0] == 200


@pytest.mark.skipif(sys.platform == "win32", reason="counts descriptors")
def test_with_requests_on_all_connections_the_next_one_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "_descriptors", lambda: 70)
    with running() as url, contextlib.ExitStack() as stack:

        def is_refused() -> bool:
            stack.enter_context(connect(url)).sendall(raw_request(PLAIN, length=1000))
            return post(url, PLAIN)[0] == 503

        wait_until(is_refused)
        status, headers, body = post(url, PLAIN)
        assert (status, headers["retry-after"]) == (503, "1")
        assert b"as many connections as it can have" in body


def test_a_request_may_name_the_server_in_its_first_line(url: str) -> None:
    """Clients write to a proxy so, and every server must take it (RFC 9112); it was a 404."""
    ours = url.removeprefix("http://")
    for name, host, expected in (
        (ours, ours, b"200"),
        (ours.upper(), "evil.com", b"200"),  # the name in the first line counts
        ("evil.com", "localhost", b"403"),
    ):
        with connect(url) as raw:
            request = f"GET http://{name}/v1/models?x=1 HTTP/1.1\r\nHost: {host}\r\n\r\n"
            raw.sendall(request.encode())
            assert raw.recv(10_000).startswith(b"HTTP/1.1 " + expected), (name, host)


# --- under load -----------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_text_under_load(url: str) -> None:
    """Elsewhere other requests change the text of the same seed."""
    asked = [
        {"prompt": f"The {'dog ' * (i % 7)}", "max_tokens": 5 + i % 20, "seed": i, "n": 1 + i % 3}
        for i in range(12)
    ]
    alone = [json.loads(post(url, body)[2])["choices"] for body in asked]
    together: dict[int, Any] = {}

    def ask(index: int) -> None:
        together[index] = json.loads(post(url, asked[index])[2])["choices"]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[i] for i in range(len(asked))] == alone


def test_a_request_of_many_texts_does_not_hold_up_a_small_one(app: Application, url: str) -> None:
    """In the order of arrival, the small request would wait for all texts of the large one."""
    with connect(url) as large:
        large.sendall(raw_request({**ENDLESS, "max_tokens": 200, "n": 120}))
        wait_until(lambda: not is_idle(app))
        assert post(url, PLAIN)[0] == 200
        assert not is_idle(app)
    wait_until(lambda: is_idle(app))


# --- the end --------------------------------------------------------------------------------------


def test_stopping_lets_running_answers_end() -> None:
    app = application(tiny())
    started = Started(app)
    with connect(started.url) as last, connect(started.url) as late:
        last.sendall(raw_request({**ENDLESS, "max_tokens": 500, "stream": True}))
        assert last.recv(100)
        started.server.stop()
        wait_until(lambda: app.service.life.state == "draining")
        late.sendall(raw_request(PLAIN))
        assert late.recv(1000).startswith(b"HTTP/1.1 503")
        assert b"[DONE]" in rest_of(last)
    assert started.code == 0


def test_what_does_not_end_in_time_is_cut_with_an_error() -> None:
    app = application(tiny(), settings=Settings(drain=0.05))
    started = Started(app)
    with connect(started.url) as last, connect(started.url) as whole:
        last.sendall(raw_request({**ENDLESS, "stream": True}))
        whole.sendall(raw_request(ENDLESS))
        assert last.recv(100)
        wait_until(lambda: app.service.limits.requests == 2)
        started.server.stop()
        received = rest_of(last)
        assert b'"the server stops, and the answer was cut; ask again"' in received
        assert b"[DONE]" not in received
        assert whole.recv(1000).startswith(b"HTTP/1.1 503")
    assert started.code == 0


def test_a_request_that_was_accepted_but_has_not_begun_is_refused_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It came to the engine after the others were cut, and was cut off without an answer."""
    app = application(tiny(), settings=Settings(drain=0))
    started = Started(app)
    may_go_on, encode = threading.Event(), rows.encode

    def slow(*arguments: Any) -> Any:
        may_go_on.wait(10)
        return encode(*arguments)

    monkeypatch.setattr(rows, "encode", slow)
    with connect(started.url) as late:
        late.sendall(raw_request(ENDLESS))
        wait_until(lambda: app.service.limits.requests == 1)
        started.server.stop()
        wait_until(lambda: app.service.life.state == "draining")
        time.sleep(0.1)  # until the others would have been cut
        may_go_on.set()
        assert late.recv(1000).startswith(b"HTTP/1.1 503")
    assert started.code == 0


def test_stopping_does_not_wait_for_a_model_that_is_being_loaded() -> None:
    """Even a second signal waited until the model was loaded."""
    loads, may_go_on = threading.Event(), threading.Event()

    def load(_: object) -> Any:
        loads.set()
        may_go_on.wait(20)
        return tiny()

    started = Started(application("x", load=load), state="loading")
    try:
        assert loads.wait(10)
        started.server.stop()
        assert started.code == 0
        assert not may_go_on.is_set()
    finally:
        may_go_on.set()


def test_a_request_that_waits_for_a_model_when_the_server_stops_is_refused(weights: Path) -> None:
    """Its answer was a plain "Internal Server Error"."""
    add_vocabulary(write_hub(weights / "novel", tiny()[0], n_ctx=CONFIG.n_ctx))
    loads, may_go_on = threading.Event(), threading.Event()

    def load(_: object) -> Any:
        loads.set()
        may_go_on.wait(20)
        return tiny()

    app = application(tiny(), "novel", load=load, settings=Settings(drain=0))
    started = Started(app)
    try:
        with connect(started.url) as waiting:
            waiting.sendall(raw_request({**PLAIN, "model": "novel"}))
            assert loads.wait(10)
            started.server.stop()
            received = rest_of(waiting)
    finally:
        may_go_on.set()
    assert received.startswith(b"HTTP/1.1 503")
    assert b'"code": "unavailable"' in received
    assert started.code == 0


def test_a_failing_engine_ends_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others answer on with status 200 from /health while nothing works any more."""
    app = application(tiny())
    started = Started(app)

    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    with connect(started.url) as first, connect(started.url) as second:
        first.sendall(raw_request({**ENDLESS, "stream": True}))
        second.sendall(raw_request(ENDLESS))
        assert first.recv(100)
        wait_until(lambda: app.service.limits.requests == 2)
        monkeypatch.setattr("gpt2kit.serve.worker.Continuation.step", fail)
        assert b'"code":"engine_failed"' in rest_of(first)
        assert second.recv(1000).startswith(b"HTTP/1.1 500")
    assert started.code == 1


def test_an_address_in_use_is_one_line() -> None:
    with bind(Address(port=0)) as bound:
        port = bound.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: .*; choose another --port"):
            bind(Address(port=port))
    with pytest.raises(ConfigError, match="cannot listen on"):
        bind(Address(host="no.such.host.invalid"))
    with pytest.raises(ConfigError, match="not the name of a machine"):
        bind(Address(host="\x9b"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ([signal.SIGTERM], 0),
        ([signal.SIGINT], 0),
        ([signal.SIGTERM] * 2, 143),
        ([signal.SIGINT] * 2, 130),
    ],
)
def test_signals_end_the_process(weights: Path, signals: list[int], code: int) -> None:
    model, _ = tiny()
    add_vocabulary(write_hub(weights / "tiny", model, n_ctx=CONFIG.n_ctx))
    process = subprocess.Popen(
        [sys.executable, "-m", "gpt2kit", "serve", "--model", "tiny", "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    url = line.split(" at ")[1].split(";")[0]
    with connect(url) as running_one:
        body = ENDLESS if len(signals) > 1 else {**ENDLESS, "max_tokens": 3000}
        running_one.sendall(raw_request({**body, "stream": True}))
        received = running_one.recv(100)
        for number in signals:
            process.send_signal(number)
            time.sleep(0.3)
        with contextlib.suppress(ConnectionResetError):
            while data := running_one.recv(65536):
                received += data
    assert process.wait(20) == code
    assert (b"[DONE]" in received) == (len(signals) == 1)


def test_a_model_that_cannot_be_loaded_ends_the_server(caplog: pytest.LogCaptureFixture) -> None:
    def load(_: object) -> Any:
        raise ConfigError("no such device")

    with bind(Address(port=0)) as bound:
        assert run(application("x", load=load), bound) == 1
    assert "x cannot be loaded: no such device" in caplog.text
    assert "Traceback" not in caplog.text
