"""Measure a recipe on the ninth tenth of its text, by which no setting was chosen, with some seeds.

    python scripts/recipe_spread.py names corpora/names.txt

It is trained on the other nine tenths; both cuts are at ends of lines. Prints the validation loss
of each seed at its best step in nats per token, then their mean and standard deviation. After an
interruption, the same command continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path


def main() -> None:
    """Train with each seed, unless that run is finished, and print the losses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("recipe", help="the name of a recipe, as `gpt2kit recipes` prints it")
    parser.add_argument("text", type=Path, help="the recipe's text, as a .txt in UTF-8")
    parser.add_argument("--seeds", type=int, default=3, help="how many: 1, 2, … up to this one")
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
    folder: Path = arguments.out / arguments.recipe
    train, val = cut(arguments.text, folder)
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


def cut(text: Path, folder: Path) -> tuple[Path, Path]:
    """Write the ninth tenth of a text's lines, by characters, and the others before and after."""
    written = text.read_text(encoding="utf-8")
    begin, end = (written.find("\n", len(written) * tenths // 10 - 1) + 1 for tenths in (8, 9))
    if not 0 < begin < end:
        raise SystemExit(f"{text}: expected lines, of which a tenth can be held out")
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "train.txt", folder / "val.txt"
    for path, part in zip(
        paths, (written[:begin] + written[end:], written[begin:end]), strict=True
    ):
        path.write_text(part, encoding="utf-8")
    return paths


def best(run: Path, command: list[str]) -> tuple[float, int]:
    """Return the lowest validation loss of a run, and its step; train unless that is done."""
    report = run / "report.json"
    if not report.exists():
        resume = ["--resume"] if (run / "run.json").exists() else []
        subprocess.run([*command, "--out", str(run), *resume], check=True)
    found = json.loads(report.read_text(encoding="utf-8"))
    return found["after"]["val_loss"], found["best_step"]


if __name__ == "__main__":
    main()
