"""The one thread that computes: requests come in as commands, and after each step pieces go out.

The thread never waits for a client. What a step brought is put into the requests' inboxes, and one
call wakes all their readers; a reader that lags finds several pieces at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from gpt2kit.generation.continuation import Continuation
from gpt2kit.generation.row import Chosen, Row
from gpt2kit.generation.text import Piece, TextOfRow
from gpt2kit.model import GPT2
from gpt2kit.serve.errors import Refusal, engine_failed, not_ready
from gpt2kit.serve.metrics import Metrics
from gpt2kit.serve.settings import BEAT_SECONDS, UNREAD_BYTES

log = logging.getLogger("gpt2kit.serve")

_STUCK_SECONDS = 1.0  # of one send; shorter ones happen if the event loop has much to do
_PIECE_BYTES, _ALTERNATIVE_BYTES = 200, 40  # in an answer, about


class Sample:
    """One text of a request: a row, and the text that comes out of it.

    A sample that `only_reads` has no text: its row is there to be read, and the token that it
    chooses is dropped.
    """

    def __init__(
        self, job: Job, row: Row, text: TextOfRow, *, index: int, prompt: int, only_reads: bool
    ) -> None:
        self.job = job
        self.row = row
        self.text = text
        self.index = index  # among the samples of the request
        self.prompt = prompt  # the index of its prompt
        self.only_reads = only_reads
        self.prompt_tokens = len(row.history)
        self.last: float | None = None  # when its last token came


class Job:
    """A request on its way through the worker, and the inbox of whoever answers it.

    Belongs to the event loop that was running when it was made. Only the worker writes to it.
    """

    def __init__(self, *, seconds_to_wait: float) -> None:
        self.created = time.monotonic()
        self.deadline = self.created + seconds_to_wait
        self.started: float | None = None  # when its first row got a slot
        self.first: float | None = None  # when its first token came
        self.samples: list[Sample] = []
        self.waiting: deque[Sample] = deque()
        self.running = 0  # samples that have a slot
        self.left = 0  # samples that have not ended
        self.generated = 0  # tokens
        self.error: Refusal | None = None  # why it ended early
        self.inbox: deque[tuple[Sample, list[Piece]]] = deque()
        self.unread = 0  # bytes of an answer that the inbox stands for, about
        self.sending_since: float | None = None  # when the reader began to send to its client
        self.cancelled = False
        self.cached: dict[int, int] = {}  # by prompt: tokens that were not read again
        self.prompt_logprobs: dict[int, Sequence[Chosen]] = {}  # by prompt
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()

    def add(self, row: Row, text: TextOfRow, *, prompt: int, only_reads: bool) -> None:
        """Add a text to write, before the job is submitted."""
        index = len(self.samples)
        sample = Sample(self, row, text, index=index, prompt=prompt, only_reads=only_reads)
        self.samples.append(sample)
        self.waiting.append(sample)
        self.left += 1

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come into the inbox."""
        return self.left == 0 or self.error is not None or self.cancelled

    async def news(self) -> None:
        """Wait until the inbox was filled, the job was started, it ended, or a reminder came."""
        await self._news.wait()
        self._news.clear()

    def remind(self) -> None:
        """Let `news` return, in the event loop of the job, though there may be none."""
        self._news.set()

    def take(self) -> list[tuple[Sample, list[Piece]]]:
        """Return what is in the inbox, and empty it; pieces of one text are joined."""
        self.unread = 0
        found: dict[Sample, list[Piece]] = {}
        while self.inbox:
            sample, pieces = self.inbox.popleft()
            found.setdefault(sample, []).extend(pieces)
        return list(found.items())

    def put(self, sample: Sample, pieces: list[Piece]) -> None:
        """Fill the inbox; a client that takes nothing of a long answer loses its request."""
        self.inbox.append((sample, pieces))
        self.generated += len(pieces)
        alternatives = sum(len(piece.top_logprobs or ()) for piece in pieces)
        self.unread += _PIECE_BYTES * len(pieces) + _ALTERNATIVE_BYTES * alternatives
        since = self.sending_since
        is_stuck = since is not None and time.monotonic() - since > _STUCK_SECONDS
        if self.unread > UNREAD_BYTES and is_stuck:
            self.error = Refusal(408, "the client takes its answer too slowly", code="slow_client")

    def end(self, error: Refusal) -> None:
        """End it early."""
        self.error = self.error or error

    @staticmethod
    def wake(jobs: Iterable[Job]) -> None:
        """Tell the readers of these jobs that there is news, by one call for each event loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[Job]] = {}
        for job in jobs:
            by_loop.setdefault(job._loop, []).append(job)
        for loop, own in by_loop.items():
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody reads any more
                loop.call_soon_threadsafe(_set_all, [job._news for job in own])


def _set_all(events: Sequence[asyncio.Event]) -> None:
    for event in events:
        event.set()


class Batch:
    """The texts that one model writes at the same time, and those that wait for a slot."""

    def __init__(self, model: GPT2, *, slots: int, n_vocab: int, metrics: Metrics) -> None:
        self.slots = slots
        self.jobs: list[Job] = []  # in the order of their arrival
        self.running: dict[Row, Sample] = {}
        self._continuation = Continuation(model, slots=slots, n_vocab=n_vocab)
        self._metrics = metrics

    @property
    def has_work(self) -> bool:
        """Whether a text is being written or waits."""
        return bool(self.jobs)

    def warm_up(self, row: Row) -> None:
        """Continue a row to its end, so that the first request does not wait for a first step."""
        self._continuation.add(row)
        while row.finish_reason is None:
            self._continuation.step()
        self._continuation.remove(row)

    def turn(self) -> set[Job]:
        """Take one step of all running texts; return the jobs with news."""
        touched = self._drop_ended() | self._admit()
        if not self.running:
            return touched
        # A long prompt holds up running texts by one piece at most.
        self._continuation.pieces_per_step = 1 if self._continuation.running else 2
        began = time.monotonic()
        rows = self._continuation.step()
        now = time.monotonic()
        self._metrics.step.observe(now - began)
        if rows:
            self._metrics.step_rows.observe(len(rows))
        for row in rows:
            sample = self.running[row]
            self._take(sample, now)
            touched.add(sample.job)
        return touched | self._drop_ended()

    def _admit(self) -> set[Job]:
        """Give free slots to waiting texts; return the jobs that begin by that.

        The next text is one of the job with the fewest running ones, the earliest among equals: a
        job of many texts does not make others wait for all of them.
        """
        begun = set()
        while len(self.running) < self.slots:
            jobs = [job for job in self.jobs if job.waiting]
            if not jobs:
                break
            job = min(jobs, key=lambda job: job.running)
            sample = job.waiting.popleft()
            self._continuation.add(sample.row)
            self.running[sample.row] = sample
            job.running += 1
            if job.started is None:
                job.started = time.monotonic()
                self._metrics.queue.observe(job.started - job.created)
                begun.add(job)
        return begun

    def _take(self, sample: Sample, now: float) -> None:
        """Put what a step brought to a text into the inbox of its job."""
        job, row = sample.job, sample.row
        if row.error is not None:  # nothing that the request allows can come next
            job.end(Refusal(400, str(row.error), code="no_token_allowed"))
            return
        if sample.last is None:
            self._note_prompt(sample)
        else:
            self._metrics.token.observe((now - sample.last) / len(row.new), len(row.new))
        if job.first is None:
            job.first = now
            self._metrics.first_token.observe(now - job.created)
        sample.last = now
        pieces = [] if sample.only_reads else sample.text.add_new()
        self._metrics.generated.add(len(pieces))
        job.put(sample, pieces)
        if row.finish_reason is not None:
            job.left -= 1
            self._leave(sample)
            if job.left == 0:
                self._metrics.request.observe(now - job.created)

    def _note_prompt(self, sample: Sample) -> None:
        """Note how a prompt was read, once its first token is there."""
        job, row = sample.job, sample.row
        # Samples of one prompt share what the one that joined first has read for them all.
        job.cached[sample.prompt] = min(
            row.cached_tokens, job.cached.get(sample.prompt, row.cached_tokens)
        )
        read = sample.prompt_tokens - row.cached_tokens
        self._metrics.prompt_tokens.add(read, **{"from": "read"})
        self._metrics.prompt_tokens.add(row.cached_tokens, **{"from": "cache"})
        if row.request.prompt_logprobs:
            job.prompt_logprobs[sample.prompt] = row.prompt_chosen
            self._metrics.scored.add(sample.prompt_tokens - 1)

    def _leave(self, sample: Sample) -> None:
        del self.running[sample.row]
        sample.job.running -= 1
        self._continuation.remove(sample.row)

    def _drop_ended(self) -> set[Job]:
        """Take jobs that have ended, were cancelled or waited too long out of the batch."""
        now, touched = time.monotonic(), set()
        for job in self.jobs:
            if job.started is None and not job.has_ended and now > job.deadline:
                self._metrics.refused.add(reason="queue_timeout")
                job.end(not_ready("the request waited too long for its turn; try again"))
            if job.has_ended:
                touched.add(job)
        if touched:
            self.jobs = [job for job in self.jobs if job not in touched]
            for sample in [each for each in self.running.values() if each.job in touched]:
                self._leave(sample)
        return touched

    def fail(self, error: Refusal) -> set[Job]:
        """End all jobs early; return them."""
        jobs = set(self.jobs)
        for job in jobs:
            job.end(error)
        self.jobs = []
        return jobs


class Worker:
    """The thread that lets batches take their steps in turn."""

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        self.on_failure: Callable[[], object] | None = None  # called in the thread
        self._batches: list[Batch] = []
        self._commands: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._stopped = False
        self._beat = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="gpt2kit-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end after its current step, and wait for it a moment."""
        self._stopped = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    @property
    def is_well(self) -> bool:
        """Whether the thread takes its steps, as far as there are any to take."""
        if self.failure is not None or (self._thread.ident and not self._thread.is_alive()):
            return False
        return not self._has_work or time.monotonic() - self._beat < BEAT_SECONDS

    def submit(self, batch: Batch, job: Job) -> None:
        """Queue a job for a batch; may be called from any thread, as all below."""
        self._command(lambda: batch.jobs.append(job))

    def cancel(self, job: Job) -> None:
        """End a job within one step: nobody waits for it any more."""
        job.cancelled = True
        self._wake.set()

    def add(self, batch: Batch) -> None:
        """Let a batch take part."""
        self._command(lambda: self._batches.append(batch))

    def remove(self, batch: Batch) -> None:
        """Let a batch go that has no work."""
        self._command(lambda: self._batches.remove(batch))

    def end_all(self, error: Refusal) -> None:
        """End all jobs early."""

        def end() -> None:
            for batch in self._batches:
                for job in batch.jobs:
                    job.end(error)

        self._command(end)

    @property
    def _has_work(self) -> bool:
        return bool(self._commands) or any(batch.has_work for batch in self._batches)

    def _command(self, command: Callable[[], None]) -> None:
        if not self._has_work:
            self._beat = time.monotonic()  # it was idle, and is not stuck before it begins
        self._commands.append(command)
        self._wake.set()
        if self.failure is not None:  # the thread has ended and will not look
            self._end_after_failure()

    def _run(self) -> None:
        try:
            while not self._stopped:
                self._wake.clear()
                while self._commands:
                    self._commands.popleft()()
                if not self._has_work:
                    self._wake.wait()
                    continue
                for batch in list(self._batches):
                    Job.wake(batch.turn())
                    self._beat = time.monotonic()
        except BaseException as error:
            log.exception("the engine failed")
            self.failure = error
            self._end_after_failure()
            if self.on_failure:
                self.on_failure()

    def _end_after_failure(self) -> None:
        while self._commands:
            self._commands.popleft()()
        for batch in self._batches:
            Job.wake(batch.fail(engine_failed()))
