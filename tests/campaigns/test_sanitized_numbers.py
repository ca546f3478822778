"""The native step reads drawn models while sanitizers watch its memory, its threads and its C."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from campaigns import sanitized

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux" or not shutil.which("gcc") or not shutil.which("setarch"),
        reason="needs gcc and setarch",
    ),
]


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_sanitizers_find_nothing(sanitizers: str) -> None:
    done = sanitized.run(sanitizers, 4)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.endswith(" 0 failed\n")


@pytest.mark.parametrize(
    ("sanitizers", "sound", "faulty", "found"),
    [
        (
            "address,undefined",
            "at + j - column,",
            "at + j - column + (1 << 22),",
            "AddressSanitizer",
        ),
        ("thread", "wait_for_all(worker->threads);", "", "data race"),
    ],
)
def test_sanitizers_find_a_planted_fault(
    sanitizers: str, sound: str, faulty: str, found: str, tmp_path: Path
) -> None:
    for source in sanitized.NATIVE.glob("*.[ch]"):
        text = source.read_text()
        (tmp_path / source.name).write_text(text.replace(sound, faulty, 1))
    assert (tmp_path / "step.c").read_text() != (sanitized.NATIVE / "step.c").read_text()
    done = sanitized.run(sanitizers, 2, tmp_path)
    assert done.returncode != 0
    assert found in done.stderr
