"""Hostile clients that break HTTP itself: halves, slowness, smuggling, pipelines, sudden ends."""

from __future__ import annotations

import random
import socket
import time

from campaigns.client_cases import (
    BODIES,
    ENDLESS,
    Session,
    WrongError,
    head,
    posted,
    reset,
    send,
)
from campaigns.served import KEY

INNER = head(method="GET", target="/v1/models/smuggled")


def leave(connection: socket.socket, draw: random.Random) -> None:
    """Close a connection in one of the ways there are."""
    match draw.randrange(3):
        case 0:
            reset(connection)
        case 1:
            connection.shutdown(socket.SHUT_WR)
        case _:
            connection.close()


def half_completion(session: Session, draw: random.Random, seed: int) -> str:
    """Send the first bytes of one request: its seeds go through all lengths."""
    whole = posted(BODIES[0], "Connection: close")
    return _half(session, draw, whole[: seed % len(whole)])


def half_others(session: Session, draw: random.Random, seed: int) -> str:
    """Send the first bytes of a request of any kind."""
    whole = draw.choice(
        [
            posted(draw.choice(BODIES)),
            posted({"prompt": "The dog"}, target="/tokenize"),
            head("Transfer-Encoding: chunked", "Content-Type: application/json")
            + b'5\r\n{"pro\r\n10\r\nmpt":"A","seed":3\r\n1\r\n}\r\n0\r\n\r\n',
            head(method="GET", target="/v1/models"),
        ]
    )
    return _half(session, draw, whole[: draw.randrange(len(whole))])


def _half(session: Session, draw: random.Random, data: bytes) -> str:
    connection = session.connect()
    send(connection, data)
    if draw.random() < 0.85:
        session.probe(draw.randrange(4))  # while the other one has not gone on
        leave(connection, draw)
        return "refused"
    for answer in session.answers(connection):
        if session.judge(answer) == "same":
            raise WrongError(f"half a request was answered: {answer.body[:80]!r}")
    return "refused"


def slow_writer(session: Session, draw: random.Random, seed: int) -> str:
    """Send a request in pieces of few bytes."""
    which = draw.randrange(len(BODIES))
    data, most = posted(BODIES[which], "Connection: close"), draw.choice([1, 1, 3, 40])
    connection = session.connect()
    while data:
        size = draw.randint(1, most)
        send(connection, data[:size])
        data = data[size:]
        if draw.random() < 0.02:
            time.sleep(0.01)
    answers = session.answers(connection)
    # A machine may be so busy that the server did not wait.
    return session.judge(answers[0], session.known[which]) if answers else "refused"


def slow_reader(session: Session, draw: random.Random, seed: int) -> str:
    """Take an answer byte by byte, or nothing more of one that does not end."""
    which = draw.randrange(len(BODIES))
    if draw.random() < 0.5:
        connection = session.connect(buffer=1024)
        send(connection, posted(BODIES[which], "Connection: close"))
        data = b""
        while more := connection.recv(1):
            data += more
        (answer,) = session.talk(posted(BODIES[which], "Connection: close"))
        return session.judge(answer, session.known[which])
    for _ in range(draw.randint(1, 3)):
        connection = session.connect(buffer=1024)
        more_work = {"stream": draw.random() < 0.8, "logprobs": draw.choice([0, 20, 100])}
        send(connection, posted({**ENDLESS, **more_work}))
    session.probe(which)
    time.sleep(draw.choice([0, 0.05, 0.2]))
    session.probe(which + 1)
    session.close()
    session.wait_until_idle()
    return "refused"


# Headers that say in two ways where a body ends, so that two servers could read two requests.
AMBIGUOUS = (
    "Content-Length: {n}\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nContent-Length: {n}",
    "Transfer-Encoding: chunked\r\nContent-Length: {more}",
    "Content-Length: {n}\r\nContent-Length: {more}",
    "Content-Length: {n}, {more}",
    "Content-Length: +{n}",
    "Content-Length: 0x{n:x}",
    "Content-Length: -1",
    "Content-Length: {n}.0",
    "Content-Length: {n} {n}",
    "Content-Length:",
    "Content-Length: 1" + "0" * 30,
    "Content-Length : {n}",
    "Content-Length\t: {n}",
    "Content-Length: {n}\x0b",
    "Content-Length: {n}\x00",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: identity",
    "Transfer-Encoding: chunked, chunked",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: ,chunked",
    "Transfer-Encoding: chunked;q=1",
    "Transfer-Encoding: \x0bchunked",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding : chunked",
    " Transfer-Encoding: chunked",
    "Transfer_Encoding: chunked\r\nContent-Length: {n}\r\nContent-Length: 0",
    "X: y\rTransfer-Encoding: chunked\r\nContent-Length: {n}",
    "X: y\nContent-Length: {n}\nTransfer-Encoding: chunked",
    "Content-Length: {n}\r\nHost: evil.example",
    "Content-Length: {n}\r\nno colon",
    "Content-Length: {n}\r\n: no name",
)
# Chunks that are none, in place of the first chunk of a body.
BAD_CHUNKS = (
    b"%xg\r\n%b\r\n", b"-%x\r\n%b\r\n", b"0x%x\r\n%b\r\n", b"+%x\r\n%b\r\n", b" %x\r\n%b\r\n",
    b"FFFFFFFFFFFFFFFFFFFFFFF%x\r\n%b\r\n", b"10000000000000000%x\r\n%b\r\n", b"%x\n%b\r\n",
    b"%x;a=\n\r\n%b\r\n", b"%x\r\n%bXX\r\n", b"%x\r\n%b", b"%x\r%b\r\n", b"\r\n%x\r\n%b\r\n",
    b"%x,\r\n%b\r\n", b"%x \x00\r\n%b\r\n",
)  # fmt: skip
# And unusual ones that are chunks.
GOOD_CHUNKS = (b"%x\r\n%b\r\n", b"%X;a=b\r\n%b\r\n", b'%x;a="b;c"\r\n%b\r\n', b"0000%x\r\n%b\r\n",
               b"%x;" + b"e" * 20_000 + b"\r\n%b\r\n")  # fmt: skip
LAST = (b"0\r\n\r\n", b"0;a\r\n\r\n", b"000\r\nX-Trailer: 1\r\nContent-Length: 5\r\n\r\n")


def smuggler(session: Session, draw: random.Random, seed: int) -> str:
    """Send a request in which another one may hide: it must not be answered."""
    which = draw.randrange(len(BODIES))
    content = posted(BODIES[which]).partition(b"\r\n\r\n")[2]
    kind = "Content-Type: application/json"
    match draw.randrange(4):
        case 0:
            data, is_doubtful = _chunked(content, draw.choice(BAD_CHUNKS), LAST[0]), True
        case 1:
            data, is_doubtful = (
                _chunked(content, draw.choice(GOOD_CHUNKS), draw.choice(LAST)),
                False,
            )
        case _:
            lines = draw.choice(AMBIGUOUS).format(n=len(content), more=len(content) + len(INNER))
            if "ransfer" in lines and draw.random() < 0.8:
                content = b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)
            data, is_doubtful = head(*[kind, lines][:: draw.choice([1, -1])]) + content, True
    connection = session.connect()
    send(connection, data + INNER)
    answers = session.answers(connection)
    outcome = "refused"
    for answer in answers[:1]:
        outcome = session.judge(answer, session.known[which])
    if is_doubtful and any("smuggled" in answer.error for answer in answers):
        raise WrongError(f"a request was answered that hid in this one: {data[:400]!r}")
    return outcome


def _chunked(content: bytes, chunk: bytes, last: bytes) -> bytes:
    about = head("Content-Type: application/json", "Transfer-Encoding: chunked")
    return about + chunk % (len(content), content) + last


def pipeline(session: Session, draw: random.Random, seed: int) -> str:
    """Send several requests before the first answer; one in the middle may be none."""
    asked = [draw.randrange(len(BODIES)) for _ in range(draw.randint(2, 5))]
    requests = [posted(BODIES[which]) for which in asked]
    requests[-1] = posted(BODIES[asked[-1]], "Connection: close")
    bad = draw.randrange(1, len(asked) + 1) if draw.random() < 0.3 else None
    if bad is not None:
        requests.insert(bad, draw.choice([b"GARBAGE\r\n\r\n", b"GET /\r\n\r\n", b"\0" * 9]))
    data, connection = b"".join(requests), session.connect()
    while data:
        size = draw.choice([1, 50, 1000, len(data)])
        send(connection, data[:size])
        data = data[size:]
    answers = session.answers(connection, ["POST"] * len(asked))
    expected = asked[:bad]
    if len(answers) < len(expected):
        raise WrongError(f"{len(answers)} answers to {len(expected)} requests")
    for which, answer in zip(expected, answers, strict=False):
        if session.judge(answer, session.known[which]) != "same":
            raise WrongError(f"a right request was refused: {answer.error}")
    for answer in answers[len(expected) :]:
        if session.judge(answer) == "same":
            raise WrongError("an answer to what is no request, or after it")
    return "same" if bad is None else "refused"


def vanish(session: Session, draw: random.Random, seed: int) -> str:
    """Leave at any stage of a text that does not end, perhaps with more requests behind it."""
    streams = draw.random() < 0.5
    data = posted({**ENDLESS, "stream": streams, "n": draw.choice([1, 3])})
    connection = session.connect()
    match draw.randrange(6):
        case 0:
            send(connection, b"")
        case 1:
            send(connection, data[: data.index(b"\r\n\r\n") + 4])
        case 2:
            send(connection, data[:-5])
        case 3:
            send(connection, data)
        case 4:
            send(connection, data + posted(BODIES[0]) * draw.choice([1, 3, 300]))
        case _:
            send(connection, data)
            if streams:
                connection.recv(draw.choice([1, 300, 3000]))
    time.sleep(draw.choice([0, 0, 0.005, 0.05]))
    leave(connection, draw)
    session.probe(seed)
    session.close()
    session.wait_until_idle()
    return "refused"


def resender(session: Session, draw: random.Random, seed: int) -> str:
    """Ask for whole answers on a connection that is kept, after refusals of all kinds."""
    connection = session.connect()
    for _ in range(draw.randint(2, 4)):
        which = draw.randrange(len(BODIES))
        bad = draw.choice(
            [
                posted(b"{"),
                head(method="GET", target="/nowhere"),
                posted(BODIES[0], key="wrong"),
                posted(BODIES[0], key="wrong" + KEY),
                head(method="DELETE"),
                posted({"prompt": 7}),
                head("Content-Length: 20", method="GET", target="/health") + b"x" * 20,
            ]
        )
        for data in (bad, posted(BODIES[which])):
            send(connection, data)
            answers = session.answers(connection)
            if len(answers) != 1:
                raise WrongError(f"{len(answers)} answers to one request")
        if session.judge(answers[0], session.known[which]) != "same":
            raise WrongError(f"a right request was refused: {answers[0].error}")
    return "same"
