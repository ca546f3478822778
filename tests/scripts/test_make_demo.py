"""make_demo.py: with very few steps, all that it does when it makes the bundled model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from training_builders import VERSES

from gpt2kit import store
from gpt2kit.checkpoints.load import load

ROOT = Path(__file__).parents[2]


def make_demo(*arguments: object) -> subprocess.CompletedProcess[str]:
    command: list[Any] = [sys.executable, ROOT / "scripts" / "make_demo.py", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_few_steps_leave_a_model_with_its_card_and_the_bundled_one_as_it_is(
    tmp_path: Path,
) -> None:
    text = tmp_path / "comedy.txt"
    text.write_text("".join(f"{number}\n{VERSES}" for number in range(20)), encoding="utf-8")
    before = {path: path.read_bytes() for path in (store.BUNDLED / "dante").iterdir()}
    done = make_demo(text, "--run", tmp_path / "run", "--out", tmp_path / "demo", "--max_steps", 2)
    assert done.returncode == 0, done.stderr
    model, tokenizer = load(tmp_path / "demo", device="cpu")
    assert tokenizer is not None
    assert model.config.n_embd == 192
    card = (tmp_path / "demo" / "README.md").read_text(encoding="utf-8")
    assert "2 steps of 16 windows of 256 characters" in card
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {path.name for path in before}
    assert before == {path: path.read_bytes() for path in (store.BUNDLED / "dante").iterdir()}


def test_a_few_steps_do_not_take_the_place_of_the_bundled_model(tmp_path: Path) -> None:
    done = make_demo(tmp_path / "nothing.txt", "--max_steps", 2)
    assert done.returncode == 2
    assert "name another folder with --out" in done.stderr
