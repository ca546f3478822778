"""serve: tokens per second of several clients together, and how a long prompt holds others up.

The server has a process of its own; the clients are in this one.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import math
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measures.gguf_file import write_gguf
from measures.streams import HOST, Body, Stream, ask, ask_together, begun
from measures.timing import SHORT, Figures, Task, load_kit, peak_memory

if TYPE_CHECKING:
    from gpt2kit.tokenizers import Tokenizer

SLOTS = 8  # texts that each server writes at once
TURNS = 3
RUNNING = 4  # streams beside which a long prompt arrives
RUNNING_TOKENS, BEFORE = 400, 20  # tokens of each, and those that are there when it arrives
LONG_TOKENS = 4
START_SECONDS = 120
# Each is one token of GPT-2 with the space before it, and has letters that most corpora have.
WORDS = (
    *("time", "part", "line", "sea", "sun", "stone", "river", "light", "road", "name", "sound"),
    *("field", "rain", "fire", "tree", "song"),
)


def words(task: Task, seed: int, tokens: int) -> str:
    """Return a text of this many tokens, another one for each seed."""
    tokenizer = _tokenizer(task["model"])
    rng = random.Random(seed)
    text = " ".join(rng.choice(WORDS) for _ in range(tokens))
    return tokenizer.decode(tokenizer.encode(text)[:tokens])


@functools.cache
def _tokenizer(model: str) -> Tokenizer:
    from gpt2kit.checkpoints.load import open_checkpoint
    from gpt2kit.tokenizers import load_tokenizer, require_tokenizer

    return require_tokenizer(load_tokenizer(open_checkpoint(Path(model)).folder), model)


# --- figures --------------------------------------------------------------------------------------


def measure(port: int, task: Task, common: Body) -> Figures:
    """Return the figures of a server that listens on a port."""
    common = {"temperature": 0, "stream_options": {"include_usage": True}, **common}
    return asyncio.run(_measure(port, task, common))


async def _measure(port: int, task: Task, common: Body) -> Figures:
    n, tokens = task["batch"], task["tokens"]
    warm = [{**common, "prompt": words(task, -1 - i, SHORT)} for i in range(SLOTS)]
    await ask_together(port, [{**body, "max_tokens": 8} for body in warm])
    turns = []
    for turn in range(TURNS):
        bodies = [{**common, "prompt": p, "max_tokens": tokens} for p in prompts(task, turn)]
        start = time.perf_counter()
        turns.append((start, await ask_together(port, bodies)))
    streams = [(start, stream) for start, found in turns for stream in found]
    firsts = [stream.times[0] - start for start, stream in streams]
    gaps = [gap for _, stream in streams for gap in _gaps(stream)]
    rates = [
        sum(stream.tokens for stream in found) / (max(s.times[-1] for s in found) - start)
        for start, found in turns
    ]
    assert len(streams) == n * TURNS
    return {
        "tokens_per_second": statistics.median(rates),
        "first_s": statistics.median(firsts),
        "last_first_s": max(firsts),
        "gap_ms": 1000 * statistics.median(gaps),
        **await _long_prompt(port, task, common),
    }


def prompts(task: Task, turn: int) -> list[str]:
    """Return a short prompt for each client."""
    return [words(task, 1000 * turn + i, SHORT) for i in range(task["batch"])]


async def _long_prompt(port: int, task: Task, common: Body) -> Figures:
    """Return how a long prompt is read alone, again with another end, and beside other streams."""
    length = task["prompt_tokens"]
    long = {**common, "max_tokens": LONG_TOKENS}
    first, beside = words(task, 10_001, length), words(task, 10_002, length)
    other_end = first[: -len(" song")]
    alone, warm = [await _first(port, {**long, "prompt": p}) for p in (first, other_end)]
    room = task["prompt_tokens"] + task["tokens"] - SHORT  # what the window holds
    running = [Stream() for _ in range(RUNNING)]
    bodies = [
        {
            **common,
            "prompt": words(task, 20_000 + i, SHORT),
            "max_tokens": min(RUNNING_TOKENS, room),
        }
        for i in range(RUNNING)
    ]
    tasks = [
        asyncio.create_task(ask(port, body, stream))
        for body, stream in zip(bodies, running, strict=True)
    ]
    await begun(running, min(BEFORE, room // 8))
    start = time.perf_counter()
    found = await _first(port, {**long, "prompt": beside})
    end = time.perf_counter()
    await asyncio.gather(*tasks)
    held_up = [
        later - earlier
        for stream in running
        for earlier, later in itertools.pairwise(stream.times)
        if later > start and earlier < end
    ]
    return {
        "stall_ms": 1000 * max(held_up, default=float("nan")),
        "long_first_s": found,
        "alone_first_s": alone,
        "warm_first_s": warm,
    }


async def _first(port: int, body: Body) -> float:
    """Return the seconds until the first token of a request."""
    start = time.perf_counter()
    return (await ask(port, body)).times[0] - start


def _gaps(stream: Stream) -> Iterator[float]:
    return (later - earlier for earlier, later in itertools.pairwise(stream.times))


# --- servers --------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(command: Sequence[str], task: Task) -> Iterator[tuple[int, int]]:
    """Start a server; yield its port and process id once it is healthy, and stop it at the end."""
    with socket.create_server((HOST, 0)) as free:
        port: int = free.getsockname()[1]
    environment = os.environ | {"OMP_NUM_THREADS": str(task["threads"])}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, "--host", HOST, "--port", str(port)],
            env=environment,
            stdout=log,
            stderr=log,
        )
        try:
            if not _is_healthy(port, process):
                log.seek(0)
                raise RuntimeError(f"the server did not start: {log.read()[-400:].decode()}")
            yield port, process.pid
        finally:
            process.terminate()
            process.wait(timeout=60)


def _is_healthy(port: int, process: subprocess.Popen[bytes]) -> bool:
    """Wait until a server answers its health check; return whether it did."""
    end = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{HOST}:{port}/health"):
            return True
        time.sleep(0.05)
    return False


def kit(kind: str, task: Task) -> Figures:
    """gpt2kit serve; `of_complete` compares it with `complete` for the same prompts."""
    dtype = ["--quantize", "int8"] if kind == "int8" else ["--dtype", kind]
    command = [sys.executable, "-m", "gpt2kit", "serve", "--model", task["model"]]
    with running([*command, "--parallel", str(SLOTS), *dtype], task) as (port, pid):
        before = _processor_time(pid)
        found = measure(port, task, {"ignore_eos": True})
        http, total = (
            later - earlier for earlier, later in zip(before, _processor_time(pid), strict=True)
        )
        found["http_share"] = http / total
        found["peak_GB"] = peak_memory(pid) / 1e9
    of_complete = found["tokens_per_second"] / complete(kind, task)
    return {**found, "of_complete": of_complete}


def _processor_time(pid: int) -> tuple[float, float]:
    """Return the processor time of a process's first thread, which speaks HTTP, and of them all."""
    found = []
    for stat in (Path(f"/proc/{pid}/task/{pid}/stat"), Path(f"/proc/{pid}/stat")):
        if not stat.exists():  # not Linux
            return math.nan, math.nan
        fields = stat.read_text().rpartition(")")[2].split()
        found.append(float(fields[11]) + float(fields[12]))  # utime and stime, by man 5 proc
    return found[0], found[1]


def complete(kind: str, task: Task) -> float:
    """Return the tokens per second of `gpt2kit.complete` for the prompts of the clients."""
    import gpt2kit

    model, tokenizer = load_kit(kind, task["model"], task["threads"])

    def go(turn: int, tokens: int) -> None:
        asked: Any = {"max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        texts = prompts(task, turn)
        for first in range(0, len(texts), SLOTS):
            gpt2kit.complete(model, tokenizer, texts[first : first + SLOTS], **asked)

    go(TURNS, 8)
    taken = []
    for turn in range(TURNS):
        start = time.perf_counter()
        go(turn, task["tokens"])
        taken.append(time.perf_counter() - start)
    return float(task["batch"] * task["tokens"] / statistics.median(taken))


def llama(kind: str, task: Task) -> Figures:
    """llama-server, with a window for each text as large as the model's."""
    from gpt2kit.checkpoints.load import open_checkpoint

    file = Path(task["work"]) / f"gpt2-{kind}.gguf"
    if not file.exists():
        write_gguf(Path(task["model"]), file, kind)
    n_ctx = open_checkpoint(Path(task["model"])).config.n_ctx
    command = [_program(task["llama_server"]), "-m", str(file), "-c", str(SLOTS * n_ctx)]
    sizes = ["--parallel", str(SLOTS), "-t", str(task["threads"])]
    with running([*command, *sizes], task) as (port, pid):
        return {
            **measure(port, task, {"ignore_eos": True}),
            "peak_GB": peak_memory(pid) / 1e9,
        }


def hf(kind: str, task: Task) -> Figures:
    """transformers serve."""
    command = [_program(task["transformers"]), "serve", task["model"], "--dtype", kind]
    with running(command, task) as (port, pid):
        return {
            **measure(port, task, {"model": task["model"]}),
            "peak_GB": peak_memory(pid) / 1e9,
        }


def _program(name: str) -> str:
    """Return the path of a program; raises FileNotFoundError if it is not there."""
    if found := shutil.which(name):
        return found
    raise FileNotFoundError(f"the program {name} was not found; give its path")
