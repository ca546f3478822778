"""Hostile clients that speak HTTP: bodies, headers, targets, keys, origins, upgrades, crowds."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import resource
from typing import Any

from campaigns.client_cases import BODIES, Session, WrongError, head, posted, send
from campaigns.damage import blind, json_values
from campaigns.served import KEY, SITE, state_of
from campaigns.wire import HttpAnswer

RIGHT = b'{"prompt":"The dog","max_tokens":4,"seed":3,"temperature":0.7,"top_k":5,"n":1}'
FULL = b"""{"model":"model","prompt":["The dog","A"],"max_tokens":5,"seed":7,"n":2,"best_of":2,
"temperature":1.0,"top_p":0.9,"top_k":0,"min_p":0.0,"stop":["zz"],"logit_bias":{"7":1.5},
"presence_penalty":0.1,"frequency_penalty":0.1,"logprobs":3,"echo":true,"stream":false,
"user":"me","ban":["x"],"min_tokens":1,"return_token_ids":true,"overflow":"stop"}"""
CONSTRAINED = b"""{"prompt":"A","max_tokens":4,"seed":1,"regex":"[a-z ]{1,9}(x|y)*","stream":true,
"stream_options":{"include_usage":true},"valid_utf8":true,"repetition_penalty":1.1}"""
LISTED = b"""{"prompt":[5,6],"max_tokens":4,"seed":1,"allow":["a b","c"],"no_repeat_ngram":2}"""
MOST = 2**20  # bytes of a body that the server takes
CROWD, LARGEST = 20, 10_000  # connections at once
EVERY = 100  # cases of which one has the largest crowd


def beside(session: Session, draw: random.Random, data: bytes) -> list[HttpAnswer]:
    """Send something, ask an honest request beside it, and return the answers."""
    connection = session.connect()
    send(connection, data)
    session.probe(draw.randrange(4))
    return session.answers(connection)


def mutant(session: Session, draw: random.Random, seed: int) -> str:
    """Send a request of which some bytes are others; what is answered is answered so again."""
    data = posted(draw.choice([RIGHT, FULL, CONSTRAINED, LISTED]), "Connection: close")
    for _ in range(draw.choice([1, 1, 2, 4])):
        data = blind(data, draw)
    outcome = "refused"
    for answer in beside(session, draw, data)[:1]:
        outcome = session.judge(answer)
        if outcome == "same" and data.startswith(b"POST /v1/completions "):
            _same_again(session, answer, data.partition(b"\r\n\r\n")[2])
    return outcome


def liar(session: Session, draw: random.Random, seed: int) -> str:
    """Send values of wrong kinds and sizes; what is answered is answered so again."""
    body = draw.choice([RIGHT, FULL, CONSTRAINED, LISTED])
    body = json_values(body, draw)
    outcome = "refused"
    for answer in beside(session, draw, posted(body, "Connection: close")):
        outcome = session.judge(answer)
        if outcome == "same":
            _same_again(session, answer, body)
    return outcome


def _same_again(session: Session, answer: HttpAnswer, body: bytes) -> None:
    """Raise WrongError if an honest client gets another text for the same body, with a seed."""
    with contextlib.suppress(ValueError, AttributeError):
        if type(json.loads(body).get("seed")) is int:
            session.judge(session.ask(body), answer.choices)


def _many_keys(draw: random.Random) -> bytes:
    names = [f'"{n:x}":0' for n in range(draw.choice([1000, 90_000]))]
    return b"{" + ",".join([*names, draw.choice(['"0":1', names[-1], '"x":1'])]).encode() + b"}"


def _nested(draw: random.Random) -> bytes:
    n = draw.choice([100, 5000, 200_000])
    begin, end = draw.choice([("[", "]"), ('{"a":', "}"), ('{"prompt":', "}"), ('[{"a":', "}]")])
    return (begin * n + "1" + end * n * draw.randrange(2)).encode()[: MOST - 1]


def _large_values(draw: random.Random) -> bytes:
    """Return a body whose values are as large as they can be."""
    long = "".join(draw.choice("ab é🙂") for _ in range(50)) * draw.choice([100, 4000])
    body: dict[str, Any] = {"prompt": "A", "max_tokens": 3, "seed": 1}
    change: dict[str, Any] = draw.choice(
        [
            {"prompt": long},
            {"prompt": long, "overflow": "slide"},
            {"prompt": [""] * 90_000},
            {"prompt": [[0]] * 90_000},
            {"prompt": [1] * 200_000, "overflow": "slide"},
            {"stop": [long] * 3},
            {"stop": "a" * 500_000},
            {"logit_bias": {str(n): 1 for n in range(50_000)}},
            {"logit_bias": {str(n): 1 for n in range(512)}},
            {"regex": "(a|b)*" * draw.choice([10, 2000])},
            {"regex": "((a{1,99}){1,99}){1,99}"},
            {"regex": "(" * 5000 + "a" + ")" * 5000},
            {"regex": "(.*a){30}" + "b?" * 300},
            {"regex": "[" + "a-z" * 50_000 + "]"},
            {"allow": [f"w{n}" for n in range(4096)]},
            {"forbid": [f"w{n}" * 20 for n in range(4096)]},
            {"ban": ["a" * 3000] * 256},
            {long[:300_000]: 1},
            {"user": long},
            {"seed": 10**4000},
            {"temperature": 10**4000},
            {"n": 10**5},
            {"n": 128, "max_tokens": 1},
            {"max_tokens": 10**9, "overflow": "slide"},
            {"logprobs": 100, "echo": True, "max_tokens": 0},
            {"model": long[:300_000]},
            {"best_of": 99, "logprobs": 100, "max_tokens": 9},
        ]
    )
    return json.dumps(body | change, ensure_ascii=draw.random() < 0.5).encode()


def _raw_values(draw: random.Random) -> bytes:
    """Return a body that is JSON for some programs, or for none."""
    return draw.choice(
        [
            b"", b" ", b"null", b"[]", b'"a"', b"7", b"{", b"{}}", b'{"prompt":}', b"\xff\xfe{}",
            b'{"prompt":"\xff"}', b'{"prompt":"\\ud800"}', b'{"seed":1,"seed":2}',
            b'{"temperature":NaN}', b'{"temperature":1e999}', b'{"top_p":-Infinity}',
            b'{"seed":' + b"9" * 100_000 + b"}", b'{"prompt":"' + b"\\u0000" * 9000 + b'"}',
            RIGHT.decode().encode("utf-16"), RIGHT.decode().encode("utf-8-sig"),
            gzip.compress(RIGHT),
            b'{"prompt":"' + b"a" * (MOST - 20) + b'"}', b'{"a":[' + b"0," * 400_000 + b"0]}",
            b'{"prompt":"' + b"a" * MOST + b'"}', b" " * (MOST - 1) + b"{}", b"{}" * 100_000,
        ]
    )  # fmt: skip


def glutton(session: Session, draw: random.Random, seed: int) -> str:
    """Send a body that is deep, large, or strange, perhaps under another type or encoding."""
    body = draw.choice([_many_keys, _nested, _large_values, _large_values, _raw_values])(draw)
    lines = ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    if draw.random() < 0.15:
        kinds = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "/")
        lines[0] = f"Content-Type: {draw.choice(kinds)}"
    if draw.random() < 0.1:
        lines.append(f"Content-Encoding: {draw.choice(['gzip', 'br', 'identity', 'x' * 99])}")
    if draw.random() < 0.2:
        lines[1] = "Transfer-Encoding: chunked"
        size = draw.choice([1000, 70_000])
        parts = [body[start : start + size] for start in range(0, len(body), size)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in [*parts, b""])
    target = draw.choice(["/v1/completions"] * 4 + ["/tokenize", "/detokenize", "/v1/tokenize"])
    answers = beside(session, draw, head(*lines, "Connection: close", target=target) + body)
    return session.judge(answers[0]) if answers else "refused"


def header_stuffer(session: Session, draw: random.Random, seed: int) -> str:
    """Send headers that are long, many, or strange, to a request that is right."""
    long = "a" * draw.choice([9000, 16_000, 17_000, 200_000, 2_000_000])
    lines = draw.choice(
        [
            [f"X-Long: {long}"],
            [f"X-{n}: {n}" for n in range(draw.choice([50, 500, 20_000]))],
            [f"{long}: x"],
            [f"Cookie: {'; '.join(f'a{n}=b' for n in range(draw.choice([9, 2000])))}"],
            ["X-Request-ID: " + draw.choice(["a" * 65, "a b", "é", "<script>", "%0d%0aX: y"])],
            ["X-Folded: a\r\n b\r\n\tc"],
            ["X-High: " + "".join(map(chr, range(128, 256)))],
            ["X-Low: \x01\x02"],
            ["Accept: " + "*/*," * draw.choice([9, 2000]), "Accept-Encoding: gzip;q=nan"],
            ["X-Forwarded-For: 1.2.3.4, ::1", "X-Forwarded-Host: evil.example", "Forwarded: for=x"],
            ["Content-Type: text/html"],
            ["Range: bytes=0-1", "If-Match: *", "If-Modified-Since: never", "TE: trailers, gzip"],
            ["Connection: close, keep-alive, upgrade", "Keep-Alive: timeout=99999"],
            ["Proxy-Connection: keep-alive", "Proxy: http://evil.example", "Max-Forwards: 0"],
        ]
    )
    which = draw.randrange(len(BODIES))
    answers = beside(session, draw, posted(BODIES[which], *lines, "Connection: close"))
    for answer in answers:
        if "x-y" in answer.headers or "evil" in str(answer.headers):
            raise WrongError(f"a header of the client's came back: {answer.headers}")
    return session.judge(answers[0], session.known[which]) if answers else "refused"


METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "CONNECT", "PRI",
           "get", "G" * 9000, "PROPFIND", "%20", "!")  # fmt: skip
PATHS = (
    "/", "*", "/v1/completions", "/v1/completions/", "/v1/completions//", "//v1/models",
    "/v1/models",
    "/v1/models/model", "/v1/models/../../etc/passwd", "/../../../../etc/passwd", "/%2e%2e/%2e%2e/",
    "/v1/models/%00", "/v1/models/%ff%fe", "/v1/models/%E2%80%AE", "/v1/models/" + "a" * 9000,
    "/health",
    "/health/live", "/metrics", "/tokenizer_info?model=nobody",
    "/tokenizer_info?model=model&model=x",
    "/v1/chat/completions", "/favicon.ico", "/.git/config", "/v1/models?" + "a=b&" * 2000, "/%",
    "/%zz",
    "http://localhost/v1/models", "http://localhost", "http://evil.example/v1/models",
    "https://[::1/",
    "http://localhost@evil.example/", "http:///v1/models", "HTTP://LOCALHOST/v1/models",
    "localhost:80",
    "ftp://localhost/", "/\t", "/v1/models#x", "/v1\\models", "", "?", "/v1/models/;x=y", "/é",
)  # fmt: skip


def wanderer(session: Session, draw: random.Random, seed: int) -> str:
    """Ask for any target by any method, in any version of HTTP."""
    method, path = draw.choice(METHODS), draw.choice(PATHS)
    if draw.random() < 0.5:
        method = draw.choice(METHODS[:3])
    lines = ["Connection: close"] + ["Content-Length: 0"] * draw.randrange(2)
    data = head(*lines, method=method, target=path)
    if draw.random() < 0.15:
        versions = (b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/1.2", b"HTTP/11", b"", b"ICY/1.1")
        data = data.replace(b"HTTP/1.1", draw.choice(versions), 1)
    connection = session.connect()
    send(connection, data)
    answers = session.answers(connection, [method])
    if not answers:
        return "refused"
    outcome = session.judge(answers[0], method=method)
    if b"root:" in answers[0].body:
        raise WrongError("a file of the machine came back")
    return outcome


PROTECTED = ("/v1/models", "/metrics", "/tokenizer_info", "/v1/models/model", "/v1/nothing")


def burglar(session: Session, draw: random.Random, seed: int) -> str:
    """Guess keys, and send them in all ways there are: nothing is answered but 401."""
    size = draw.randrange(len(KEY))
    guess = draw.choice(
        [
            "", " ", KEY[:-1], KEY + "x", KEY.upper(), KEY[:size],
            KEY[:size] + "x" + KEY[size + 1 :],
            "é" + KEY[1:], KEY + "\xa0", "null", "*", "%", "a" * 9000, KEY + "," + KEY, f'"{KEY}"',
            KEY[::-1], f"{KEY} {KEY}", "undefined", "Bearer " + KEY, KEY.replace("-", "_"),
        ]
    )  # fmt: skip
    lines = draw.choice(
        [
            [],
            [f"Authorization: Bearer {guess}"],
            [f"Authorization: Basic {KEY}"],
            [f"Authorization: {KEY}"],
            [f"Authorization: Bearer{KEY}"],
            [f"Authorization: Bearer {guess}", f"Authorization: Bearer {KEY}"],
            [f"X-Api-Key: {guess}"],
            [f"X-Api-Key: {guess}", f"X_Api_Key: {KEY}"],
            [f"Api-Key: {KEY}", f"Cookie: authorization={KEY}", f"X-Api-Keys: {KEY}"],
            [f"Proxy-Authorization: Bearer {KEY}"],
        ]
    )
    if draw.random() < 0.5:
        data = posted(BODIES[0], *lines, "Connection: close", key=None)
    else:
        target = draw.choice(PROTECTED) + draw.choice(["", "/", "?api_key=" + KEY, "//", "/."])
        data = head(*lines, "Connection: close", method="GET", target=target, key=None)
    for answer in session.talk(data):
        if answer.status not in (400, 401):
            raise WrongError(f"status {answer.status} without the key: {data[:300]!r}")
        session.judge(answer)
    return "refused"


def stranger(session: Session, draw: random.Random, seed: int) -> str:
    """Call from a page of another site, or under another name of this machine."""
    origin = draw.choice(
        ["https://evil.example", "null", SITE + ".evil.example", SITE.upper(), "http://localhost",
         "https://friend.example.evil", SITE + ":444", "é", "", SITE + "/", "*", "file://"]
    )  # fmt: skip
    which = draw.randrange(len(BODIES))
    if draw.random() < 0.5:
        ask = ("Access-Control-Request-Method: POST", "Access-Control-Request-Headers: x")
        lines = [f"Origin: {origin}", *ask[: draw.randint(1, 2)], "Connection: close"]
        answers = session.talk(head(*lines, method="OPTIONS", key=None))
        if any(answer.status not in (400, 401, 405) for answer in answers):
            raise WrongError(f"a page of {origin!r} was let in: {answers[0].headers}")
        outcome = "refused"
    elif draw.random() < 0.5:
        answers = session.talk(posted(BODIES[which], f"Origin: {origin}", "Connection: close"))
        outcome = session.judge(answers[0], session.known[which])
    else:
        names = ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "0.0.0.0",
                 "localhost@evil", "evil#localhost", "10.0.0.1", "[::2]", "localhost:1:evil", "..",
                 "loc alhost", "é", "127.0.0.2.", "[evil]:80", "evil:localhost")  # fmt: skip
        host = draw.choice(names)
        data = posted(BODIES[which], "Connection: close").replace(b"localhost", host.encode(), 1)
        answers = session.talk(data)
        outcome = session.judge(answers[0], session.known[which]) if answers else "refused"
        if outcome == "same" and "evil" in host:
            raise WrongError(f"the name {host!r} was let in")
    for answer in answers:
        allowed = answer.headers.get("access-control-allow-origin", "")
        if allowed:
            raise WrongError(f"pages of {allowed!r} may read what {origin!r} asked")
    return outcome


def upgrader(session: Session, draw: random.Random, seed: int) -> str:
    """Ask to change to another protocol, or begin with it."""
    lines = draw.choice(
        [
            ["Upgrade: websocket", "Connection: Upgrade",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
             "Sec-WebSocket-Version: 13"],
            ["Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings",
            "HTTP2-Settings: AAMAAABkAAQAAP__"],
            ["Upgrade: TLS/1.3", "Connection: upgrade"],
            ["Upgrade: websocket, h2c", "Connection: Upgrade, close"],
            ["Upgrade: " + "x" * 5000, "Connection: Upgrade"],
            ["Expect: 100-continue"],
            ["Expect: 200-ok"],
        ]
    )  # fmt: skip
    which = draw.randrange(len(BODIES))
    data = posted(BODIES[which], *lines)
    if draw.random() < 0.3:
        data = head(
            *lines, method="GET", target=draw.choice(["/", "/v1/models", "/v1/completions"])
        )
    elif draw.random() < 0.2:
        data = draw.choice(
            [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"]
        )
        data += draw.randbytes(300)
    answers = beside(session, draw, data)
    if not answers:
        return "refused"
    is_ours = data.startswith(b"POST")
    return session.judge(answers[0], session.known[which] if is_ours else None)


def crowd(session: Session, draw: random.Random, seed: int) -> str:
    """Open many connections that ask nothing, or half of something, and keep them."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(LARGEST, soft - 200)
    n = most if seed % EVERY == EVERY - 1 else min(most, CROWD + 7 * (seed % EVERY))
    half = posted(BODIES[0])[: draw.choice([0, 0, 10, 150, 200])]
    for _ in range(n):
        send(session.connect(), half)
    session.probe(seed, may_be_refused=True)
    return "same"


def crowd_beyond(session: Session, draw: random.Random, seed: int) -> str:
    """Open more connections than the server has descriptors for."""
    process = session.server.process
    before = resource.prlimit(process, resource.RLIMIT_NOFILE)
    now = state_of(process).descriptors
    resource.prlimit(process, resource.RLIMIT_NOFILE, (now + draw.randint(70, 120), before[1]))
    try:
        half = posted(BODIES[0])[: draw.choice([0, 0, 10, 150, 200])]
        for _ in range(draw.randint(130, 200)):
            send(session.connect(), half)
        for which in range(3):
            session.probe(seed + which, may_be_refused=True)
        session.close()
    finally:
        resource.prlimit(process, resource.RLIMIT_NOFILE, before)
    return "same"


def hoarder(session: Session, draw: random.Random, seed: int) -> str:
    """Send nearly all of the largest body on many connections at once: memory is bounded."""
    before = state_of(session.server.process).memory
    n = 300 if seed % EVERY == EVERY - 1 else draw.randint(2, 12)
    data = head(f"Content-Length: {MOST}", "Content-Type: application/json") + b" " * (MOST - 1)
    for _ in range(n):
        connection = session.connect()
        connection.settimeout(0.3)  # a server that takes no more is one that keeps its memory
        send(connection, data)
    session.probe(seed, may_be_refused=True)
    grown = state_of(session.server.process).memory - before
    if grown > 200 * 2**20:
        raise WrongError(f"{n} bodies take {grown:,} bytes of memory")
    return "refused"
