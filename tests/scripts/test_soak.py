"""soak.py: ten seconds of it, and that it finds what it looks for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from soak import Soak, State, choices, compared, parsed, refused

ROOT = Path(__file__).parents[2]


def state(memory: int = 300, threads: int = 8, *, files: int = 7, running: int = 0) -> State:
    """Return what a process may have, the memory in MB."""
    return State(memory * 10**6, threads, files, {"requests running": running})


@pytest.mark.parametrize(
    ("last", "found"),
    [
        (state(), []),
        (state(running=2), ["2 requests running after all work was done"]),
        (state(memory=400), ["memory grew beyond 1.1 times 300 MB and 20 MB"]),
        (state(threads=9), ["9 threads are left"]),
        (state(files=8), ["8 files are left open"]),
    ],
)
def test_what_a_process_has_lost_is_named(last: State, found: list[str]) -> None:
    assert compared([state(), state()], last)[1] == found


def test_answers_of_all_kinds_are_read() -> None:
    chunked = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    )
    assert parsed(chunked) == (200, b"abcde")
    assert parsed(b"HTTP/1.1 429 Too Many Requests\r\n\r\n{}") == (429, b"{}")
    assert parsed(b"") == (0, b"")
    event = {"index": 0, "text": "a", "finish_reason": None, "logprobs": None}
    stream = b"".join(b"data: " + json.dumps({"choices": [event]}).encode() + b"\n\n" for _ in "ab")
    assert choices({"stream": True}, stream) is None  # without its end
    (joined,) = choices({"stream": True}, stream + b"data: [DONE]\n\n")
    assert joined["text"] == "aa"


def test_a_refusal_without_a_reason_is_wrong() -> None:
    soak = Soak(0, 0)
    soak.check_refusal(429, b'{"error": {"message": "the server is busy"}}', "a request")
    assert not soak.wrong
    soak.check_refusal(429, b"busy", "a request")
    soak.check_refusal(500, b'{"error": {"message": "it failed"}}', "a request")
    assert len(soak.wrong) == 2


def test_a_stream_that_waited_too_long_to_begin_is_refused_and_not_wrong() -> None:
    """On a machine that was busy for hours, the soak took these answers for wrong texts."""
    error = b'{"error":{"message":"it waited too long","type":"server_error","code":"unavailable"}}'
    stream = b": waiting\n\n: waiting\n\ndata: " + error + b"\n\n"
    assert refused(200, stream) == (503, error)
    begun = b'data: {"choices": []}\n\n' + stream
    assert refused(200, begun) == (200, begun)


@pytest.mark.slow
def test_a_busy_server_and_a_busy_program_lose_nothing_in_ten_seconds() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "soak.py"), "--minutes", "0.17"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["server"]["seen"]["answered"]
    assert found["library"]["seen"]["commands that write"]
