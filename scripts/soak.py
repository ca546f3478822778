#!/usr/bin/env python3
"""Keep a server and a program that uses the library busy with everything; look for what they lose.

    python scripts/soak.py --minutes 120

It starts `gpt2kit serve` with a small model and few slots, so that its queue is always full. Some
clients wait for their answers. Others leave at every stage, stop reading, send half of a request,
or send what is no request. Every answer must be whole or an error in the API's shape, and the
answers to a set of requests must be those that each got when it was asked alone, bit for bit.

Beside it runs tests/campaigns/everything.py: commands, drawn numbers and hostile files, mixed in
one process, each with its check.

Every ten seconds a line for each tells memory, threads and open files. At the end, when the clients
have left, no request, connection and process may be left, and memory and threads must be what they
were after the first tenth of the time, which warms both up. The last line is JSON; the exit code is
1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measures.serve import running
from measures.streams import HOST

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from campaigns.served import state_of

Body = dict[str, Any]
Way = Callable[["Soak", random.Random], Coroutine[Any, Any, None]]

EVERYTHING = Path(__file__).parents[1] / "tests" / "campaigns" / "everything.py"
# torch and oneDNN keep code for the last 1024 shapes of products; drawn models have more than that.
FEW_KERNELS = {"LRU_CACHE_CAPACITY": "8", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "8"}
KNOWN = 40  # requests whose answers are known
REFUSED = {400, 404, 405, 408, 413, 415, 429, 503}
IDLE_SECONDS = 20.0  # after which the server must have noticed that all clients have left
GROWTH = 1.1  # of memory, after the server has warmed up


@dataclass
class State:
    """What a process has of what it could lose."""

    memory: int  # bytes
    threads: int
    files: int
    others: dict[str, float]  # what it may have while it works, and not afterwards

    def line(self) -> str:
        """Return it for people."""
        others = "".join(f", {count:.0f} {what}" for what, count in self.others.items())
        return (
            f"{self.memory / 1e6:,.0f} MB, {self.threads} threads, {self.files} open files{others}"
        )


@dataclass
class Soak:
    """A server, what its clients have seen, and what was wrong."""

    port: int
    process: int  # its id
    known: list[tuple[Body, Any]] = field(default_factory=list)  # requests and their answers
    seen: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def state(self, metrics: str) -> State:
        """Return what the server has, by its metrics and by the operating system."""
        others = {
            f"requests {name}": float(metrics.split(f"\ngpt2kit_requests_{name} ")[1].split()[0])
            for name in ("running", "waiting")
        }
        found = state_of(self.process)
        return State(found.memory, found.threads, found.descriptors, others)

    async def look(self) -> State:
        """Return what the server has now."""
        _, content = await self.get("/metrics")
        return self.state(content.decode())

    async def get(self, path: str) -> tuple[int, bytes]:
        """Return status and body of a page."""
        return await self.send(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n".encode(), b"")

    async def post(self, content: bytes, *, path: str = "/v1/completions") -> tuple[int, bytes]:
        """Send a request and return status and body of the answer."""
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        return await self.send(head.encode() + b"content-length: %d\r\n" % len(content), content)

    async def send(self, head: bytes, content: bytes) -> tuple[int, bytes]:
        """Send a head without its end, and a body; return status and body of the answer."""
        async with self.connected() as (reader, writer):
            writer.write(head + b"connection: close\r\n\r\n" + content)
            answer = await asyncio.wait_for(reader.read(), 300)
        return parsed(answer)

    @contextlib.asynccontextmanager
    async def connected(self, *, reset: bool = False) -> Any:
        """Connect to the server, and leave at the end, perhaps without the usual goodbye."""
        reader, writer = await asyncio.open_connection(HOST, self.port)
        try:
            yield reader, writer
        finally:
            if reset:
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, linger
                )
                writer.transport.abort()
            writer.close()

    def check_refusal(self, status: int, content: bytes, what: str) -> None:
        """Note a refusal; it must have a known status and name its reason."""
        self.seen[f"refused {status}"] += 1
        try:
            named = bool(json.loads(content)["error"]["message"])
        except (ValueError, KeyError, TypeError):
            named = False
        if status not in REFUSED or not named:
            self.wrong.append(f"{what}: status {status}, {content[:200]!r}")


def parsed(answer: bytes) -> tuple[int, bytes]:
    """Return status and body of an answer, whose connection has ended; 0 for none at all."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head:
        return 0, b""
    if b"transfer-encoding: chunked" in head.lower():
        joined, rest = b"", body
        while rest and (size := int(rest.partition(b"\r\n")[0] or b"0", 16)):
            _, _, rest = rest.partition(b"\r\n")
            joined, rest = joined + rest[:size], rest[size + 2 :]
        body = joined
    return int(head.split()[1]), body


def refused(status: int, content: bytes) -> tuple[int, bytes]:
    """Return an answer, as status 503 if it is a stream whose request waited too long to begin."""
    start = b"data: "
    events = [line[len(start) :] for line in content.split(b"\n") if line.startswith(start)]
    if len(events) == 1 and b'"code":"unavailable"' in events[0]:
        return 503, events[0]
    return status, content


def choices(body: Body, content: bytes) -> Any:
    """Return the texts of an answer, whole or streamed, with all that belongs to them.

    None for a stream that did not end as it should.
    """
    if not body.get("stream"):
        return json.loads(content)["choices"]
    *events, done, rest = content.decode().split("\n\n")
    if (done, rest) != ("data: [DONE]", ""):
        return None
    joined: dict[int, Any] = {}
    for event in events:
        if event.startswith(":"):
            continue
        for new in json.loads(event.removeprefix("data: "))["choices"]:
            old = joined.setdefault(new["index"], new)
            if old is not new:
                old["text"] += new["text"]
                old["finish_reason"] = new["finish_reason"]
                for name in old["logprobs"] or ():
                    old["logprobs"][name] += new["logprobs"][name]
    return [joined[index] for index in sorted(joined)]


# --- requests -------------------------------------------------------------------------------------


def request(rng: random.Random) -> Body:
    """Return a request of any kind that is right; prompts often begin alike."""
    shared = "la stella e il mare e la notte " * rng.choice([0, 0, 1, 4, 7])
    own = "".join(rng.choice("aeilmnorst ") for _ in range(rng.randrange(1, 30)))
    body: Body = {
        "prompt": shared + own,
        "max_tokens": rng.choice([1, 5, 20, 60]),
        "seed": rng.randrange(1000),
        "temperature": rng.choice([0, 0.7, 1, 1.4]),
        "top_k": rng.choice([0, 1, 5, 40]),
        "n": rng.choice([1, 1, 1, 2, 3]),
        "overflow": "slide",
        "stream": rng.random() < 0.5,
    }
    if rng.random() < 0.25:
        body |= {"logprobs": rng.choice([0, 3]), "echo": rng.random() < 0.5}
    if rng.random() < 0.2:
        body |= {"frequency_penalty": 0.5, "logit_bias": {"7": 2}}
    if rng.random() < 0.2:
        body["stop"] = ["e", " l"]
    return body


def endless(rng: random.Random) -> Body:
    """Return a request for more than anybody waits for."""
    return {"prompt": "e", "max_tokens": 20_000, "overflow": "slide", "seed": rng.randrange(99)}


def raw(body: Body) -> bytes:
    """Return a request as it goes over the wire."""
    content = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
    about = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(content)
    return head.encode() + about + content


# --- clients --------------------------------------------------------------------------------------


async def wait_for_an_answer(soak: Soak, rng: random.Random) -> None:
    """Ask something whose answer is known, and compare."""
    body, expected = rng.choice(soak.known)
    status, content = refused(*await soak.post(json.dumps(body).encode()))
    if status != 200:
        soak.check_refusal(status, content, "a right request")
        await asyncio.sleep(rng.random() * 0.2)
        return
    soak.seen["answered"] += 1
    if choices(body, content) != expected:
        soak.wrong.append(f"another answer than alone to {body}: {content[:300]!r}")


async def leave_before_the_answer(soak: Soak, rng: random.Random) -> None:
    """Send a request and leave at once, or soon."""
    async with soak.connected(reset=rng.random() < 0.5) as (_, writer):
        writer.write(raw(rng.choice([request, endless])(rng) | {"stream": rng.random() < 0.5}))
        await asyncio.sleep(rng.choice([0, 0.001, 0.02, 0.3]))
    soak.seen["left before the answer"] += 1


async def leave_while_it_streams(soak: Soak, rng: random.Random) -> None:
    """Read some of a stream that would not end, then leave."""
    async with soak.connected(reset=rng.random() < 0.5) as (reader, writer):
        writer.write(raw(endless(rng) | {"stream": True, "n": rng.choice([1, 3])}))
        for _ in range(rng.randrange(1, 40)):
            if not await asyncio.wait_for(reader.read(500), 300):
                break
    soak.seen["left while it streamed"] += 1


async def stop_reading(soak: Soak, rng: random.Random) -> None:
    """Let a stream that would not end run into a connection from which nobody reads."""
    async with soak.connected() as (_, writer):
        writer.transport.pause_reading()
        writer.write(raw(endless(rng) | {"stream": True, "logprobs": 20, "n": 2}))
        await asyncio.sleep(rng.uniform(0.5, 5))
    soak.seen["stopped reading"] += 1


async def send_half(soak: Soak, rng: random.Random) -> None:
    """Send the first part of a request, wait, and leave."""
    whole = raw(request(rng))
    async with soak.connected(reset=rng.random() < 0.5) as (_, writer):
        writer.write(whole[: rng.randrange(len(whole))])
        await asyncio.sleep(rng.choice([0, 0.1, 3]))
    soak.seen["sent half"] += 1


async def lie(soak: Soak, rng: random.Random) -> None:
    """Send what is no request, or not the one that it says it is."""
    right = request(rng)
    bodies: list[Any] = [
        right | {"prompt": 7},
        right | {"prompt": [10**9]},
        right | {"max_tokens": -1},
        right | {"temperature": "warm"},
        right | {"model": "another"},
        right | {"n": 10**6},
        right | {"nonsense": 1},
        right | {"logprobs": "many"},
        [1, 2],
        None,
    ]
    contents = [
        *(json.dumps(body).encode() for body in bodies),
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 5000,
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": "' + b"a" * 2_000_000 + b'"}',
    ]
    content = rng.choice(contents)
    with contextlib.suppress(ConnectionError):  # too large a body may be cut off while it is sent
        status, answer = await soak.post(content)
        if status:
            soak.check_refusal(status, answer, f"{content[:60]!r}")


async def speak_another_protocol(soak: Soak, rng: random.Random) -> None:
    """Send bytes that are not HTTP, or a length that is not that of the body."""
    sent = rng.choice(
        [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"POST /v1/completions HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
            b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 10_000 + b"\r\n",
            raw(request(rng)).replace(b"content-length: ", b"content-length: 1"),
            raw(request(rng)).replace(b"content-length: ", b"content-length: 0x"),
            rng.randbytes(300),
        ]
    )
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with soak.connected() as (reader, writer):
            writer.write(sent)
            await asyncio.wait_for(reader.read(), rng.uniform(0.1, 2))
    soak.seen["spoke another protocol"] += 1


async def look_around(soak: Soak, rng: random.Random) -> None:
    """Ask for something else than a text."""
    paths = ["/", "/health", "/metrics", "/v1/models", "/tokenizer_info", "/nowhere"]
    status, content = await soak.get(rng.choice(paths))
    if status != 200:
        soak.check_refusal(status, content, "a page")
    status, content = await soak.post(json.dumps({"prompt": "la vita"}).encode(), path="/tokenize")
    if status != 200 or not json.loads(content)["tokens"]:
        soak.check_refusal(status, content, "/tokenize")
    soak.seen["looked around"] += 1


# How many clients in a hundred behave in each way.
WAYS: dict[Way, int] = {
    wait_for_an_answer: 40,
    leave_before_the_answer: 14,
    leave_while_it_streams: 14,
    stop_reading: 6,
    send_half: 8,
    lie: 8,
    speak_another_protocol: 4,
    look_around: 6,
}


async def behave(soak: Soak, rng: random.Random, end: float) -> None:
    """Be one client after the other."""
    while time.monotonic() < end:
        (way,) = rng.choices(list(WAYS), list(WAYS.values()))
        try:
            await way(soak, rng)
        except (ConnectionError, asyncio.IncompleteReadError):
            soak.seen["connection cut"] += 1  # by the server, which may do that to a bad client
            if way is wait_for_an_answer:
                soak.wrong.append("the connection of a right request was cut")
        except Exception as error:
            soak.wrong.append(f"{way.__name__}: {error!r}")


# --- the whole ------------------------------------------------------------------------------------


async def use_server(soak: Soak, *, seconds: float, clients: int, seed: int) -> dict[str, Any]:
    """Keep the server busy; return what was seen, and note what was wrong."""
    rng = random.Random(seed)
    for body in [request(rng) for _ in range(KNOWN)]:
        status, content = await soak.post(json.dumps(body).encode())
        assert status == 200, content
        soak.known.append((body, choices(body, content)))
    first, start = await soak.look(), time.monotonic()
    work = asyncio.gather(
        *(behave(soak, random.Random(rng.random()), start + seconds) for _ in range(clients))
    )
    states, fullest = [], 0.0
    while not work.done():
        await asyncio.wait([work], timeout=min(10.0, seconds / 10))
        if time.monotonic() < start + seconds:
            states.append(await soak.look())
            fullest = max(fullest, states[-1].others["requests waiting"])
            print(f"{time.monotonic() - start:6.0f} s, server:  {states[-1].line()}", flush=True)
    await work
    last = await until_idle(soak)
    if last.files > first.files:
        soak.wrong.append(f"{last.files} files are open, and {first.files} were before")
    if not fullest or not soak.seen["answered"]:
        soak.wrong.append("the queue was never in use, or nobody got an answer: it is no soak")
    figures, wrong = compared(states, last)
    soak.wrong += wrong
    return figures | {"seen": soak.seen, "wrong": soak.wrong}


async def until_idle(soak: Soak) -> State:
    """Wait until the server has noticed that its clients have left, but not too long."""
    end = time.monotonic() + IDLE_SECONDS
    while True:
        state = await soak.look()
        if not any(state.others.values()) or time.monotonic() > end:
            await asyncio.sleep(0.5)
            return await soak.look()
        await asyncio.sleep(0.1)


async def use_library(*, seconds: float, seed: int) -> dict[str, Any]:
    """Let another process do everything that the library does; return what it saw."""
    options = ["--seconds", str(seconds), "--seed", str(seed)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(EVERYTHING), *options),
        stdout=asyncio.subprocess.PIPE,
        limit=2**24,
        env=os.environ | FEW_KERNELS,
    )
    assert process.stdout is not None
    states: list[State] = []
    found: dict[str, Any] = {}
    start = time.monotonic()
    async for line in process.stdout:
        found = json.loads(line)
        others = {"other processes": found["processes"]}
        states.append(State(found["memory"], found["threads"], found["files"], others))
        print(f"{time.monotonic() - start:6.0f} s, library: {states[-1].line()}", flush=True)
    if await process.wait() or "wrong" not in found:
        return {"wrong": [f"the process of the library ended with {process.returncode}"]}
    figures, wrong = compared(states[:-1], states[-1])
    return figures | {"seen": found["seen"], "wrong": [*found["wrong"], *wrong]}


def compared(states: list[State], last: State) -> tuple[dict[str, Any], list[str]]:
    """Return the figures of a process, and what it has lost."""
    warm = states[: max(1, len(states) // 10)]
    later = [*states[len(warm) :], last]
    wrong = [
        f"{count:.0f} {what} after all work was done"
        for what, count in last.others.items()
        if count
    ]
    memory = max(state.memory for state in warm)
    if max(state.memory for state in later) > GROWTH * memory + 20e6:
        wrong.append(f"memory grew beyond {GROWTH} times {memory / 1e6:.0f} MB and 20 MB")
    if last.threads > max(state.threads for state in warm):
        wrong.append(f"{last.threads} threads are left")
    if last.files > max(state.files for state in warm):
        wrong.append(f"{last.files} files are left open")
    figures = {
        "MB": [round(memory / 1e6), *(round(state.memory / 1e6) for state in later[-2:])],
        "threads": [warm[-1].threads, last.threads],
        "files": [warm[-1].files, last.files],
    }
    return figures, wrong


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=60, help="at the same time")
    parser.add_argument("--model", default="dante", help="a name or folder that gpt2kit knows")
    parser.add_argument("--threads", type=int, default=1, help="of the server's engine")
    parser.add_argument("--seed", type=int, default=0)
    return parser


async def soak_both(soak: Soak, *, seconds: float, clients: int, seed: int) -> dict[str, Any]:
    """Keep the server and the library busy at the same time."""
    server, library = await asyncio.gather(
        use_server(soak, seconds=seconds, clients=clients, seed=seed),
        use_library(seconds=seconds, seed=seed),
    )
    return {"seconds": round(seconds), "server": server, "library": library}


def main() -> None:
    options = parser().parse_args()
    command = [sys.executable, "-m", "gpt2kit", "serve", "--model", options.model]
    limits = ["--parallel", "4", "--queue", "16"]
    with running([*command, *limits], {"threads": options.threads}) as (port, process):
        work = soak_both(
            Soak(port, process),
            seconds=60 * options.minutes,
            clients=options.clients,
            seed=options.seed,
        )
        found = asyncio.run(work)
    failed = 0
    for one in (found["server"], found["library"]):
        one["failed"] = len(one["wrong"])
        one["wrong"] = one["wrong"][:20]
        failed += one["failed"]
    print(json.dumps(found | {"failed": failed}))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
