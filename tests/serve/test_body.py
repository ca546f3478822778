"""Bodies of requests: what is no JSON object is refused in one sentence, whatever it is."""

from __future__ import annotations

import gzip
import socket
import time
from urllib.parse import urlsplit

import pytest
from serve_builders import connected, running, tiny, wait_until

from gpt2kit.serve import settings
from gpt2kit.serve.asgi import application
from gpt2kit.serve.body import parse_object
from gpt2kit.serve.errors import Refusal


def connected_to(url: str) -> socket.socket:
    at = urlsplit(url)
    assert at.port
    return socket.create_connection(("127.0.0.1", at.port), timeout=20)


def test_an_object_is_parsed() -> None:
    assert parse_object('{"prompt": "perché", "n": 2}'.encode()) == {"prompt": "perché", "n": 2}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"a": }', "not JSON: Expecting value, at character 6"),
        (b'{"a": NaN}', "NaN, which is not JSON"),
        (b'{"a": -Infinity}', "-Infinity, which is not JSON"),
        (b'{"a": 1, "a": 2}', "'a' is there twice"),
        (b'{"x": {"b": 1, "b": 1}}', "'b' is there twice"),
        (b'{"a": ' + b"1" * 5000 + b"}", "too many digits"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"\xff\xfe{}", "not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),  # json guesses, and read it
    ],
)
def test_a_body_that_is_no_object_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(Refusal, match="the body|the key|a number") as caught:
        parse_object(body)
    assert caught.value.status == 400
    assert message in str(caught.value)


def test_a_compressed_body_is_refused_by_name() -> None:
    """The answer was that the body is not UTF-8."""
    with connected() as client:
        response = client.post(
            "/v1/completions", content=gzip.compress(b"{}"), headers={"content-encoding": "gzip"}
        )
    assert response.status_code == 415
    assert "content-encoding is 'gzip'" in response.json()["error"]["message"]


def test_a_large_body_with_a_key_that_is_there_twice_is_refused_at_once() -> None:
    """Each key was counted in the list of all: one such body stopped the server for minutes."""
    body = "{" + ",".join(f'"{n}":0' for n in range(90_000)) + ',"89999":1}'
    began = time.process_time()
    with pytest.raises(Refusal, match="'89999' is there twice"):
        parse_object(body.encode())
    assert time.process_time() - began < 2


def test_large_bodies_together_take_a_bounded_part_of_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each connection could hold a megabyte, and nobody counted the connections."""
    monkeypatch.setattr(settings, "BODIES_BYTES", 200_000)
    app = application(tiny())
    half = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    half += b"Content-Length: 200001\r\n\r\n" + b" " * 200_000
    with running(app=app) as url, connected_to(url) as first, connected_to(url) as second:
        first.sendall(half)
        wait_until(lambda: app.service.bodies.held > 100_000)
        # Little more than the server takes: what it leaves unread would reset the connection,
        # and the answer could be lost.
        second.sendall(half[:-60_000])
        answer = b""
        while more := second.recv(1000):
            answer += more
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"too many large bodies at once" in answer
        with connected_to(url) as small:  # is always taken
            small.sendall(half[: half.index(b"Content-Length")] + b"Content-Length: 2\r\n\r\n{}")
            assert small.recv(1000).startswith(b"HTTP/1.1 400")
        first.close()
        wait_until(lambda: app.service.bodies.held == 0)
