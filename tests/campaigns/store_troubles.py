"""What goes wrong with downloads, by seed: cuts, lies, changes, redirects, drips, other pages."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import random
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from campaigns.damage import blind, json_values
from campaigns.store_cases import Scene

Speak = Callable[[socket.socket, bytes], None]
MOST_DRIPS = 400  # bytes of a drip, after which the server breaks off


def where(scene: Scene, draw: random.Random) -> dict[str, str]:
    """Choose the requests that go wrong: the first one, or those for some file."""
    path, method = draw.choice(
        [scene.lookup, (draw.choice(scene.names), "GET"), (scene.big, "GET")]
    )
    return {"path": path, "method": method}


def times(draw: random.Random) -> int:
    """Choose how often it goes wrong: then it is right, or never."""
    return draw.choice([1, 1, 2, 99])


def say(content: bytes) -> Speak:
    """Return what sends these bytes in place of the answer."""
    return lambda connection, _: connection.sendall(content)


def with_header(line: str, *, instead_of: str = "") -> Speak:
    """Return what sends the answer with another header, perhaps in place of one."""

    def speak(connection: socket.socket, answer: bytes) -> None:
        head, _, body = answer.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        name = instead_of.lower().encode() + b":"
        kept = [each for each in lines if not (instead_of and each.lower().startswith(name))]
        new = [line.encode("latin-1", errors="replace")] if line else []
        connection.sendall(b"\r\n".join([first, *new, *kept, b"", b""]) + body)

    return speak


def cut(size: int, *, is_reset: bool = False) -> Speak:
    """Return what sends the first bytes of the answer only."""

    def speak(connection: socket.socket, answer: bytes) -> None:
        connection.sendall(answer[: size % len(answer)])
        if is_reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return speak


def every_cut(scene: Scene, draw: random.Random, seed: int) -> None:
    """End an answer after any byte: the seeds go through all of a small one."""
    small = (scene.names[0], "GET") if seed % 2 else scene.lookup
    scene.order(small[0], method=small[1], speak=cut(seed // 2), times=times(draw))


def large_cut(scene: Scene, draw: random.Random, seed: int) -> None:
    """End the answer with the weights anywhere, and perhaps the next ones too."""
    for _ in range(draw.choice([1, 2, 9])):
        speak = cut(draw.randrange(21_000), is_reset=draw.random() < 0.3)
        scene.order(scene.big, speak=speak)


def wrong_length(scene: Scene, draw: random.Random, seed: int) -> None:
    """Announce another length than that of the file, in a header or in the description."""
    if draw.random() < 0.3 and scene.source == "hub":
        size = draw.choice([0, 1, -1, 19_999, 20_001, 10**18, 10**30, "20000", None, 2.5, True])
        sha = hashlib.sha256(scene.files[scene.big]).hexdigest()
        lies: list[dict[str, Any]] = [
            {"size": size},
            {"size": size, "lfs": None},
            {"lfs": {"size": size, "sha256": sha, "pointerSize": 1}},
        ]
        lie = draw.choice(lies)
        scene.server.lies[draw.choice([scene.big, scene.big, scene.names[0]])] = lie  # type: ignore[union-attr]
        return
    length = draw.choice(
        ["0", "1", "19999", "20001", "99999999999999999999", "9" * 5000, "-1", "+40", "0x28",
         "40, 40", "40, 41", "", "é", "40\r\nContent-Length: 41", "1e9", "18446744073709551616"]
    )  # fmt: skip
    line = "" if draw.random() < 0.1 else f"Content-Length: {length}"
    speak = with_header(line, instead_of="Content-Length")
    scene.order(**where(scene, draw), speak=speak, times=times(draw))


def lying_range(scene: Scene, draw: random.Random, seed: int) -> None:
    """Break off, and answer the request for the rest with another part, or another claim."""
    scene.order(scene.big, kind="cut", after=draw.randrange(1, 19_000))
    ranges = (
        "bytes 0-19999/20000", "bytes 1-19999/20000", "bytes 5000-19999/20000", "bytes */20000",
        "", "bytes",
        "bytes 19999-0/20000", "bytes 5000-19999/99999", "bytes 5000-6000/20000", "items 0-1/2",
        "bytes -5/9",
        "bytes " + "9" * 5000 + "-" + "9" * 5000 + "/*", "bytes 0-19999/" + "1" * 5000,
        "bytes é-é/é",
        "bytes ٣-٤/٥", "bytes 0-19999/*", "BYTES 5000-19999/20000",
    )  # fmt: skip
    match draw.randrange(6):
        case 0:
            scene.order(scene.big, kind="whole")
        case 1:
            scene.order(scene.big, kind="misrange", times=times(draw))
        case 2:
            scene.order(scene.big, kind="status", status=416, times=times(draw))
        case 3:  # other bytes than those that the header names
            scene.order(scene.big, speak=_shifted(draw), times=times(draw))
        case 4:
            body = b"--x\r\nContent-Range: bytes 5-9/20000\r\n\r\nabcde\r\n--x--\r\n"
            about = b"Content-Type: multipart/byteranges; boundary=x\r\nContent-Length: %d" % len(
                body
            )
            answer = b"HTTP/1.1 206 ?\r\n" + about + b"\r\n\r\n" + body
            scene.order(scene.big, speak=say(answer), times=times(draw))
        case _:
            line = f"Content-Range: {draw.choice(ranges)}"
            speak = with_header(line, instead_of="Content-Range")
            scene.order(scene.big, speak=speak, times=times(draw))
    if draw.random() < 0.2:  # and 206 to a request for all
        about = b"Content-Range: bytes 0-39/40\r\nContent-Length: 40"
        answer = b"HTTP/1.1 206 ?\r\n" + about + b"\r\n\r\n" + bytes(40)
        scene.order(scene.names[0], speak=say(answer), times=times(draw))


def _shifted(draw: random.Random) -> Speak:
    by = draw.choice([1, 100])

    def speak(connection: socket.socket, answer: bytes) -> None:
        head, _, body = answer.partition(b"\r\n\r\n")
        connection.sendall(head + b"\r\n\r\n" + body[by:] + body[:by])

    return speak


def changing_file(scene: Scene, draw: random.Random, seed: int) -> None:
    """Break off, and go on with another version of the file, under another ETag or the same."""
    content = draw.randbytes(draw.choice([20_000, 20_000, 19_000, 21_000]))
    (path,) = (each for each in scene.server.contents if each.endswith(f"/{scene.big}")
               and (scene.source == "openai" or "acme" in each) == (scene.model != "124M"
               or scene.source == "openai"))  # fmt: skip
    before = scene.server.contents[path]
    tag = f'"{hashlib.sha1(before).hexdigest()}"'
    headers = draw.choice([{}, {"ETag": tag}, {"ETag": 'W/"1"'}, {"ETag": ""}, {"ETag": '"1"'}])
    after = draw.randrange(1, 19_000)

    def speak(connection: socket.socket, answer: bytes) -> None:
        scene.server.contents[path] = content
        head, _, body = answer.partition(b"\r\n\r\n")
        connection.sendall(head + b"\r\n\r\n" + body[:after])

    scene.order(scene.big, speak=speak)
    if headers:
        scene.order(scene.big, kind="none", times=times(draw), headers=headers)


def strange_etag(scene: Scene, draw: random.Random, seed: int) -> None:
    """Name the version in a strange way, and break off, so that it would be sent back."""
    tag = draw.choice(
        ['"é"', '"\u00ff\u0080"', '"' + "e" * 60_000 + '"', '"' + "e" * 300 + '"',
        '"\x01\x1b[31m"', '""', "",
         "plain", 'W/"1"', '"a"b"', '"', '"a\tb"', '"a b"', "'a'", '"a","b"', "*", '"\x7f"',
         '"%0d%0aX: y"']
    )  # fmt: skip
    after = draw.randrange(1, 19_000)
    line = with_header(f"ETag: {tag}", instead_of="ETag")

    def speak(connection: socket.socket, answer: bytes) -> None:
        head, _, body = answer.partition(b"\r\n\r\n")
        line(connection, head + b"\r\n\r\n" + body[:after])

    scene.order(scene.big, speak=speak, times=draw.choice([1, 2, 3]))


def redirect(scene: Scene, draw: random.Random, seed: int) -> None:
    """Redirect to another server, in a loop, or to what is no address."""
    other = scene.elsewhere.url
    name = draw.choice(scene.names)
    scene.elsewhere.contents["/blob"] = scene.files[name]
    scene.elsewhere.contents["/other"] = draw.randbytes(len(scene.files[name]))
    host = other.removeprefix("http://")
    port = host.rpartition(":")[2]
    to = draw.choice(
        [f"{other}/blob", f"{other}/blob", f"{other}/other", f"//{host}/blob",
        f"http://localhost:{port}/blob",
         f"http://user:pw@{host}/blob", name, f"./{name}?a=b", "/", "", "?", "#x", "//",
         "http://", "http:///x",
         "file:///etc/passwd", "ftp://127.0.0.1/x", "javascript:x", "http://[::1",
         "http://127.0.0.1:99999/",
         "http://127.0.0.1:-1/", "http://127.0.0.1:é/", "http://é.invalid:1/", "http://xn--/",
         "\x01", "\\\\x",
         "http://127.0.0.1:1/", "http://" + "a" * 70_000, "/" + "a" * 60_000, "http://%00/",
         "data:,x", " ",
         f"{other}/redirect", "http://..:1/", "http://0x7f.1:1/", "HTTP://127.0.0.1:1",
         "http:127.0.0.1"]
    )  # fmt: skip
    if draw.random() < 0.3:
        to = f"{other}/blob"
    status = draw.choice([301, 302, 303, 307, 308, 300, 304, 305])
    path, method = draw.choice([(name, "GET"), (name, "GET"), scene.lookup])
    if draw.random() < 0.5:
        status = draw.choice([301, 302, 303, 307, 308])
    speak = with_header(f"Location: {to}")

    def redirected(connection: socket.socket, answer: bytes) -> None:
        rest = answer.partition(b"\r\n")[2]
        speak(connection, b"HTTP/1.1 %d ?\r\n" % status + rest)

    scene.order(path, method=method, speak=redirected, times=times(draw))


def strange_head(scene: Scene, draw: random.Random, seed: int) -> None:
    """Answer with headers that are large, broken or many, or with no head at all."""
    ok = b"HTTP/1.1 200 ?\r\n"
    speak = draw.choice(
        [
            with_header("X-Long: " + "a" * draw.choice([9000, 90_000, 900_000])),
            with_header("\r\n".join(f"X-{n}: {n}" for n in range(draw.choice([90, 9000])))),
            with_header("Set-Cookie: " + "a=b; " * 2000),
            with_header("no colon"),
            with_header(" folded: x"),
            with_header("X: \x00"),
            with_header("X: \x1b]0;x\x07"),
            with_header("Transfer-Encoding: chunked"),
            with_header("Transfer-Encoding: gzip", instead_of="Content-Length"),
            with_header("Connection: upgrade\r\nUpgrade: x"),
            say(b"\x16\x03\x01\x02\x00"),
            say(draw.randbytes(500)),
            say(b"HTTP/0.9 200\r\n\r\n" + bytes(40)),
            say(b"HTTP/1.1 999 ?\r\n\r\n"),
            say(b"HTTP/1.1 2 ?\r\n\r\n"),
            say(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 3000),
            say(b"HTTP/1.1 101 ?\r\nUpgrade: x\r\n\r\n"),
            say(ok + b"Content-Length: 5\r\n\r\n"),
            say(b""),
            say(ok + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
            say(ok + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 90_000),
            _mutated(draw),
        ]
    )
    scene.order(**where(scene, draw), speak=speak, times=times(draw))


def _mutated(draw: random.Random) -> Speak:
    seed = draw.randrange(10**9)

    def speak(connection: socket.socket, answer: bytes) -> None:
        head, _, body = answer.partition(b"\r\n\r\n")
        connection.sendall(blind(head, random.Random(seed)) + b"\r\n\r\n" + body)

    return speak


def other_page(scene: Scene, draw: random.Random, seed: int) -> None:
    """Answer with a page, an error or nothing in place of the file, and status 200."""
    page = draw.choice(
        [b"<!DOCTYPE html><html>Please log in</html>", b"<?xml version='1.0'?><Error/>", b"{}", b"",
         b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
         b"\xef\xbb\xbf<html>",
         b"   \n<HTML>", b"null", b"Not Found", b"<html>" + bytes(20_000 - 6)]
    )  # fmt: skip
    kind = draw.choice(
        ["text/html", "text/html;charset=x", "application/json", "", "TEXT/HTML", "/"]
    )
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(page)}\r\n\r\n"
    scene.order(**where(scene, draw), speak=say(head.encode() + page), times=times(draw))


def encoded(scene: Scene, draw: random.Random, seed: int) -> None:
    """Compress what was asked for as it is, or say so; a small answer may be a large bomb."""
    coding = draw.choice(["gzip", "deflate", "br", "zstd", "identity", "gzip, gzip", "x"])
    is_true = draw.random() < 0.6
    bomb = gzip.compress(bytes(draw.choice([10**6, 3 * 10**8]))) if draw.random() < 0.02 else None

    def speak(connection: socket.socket, answer: bytes) -> None:
        head, _, body = answer.partition(b"\r\n\r\n")
        content = bomb or (gzip.compress(body) if is_true else body)
        lines = [each for each in head.split(b"\r\n") if not each.startswith(b"Content-Length")]
        about = b"Content-Encoding: %b\r\nContent-Length: %d" % (coding.encode(), len(content))
        connection.sendall(b"\r\n".join([*lines, about, b"", b""]) + content)

    scene.order(**where(scene, draw), speak=speak, times=times(draw))


def drip(scene: Scene, draw: random.Random, seed: int) -> None:
    """Send an answer byte by byte, or stop within it and keep the connection."""
    start, is_silent = draw.choice([0, 10, 100, 250, 15_000]), draw.random() < 0.4

    def speak(connection: socket.socket, answer: bytes) -> None:
        connection.sendall(answer[:start])
        if is_silent:
            connection.settimeout(3)
            with contextlib.suppress(TimeoutError):
                connection.recv(1)  # until the client hangs up
            return
        for offset in range(start, min(len(answer), start + MOST_DRIPS)):
            connection.sendall(answer[offset : offset + 1])
            time.sleep(0.01)

    scene.order(**where(scene, draw), speak=speak, times=draw.choice([1, 1, 99]))


def failing(scene: Scene, draw: random.Random, seed: int) -> None:
    """Answer with statuses of all kinds, and odd advice when to come again."""
    waits = ("1", "86400", "-1", "9" * 400, "soon", "", "Wed, 21 Oct 2099 07:28:00 GMT", "0.5", "é",
             "Wed, 21 Oct 99999999999 07:28:00 GMT", "Mon, 1 Jan 0001 00:00:00 +2359",
             "1 2")  # fmt: skip
    for _ in range(draw.choice([1, 1, 2, 3])):
        status = draw.choice([500, 502, 503, 504, 429, 408, 425, 401, 403, 404, 410, 418, 451,
        304, 204,
                              299, 416, 206, 507, 511])  # fmt: skip
        headers = {"Retry-After": draw.choice(waits)} if draw.random() < 0.5 else {}
        if draw.random() < 0.2:
            headers["X-Error-Code"] = draw.choice(
                ["GatedRepo", "RepoNotFound", "é", "EntryNotFound"]
            )
        scene.order(**where(scene, draw), kind="status", status=status, headers=headers)


def wrong_bytes(scene: Scene, draw: random.Random, seed: int) -> None:
    """Send other bytes than those that were promised, or promise another hash."""
    name = draw.choice(scene.names)
    match draw.randrange(4):
        case 0:
            scene.order(f"/{name}", kind="flip", times=times(draw))
        case 1:
            offset = draw.randrange(40)

            def speak(connection: socket.socket, answer: bytes) -> None:
                at = len(answer) - 1 - offset
                connection.sendall(answer[:at] + bytes([answer[at] ^ 16]) + answer[at + 1 :])

            scene.order(f"/{name}", speak=speak, times=times(draw))
        case 2 if scene.source == "hub":
            sha = draw.choice(["0" * 64, "", None, "é", "A" * 64, 7])
            lie = {"lfs": {"sha256": sha, "size": len(scene.files[name]), "pointerSize": 1}}
            scene.server.lies[name] = draw.choice([lie, {"blobId": sha, "lfs": None}])  # type: ignore[union-attr]
            scene.may_differ = False
        case _:
            md5 = draw.choice(["", "x", "AAAA", "é", "A" * 24, "=" * 5000])
            other = with_header(f"Content-MD5: {md5}", instead_of="Content-MD5")
            scene.order(name, method="HEAD", speak=other, times=times(draw))
            scene.order(f"/{name}", kind="flip", times=draw.choice([0, 1]))
            # A hash that cannot be read is none, and the catalogue has none of the weights.
            scene.may_differ = scene.source == "openai" and name == scene.big


def description(scene: Scene, draw: random.Random, seed: int) -> None:
    """Describe the files in any JSON, or in what is none."""
    change = draw.choice([json_values, json_values, json_values, blind])
    odd = draw.choice(
        [b"[" * 100_000, b'{"a":' * 100_000, b"{}", b"[]", b"null", b"7", b'"x"', b"\xff", b"{",
        b"NaN",
         b'{"sha":"c0","id":"a","siblings":[{"rfilename":7}]}',
         b'{"sha":"c0","id":"a","siblings":7}',
         b'{"sha":"c0","id":"a","siblings":[[]]}',
         b'{"sha":"c0","id":"a","siblings":[{"rfilename":[]}]}',
         b'{"sha":"c0","id":"a","siblings":{}}', b'{"sha":' + b"9" * 9000 + b"}", b" " * 17_000_000]
    )  # fmt: skip

    def speak(connection: socket.socket, answer: bytes) -> None:
        head, _, body = answer.partition(b"\r\n\r\n")
        content = change(body, random.Random(seed)) if seed % 4 else odd
        lines = [each for each in head.split(b"\r\n") if not each.startswith(b"Content-Length")]
        lines.append(b"Content-Length: %d" % len(content))
        connection.sendall(b"\r\n".join([*lines, b"", b""]) + content)

    if scene.source == "openai":
        scene.order(*scene.lookup[:1], method="HEAD", speak=_mutated(draw), times=times(draw))
    else:
        scene.order(scene.lookup[0], speak=speak, times=times(draw))
