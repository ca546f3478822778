"""plan, and the plan that a training shows before it starts."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2kit.cli import options, output
from gpt2kit.cli.fields import takes_given
from gpt2kit.cli.output import human_size, human_time
from gpt2kit.errors import ConfigError
from gpt2kit.fields import rules
from gpt2kit.training.options import FinetuneOptions, TrainingOptions, TrainOptions

if TYPE_CHECKING:
    from gpt2kit.training.settings import Command
    from gpt2kit.training.setup import Setup

Corpus = Annotated[
    str,
    typer.Argument(
        metavar="CORPUS",
        help="A .txt, .jsonl, folder or glob of them, or a file of ids (.npy, .bin).",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("plan")(plan)


@takes_given(given=(FinetuneOptions, TrainOptions))
def plan(corpus: Corpus, *, given: dict[str, Any], json: options.Json = False) -> None:
    """Show what fine-tuning would need: parameters, steps, memory, time.

    With --recipe or the shape of a model it is about training from scratch.
    """
    from gpt2kit.training.setup import set_up

    shared = rules(TrainingOptions).keys() | {"optimizer", "lr", "dropout"}
    of_train = given.keys() & (rules(TrainOptions).keys() - shared)
    of_finetune = given.keys() & (rules(FinetuneOptions).keys() - shared)
    if of_train and of_finetune:
        raise ConfigError(
            f"--{min(of_finetune)} is for fine-tuning a model, but --{min(of_train)} for one from "
            "scratch; leave one out"
        )
    command: Command = "train" if of_train else "finetune"
    show_plan(set_up(command, corpus, given, locate=options.locate), json=json)


def show_plan(setup: Setup, *, json: bool = False) -> None:
    """Print what a training will do and need: lines on stderr, or one JSON object on stdout.

    All processes that train together must call this.
    """
    from gpt2kit.training import plan

    needed = plan.memory(setup.model, setup.config, setup.ranks)
    free = plan.free_memory(setup.model.device)
    seconds = plan.seconds_per_step(setup.model, setup.corpus, setup.config, setup.ranks)
    if not setup.ranks.is_main:
        return
    trained = sum(each.numel() for each in setup.model.parameters() if each.requires_grad)
    if json:
        output.print_json(
            {
                "parameters": setup.model.config.n_params,
                "parameters_trained": trained,
                "corpus": asdict(setup.corpus.report),
                "memory": needed,
                "memory_free": free,
                "seconds_per_step": seconds,
                "training": asdict(setup.config),
            }
        )
        return
    for name, text in (
        *_corpus_lines(setup),
        *_training_lines(setup, trained),
        *_cost_lines(setup, needed, free, seconds),
    ):
        output.note(f"{name:<10}{text}")
    if free is not None and (advice := plan.advice(sum(needed.values()), free)):
        output.warn(advice)


def _corpus_lines(setup: Setup) -> list[tuple[str, str]]:
    from gpt2kit.data.corpus import ENGLISH_CHARACTERS_PER_TOKEN

    report = setup.corpus.report
    read = f"{', '.join(report.files)}: "
    if report.characters is not None:
        read += f"{report.characters:,} characters, "
    read += f"{report.tokens:,} tokens"
    if report.characters_per_token:
        read += (
            f", {report.characters_per_token:.2f} characters per token "
            f"(GPT-2's vocabulary on English: {ENGLISH_CHARACTERS_PER_TOKEN})"
        )
    notes = report.oddities.notes if report.oddities else []
    split = f"{report.train_tokens:,} tokens to train with, {report.val_tokens:,} to validate with"
    return [("corpus", read), *(("", note) for note in notes), ("split", split)]


def _training_lines(setup: Setup, trained: int) -> list[tuple[str, str]]:
    config = setup.config
    n_params = setup.model.config.n_params
    tokens = config.max_steps * config.batch_size * config.block_size
    steps = (
        f"{output.count(config.max_steps, 'step')} of {output.count(config.batch_size, 'window')} "
        f"of {output.count(config.block_size, 'token')}: {tokens:,} tokens, "
        f"{tokens / len(setup.corpus.train_ids):.1f} times the text"
    )
    how = f"{config.optimizer}, learning rate {config.lr:g} {config.schedule}, {config.dtype}"
    if config.accumulate > 1:
        how += f", batches in {config.accumulate} parts"
    if config.checkpointing:
        how += ", blocks computed twice"
    device = f"on {setup.model.device}"
    if setup.ranks.world_size > 1:
        device += f", in {setup.ranks.world_size} processes"
    return [
        ("model", f"{setup.name}: {n_params:,} parameters, {trained:,} of them trained"),
        ("training", steps),
        ("", f"{how}, {device}"),
    ]


def _cost_lines(
    setup: Setup, needed: dict[str, int], free: int | None, seconds: float
) -> list[tuple[str, str]]:
    memory = human_size(sum(needed.values()))
    if free is not None:
        memory += f" of {human_size(free)} that are free"
    parts = ", ".join(f"{part} {human_size(size)}" for part, size in needed.items())
    in_all = human_time(setup.config.max_steps * seconds)
    return [
        ("memory", f"{memory}: {parts}"),
        ("time", f"about {in_all}, {seconds:.2g} s a step, validations not included"),
        ("saved in", str(output.as_typed_here(setup.folder))),
    ]
