"""synthetic, as a user types it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gpt2kit.cli import app
from gpt2kit.data.synthetic import synthetic


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["synthetic", *arguments])


@pytest.mark.parametrize("kind", ["repeats", "brackets"])
def test_a_text_is_written_that_its_options_decide(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    result = run(kind, "--out", str(file), "--characters", "500", "--seed", "3")
    assert file.read_text(encoding="utf-8") == "".join(synthetic(kind, 500, 3))
    assert "seed 3" in result.stderr


def test_a_file_is_replaced_by_force_alone(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("mine")
    refused = run("brackets", "--out", str(file), "--characters", "80")
    assert refused.exit_code == 1
    assert "is there already" in refused.stderr
    assert file.read_text() == "mine"
    assert run("brackets", "--out", str(file), "--characters", "80", "--force").exit_code == 0
    assert len(file.read_text()) == 80
