"""`train --recipe shakespeare-steps`: the recipes of a series trained in turn, and their table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpt2kit import store
from gpt2kit.cli import output
from gpt2kit.errors import ConfigError
from gpt2kit.fields import rules
from gpt2kit.training import recipes
from gpt2kit.training.options import RunOptions, TrainOptions

TrainOne = Callable[[dict[str, Any], RunOptions], None]  # trains a recipe; see cli.training

_OF_EACH_STEP = ("Model", "Vocabulary")  # groups of options in which the steps differ
_ROW = "{:<26}{:>10}{:>17}  {}"


@dataclass(frozen=True)
class Row:
    """What is known of a step after its training."""

    step: str  # the recipe's name
    parameters: int
    val_loss: float | None  # the best one, in nats per token; None without a validation text
    added: str  # what it has that the step before it had not
    folder: str


def train_in_turn(
    series: recipes.Recipe,
    corpus: str,
    given: Mapping[str, Any],
    run: RunOptions,
    train_one: TrainOne,
    *,
    json: bool,
) -> None:
    """Train every recipe of a series in a folder of its own, then print the table of them.

    A step that is finished is left as it is, and one that was interrupted is continued. Raises
    ConfigError for options that are about a single recipe.
    """
    from gpt2kit.training.settings import SETTINGS
    from gpt2kit.training.setup import over
    from gpt2kit.training.start import corpus_name

    _check_options(series, given, run)
    out = run.out or store.weights_dir() / f"{corpus_name(corpus)}-{series.name}"
    for number, name in enumerate(series.steps, start=1):
        folder = out / name
        started = (folder / SETTINGS).exists()
        output.note(f"--- {number} of {len(series.steps)}: {name}")
        train_one(
            # A step that was trained for itself, with other options, gets its recipe's again.
            over(recipes.read(name).options, {**given, "recipe": name}),
            replace(run, out=folder, resume=started and not run.force),
        )
        output.note()
    rows = [_row(name, out / name) for name in series.steps]
    if json:
        for row in rows:
            output.print_json(vars(row))
        return
    output.result(_ROW.format("step", "parameters", "validation loss", "what it added"))
    for row in rows:
        loss = "-" if row.val_loss is None else f"{row.val_loss:.3f}"
        output.result(_ROW.format(row.step, f"{row.parameters:,}", loss, row.added))


def _check_options(series: recipes.Recipe, given: Mapping[str, Any], run: RunOptions) -> None:
    """Raise ConfigError for an option that would make the steps alike, or that they do not need."""
    groups = {name: rule.group for name, rule in rules(TrainOptions).items()}
    if own := [name for name in given if groups[name] in _OF_EACH_STEP]:
        raise ConfigError(
            f"--{own[0]} is for one recipe: the {len(series.steps)} of {series.name} differ in "
            f"what they are made of. Train one of them with it: --recipe {series.steps[0]}"
        )
    if run.resume:
        raise ConfigError(
            f"--resume has no effect with {series.name}: what is finished is left as it is, and "
            "what was interrupted is continued; --force trains all anew"
        )


def _row(name: str, folder: Path) -> Row:
    """Return a step's row of the table, from what its training left in its folder."""
    from gpt2kit.training.records import read_metrics
    from gpt2kit.training.settings import Settings

    measured = [line["val_loss"] for line in read_metrics(folder) if "val_loss" in line]
    return Row(
        step=name,
        parameters=Settings.read(folder).model.n_params,
        val_loss=min(measured, default=None),
        added=recipes.read(name).adds,
        folder=str(folder),
    )
