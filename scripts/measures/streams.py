"""A client that streams completions: when each piece of a text came, and how many tokens it had.

It takes one thread and little time, because it runs on the cores that the server needs.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

HOST = "127.0.0.1"
Body = dict[str, Any]


@dataclass
class Stream:
    """What came of one request."""

    times: list[float] = field(default_factory=list)  # when each piece came, in seconds
    text: str = ""
    counted: int | None = None  # tokens, if the server tells

    @property
    def tokens(self) -> int:
        """The tokens of the text; if the server does not tell, each piece counts as one."""
        return len(self.times) if self.counted is None else self.counted

    def note(self, event: dict[str, Any]) -> None:
        """Take in an event."""
        for choice in event.get("choices") or ():
            self.times.append(time.perf_counter())
            self.text += choice["text"]
        if usage := event.get("usage"):
            self.counted = usage["completion_tokens"]


async def ask(port: int, body: Body, stream: Stream | None = None) -> Stream:
    """Send a request, fill `stream` while the answer comes, and return it; it must succeed."""
    stream = stream or Stream()
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        content = json.dumps({**body, "stream": True}).encode()
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(content)
        )
        writer.write(content)
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head.partition(b"\r\n")[0]:
            raise RuntimeError(f"the server answered {(head + await reader.read(300))!r}")
        async for line in _lines(reader):
            if line.startswith(b"data: {"):
                stream.note(json.loads(line[6:]))
    finally:
        writer.close()
    return stream


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield the lines of a body that comes in chunks."""
    rest = b""
    while size := int(await reader.readline(), 16):
        rest += (await reader.readexactly(size + 2))[:-2]
        *lines, rest = rest.split(b"\n")
        for line in lines:
            yield line


async def ask_together(port: int, bodies: Sequence[Body]) -> list[Stream]:
    """Send several requests at the same time, and return what came of each."""
    return await asyncio.gather(*(ask(port, body) for body in bodies))


async def begun(streams: Sequence[Stream], pieces: int) -> None:
    """Wait until each of some streams has this many pieces."""
    while min(len(stream.times) for stream in streams) < pieces:
        await asyncio.sleep(0.01)
