"""train, finetune, plan, recipes and merge."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2kit.cli import options
from gpt2kit.cli.training_options import FINETUNE, MODEL, RECIPE, RUN, TRAINING, command
from gpt2kit.errors import ConfigError

if TYPE_CHECKING:
    from gpt2kit.training.settings import Command


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    for function in (train, finetune, plan):
        app.command(function.__name__)(function)
    app.command("recipes")(list_recipes)
    app.command("merge")(merge)


@command("train", RECIPE, MODEL, TRAINING, RUN)
def train(corpus: str, given: dict[str, Any]) -> None:
    """Train a small GPT from scratch."""
    _run("train", corpus, given)


@command("finetune", FINETUNE, TRAINING, RUN)
def finetune(corpus: str, given: dict[str, Any]) -> None:
    """Fine-tune a model on a text."""
    _run("finetune", corpus, given)


@command("plan", RECIPE, FINETUNE, MODEL, TRAINING, {"json": options.Json})
def plan(corpus: str, given: dict[str, Any]) -> None:
    """Show what fine-tuning would need, or with --recipe or a model's shape, training from scratch: parameters, steps, memory, time."""
    from gpt2kit.cli.training_report import show_plan
    from gpt2kit.training.setup import set_up

    kind: Command = "train" if given.keys() & (RECIPE.keys() | MODEL.keys()) else "finetune"
    if kind == "train" and (both := given.keys() & FINETUNE.keys()):
        raise ConfigError(
            f"--{min(both)} is for fine-tuning a model, but the other options are for one from scratch; leave one out"
        )
    show_plan(set_up(kind, corpus, given, locate=options.locate), json=given["json"])


def list_recipes(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Show the options of this one.", show_default=False),
    ] = None,
    json: options.Json = False,
) -> None:
    """List the recipes of `train --recipe`, or show one."""
    from gpt2kit.training import recipes

    for recipe in map(recipes.read, recipes.names() if name is None else [name]):
        if json:
            options.print_json(
                {"name": recipe.name, "about": recipe.about, "options": recipe.options}
            )
        elif name is None:
            typer.echo(f"{recipe.name:<18}{recipe.about.splitlines()[0]}")
        else:
            typer.echo(recipe.about + "\n")
            for option, value in recipe.options.items():
                typer.echo(f"  {option:<24}{value}")


def merge(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder of a run with --lora_rank.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write.")],
    force: Annotated[
        bool, typer.Option("--force", help="Replace the folder that is in --out.")
    ] = False,
) -> None:
    """Fold a run's adapters into its model's weights, as a folder that transformers loads."""
    from gpt2kit import lora
    from gpt2kit.checkpoints import adapters
    from gpt2kit.checkpoints.load import build_model, load_vocabulary, open_checkpoint, write_model
    from gpt2kit.errors import CheckpointError
    from gpt2kit.files import new_directory
    from gpt2kit.training.setup import weights_sha256

    about = adapters.read_adapters(run)
    checkpoint = open_checkpoint(options.locate(str(about["base"])))
    model = build_model(checkpoint)
    if weights_sha256(model) != about.get("base_sha256"):
        raise CheckpointError(
            f"{run}: its adapters were trained on other weights than those in {checkpoint.path}"
        )
    lora.add_adapters(model, about["rank"], alpha=about["alpha"])
    adapters.load_adapters(run, model)
    lora.merge_adapters(model)
    with new_directory(out, replace=force, error=CheckpointError) as folder:
        write_model(folder, model, load_vocabulary(checkpoint))
    typer.echo(out)


def _run(kind: Command, corpus: str, given: dict[str, Any]) -> None:
    """Set up a training, report what it will be, go through it, and report what became of it."""
    from gpt2kit.cli.training_report import Reporter
    from gpt2kit.memory import keep_freed_memory
    from gpt2kit.training.distributed import leave
    from gpt2kit.training.loop import train as steps
    from gpt2kit.training.setup import set_up
    from gpt2kit.training.tensorboard import check_tensorboard

    if given["tensorboard"]:
        check_tensorboard()
    setup = set_up(kind, corpus, given, locate=options.locate)
    if setup.model.device.type == "cpu":
        keep_freed_memory()
    run = setup.open_run(resume=given["resume"], force=given["force"])
    with (
        _Stop() as stop,
        Reporter(setup, run, json=given["json"], tensorboard=given["tensorboard"]) as reporter,
    ):
        for report in steps(
            setup.model,
            setup.corpus,
            setup.config,
            run=run,
            ranks=setup.ranks,
            stop=lambda: stop() or reporter.stop,
        ):
            reporter.step(report)
        reporter.end()
    run.close()
    leave()
    if stop():
        raise typer.Exit(128 + stop.signal)


class _Stop:
    """Take the first Ctrl-C or SIGTERM as a wish to stop after the step that is going on; the second stops at once."""

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        return self.signal != 0

    def __enter__(self) -> _Stop:
        for number in (
            signal.SIGINT,
            signal.SIGTERM,
            *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []),
        ):
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
