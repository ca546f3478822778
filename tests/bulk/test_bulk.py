"""Commands over many files: the same rows whoever computes them, and whatever dies."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from bulk_builders import Tiny, job, rows_of, write_texts

from gpt2kit.bulk import plan as plans
from gpt2kit.bulk.folder import Folder
from gpt2kit.bulk.handout import Share
from gpt2kit.bulk.job import Job
from gpt2kit.bulk.measures import Score
from gpt2kit.bulk.merge import merge
from gpt2kit.bulk.options import Reading
from gpt2kit.bulk.run import Outcome, run
from gpt2kit.bulk.sources import SourceRow
from gpt2kit.bulk.work import Cells, Models, Work
from gpt2kit.data.streams import read_batches
from gpt2kit.errors import BadRowError, ConfigError, CorpusError, FileError, OutOfMemoryError
from gpt2kit.evaluation.perplexity import score
from gpt2kit.files import new_file


def merged(found: Job | Path) -> bytes:
    out = found if isinstance(found, Path) else found.out
    merge(Folder(out), plans.read(out / "plan.json"), out / "all.jsonl")
    return (out / "all.jsonl").read_bytes()


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "texts.jsonl", 45)


def test_each_row_has_the_figures_of_its_text_alone(texts: Path, tmp_path: Path) -> None:
    reading = Reading(part_rows=10, id_field="id", columns="text")
    outcome = run(job(texts, out=tmp_path / "out", reading=reading))
    assert outcome.is_good
    assert outcome.summary["done"] == outcome.summary["parts"] == 5
    rows = [json.loads(line) for line in merged(tmp_path / "out").splitlines()]
    assert [row["row"] for row in rows] == list(range(1, 46))
    assert [row["id"] for row in rows] == [f"texts-{index}" for index in range(45)]
    models = Tiny()()
    for row in rows:
        (line,) = score(models.model, models.tokenizer, [row["text"]])
        assert row["logprob"] == pytest.approx(line.logprob, abs=1e-4)
        assert row["tokens"] == line.tokens
        assert row["error"] is None
    assert outcome.summary["tokens"] == sum(row["tokens"] for row in rows)


def test_the_bytes_are_the_same_with_shares_and_threads(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With several threads for one product, torch rounded the results differently."""
    monkeypatch.setattr("gpt2kit.bulk.work._ROWS_OF_A_GROUP", 4)
    monkeypatch.setattr("gpt2kit.bulk.processes.available_cores", lambda: [0])
    run(job(texts, out=tmp_path / "one"))
    shared = job(texts, out=tmp_path / "shared")
    first = run(shared, share=Share(0, 2))
    assert first.is_good
    assert sorted(path.stem for path in (shared.out / "parts").glob("*.jsonl")) == [
        "00000",
        "00002",
        "00004",
    ]
    monkeypatch.setattr("gpt2kit.bulk.processes.available_cores", lambda: [0, 1, 2])
    assert run(shared, share=Share(1, 2)).summary["done"] == 5
    assert merged(tmp_path / "one") == merged(shared)


def test_rows_of_several_files_name_their_file(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_texts(folder / "b.jsonl", 3)
    (folder / "a.txt").write_text("the cat\nthe dog\n")
    run(job(folder, out=tmp_path / "out"))
    rows = [json.loads(line) for line in merged(tmp_path / "out").splitlines()]
    assert [(row["row"], row["file"]) for row in rows] == [
        (1, "a.txt"),
        (2, "a.txt"),
        (3, "b.jsonl"),
        (4, "b.jsonl"),
        (5, "b.jsonl"),
    ]


def test_bad_rows_have_an_error_and_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    values: list[Any] = [{"text": "the cat"}, {"text": None}, {"text": 3}, {"other": 1}]
    values += [{"text": " "}, {"text": "the dog"}]
    path.write_text("".join(json.dumps(value) + "\n" for value in values) + "{\n")
    outcome = run(job(path, out=tmp_path / "out"))
    assert outcome.is_good
    assert outcome.summary["errors"] == 5
    rows = [json.loads(line) for line in merged(tmp_path / "out").splitlines()]
    assert [row["error"] for row in rows][:6] == [
        None,
        "'text' is null",
        "'text' is no text but a number",
        "no 'text'; there is 'other'",
        "empty",
        None,
    ]
    assert rows[6]["error"].startswith("not valid JSON")
    assert rows[5]["logprob"] < 0
    with pytest.raises(BadRowError, match="row 2: 'text' is null"):
        run(job(path, out=tmp_path / "strict", on_error="stop"))
    assert leftovers(tmp_path / "strict") == []


def test_a_text_that_is_too_long_is_a_bad_row_and_one_that_is_cut_says_so(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("the cat\n" + "the dog " * 40 + "\na\n")
    run(job(path, out=tmp_path / "error", work=Score(overflow="error")))
    rows = rows_of(tmp_path / "error" / "parts" / "00000.jsonl")
    assert [row["error"] is None for row in rows] == [True, False, True]
    assert "but the model reads at most 32" in rows[1]["error"]
    run(job(path, out=tmp_path / "stop", work=Score(overflow="stop")))
    rows = rows_of(tmp_path / "stop" / "parts" / "00000.jsonl")
    assert [row["truncated"] for row in rows] == [False, True, False]


def leftovers(out: Path) -> list[str]:
    """Return claims and temporary files."""
    return [
        path.name
        for path in (*(out / "claims").iterdir(), *(out / "parts").iterdir(), *out.iterdir())
        if path.parent.name == "claims" or path.name.startswith(".")
    ]


# --- one plan -------------------------------------------------------------------------------------


def test_what_differs_from_the_first_command_is_refused_by_name(
    texts: Path, tmp_path: Path
) -> None:
    first = job(texts, out=tmp_path / "out")
    run(first)
    changes: dict[str, Job] = {
        '--overflow was "slide" and is "stop"': replace(first, work=Score(overflow="stop")),
        "--part_rows was 10 and is 20": replace(first, reading=Reading(part_rows=20)),
        "weights was": replace(first, load=Tiny(seed=1)),
        "the input other.txt is new": replace(
            first, inputs=(*first.inputs, str(tmp_path / "other.txt"))
        ),
    }
    (tmp_path / "other.txt").write_text("a\n")
    for message, changed in changes.items():
        with pytest.raises(ConfigError, match=message):
            run(changed)
    assert run(first).summary["done"] == 5


def test_a_changed_input_is_refused_by_name_and_a_touched_one_is_not(
    texts: Path, tmp_path: Path
) -> None:
    first = job(texts, out=tmp_path / "out")
    run(first, share=Share(0, 2))
    os.utime(texts, (1, 1))
    run(first, share=Share(0, 2))
    data = texts.read_bytes()
    texts.write_bytes(data.replace(b"cat", b"bat", 1))
    with pytest.raises(ConfigError, match=r"the input texts\.jsonl has changed"):
        run(first)
    texts.write_bytes(data)
    assert run(first).summary["done"] == 5


def test_results_inside_of_the_input_folder_are_no_inputs(tmp_path: Path) -> None:
    """Finished parts were taken for inputs: the command given again was refused for ever."""
    write_texts(tmp_path / "texts.jsonl", 15)
    for out in (tmp_path / "scores", tmp_path):
        first = job(tmp_path, out=out)
        assert run(first, share=Share(0, 2)).summary["done"] == 1
        (out / "failed" / "00001.txt").write_text("too little memory\n")
        assert run(first).summary["done"] == 2
        (out / "plan.json").unlink()
        shutil.rmtree(tmp_path / "scores", ignore_errors=True)
    with pytest.raises(CorpusError, match="no files but results of this command"):
        run(job(tmp_path / "parts", out=tmp_path))


# --- torchrun -------------------------------------------------------------------------------------


class OwnStore:
    """The store of a torchrun that started this process alone."""

    def draw(self, todo: Sequence[int]) -> Sequence[int]:
        return todo

    def wait(self) -> None:
        pass


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setattr("gpt2kit.bulk.handout.Store", OwnStore)


@pytest.mark.usefixtures("torchrun")
def test_a_share_is_done_under_torchrun(texts: Path, tmp_path: Path) -> None:
    """All parts were done: the share that the user had given did nothing."""
    run(job(texts, out=tmp_path / "out"), share=Share(1, 3))
    done = sorted(path.stem for path in (tmp_path / "out" / "parts").glob("*.jsonl"))
    assert done == ["00001", "00004"]


@pytest.mark.usefixtures("torchrun")
def test_workers_are_refused_under_torchrun(texts: Path, tmp_path: Path) -> None:
    """They did nothing, without a word: torchrun had started as many processes as it was told."""
    with pytest.raises(ConfigError, match="leave out --workers"):
        run(job(texts, out=tmp_path / "out"), workers=2)


# --- what dies ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Failing(Work):
    """Raises an error for a text with a word in it, as often as it is told."""

    times: int = 10**9
    error: str = "memory"

    command: ClassVar[str] = "failing"
    seen: ClassVar[list[int]] = []

    def needs(self) -> tuple[str, ...]:
        return ("text",)

    def columns(self) -> tuple[str, ...]:
        return ("characters",)

    def measure(self, models: Models, rows: Sequence[SourceRow]) -> Sequence[Sequence[Cells]]:
        if any("FAIL" in row.cells["text"] for row in rows) and len(self.seen) < self.times:
            self.seen.append(1)
            if self.error == "disk":
                raise OSError(errno.ENOSPC, "No space left on device")
            raise OutOfMemoryError("too little")
        return [[{"characters": len(row.cells["text"])}] for row in rows]


@pytest.fixture
def failing(tmp_path: Path) -> Path:
    Failing.seen.clear()
    path = tmp_path / "texts.txt"
    path.write_text("a\n" * 10 + "FAIL\n" * 10 + "b\n" * 5)
    return path


def test_a_part_that_fails_twice_is_recorded_and_the_rest_is_done(
    failing: Path, tmp_path: Path
) -> None:
    first = job(failing, out=tmp_path / "out", work=Failing(times=2))
    outcome: Outcome = run(first)
    assert not outcome.is_good
    assert outcome.failed == [1]
    assert outcome.summary["done"] == 2
    assert "too little" in (tmp_path / "out" / "failed" / "00001.txt").read_text()
    assert leftovers(tmp_path / "out") == []
    again = run(first)
    assert again.is_good
    assert again.summary["done"] == 3
    assert not (tmp_path / "out" / "failed" / "00001.txt").exists()


def test_a_part_that_fails_once_is_done_at_the_second_try(failing: Path, tmp_path: Path) -> None:
    assert run(job(failing, out=tmp_path / "out", work=Failing(times=1))).is_good


def test_a_full_disk_ends_the_run_and_the_command_given_again_goes_on(
    failing: Path, tmp_path: Path
) -> None:
    first = job(failing, out=tmp_path / "out", work=Failing(times=1, error="disk"))
    with pytest.raises(OSError, match="No space left"):
        run(first)
    assert leftovers(tmp_path / "out") == []
    assert not list((tmp_path / "out" / "failed").iterdir())
    assert run(first).summary["done"] == 3


def test_a_full_disk_is_named_by_the_file_that_it_stopped(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message was "No space left on device", and did not say where."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    first = job(texts, out=tmp_path / "out")
    run(first, share=Share(5, 6))  # the plan alone
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        run(first)
    assert str(caught.value.filename).startswith(str(tmp_path / "out" / "parts"))
    with pytest.raises(OSError, match="No space left") as caught, new_file(tmp_path / "a"):
        pass
    assert caught.value.filename


def test_no_part_is_begun_after_the_time_is_over(texts: Path, tmp_path: Path) -> None:
    outcome = run(job(texts, out=tmp_path / "out", until=time.time() - 1))
    assert outcome.is_good
    assert outcome.left == [0, 1, 2, 3, 4]
    assert not outcome.in_time


def test_what_a_killed_worker_left_is_swept_away(texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "parts").mkdir(parents=True)
    (out / "parts" / ".00002.elsewhere.77.tmp").write_text("half a part")
    run(job(texts, out=out))
    assert leftovers(out) == []


# --- merging --------------------------------------------------------------------------------------


def test_parts_that_are_missing_damaged_or_doubled_are_not_merged(
    texts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(job(texts, out=out))
    path = out / "parts" / "00002.jsonl"
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(FileError, match=r"00002\.jsonl: this part is not done"):
        merged(out)
    lines = data.splitlines(keepends=True)
    for wrong in ([*lines, lines[-1]], lines[:-1], lines[::-1], [*lines[1:], b"{}\n"]):
        path.write_bytes(b"".join(wrong))
        receipt = out / "parts" / "00002.json"
        found = json.loads(receipt.read_text())
        found["sha256"] = hashlib.sha256(b"".join(wrong)).hexdigest()
        receipt.write_text(json.dumps(found))
        with pytest.raises(FileError, match="row"):
            merged(out)
    path.write_bytes(data.replace(b"-", b"+", 1))
    with pytest.raises(FileError, match="damaged"):
        merged(out)
    assert not (out / "all.jsonl").exists()


@pytest.mark.parametrize("name", ["all.csv", "all.jsonl.gz", "all.parquet"])
def test_the_name_of_the_merged_file_tells_its_format(tmp_path: Path, name: str) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    path = tmp_path / "texts.txt"
    path.write_text("\n" * 3 + "the cat\nthe dog\n")  # a column that begins with nulls
    first = job(path, out=tmp_path / "out", part_rows=2)
    run(first)
    target = tmp_path / name
    merge(Folder(first.out), plans.read(first.out / "plan.json"), target)
    rows = [json.loads(line) for line in merged(first).splitlines()]
    found = [
        dict(zip(table.columns, row, strict=True))
        for table in read_batches(target)
        for row in table.rows
    ]
    assert [str(row["row"]) for row in found] == ["1", "2", "3", "4", "5"]
    assert float(found[4]["logprob"]) == rows[4]["logprob"]
    assert found[0]["logprob"] in (None, "")
    with pytest.raises(ConfigError, match="expected a name that ends in"):
        merge(Folder(first.out), plans.read(first.out / "plan.json"), tmp_path / "all.xls")
