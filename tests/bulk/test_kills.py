"""Workers that are killed at random, several at a time, until everything is done."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch
from bulk_builders import job, write_texts, write_words

from gpt2kit.bulk import plan as plans
from gpt2kit.bulk.claims import CLOCK, Claim, new_token, take
from gpt2kit.bulk.folder import Folder
from gpt2kit.bulk.job import Job
from gpt2kit.bulk.measures import Filter, Score
from gpt2kit.bulk.merge import merge
from gpt2kit.bulk.run import run
from gpt2kit.bulk.texts import Generate
from gpt2kit.bulk.words import Surprisal
from gpt2kit.bulk.work import Work
from gpt2kit.evaluation.word_options import TableOptions
from gpt2kit.files import part_of
from gpt2kit.generation.request import Request

pytestmark = pytest.mark.skipif(os.name != "posix", reason="other systems have no forkserver")


def work_on(job: Job) -> None:
    """Be a process that does what the command line does."""
    torch.set_num_threads(1)
    run(job)


def processes() -> ForkServerContext:
    """Return a context whose server imports torch once, for many processes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bulk_builders", "gpt2kit.bulk.run"])
    return context


def merged(out: Path) -> bytes:
    merge(Folder(out), plans.read(out / "plan.json"), out / "all.jsonl")
    return (out / "all.jsonl").read_bytes()


WORDS = Surprisal(how=TableOptions(words="word", by="item", unit="token"), batch_size=8)
TEXTS = Generate(request=Request(seed=1, max_tokens=6, num_samples=2))
DIVIDED = Filter(percentiles="30,60", keep="bucket == middle", batch_size=8)


@pytest.mark.parametrize(
    ("rows", "kills", "work"),
    [
        (300, 6, Score(batch_size=8)),
        (120, 2, WORDS),
        (120, 2, DIVIDED),
        (60, 2, TEXTS),
        pytest.param(6000, 50, Score(batch_size=8), marks=pytest.mark.slow),
        pytest.param(3000, 20, WORDS, marks=pytest.mark.slow),
        pytest.param(3000, 20, DIVIDED, marks=pytest.mark.slow),
        pytest.param(1000, 20, TEXTS, marks=pytest.mark.slow),
    ],
)
def test_any_worker_may_die_at_any_time(tmp_path: Path, rows: int, kills: int, work: Work) -> None:
    draw = random.Random(kills)
    texts = (write_words if work is WORDS else write_texts)(tmp_path / "texts.jsonl", rows)
    alone, killed = (job(texts, out=tmp_path / name, work=work) for name in ("alone", "killed"))
    run(alone)
    context = processes()
    running = [context.Process(target=work_on, args=(killed,)) for _ in range(4)]
    for process in running:
        process.start()
    left = kills
    deadline = time.monotonic() + 120
    while any(process.is_alive() for process in running) and time.monotonic() < deadline:
        time.sleep(draw.uniform(0.02, 0.1))
        victim = draw.randrange(len(running))
        if left and running[victim].is_alive():
            number = draw.choice([signal.SIGKILL, signal.SIGTERM])
            os.kill(running[victim].pid or 0, number)
            running[victim].join()
            left -= 1
            running[victim] = context.Process(target=work_on, args=(killed,))
            running[victim].start()
    assert not any(process.is_alive() for process in running)
    assert left < kills, "nobody was killed"
    assert run(killed).is_good
    assert merged(killed.out) == merged(alone.out)
    assert not [path for path in (killed.out / "parts").iterdir() if path.name.startswith(".")]
    assert not list((killed.out / "claims").iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_no_claim_and_no_unfinished_part(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = write_texts(tmp_path / "texts.jsonl", 40)
    wanted = job(texts, out=tmp_path / "out")
    lines = Folder.write

    def write(self: Folder, part: int, rows: object) -> str:
        self.part_file(part).write_text("half a part")
        if part == 2:
            signal.raise_signal(number)
        return lines(self, part, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(Folder, "write", write)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as caught:
        run(wanted)
    if number == signal.SIGTERM:
        assert caught.value.args == (143,)
    assert not list((wanted.out / "claims").iterdir())
    assert not list((wanted.out / "parts").glob(".*"))
    assert len(list((wanted.out / "parts").glob("*.jsonl"))) == 2
    monkeypatch.setattr(Folder, "write", lines)
    assert run(wanted).summary["done"] == 4


@pytest.mark.parametrize("before", [True, False])
def test_a_signal_in_the_middle_of_a_release_leaves_no_claim(
    tmp_path: Path, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal that came while a part ended well skipped the release: its claim was left."""
    wanted = job(write_texts(tmp_path / "texts.jsonl", 40), out=tmp_path / "out")
    release, seen = Claim.release, list[Path]()

    def interrupted(self: Claim) -> None:
        seen.append(self.path)
        if not before:
            release(self)
        if len(seen) == 3:
            signal.raise_signal(signal.SIGTERM)
        if before:
            release(self)

    monkeypatch.setattr(Claim, "release", interrupted)
    with pytest.raises(SystemExit):
        run(wanted)
    assert not list((wanted.out / "claims").iterdir())


def test_claims_that_a_kill_left_on_what_is_done_are_deleted_by_the_next_run(
    tmp_path: Path,
) -> None:
    """Only claims on parts that are left were taken over: these stayed for ever."""
    wanted = job(write_texts(tmp_path / "texts.jsonl", 40), out=tmp_path / "out")
    run(wanted)
    claims = wanted.out / "claims"
    child = os.fork()
    if child == 0:
        for name in ("plan", "00001"):
            take(claims / name, new_token())
        for name in (".plan.1234", ".00002.1234"):
            (claims / name).touch()
        part_of(claims / CLOCK).touch()
        part_of(wanted.out / "plan.json").touch()
        os._exit(0)
    os.waitpid(child, 0)
    assert len(list(claims.iterdir())) == 5
    run(wanted)
    assert not [*claims.iterdir(), *wanted.out.glob(".plan*")]
