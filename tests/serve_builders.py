"""Servers for tests: in this process without sockets, or behind a real port in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx2
from conftest import GOLDEN, make_model

from gpt2kit.config import GPT2Config
from gpt2kit.model import GPT2
from gpt2kit.serve.asgi import Application, application
from gpt2kit.serve.server import Server, bind, url_of
from gpt2kit.serve.settings import Address, Settings
from gpt2kit.tokenizers import BPETokenizer, Tokenizer

T = TypeVar("T")

CONFIG = GPT2Config(n_vocab=512, n_ctx=64, n_embd=16, n_head=2, n_layer=2)
# More tokens than any test waits for.
ENDLESS: dict[str, Any] = {
    "prompt": "The",
    "max_tokens": 20_000,
    "overflow": "slide",
    "ignore_eos": True,
}
JSON = {"content-type": "application/json"}


def tiny() -> tuple[GPT2, Tokenizer]:
    """Return a tiny model and GPT-2's first 512 tokens."""
    tokenizer = BPETokenizer.from_folder(GOLDEN / "bpe" / "small")
    assert tokenizer is not None
    return make_model(CONFIG), tokenizer


class Client:
    """Speaks to an application in this process, whose event loop runs in a thread."""

    def __init__(self, app: Application, base_url: str) -> None:
        self.app = app
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=base_url)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the application's event loop, and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=60)

    def start(self) -> None:
        """Start the application, and wait until it has loaded its model or failed to."""

        async def start() -> None:
            self.app.service.start()

        self.run(start())
        wait_until(lambda: self.app.service.life.state not in ("new", "loading"))

    def close(self) -> None:
        self.app.service.stop()
        self.run(self._end_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end_tasks(self) -> None:
        """Cancel what still runs, as asyncio.run does: a model may be loading, in a test's end."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._http.aclose()

    def get(self, path: str, **options: Any) -> httpx2.Response:
        return self.run(self._http.get(path, **options))

    def post(self, path: str, body: Any = None, **options: Any) -> httpx2.Response:
        if "content" in options:
            options["headers"] = {**JSON, **options.get("headers", {})}
        else:
            options["json"] = body
        return self.run(self._http.post(path, **options))

    def request(self, method: str, path: str, **options: Any) -> httpx2.Response:
        return self.run(self._http.request(method, path, **options))

    def complete(self, **body: Any) -> dict[str, Any]:
        """Return the answer to a completion, which must succeed."""
        response = self.post("/v1/completions", body)
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    def texts(self, **body: Any) -> list[str]:
        return [choice["text"] for choice in self.complete(**body)["choices"]]

    def error(self, **body: Any) -> tuple[int, dict[str, Any]]:
        """Return status and error of a completion, which must fail."""
        response = self.post("/v1/completions", body)
        return response.status_code, response.json()["error"]

    def events(self, **body: Any) -> list[dict[str, Any]]:
        """Return the events of a stream, which must end with [DONE]."""
        response = self.post("/v1/completions", {**body, "stream": True})
        assert response.status_code == 200, response.text
        return events_of(response.text)


def events_of(text: str) -> list[dict[str, Any]]:
    """Return the JSON objects of a stream that ends with [DONE]."""
    *events, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [
        json.loads(event.removeprefix("data: ")) for event in events if not event.startswith(":")
    ]


@contextmanager
def connected(
    app: Application | None = None,
    *,
    settings: Settings | None = None,
    base_url: str = "http://127.0.0.1:8000",
    start: bool = True,
) -> Iterator[Client]:
    """Start an application, by default with the tiny model, and stop it at the end."""
    client = Client(app or application(tiny(), settings=settings), base_url)
    try:
        if start:
            client.start()
        yield client
    finally:
        client.close()


@contextmanager
def running(
    settings: Settings | None = None,
    app: Application | None = None,
    bound: socket.socket | None = None,
) -> Iterator[str]:
    """Serve the tiny model on a free port of this machine, and yield its URL."""
    app = app or application(tiny(), settings=settings)
    bound = bound or bind(Address(port=0))
    ready = threading.Event()
    server = Server(app, ready.set)
    thread = threading.Thread(target=lambda: asyncio.run(server.run_until_end(bound)))
    thread.start()
    assert ready.wait(20)
    try:
        yield url_of(bound)
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive()


class Background:
    """Stands for `gpt2kit.serve.server.run`: serves in a thread, so that the command returns."""

    SHOWN = "http://127.0.0.1:8000"  # in place of the address that it really has

    def __init__(self) -> None:
        self._url = self.SHOWN
        self._end: Callable[[], None] = _nothing

    def here(self, text: str) -> str:
        """Return a text with the real address of the server."""
        return text.replace(self.SHOWN, self._url)

    def as_shown(self, text: str) -> str:
        """Return a text without the real address of the server."""
        return text.replace(self._url, self.SHOWN)

    def bind(self, address: Address) -> socket.socket:
        """Bind to a free port, whatever the address says."""
        return bind(Address(host=address.host, port=0))

    def run(self, app: Application, bound: socket.socket, *, when_ready: Callable[[], None]) -> int:
        """Serve until `close`, or until the next one."""
        self.close()
        self._url = url_of(bound)
        stack = contextlib.ExitStack()
        stack.enter_context(running(app=app, bound=bound.dup()))
        self._end = stack.close
        when_ready()
        return 0

    def close(self) -> None:
        """End the server, if there is one."""
        self._end()
        self._end = _nothing


def _nothing() -> None: ...


def wait_until(condition: Callable[[], object], seconds: float = 8) -> None:
    """Wait until a condition holds; fail if it does not."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)
