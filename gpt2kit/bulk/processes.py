"""Several workers on one machine: processes that share its cores, or its GPUs."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from gpt2kit.bulk.folder import RowsDone
from gpt2kit.bulk.handout import Share
from gpt2kit.bulk.job import Job
from gpt2kit.bulk.plan import Plan
from gpt2kit.bulk.worker import Progress, Worker, ending_on_signals
from gpt2kit.errors import Gpt2KitError

_POLL = 0.2  # seconds
_PATIENCE = 30.0  # seconds that a worker may take to end when it is told to

# How the process of a worker ended: with all parts tried, or by an error that it has sent.
TRIED, STOPPED = 0, 1


def available_cores() -> list[int]:
    """Return the cores that this process may use; empty if the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def settle(index: int = 0, of: int = 1) -> dict[str, Any]:
    """Give this process its share of cores, as the index-th of several.

    Returns how many threads a `Worker` is to use, and on which GPU, if there is one.
    """
    cores = available_cores()
    threads = max(1, (len(cores) or os.cpu_count() or 1) // of)
    own = cores[index * threads : (index + 1) * threads]
    if of > 1 and own:
        os.sched_setaffinity(0, own)
    gpus = torch.cuda.device_count()
    return {"threads": threads, "device": f"cuda:{index % gpus}" if gpus else None}


def run(job: Job, workers: int, share: Share, plan: Plan, progress: Progress | None) -> None:
    """Let several processes do the parts of a share.

    Processes are started anew as long as parts are left by some that were killed, and others still
    finish parts. Raises Gpt2KitError with the message of an error that ended one of them.
    """
    while True:
        before = len(_left(job, plan, share))
        codes = _round(job, workers, share, plan, progress)
        after = len(_left(job, plan, share))
        was_killed = any(code < 0 for code in codes)
        if not (was_killed and 0 < after < before) or is_late(job):
            return


def _left(job: Job, plan: Plan, share: Share) -> list[int]:
    return share.of_parts(job.folder.todo(plan))


def is_late(job: Job) -> bool:
    """Whether the time is over in which parts may be begun."""
    return job.until is not None and time.time() >= job.until


def _round(
    job: Job, workers: int, share: Share, plan: Plan, progress: Progress | None
) -> list[int]:
    """Run the processes once, and return the code of each."""
    # Not fork: the threads of torch would be missing in the new process, and it would hang.
    context = multiprocessing.get_context("spawn")
    processes: list[BaseProcess] = []
    pipes: list[tuple[Connection, Connection]] = []
    done = RowsDone(job.folder, plan)
    for index in range(workers):
        problem, told = context.Pipe(duplex=False)
        words = (job, index, workers, share, os.getpid(), told)
        processes.append(context.Process(target=work, args=words, daemon=True))
        pipes.append((problem, told))
    try:
        for process, (_, told) in zip(processes, pipes, strict=True):
            process.start()
            told.close()  # so that the pipe ends with the process
        while any(process.is_alive() for process in processes):
            if progress is not None:
                progress(done.count(), plan.rows)
            for process in processes:
                process.join(_POLL / workers)
            if any(process.exitcode == STOPPED for process in processes):
                break  # the others would meet the same
    finally:
        _end(processes)
    for problem, _ in pipes:
        with contextlib.suppress(EOFError):  # from a process that has sent nothing
            raise Gpt2KitError(problem.recv())
    return [process.exitcode or 0 for process in processes]


def _end(processes: list[BaseProcess]) -> None:
    """Tell the processes to end, and wait until they have."""
    running = [process for process in processes if process.is_alive()]
    for process in running:
        process.terminate()
    for process in running:
        process.join(_PATIENCE)
        if process.is_alive():
            process.kill()


def work(job: Job, index: int, of: int, share: Share, parent: int, told: Connection) -> None:
    """Be one of several workers: the body of its process. An error goes to the parent as a text."""
    try:
        with ending_on_signals():
            worker = Worker(job, **settle(index, of), parent=parent)
            worker.run(share.of_parts(worker.folder.todo(worker.plan)))
    except KeyboardInterrupt:
        _die_of(signal.SIGINT)
    except SystemExit:
        _die_of(signal.SIGTERM)
    except Gpt2KitError as error:
        told.send(str(error))
        raise SystemExit(STOPPED) from None
    except OSError as error:
        told.send(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        raise SystemExit(STOPPED) from None
    raise SystemExit(TRIED)


def _die_of(number: int) -> None:
    """End this process by a signal, now that everything is in order: threads may be at work."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
