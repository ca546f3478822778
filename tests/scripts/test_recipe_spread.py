"""recipe_spread.py: a few steps of a recipe with two seeds, on a tenth that is cut out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from recipe_spread import best, cut
from training_builders import VERSES

ROOT = Path(__file__).parents[2]
TENTHS = [VERSES.replace("\n", f" {number}\n") for number in range(10)]


def spread(folder: Path, text: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    (folder / "text.txt").write_text(text, encoding="utf-8")
    command = [sys.executable, ROOT / "scripts" / "recipe_spread.py", "bigram", folder / "text.txt"]
    options = ["--out", folder / "runs", "--max_steps", 20, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [str(word) for word in [*command, *options]],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_each_seed_is_measured_once_on_the_ninth_tenth_alone(tmp_path: Path) -> None:
    done = spread(tmp_path, "".join(TENTHS), "--seeds", 2)
    assert done.returncode == 0, done.stderr
    runs = tmp_path / "runs" / "bigram-9"
    assert (runs / "val.txt").read_text(encoding="utf-8") == TENTHS[8]
    losses = [
        json.loads((runs / f"seed-{seed}" / "report.json").read_text())["after"]["val_loss"]
        for seed in (1, 2)
    ]
    assert losses[0] != losses[1]
    first, second, last = done.stdout.splitlines()
    assert first.startswith(f"seed 1: {losses[0]:.4f} at step ")
    assert second.startswith(f"seed 2: {losses[1]:.4f} at step ")
    mean, spread_of_two = sum(losses) / 2, abs(losses[0] - losses[1]) / 2**0.5
    assert last == f"bigram: {mean:.3f} ± {spread_of_two:.3f} nats per token"
    weights = runs / "seed-2" / "model.safetensors"
    weights.unlink()  # a finished run is not trained again
    assert spread(tmp_path, "".join(TENTHS), "--seeds", 2).stdout == done.stdout
    assert not weights.exists()


STAND_IN = """
import json, sys
_, out, run, *more = sys.argv
assert (out, more) == ("--out", ["--resume"])
report = {"finish_reason": REASON, "after": {"val_loss": 1.5}, "best_step": 20}
json.dump(report, open(run + "/report.json", "w"))
"""


def test_a_run_that_was_stopped_continues(tmp_path: Path) -> None:
    # Its loss up to there was taken for that of the recipe.
    stopped = {"finish_reason": "stopped", "after": {"val_loss": 3.0}, "best_step": 0}
    (tmp_path / "run.json").touch()
    (tmp_path / "report.json").write_text(json.dumps(stopped))
    with pytest.raises(SystemExit, match="the same command continues"):
        best(tmp_path, [sys.executable, "-c", STAND_IN.replace("REASON", "'stopped'")])
    command = [sys.executable, "-c", STAND_IN.replace("REASON", "'steps'")]
    assert best(tmp_path, command) == (1.5, 20)


@pytest.mark.parametrize("tenth", [1, 4, 10])
def test_any_tenth_is_cut_at_ends_of_lines(tmp_path: Path, tenth: int) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(TENTHS) + "an end\n", encoding="utf-8")
    train, val = (path.read_text(encoding="utf-8") for path in cut(text, tenth, tmp_path))
    assert train.count("\n") == text.read_text().count("\n") - val.count("\n")
    first = len(TENTHS[0]) * (tenth - 1)
    assert first <= text.read_text().find(val) < first + 80
    assert abs(len(val) - len(TENTHS[0])) < 80


def test_one_seed_or_a_text_of_one_line_is_refused(tmp_path: Path) -> None:
    assert "expected 2 or more" in spread(tmp_path, VERSES, "--seeds", 1).stderr
    assert "expected lines" in spread(tmp_path, "one line " * 50).stderr
    assert "expected 1 to 10, found 11" in spread(tmp_path, VERSES, "--tenth", 11).stderr
    assert not (tmp_path / "runs").exists()
