"""Guided fuzzing: it runs for a moment if atheris is there, and says what to install if not."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "fuzz.py"


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_a_reader_is_fuzzed_or_what_to_install_is_said(tmp_path: Path) -> None:
    done = fuzz("rows.csv: blind", "--seconds", "2", "--findings", str(tmp_path))
    if importlib.util.find_spec("atheris") is None:
        assert (done.returncode, done.stdout) == (2, "")
        assert "pip install atheris" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert "DONE" in done.stderr
        assert list(tmp_path.iterdir()) == []
