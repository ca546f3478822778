"""Measure a recipe on a tenth of its text by which no setting was chosen, with several seeds.

    python scripts/recipe_spread.py names corpora/names.txt

It is trained on the other nine tenths; a line belongs where it begins. Prints the validation loss
of each seed at its best step in nats per token, then their mean and standard deviation. After an
interruption, the same command continues where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Train with each seed, unless that run is finished, and print the losses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("recipe", help="the name of a recipe, as `gpt2kit recipes` prints it")
    parser.add_argument("text", type=Path, help="the recipe's text, as a .txt in UTF-8")
    parser.add_argument("--seeds", type=int, default=3, help="how many: 1, 2, … up to this one")
    parser.add_argument("--tenth", type=int, default=9, help="the part to validate with: 1 to 10")
    parser.add_argument(
        "--out", type=Path, default=Path("weights/recipe-spread"), help="the folder to train in"
    )
    parser.add_argument(
        "--max_steps",
        type=int,
        help="steps instead of the recipe's; a few are enough to test this script",
    )
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("--seeds: expected 2 or more, of which there is a standard deviation")
    if not 1 <= arguments.tenth <= 10:
        parser.error(f"--tenth: expected 1 to 10, found {arguments.tenth}")
    folder: Path = arguments.out / f"{arguments.recipe}-{arguments.tenth}"
    train, val = cut(arguments.text, arguments.tenth, folder)
    command = [sys.executable, "-m", "gpt2kit", "train", str(train), "--val", str(val)]
    command += ["--recipe", arguments.recipe, "--no_eval_train", "--sample_every", "0"]
    if arguments.max_steps is not None:
        command += ["--max_steps", str(arguments.max_steps)]
    losses = []
    for seed in range(1, arguments.seeds + 1):
        loss, step = best(folder / f"seed-{seed}", [*command, "--seed", str(seed)])
        print(f"seed {seed}: {loss:.4f} at step {step:,}", flush=True)
        losses.append(loss)
    mean, spread = statistics.mean(losses), statistics.stdev(losses)
    print(f"{arguments.recipe}: {mean:.3f} ± {spread:.3f} nats per token")


def cut(text: Path, tenth: int, folder: Path) -> tuple[Path, Path]:
    """Write the lines of a text that begin in a tenth of its characters to a file of their own."""
    lines = text.read_text(encoding="utf-8").splitlines(keepends=True)
    starts = [0, *itertools.accumulate(map(len, lines))]
    parts: tuple[list[str], list[str]] = [], []
    for line, start in zip(lines, starts, strict=False):
        parts[start * 10 // starts[-1] == tenth - 1].append(line)
    if not all(parts):
        raise SystemExit(f"{text}: expected lines, of which a tenth can be held out")
    folder.mkdir(parents=True, exist_ok=True)
    train, val = folder / "train.txt", folder / "val.txt"
    for path, part in zip((train, val), parts, strict=True):
        path.write_text("".join(part), encoding="utf-8")
    return train, val


def best(run: Path, command: list[str]) -> tuple[float, int]:
    """Return the lowest validation loss of a run, and its step; train unless that is done."""
    found = read_report(run)
    if found is None or found["finish_reason"] == "stopped":
        resume = ["--resume"] if (run / "run.json").exists() else []
        done = subprocess.run([*command, "--out", str(run), *resume], check=False)
        found = read_report(run)
        if done.returncode or found is None:
            raise SystemExit(done.returncode or 1)  # it said why
        if found["finish_reason"] == "stopped":
            raise SystemExit("stopped; the same command continues")
    return found["after"]["val_loss"], found["best_step"]


def read_report(run: Path) -> dict[str, Any] | None:
    """Return what a training that ended or was stopped wrote, or None."""
    report = run / "report.json"
    return json.loads(report.read_text(encoding="utf-8")) if report.exists() else None


if __name__ == "__main__":
    main()
