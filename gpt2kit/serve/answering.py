"""The answer to one completion: as a whole or as a stream, until the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field

from starlette.types import Receive, Send

from gpt2kit.generation.text import Piece
from gpt2kit.serve import settings
from gpt2kit.serve.answers import AnswerWriter, ChoiceWriter, EncodedPrompt, Usage
from gpt2kit.serve.completions import CompletionRequest
from gpt2kit.serve.errors import Refusal
from gpt2kit.serve.models import Loaded
from gpt2kit.serve.receipts import receipt_of
from gpt2kit.serve.worker import Job, Sample

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx passes each event on at once
]


@dataclass
class Answer:
    """One completion that is being answered."""

    asked: CompletionRequest
    loaded: Loaded
    prompts: Sequence[EncodedPrompt]
    job: Job
    writer: AnswerWriter
    model: str  # its name, for a receipt
    usage: Usage = field(default_factory=Usage)

    async def send_whole(self, send: Send) -> None:
        """Send the answer once all texts have ended; raises Refusal if they ended early."""
        pieces: dict[Sample, list[Piece]] = {sample: [] for sample in self.job.samples}
        async for new in self._news():
            for sample, more in new:
                pieces[sample] += more
        if self.job.cancelled:
            return
        choices = [
            writer.write(
                pieces[sample] if sample else [],
                self.job.prompt_logprobs.get(prompt, ()),
                self._reason_without_pieces,
            )
            for writer, prompt, sample in self._choices(pieces)
        ]
        receipt = None
        if self.asked.receipt:  # hashing the weights takes a while, the first time
            receipt = await asyncio.to_thread(
                receipt_of, self.loaded, self.asked, self.model, self.prompts, pieces
            )
        body = self.writer.whole(choices, self._count(), receipt)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await _send_body(send, body, more=False)

    def _choices(
        self, pieces: dict[Sample, list[Piece]]
    ) -> Iterator[tuple[ChoiceWriter, int, Sample | None]]:
        """Yield a writer for each choice, its prompt, and its sample if there is one."""
        n, samples = self.asked.n, self.asked.samples
        for index, prompt in enumerate(self.prompts):
            own: list[Sample | None] = (
                list(self.job.samples[index * samples : (index + 1) * samples]) or [None] * samples
            )
            if samples > n:
                own.sort(key=lambda sample: -_mean_logprob(pieces[sample]) if sample else 0)
            for rank, sample in enumerate(own[:n]):
                writer = ChoiceWriter(index * n + rank, prompt, self.asked, self.loaded.tokenizer)
                yield writer, index, sample

    async def send_stream(self, send: Send) -> None:
        """Send events as texts grow; raises Refusal if it has to before the first event."""
        stream = _Stream(send, self.job)
        writers = [
            ChoiceWriter(
                sample.index, self.prompts[sample.prompt], self.asked, self.loaded.tokenizer
            )
            for sample in self.job.samples
        ]
        held: dict[Sample, list[Piece]] = {}
        async with stream.watched():
            if not self.job.samples:
                await self._send_prompts_alone(stream)
            try:
                async for new in self._news(stream):
                    for sample, pieces in new:
                        held.setdefault(sample, []).extend(pieces)
                    for sample in list(held):
                        if self._can_begin(sample):
                            await stream.send(
                                self._chunk(writers[sample.index], sample, held.pop(sample))
                            )
            except Refusal as refusal:
                if not stream.has_begun:
                    raise
                await stream.end(self.writer.error(refusal))
                return
            if not self.job.cancelled:
                await stream.end(self.writer.end(self._count()))

    async def _send_prompts_alone(self, stream: _Stream) -> None:
        for index, prompt in enumerate(self.prompts):
            for number in range(self.asked.n):
                writer = ChoiceWriter(
                    index * self.asked.n + number, prompt, self.asked, self.loaded.tokenizer
                )
                await stream.send(
                    self.writer.chunk(writer.write([], (), self._reason_without_pieces))
                )

    def _can_begin(self, sample: Sample) -> bool:
        """Whether all that a first chunk needs is there: it may begin with another row's scores."""
        return not self.asked.scores_prompts or sample.prompt in self.job.prompt_logprobs

    def _chunk(self, writer: ChoiceWriter, sample: Sample, pieces: list[Piece]) -> bytes:
        scores = self.job.prompt_logprobs.get(sample.prompt, ())
        return self.writer.chunk(writer.write(pieces, scores, self._reason_without_pieces))

    @property
    def _reason_without_pieces(self) -> str:
        """Why a text ended that has no piece."""
        return "context" if self.asked.max_tokens else "max_tokens"

    async def _news(
        self, stream: _Stream | None = None
    ) -> AsyncIterator[list[tuple[Sample, list[Piece]]]]:
        """Yield what comes into the inbox until the job has ended; raises Refusal if it failed.

        Meanwhile a stream that waits gets a comment from time to time.
        """
        job = self.job
        while True:
            has_ended = job.has_ended  # what came before that is in the inbox by now
            if new := job.take():
                yield new
            if has_ended:
                break
            if stream and stream.silent >= settings.COMMENT_SECONDS:
                await stream.send(b": waiting\n\n")
            await job.news()
        if job.error is not None and not job.cancelled:
            raise job.error

    def _count(self) -> Usage:
        """Count the tokens of the request."""
        job = self.job
        self.usage.prompt = sum(len(prompt.ids) for prompt in self.prompts)
        self.usage.cached = sum(job.cached.values())
        self.usage.completion = job.generated
        return self.usage


class _Stream:
    """A response whose status line is sent with its first event."""

    def __init__(self, send: Send, job: Job) -> None:
        self._send = send
        self._job = job
        self._last = time.monotonic()  # when the last event was sent
        self._timer: asyncio.TimerHandle | None = None
        self.has_begun = False

    @property
    def silent(self) -> float:
        """The seconds since the last event."""
        return time.monotonic() - self._last

    async def send(self, data: bytes, *, more: bool = True) -> None:
        """Send an event; one that the client does not take is for `watched` to end."""
        if not self.has_begun:
            self.has_begun = True
            start = {"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS}
            await self._send(start)
        self._job.sending_since = self._last = time.monotonic()
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self._job.sending_since = None

    async def end(self, data: bytes) -> None:
        """Send the last event."""
        await self.send(data, more=False)

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Wake whoever waits for news too long; raises TimeoutError if an event is not taken.

        One timer looks from time to time. A timeout around each wait and each event, as one would
        write it, takes a quarter of the time of the thread that speaks to the clients.
        """
        loop = asyncio.get_running_loop()
        seconds = min(settings.COMMENT_SECONDS, settings.UNREAD_SECONDS) / 2

        async with asyncio.timeout(None) as limit:

            def look() -> None:
                self._timer = loop.call_later(seconds, look)
                if self._job.sending_since is None:
                    self._job.remind()
                elif self.silent > settings.UNREAD_SECONDS:
                    limit.reschedule(loop.time())

            look()
            try:
                yield
            finally:
                assert self._timer is not None
                self._timer.cancel()


async def _send_body(send: Send, data: bytes, *, more: bool) -> None:
    async with asyncio.timeout(settings.UNREAD_SECONDS):
        await send({"type": "http.response.body", "body": data, "more_body": more})


@contextlib.asynccontextmanager
async def cancelled_if_gone(receive: Receive, cancel: Callable[[], None]) -> AsyncIterator[None]:
    """Call `cancel` if the client closes the connection meanwhile."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        cancel()

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()


def _mean_logprob(pieces: Sequence[Piece]) -> float:
    """Return the mean log-probability of a text's tokens."""
    values = [piece.logprob for piece in pieces if piece.logprob is not None]
    return math.fsum(values) / len(values) if values else -math.inf
