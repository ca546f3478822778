"""Files that earlier versions wrote still load, and give what those versions made of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import GOLDEN
from make_upgrade_set import what_is_read
from typer.testing import CliRunner

from gpt2kit import __version__
from gpt2kit.cli import app

SETS = sorted((GOLDEN / "written").iterdir())


@pytest.fixture(params=SETS, ids=lambda path: path.name)
def written(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A copy of a version's files, in the current folder."""
    folder = Path(shutil.copytree(request.param, tmp_path / "set"))
    monkeypatch.chdir(folder)
    return folder


def test_the_files_of_earlier_versions_give_what_they_gave(written: Path) -> None:
    expected = json.loads((written / "expected.json").read_text(encoding="utf-8"))
    assert what_is_read(written) == expected["read"]


def test_a_receipt_of_an_earlier_version_is_replayed(written: Path) -> None:
    done = CliRunner().invoke(app, ["replay", "receipt.json"])
    assert done.exit_code == 0, done.stderr
    assert "the text is the same" in done.stderr


def test_the_parts_of_an_earlier_version_are_merged(written: Path) -> None:
    done = CliRunner().invoke(app, ["parts", "scored", "--merge", "again.jsonl"])
    assert done.exit_code == 0, done.stderr
    assert Path("again.jsonl").read_bytes() == Path("scored.jsonl").read_bytes()


@pytest.mark.slow
def test_a_run_of_an_earlier_version_is_resumed(written: Path) -> None:
    more = ["--resume", "--max_steps", "8"]
    done = CliRunner().invoke(app, ["train", "verses.txt", "--out", "run", *more])
    assert done.exit_code == 0, done.stderr
    steps = [
        json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()
    ]
    assert max(steps) == 8


def test_this_version_has_a_set() -> None:
    """`python scripts/make_upgrade_set.py tests/golden/written/VERSION` writes it."""
    assert __version__ in {path.name for path in SETS}
