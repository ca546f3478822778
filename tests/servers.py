"""A Hub and an OpenAI bucket on this machine, with faults to order and a log of what was asked."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import fnmatch
import hashlib
import http.server
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COMMIT = "c0ffee" + "0" * 34


@dataclass
class Fault:
    """Something to go wrong with the next requests whose path ends in `path`."""

    path: str
    kind: str  # status page hang cut reset hold drip flip whole misrange redirect length
    times: int = 1
    after: int = 0  # bytes of the body before it happens
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "GET"
    # In place of the answer: gets the connection, and the answer in bytes.
    speak: Callable[[socket.socket, bytes], None] | None = None


@dataclass
class Request:
    """One request as the server saw it, and what came of it."""

    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    fault: str | None = None
    status: int = 0
    sent: int = 0  # bytes of the body
    body: bytes = b""  # of the request


class FakeServer:
    """Serves `contents` (path -> bytes) with ranges and ETags; subclasses imitate certain sites."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.log: list[Request] = []
        self.released = threading.Event()  # ends what hangs
        self._lock = threading.Lock()
        self._server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": self})
        )
        self._server.daemon_threads = True
        # Broken connections are part of the tests, and print nothing.
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def order(self, path: str, kind: str, **how: Any) -> None:
        """Let something go wrong; the first fault ordered for a path happens first."""
        self.faults.append(Fault(path, kind, **how))

    def take_fault(self, request: Request) -> Fault | None:
        with self._lock:
            self.log.append(request)
            for fault in self.faults:
                if (
                    fault.times
                    and request.path.endswith(fault.path)
                    and request.method == fault.method
                ):
                    fault.times -= 1
                    request.fault = fault.kind
                    return fault
        return None

    def fired(self, kind: str) -> int:
        """Return how often a fault of the kind happened."""
        return sum(request.fault == kind for request in self.log)

    def gets(self, path: str) -> list[Request]:
        """Return the GET requests for paths that end so."""
        return [
            request
            for request in self.log
            if request.method == "GET" and request.path.endswith(path)
        ]

    def page(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body for a request without a fault."""
        body = self.contents.get(request.path)
        if body is None:
            return (
                404,
                {"Content-Type": "application/xml"},
                b"<?xml version='1.0'?><Error><Code>BlobNotFound</Code></Error>",
            )
        return (
            200,
            {
                "ETag": f'"{hashlib.sha1(body).hexdigest()}"',
                "Content-Type": "application/octet-stream",
            },
            body,
        )


class FakeHub(FakeServer):
    """The part of the Hugging Face Hub that a download meets."""

    def __init__(self) -> None:
        super().__init__()
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, str] = {}
        self.tokens: set[str] = set()  # where there are any, one of them is needed
        self.lies: dict[
            str, dict[str, Any]
        ] = {}  # file name -> fields of its description to replace
        self.private: dict[str, bool] = {}  # of the repositories that a push has made

    def add(self, repository: str, files: dict[str, bytes], commit: str = COMMIT) -> None:
        """Publish a commit of a repository; it is the newest one."""
        self.repositories[repository] = files
        self.commits[repository] = commit
        for name, body in files.items():
            self.contents[f"/{repository}/resolve/{commit}/{name}"] = body

    def page(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        if (
            self.tokens
            and request.headers.get("authorization", "").removeprefix("Bearer ") not in self.tokens
        ):
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b"{}"
        path = request.path.partition("?")[0]
        if path == "/api/repos/create":
            return self._create(json.loads(request.body))
        if not path.startswith("/api/models/"):
            status, headers, body = super().page(request)
            return (
                status,
                headers | ({"X-Error-Code": "EntryNotFound"} if status == 404 else {}),
                body,
            )
        repository, _, revision = path.removeprefix("/api/models/").partition("/revision/")
        if repository not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if revision not in ("", "main", self.commits[repository]):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        siblings = [
            self._described(name, body) for name, body in self.repositories[repository].items()
        ]
        description = {
            "id": repository,
            "sha": self.commits[repository],
            "siblings": siblings,
            "config": {"model_type": "gpt2"},
            "private": self.private.get(repository),
        }
        return 200, {"Content-Type": "application/json"}, json.dumps(description).encode()

    def _create(self, asked: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        repository = f"{asked['organization']}/{asked['name']}"
        if repository in self.repositories:
            status = 409
        else:
            status = 200
            # Older versions of huggingface_hub say `private`.
            self.private[repository] = asked.get("visibility", asked.get("private")) in (
                True,
                "private",
            )
            self.add(repository, {})
        return status, {}, json.dumps({"url": f"{self.url}/{repository}"}).encode()

    def _described(self, name: str, body: bytes) -> dict[str, Any]:
        described: dict[str, Any] = {"rfilename": name, "size": len(body)}
        described["blobId"] = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
        if name.endswith((".safetensors", ".bin")):
            described["blobId"] = "0" * 40  # of the pointer file, not of the contents
            described["lfs"] = {
                "sha256": hashlib.sha256(body).hexdigest(),
                "size": len(body),
                "pointerSize": 134,
            }
        return described | self.lies.get(name, {})


class FakeOpenAI(FakeServer):
    """A bucket: a hash in a header, no list, XML for what is not there."""

    def add(self, directory: str, files: dict[str, bytes]) -> None:
        for name, body in files.items():
            self.contents[f"/{directory}/{name}"] = body

    def page(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        status, headers, body = super().page(request)
        if status == 200:
            headers["Content-MD5"] = base64.b64encode(hashlib.md5(body).digest()).decode()
        return status, headers, body


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes; with it, each answer takes 40 ms
    fake: FakeServer

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        request = Request(
            self.command, self.path, {name.lower(): value for name, value in self.headers.items()}
        )
        request.body = self.rfile.read(int(request.headers.get("content-length", 0)))
        fault = self.fake.take_fault(request)
        kind = fault.kind if fault else None
        if kind == "hang":
            self.fake.released.wait(30)
            self.close_connection = True
            return
        refused: tuple[int, dict[str, str], bytes] | None = None
        if fault and fault.status:
            refused = fault.status, {}, b""
        status, headers, body = refused or self.fake.page(request)
        if kind == "page":
            status, headers, body = (
                200,
                {"Content-Type": "text/html"},
                b"<!DOCTYPE html><html>Please log in</html>",
            )
        if fault:
            headers |= fault.headers
        if kind == "flip":
            body = body[:-1] + bytes([body[-1] ^ 1])
        if status == 200 and kind != "whole":
            status, headers, body = self._ranged(request, kind, headers, body)
        request.status = status
        self._send(request, fault, status, headers, body)

    def _ranged(
        self, request: Request, kind: str | None, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        wanted = request.headers.get("range")
        if wanted is None or request.headers.get("if-range", headers.get("ETag")) != headers.get(
            "ETag"
        ):
            return 200, headers, body
        start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start >= len(body):
            return 416, headers, b""
        if kind == "misrange":
            start -= 1  # says so, too: a part, but not the one asked for
        return (
            206,
            headers | {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"},
            body[start:],
        )

    def _send(
        self,
        request: Request,
        fault: Fault | None,
        status: int,
        headers: dict[str, str],
        body: bytes,
    ) -> None:
        if fault and fault.speak:
            self._let_speak(fault.speak, status, headers, body)
            return
        self.send_response(status)
        length = len(body) + (1 if fault and fault.kind == "length" else 0)
        for name, value in (
            {"Content-Length": str(length), "X-Repo-Commit": COMMIT} | headers
        ).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        stop = (
            fault.after if fault and fault.kind in ("cut", "reset", "hold", "drip") else len(body)
        )
        with contextlib.suppress(OSError):
            for start in range(0, stop, 65_536):
                chunk = body[start : min(stop, start + 65_536)]
                request.sent += len(
                    chunk
                )  # before: the client may have it, and look here, when the call returns
                self.wfile.write(chunk)
            self._break_off(request, fault.kind if fault else None, body[stop:])

    def _let_speak(
        self,
        speak: Callable[[socket.socket, bytes], None],
        status: int,
        headers: dict[str, str],
        body: bytes,
    ) -> None:
        """Let a fault send something in place of an answer, and close the connection."""
        about = {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT} | headers
        lines = [f"HTTP/1.1 {status} ?", *(f"{name}: {value}" for name, value in about.items())]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1", errors="replace")
        self.close_connection = True
        with contextlib.suppress(OSError):
            speak(self.connection, head + (b"" if self.command == "HEAD" else body))

    def _break_off(self, request: Request, kind: str | None, rest: bytes) -> None:
        if kind == "drip":
            for byte in rest:
                if self.fake.released.wait(0.02):
                    break
                request.sent += 1
                self.wfile.write(bytes([byte]))
        if kind == "hold":
            self.fake.released.wait(30)
        if kind == "reset":
            time.sleep(0.05)  # what was sent should arrive first
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
        if kind in ("cut", "hold", "drip"):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = self.close_connection or kind in ("cut", "hold", "drip", "reset")


def take_uploads(hub: FakeHub, patch: Any) -> list[dict[str, Any]]:
    """Let huggingface_hub's upload_folder change a repository of the hub; return its calls."""
    from huggingface_hub import HfApi

    calls: list[dict[str, Any]] = []

    def upload(_: HfApi, **call: Any) -> None:
        calls.append(call)
        ignored = call["ignore_patterns"] or []
        kept = {
            name: body
            for name, body in hub.repositories[call["repo_id"]].items()
            if not any(fnmatch.fnmatch(name, each) for each in call["delete_patterns"])
        }
        folder = Path(call["folder_path"])
        new = {path.name: path.read_bytes() for path in folder.iterdir()}
        taken = {name: body for name, body in new.items() if name not in ignored}
        hub.add(call["repo_id"], kept | taken)

    patch.setattr(HfApi, "upload_folder", upload)
    return calls


def in_an_hour() -> str:
    """Return a date as Retry-After may have it."""
    return email.utils.formatdate(time.time() + 3600, usegmt=True)


@contextlib.contextmanager
def silent_listener() -> Iterator[str]:
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=8) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
