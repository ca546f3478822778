"""Workers as actors of a Ray cluster, each with a model in memory; tasks are the parts."""

from __future__ import annotations

import os
from collections import deque
from typing import Any

from gpt2kit.bulk import processes
from gpt2kit.bulk.claims import Heartbeat
from gpt2kit.bulk.job import Job
from gpt2kit.bulk.plan import Plan
from gpt2kit.bulk.worker import Progress, Worker, ending_on_signals
from gpt2kit.errors import ConfigError, MissingDependencyError

_TRIES = 3  # of a part whose actor died
_PATIENCE = 120.0  # seconds until the first actor must be there


class Actor:
    """A worker that is told part by part what to do."""

    def __init__(self, job: Job, threads: int) -> None:
        self._worker = Worker(job, threads=threads)

    def pid(self) -> int:
        """Return the process that the actor is."""
        return os.getpid()

    def do(self, number: int) -> bool | None:
        """Do a part; see `Worker.do`."""
        with Heartbeat() as heartbeat:
            return self._worker.do(number, heartbeat)


def run(job: Job, workers: int, progress: Progress | None) -> Plan:
    """Do all parts on a Ray cluster: that of RAY_ADDRESS, else one that is started here.

    Raises ConfigError if the cluster has fewer GPUs, or without GPUs fewer cores, than there are
    workers, and if it has no room for any of them now.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError("ray", extra="ray") from error
    with ending_on_signals():
        worker = Worker(job)
        plan = worker.plan
        todo = worker.folder.todo(plan)
        del worker
        started = not ray.is_initialized()
        if started:
            ray.init(log_to_driver=False, logging_level="error")
        try:
            _hand_out(ray, job, workers, todo, plan, progress)
        finally:
            if started:
                ray.shutdown()
    return plan


def _hand_out(
    ray: Any, job: Job, workers: int, todo: list[int], plan: Plan, progress: Progress | None
) -> None:
    """Give each actor that is there a part as soon as it has none."""
    gpus = int(ray.cluster_resources().get("GPU", 0))
    cores = int(ray.cluster_resources().get("CPU", 1))
    room, kind = (gpus, "GPUs") if gpus else (cores, "cores")
    if workers > room:
        raise ConfigError(
            f"the cluster has {room} {kind}, expected {workers} or more: one for each worker"
        )
    threads = max(1, min(cores, len(processes.available_cores()) or cores) // workers)
    needs = {"num_gpus": 1} if gpus else {"num_cpus": threads}
    remote_class = ray.remote(max_restarts=-1, max_task_retries=_TRIES, **needs)(Actor)
    actors = [remote_class.remote(job, threads) for _ in range(min(workers, max(1, len(todo))))]
    # What each actor has in hand: a part, or none while it is started, which may last for ever.
    tasks: dict[Any, tuple[Any, int | None]] = {
        actor.pid.remote(): (actor, None) for actor in actors
    }
    ready, _ = ray.wait(list(tasks), timeout=_PATIENCE)
    if not ready:
        raise ConfigError(
            f"no worker could be started in {_PATIENCE:.0f} s; the cluster has {cores} cores and "
            f"{gpus} GPUs, and others may be using them"
        )
    rest = deque(todo)
    rows = {part.number: part.rows for part in plan.parts}
    done = plan.rows - sum(rows[number] for number in todo)
    while any(number is not None for _, number in tasks.values()) or (
        rest and not processes.is_late(job)
    ):
        (finished, *_), _ = ray.wait(list(tasks))
        actor, number = tasks.pop(finished)
        ray.get(finished)
        if number is not None:
            done += rows[number]
            if progress is not None:
                progress(done, plan.rows)
        if rest and not processes.is_late(job):
            following = rest.popleft()
            tasks[actor.do.remote(following)] = (actor, following)
