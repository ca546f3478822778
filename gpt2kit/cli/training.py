"""train, finetune, recipes and merge: a model trained on a text, and adapters put into it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2kit.cli import options, output
from gpt2kit.cli.fields import takes, takes_given
from gpt2kit.cli.plan import Corpus
from gpt2kit.training.options import FinetuneOptions, RunOptions, TrainOptions

if TYPE_CHECKING:
    from gpt2kit.training.settings import Command

TensorBoard = Annotated[
    bool,
    typer.Option(
        "--tensorboard",
        help="Also write the figures for TensorBoard, into the run's folder.",
        rich_help_panel="Run",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    app.command("train")(train)
    app.command("finetune")(finetune)
    app.command("recipes")(list_recipes)
    app.command("merge")(merge)


@takes(run=RunOptions)
@takes_given(given=TrainOptions)
def train(
    corpus: Corpus,
    *,
    given: dict[str, Any],
    run: RunOptions,
    tensorboard: TensorBoard = False,
    json: options.Json = False,
) -> None:
    """Train a small GPT from scratch."""
    from gpt2kit.cli.training_steps import train_in_turn
    from gpt2kit.training import recipes

    def train_one(given: dict[str, Any], run: RunOptions, *, json: bool = False) -> None:
        _train("train", corpus, given, run, tensorboard=tensorboard, json=json)

    recipe = recipes.read(given["recipe"]) if "recipe" in given else None
    if recipe is not None and recipe.steps:
        train_in_turn(recipe, corpus, given, run, train_one, json=json)
    else:
        train_one(given, run, json=json)


@takes(run=RunOptions)
@takes_given(given=FinetuneOptions)
def finetune(
    corpus: Corpus,
    *,
    given: dict[str, Any],
    run: RunOptions,
    tensorboard: TensorBoard = False,
    json: options.Json = False,
) -> None:
    """Fine-tune a model on a text, or on a table of examples.

    Examples are prompts and completions, instructions, or texts with labels.
    """
    _train("finetune", corpus, given, run, tensorboard=tensorboard, json=json)


def list_recipes(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Show the options of this one.", show_default=False),
    ] = None,
    json: options.Json = False,
) -> None:
    """List the recipes of `train --recipe`, or show one."""
    from gpt2kit.training import recipes

    width = max(map(len, recipes.names())) + 2
    for recipe in map(recipes.read, recipes.names() if name is None else [name]):
        if json:
            shown = {"name": recipe.name, "about": recipe.about, "options": recipe.options}
            output.print_json(shown | ({"steps": recipe.steps} if recipe.steps else {}))
        elif name is None:
            output.result(f"{recipe.name:<{width}}{recipe.about.splitlines()[0]}")
        else:
            output.result(recipe.about + "\n")
            for option, value in recipe.options.items():
                output.result(f"  {option:<24}{value}")
            for step in recipe.steps:
                output.result(f"  {step}")


def merge(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="The folder of a run with --lora_rank, or one of PEFT."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="The model below the adapters, if it is not where they say.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the folder that is in --out.")
    ] = False,
) -> None:
    """Merge adapters into the weights of their model, as a folder that transformers loads."""
    from gpt2kit.checkpoints.classifiers import LabelWords
    from gpt2kit.checkpoints.load import (
        load_vocabulary,
        open_checkpoint,
        write_checkpoint,
        write_model,
    )
    from gpt2kit.cli.weights import check_target
    from gpt2kit.errors import CheckpointError
    from gpt2kit.files import new_directory
    from gpt2kit.training import adapted

    check_target(out, force, "--out")
    base = options.locate(model) if model else None
    words: LabelWords | None = None
    if peft := adapted.find_peft(run):
        checkpoint = open_checkpoint(peft, base=base)
        vocabulary = load_vocabulary(checkpoint)
        write: Callable[..., None] = partial(
            write_checkpoint, checkpoint=checkpoint, dtype=checkpoint.dtype
        )
    else:
        stack = adapted.find_stack(str(adapted.require_adapters(run)))
        checkpoint = open_checkpoint(base or options.locate(stack.base))
        vocabulary = load_vocabulary(checkpoint)
        words = LabelWords.read(stack.folders[-1])
        write = partial(write_model, model=adapted.build_merged(checkpoint, stack.folders))
        if checkpoint.class_head is not None:
            output.warn(f"the head for labels of {stack.base} is left out; adapters have none")
    with new_directory(out, replace=force, error=CheckpointError) as folder:
        write(folder, tokenizer=vocabulary)
        if words is not None:
            words.write(folder)
    output.result(out)


def _train(
    command: Command,
    corpus: str,
    given: dict[str, Any],
    run_options: RunOptions,
    *,
    tensorboard: bool,
    json: bool,
) -> None:
    """Set up a training, show its plan, do it, and report what became of the model."""
    from gpt2kit.checkpoints.memory import keep_freed_memory
    from gpt2kit.cli.training_report import Reporter
    from gpt2kit.errors import advice_on_memory
    from gpt2kit.training.distributed import leave
    from gpt2kit.training.setup import set_up
    from gpt2kit.training.tensorboard import check_tensorboard

    if tensorboard:
        check_tensorboard()
    setup = set_up(command, corpus, given, run_options, locate=options.locate)
    if setup.model.device.type == "cpu":
        keep_freed_memory()
    run = setup.open_run(run_options)
    with (
        advice_on_memory(setup.memory_advice),
        _Stop() as stop,
        Reporter(setup, run, json=json, tensorboard=tensorboard) as reporter,
    ):
        for report in setup.train(run, lambda: stop() or reporter.stop):
            reporter.step(report)
        reporter.end()
    run.close()
    leave()
    if stop():
        raise typer.Exit(128 + stop.signal)


class _Stop:
    """Lets the first Ctrl-C, SIGTERM or SIGHUP end training after the current step.

    The second one ends the process at once. An instance returns whether there was a first one.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        return self.signal != 0

    def __enter__(self) -> _Stop:
        hang_up = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []
        for number in (signal.SIGINT, signal.SIGTERM, *hang_up):
            self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *_: object) -> None:
        self._restore()
