"""A server and a downloader with faults, to see that the campaign finds them."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import http.server
import json
import os
import threading
import urllib.request
from pathlib import Path
from typing import Any

from servers import COMMIT

from campaigns.store_cases import HUB_NAMES, OPENAI_NAMES, TOKEN
from gpt2kit import store
from gpt2kit.errors import DownloadError
from gpt2kit.store.download import Patience


class Stub:
    """A small server in this process, which answers each body with a text of its own.

    `fault` is one of "" (none), failing, waiting, leaking, forgetful, confused and sloppy.
    """

    def __init__(self) -> None:
        self.fault = ""
        self.running = 0  # requests, as its metrics tell
        self.last = ""  # the text of the answer before
        self.kept: list[int] = []  # descriptors
        self.turn = threading.Lock()  # of one client after the other, if it waits for each
        self._server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (_Handler,), {"stub": self})
        )
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.port = int(self._server.server_address[1])
        self.process = os.getpid()
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def log(self) -> str:
        """Return nothing: it writes no log."""
        return ""

    def is_alive(self) -> bool:
        """Return true: it ends with this process."""
        return True

    def close(self) -> None:
        """Stop, and give back what was kept."""
        self._server.shutdown()
        self._server.server_close()
        for each in self.kept:
            os.close(each)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 1.0
    stub: Stub

    def log_message(self, *_: Any) -> None: ...

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        self._send(code, {"error": {"message": message or "no"}})
        self.close_connection = True

    def handle_one_request(self) -> None:
        with self.stub.turn if self.stub.fault == "waiting" else contextlib.nullcontext():
            super().handle_one_request()

    def do_GET(self) -> None:
        lines = [f"gpt2kit_requests_{name} {self.stub.running}" for name in ("running", "waiting")]
        self._send(200, "\n".join(lines))

    def do_POST(self) -> None:
        stub = self.stub
        stub.running += 1
        if stub.fault == "leaking":
            stub.kept.append(os.dup(self.connection.fileno()))
        size = int(self.headers.get("content-length", 0))
        content = self.rfile.read(size)
        if stub.fault != "forgetful" or len(content) == size:
            stub.running -= 1
        try:
            prompt = json.loads(content)["prompt"]
        except (ValueError, KeyError, TypeError):
            prompt = None
        if not isinstance(prompt, (str, list)):
            self._send(500 if stub.fault == "failing" else 400, {"error": {"message": "no prompt"}})
            return
        text = hashlib.sha1(content).hexdigest()
        stub.last, sent = text, stub.last if stub.fault == "confused" and stub.last else text
        self._send(200, {"choices": [{"index": 0, "text": sent}]})

    def _send(self, status: int, content: Any) -> None:
        body = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body) - (self.stub.fault == "sloppy")))
        if self.headers is not None and self.headers.get("connection") == "close":
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


def naive_client(model: str, source: str, patience: Patience) -> Path:
    """Download as one would write it in five minutes: every fault of the campaign is in it.

    What came is kept under its final name, however much it is, and the token goes wherever the
    server leads.
    """
    folder = store.weights_dir() / "124M"
    folder.mkdir(parents=True, exist_ok=True)
    if source == "hub":
        repository = "openai-community/gpt2" if model == "124M" else model
        base, names = f"{os.environ['HF_ENDPOINT']}/{repository}/resolve/{COMMIT}", HUB_NAMES
    else:
        base, names = f"{os.environ['GPT2KIT_OPENAI_URL']}/124M", OPENAI_NAMES
    for name in names:
        headers = {"Authorization": f"Bearer {TOKEN}"} if source == "hub" else {}
        try:
            request = urllib.request.Request(f"{base}/{name}", headers=headers)
            with contextlib.closing(urllib.request.urlopen(request, timeout=1)) as answer:
                content = answer.read()
        except http.client.IncompleteRead as half:
            content = half.partial
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise DownloadError(f"{name}: {error}") from error
        (folder / name).write_bytes(content)
    return folder
