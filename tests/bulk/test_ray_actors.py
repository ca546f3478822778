"""Parts that are handed to the actors of a Ray cluster; a stand-in takes the place of Ray."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bulk_builders import job, write_texts

from gpt2kit.bulk.run import run
from gpt2kit.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Task:
    """What an actor was told to do."""

    answer: list[Any]  # empty for ever if the actor is not there


class Call:
    """A method of an actor: what it answers, or nothing if the actor has not been started."""

    def __init__(self, method: Callable[..., Any] | None) -> None:
        self._method = method

    def remote(self, *words: Any) -> Task:
        return Task([] if self._method is None else [self._method(*words)])


class Handle:
    """An actor, or one for which the cluster has no room."""

    def __init__(self, actor: Any) -> None:
        self.pid = Call(actor and actor.pid)
        self.do = Call(actor and actor.do)


class Cluster:
    """Does what the module `ray` does with a cluster, where actors answer at once or never."""

    def __init__(self, *, gpus: int, free: int) -> None:
        self._gpus, self._free = gpus, free

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 8.0, "GPU": float(self._gpus)} if self._gpus else {"CPU": 8.0}

    def remote(self, **needs: int) -> Callable[[type], Any]:
        cluster = self

        class Kind:
            def __init__(self, actor: type) -> None:
                self._actor = actor

            def remote(self, *words: Any) -> Handle:
                cluster._free -= 1
                return Handle(self._actor(*words) if cluster._free >= 0 else None)

        return Kind

    def wait(
        self, tasks: list[Task], timeout: float | None = None
    ) -> tuple[list[Task], list[Task]]:
        ready = [task for task in tasks if task.answer][:1]
        if not ready and timeout is None:
            pytest.fail("this would wait for ever")
        return ready, [task for task in tasks if task not in ready]

    def get(self, task: Task) -> Any:
        return task.answer[0]


def on(monkeypatch: pytest.MonkeyPatch, cluster: Cluster) -> None:
    monkeypatch.setitem(sys.modules, "ray", cluster)


@pytest.mark.parametrize(
    ("gpus", "message"), [(2, "2 GPUs, expected 9"), (0, "8 cores, expected 9")]
)
def test_more_workers_than_the_cluster_has_room_for_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, message: str
) -> None:
    """With more workers than GPUs the command waited for ever."""
    on(monkeypatch, Cluster(gpus=gpus, free=gpus))
    texts = write_texts(tmp_path / "texts.jsonl", 30)
    with pytest.raises(ConfigError, match=message):
        run(job(texts, out=tmp_path / "out"), workers=9, on_ray=True)


def test_an_actor_that_is_not_there_gets_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command waited for ever for the part of an actor whose GPU another command had."""
    on(monkeypatch, Cluster(gpus=2, free=1))
    texts = write_texts(tmp_path / "texts.jsonl", 30)
    told: list[tuple[int, int]] = []
    outcome = run(
        job(texts, out=tmp_path / "out"),
        workers=2,
        on_ray=True,
        progress=lambda done, rows: told.append((done, rows)),
    )
    assert outcome.summary["done"] == 3
    assert told == [(10, 30), (20, 30), (30, 30)]


def test_a_cluster_without_room_for_any_actor_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, Cluster(gpus=2, free=0))
    texts = write_texts(tmp_path / "texts.jsonl", 30)
    with pytest.raises(ConfigError, match="no worker could be started"):
        run(job(texts, out=tmp_path / "out"), workers=2, on_ray=True)
