"""A worker: takes parts one after another, computes their rows, and commits them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from gpt2kit.bulk import claims, sources
from gpt2kit.bulk.claims import Claim, Heartbeat
from gpt2kit.bulk.folder import RowsDone, is_of_the_disk
from gpt2kit.bulk.job import Job
from gpt2kit.bulk.plan import Plan
from gpt2kit.bulk.threads import Threads, single_threaded
from gpt2kit.bulk.work import Counts, Output, results
from gpt2kit.checkpoints.device import processor_name
from gpt2kit.data.tables import json_line
from gpt2kit.errors import BadRowError, CorpusError, is_failure
from gpt2kit.model import GPT2

_TRIES = 2  # of a part that raises an error

# Called after each part with the rows that are done, by whichever worker, and all rows.
Progress = Callable[[int, int], None]


@dataclass
class Ended:
    """How a worker ended."""

    done: int = 0  # parts that it finished
    failed: list[int] = field(default_factory=list)  # parts that could not be done
    in_time: bool = True  # False if it stopped taking parts because its time was over


class Worker:
    """A model in memory, and the parts that are computed with it."""

    def __init__(
        self,
        job: Job,
        *,
        threads: int = 1,
        device: str | None = None,
        parent: int | None = None,
    ) -> None:
        self.job = job
        self.models = job.load(device)
        self.plan: Plan = job.agree(self.models)
        self.folder = job.folder
        self._output = Output(job.work, job.reading, several=len(self.plan.inputs) > 1)
        self._old_failures = self.folder.failures()
        self._parent = parent
        self.threads = threads if self.models.model.device.type == "cpu" else 1
        self._pool = Threads(self.threads)

    def run(self, numbers: Iterable[int], progress: Progress | None = None) -> Ended:
        """Do the parts of these numbers that are not done and that no other worker has."""
        ended, done = Ended(), RowsDone(self.folder, self.plan)
        with Heartbeat(parent=self._parent) as heartbeat:
            for number in numbers:
                if self.job.until is not None and time.time() >= self.job.until:
                    ended.in_time = False
                    break
                if progress is not None:
                    progress(done.count(), self.plan.rows)
                finished = self.do(number, heartbeat)
                ended.done += finished is True
                if finished is False:
                    ended.failed.append(number)
        return ended

    def do(self, number: int, heartbeat: Heartbeat) -> bool | None:
        """Do a part and return whether it succeeded; None if it is done or another worker has it.

        A part that raises an error is tried twice, then recorded as failed. Errors of the disk, and
        a bad row if the user wants to stop there, are raised.
        """
        if self.folder.is_done(number) or self._has_failed_now(number):
            return None
        claim = Claim(self.folder.claim(number), claims.new_token())
        try:
            return self._claimed(number, heartbeat, claim)
        except BaseException:
            claim.release()  # a signal may have come in the middle of the release below
            raise

    def _claimed(self, number: int, heartbeat: Heartbeat, claim: Claim) -> bool | None:
        """Do a part between taking and releasing the claim on it."""
        try:
            if claims.take(claim.path, claim.token) is None or self.folder.is_done(number):
                return None
            heartbeat.hold(claim)
            self.folder.sweep(number)
            return self._tried(number)
        finally:
            heartbeat.hold(None)
            claim.release()

    def _has_failed_now(self, number: int) -> bool:
        """Whether a part failed since this worker began; older failures are tried again."""
        path = self.folder.failure(number)
        with contextlib.suppress(OSError):
            return path.stat().st_mtime_ns != self._old_failures.get(number)
        return False

    def _tried(self, number: int) -> bool:
        for remaining in reversed(range(_TRIES)):
            try:
                self._compute(number)
            except BaseException as error:
                ends = is_of_the_disk(error) or isinstance(error, BadRowError)
                if ends or not is_failure(error):
                    raise
                if not remaining:
                    reason = traceback.format_exc().encode(errors="backslashreplace")
                    self.folder.failure(number).write_bytes(reason)
                    return False
            else:
                return True
        return False

    def _compute(self, number: int) -> None:
        part = self.plan.parts[number]
        began, counts = time.time(), Counts()
        rows = sources.read(part, self.plan.path_of(part), self.job.reading)
        written = self.folder.part_file(number)
        # Cells are text: what is not UTF-8 in a file's name is escaped, such as \xe9.
        name = os.fsencode(part.file).decode(errors="backslashreplace")
        try:
            with single_threaded():
                found = results(self._output, rows, name, self.models, counts, self._pool)
                digest = self.folder.write(number, self._lines(found))
            if counts.rows != part.rows:
                raise CorpusError(f"{part.file}: {counts.rows} rows, the plan says {part.rows}")
            ended = time.time()
            receipt = {
                **asdict(counts),
                "seconds": ended - began,
                "began": began,
                "ended": ended,
                **computed_by(self.models.model, self.threads),
                "sha256": digest,
            }
            self.folder.commit(number, written, receipt)
        finally:
            written.unlink(missing_ok=True)

    def _lines(self, rows: Iterable[list[Any]]) -> Iterator[bytes]:
        columns = self._output.columns
        for cells in rows:
            if cells[-1] is not None and self.job.on_error == "stop":
                raise BadRowError(f"row {cells[0]:,}: {cells[-1]}")
            yield json_line(columns, cells).encode()


def computed_by(model: GPT2, threads: int) -> dict[str, Any]:
    """Return who computes: host, processor, device and threads."""
    on_cuda = model.device.type == "cuda"
    processor = torch.cuda.get_device_name() if on_cuda else processor_name()
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "engine": f"{model.device.type}, {processor}, torch {torch.__version__}",
        "threads": threads,
    }


@contextlib.contextmanager
def ending_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGINT leave the block as exceptions, once: cleaning up is not interrupted.

    SIGTERM raises SystemExit(143), and SIGINT KeyboardInterrupt. A no-op outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}

    def end(number: int, _: Any) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    for each, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(each, end)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
