"""A worker: what it asks of the folder, and what a part may raise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from bulk_builders import job

from gpt2kit.bulk.folder import Folder
from gpt2kit.bulk.run import run
from gpt2kit.bulk.sources import SourceRow
from gpt2kit.bulk.work import Cells, Models, Work


class PanicException(BaseException):
    """As PyO3 has it: how a library that is written in Rust says that it has a bug."""


ERRORS: dict[str, BaseException] = {
    "PANIC": PanicException("called `Result::unwrap()` on an `Err` value"),
    "NAME": ValueError("caf\udce9.txt is damaged"),
}


@dataclass(frozen=True, kw_only=True)
class Lengths(Work):
    """The number of characters of a text; raises an error for those that name one."""

    command: ClassVar[str] = "lengths"

    def needs(self) -> tuple[str, ...]:
        return ("text",)

    def columns(self) -> tuple[str, ...]:
        return ("characters",)

    def measure(self, models: Models, rows: Sequence[SourceRow]) -> Sequence[Sequence[Cells]]:
        texts = [row.cells["text"] for row in rows]
        for text in texts:
            if text in ERRORS:
                raise ERRORS[text]
        return [[{"characters": len(text)}] for text in texts]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("PANIC", "PanicException: called `Result", id="a panic"),
        pytest.param("NAME", "ValueError: caf\\udce9.txt is", id="a name that is not UTF-8"),
    ],
)
def test_whatever_a_part_raises_the_others_are_done(tmp_path: Path, text: str, reason: str) -> None:
    """A panic, which is no Exception, and an error that is not UTF-8 stopped the whole run."""
    path = tmp_path / "texts.txt"
    path.write_text(f"a\n{text}\nb\n")
    outcome = run(job(path, out=tmp_path / "out", part_rows=1, work=Lengths()))
    assert outcome.failed == [1]
    assert outcome.summary["done"] == 2
    assert reason in (tmp_path / "out" / "failed" / "00001.txt").read_text("utf-8")


def test_a_worker_does_not_ask_for_all_parts_before_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To tell how much is done it asked the disk for every part before each: n² questions."""
    n = 40
    path = tmp_path / "texts.txt"
    path.write_text("a\n" * n)
    asked: list[int] = []
    is_done = Folder.is_done

    def counted(self: Folder, number: int) -> bool:
        asked.append(number)
        return is_done(self, number)

    monkeypatch.setattr(Folder, "is_done", counted)
    told: list[tuple[int, int]] = []
    wanted = job(path, out=tmp_path / "out", part_rows=1, work=Lengths())
    outcome = run(wanted, progress=lambda done, total: told.append((done, total)))
    assert outcome.summary["done"] == n
    assert len(asked) < n * n / 2
    assert told[0] == (0, n)
    assert told == sorted(told)
