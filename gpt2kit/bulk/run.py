"""A command over many files, run to its end: alone, in several processes, by torchrun or by Ray."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from gpt2kit.bulk import handout, processes
from gpt2kit.bulk.handout import Share
from gpt2kit.bulk.job import Job
from gpt2kit.bulk.plan import Plan
from gpt2kit.bulk.worker import Progress, Worker, ending_on_signals
from gpt2kit.errors import ConfigError


@dataclass(frozen=True)
class Outcome:
    """What is there at the end of a run."""

    plan: Plan
    summary: dict[str, Any]  # as in summary.json
    running: list[int]  # parts that other workers have in hand
    failed: list[int]  # parts that could not be done
    left: list[int]  # parts that nobody has in hand, failed ones not among them
    in_time: bool  # False if the run ended because its time was over

    @property
    def is_good(self) -> bool:
        """Whether no part failed or was left without a reason."""
        return not self.failed and (not self.left or not self.in_time)


def run(
    job: Job,
    *,
    workers: int = 1,
    share: Share | None = None,
    on_ray: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Do all parts that are not done, or a share of them, and write the summary.

    Raises ConfigError if the folder was begun with another command, with other inputs or another
    model, and for several workers under torchrun; the error of the disk if it is full; BadRowError
    for a bad row if the job says so.
    """
    share = share or Share()
    if on_ray:
        from gpt2kit.bulk import ray_actors

        plan = ray_actors.run(job, workers, progress)
    elif handout.is_under_torchrun():
        if workers > 1:
            raise ConfigError(
                "torchrun starts the processes itself; leave out --workers, and give it "
                "--nproc-per-node"
            )
        plan = _under_torchrun(job, share, progress)
    else:
        plan = _here(job, workers, share, progress)
    return _outcome(job, plan, share)


def _here(job: Job, workers: int, share: Share, progress: Progress | None) -> Plan:
    with ending_on_signals():
        worker = Worker(job, **(processes.settle() if workers == 1 else {}))
        if workers == 1:
            worker.run(share.of_parts(worker.folder.todo(worker.plan)), progress)
            return worker.plan
        plan = worker.plan
        del worker  # the model is in the memory of the processes now
        processes.run(job, workers, share, plan, progress)
        return plan


def _under_torchrun(job: Job, share: Share, progress: Progress | None) -> Plan:
    with ending_on_signals():
        index = int(os.environ.get("LOCAL_RANK", "0"))
        own = processes.settle(index, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        worker = Worker(job, **own)
        store = handout.Store()
        todo = share.of_parts(worker.folder.todo(worker.plan))
        worker.run(store.draw(todo), progress)
        store.wait()
        return worker.plan


def _outcome(job: Job, plan: Plan, share: Share) -> Outcome:
    folder = job.folder
    todo = sorted(share.of_parts(folder.todo(plan)))
    running = folder.running(plan)
    folder.sweep_claims()
    failed = sorted(folder.failures().keys() & set(todo))
    folder.write_summary(plan)
    return Outcome(
        plan,
        folder.summarize(plan),
        [number for number in running if number in todo],
        [number for number in failed if number not in running],
        [number for number in todo if number not in running and number not in failed],
        job.until is None or time.time() < job.until,
    )
