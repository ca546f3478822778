"""plan, and the plan that a training shows before it starts."""

from __future__ import annotations

from collections.abc import Iterator
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
    from gpt2kit.data.corpus import CorpusReport, ExampleReport
    from gpt2kit.training.rehearsal import Memory
    from gpt2kit.training.settings import Command
    from gpt2kit.training.setup import Setup

_OF_ONE_MODEL = {"model", "lora_rank", "lora_alpha", "freeze", "accumulate", "checkpointing"}
_ROW = "{:<12}{:>15}{:>12}{:>15}{:>12}  {}"

All = Annotated[
    bool, typer.Option("--all", help="Compare all published models: what fits, and what does not.")
]
Corpus = Annotated[
    str,
    typer.Argument(
        metavar="CORPUS",
        help="A text: .txt, .jsonl, a folder or a glob of them; token ids: .npy or .bin; or to "
        "fine-tune, a table of examples: .csv, .tsv, .jsonl, .json or .parquet.",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("plan")(plan)


@takes_given(given=(FinetuneOptions, TrainOptions))
def plan(
    corpus: Corpus, *, given: dict[str, Any], every: All = False, json: options.Json = False
) -> None:
    """Show what fine-tuning would need: parameters, steps, memory, time.

    No weights are read: a published model need not be on this machine. With --recipe or the shape
    of a model the plan is about training from scratch.
    """
    from gpt2kit.training.setup import set_up

    command = _command(given)
    if every and (command == "train" or given.keys() & _OF_ONE_MODEL):
        raise ConfigError("--all is about all published models; leave out what is about one model")
    setup = set_up(command, corpus, given, with_weights=False)
    (_show_sizes if every else show_plan)(setup, json=json)


def _command(given: dict[str, Any]) -> Command:
    """Return the command that the options are for; raise ConfigError if they are for both."""
    shared = rules(TrainingOptions).keys() | {"optimizer", "lr", "dropout"}
    of_train = given.keys() & (rules(TrainOptions).keys() - shared)
    of_finetune = given.keys() & (rules(FinetuneOptions).keys() - shared)
    if of_train and of_finetune:
        raise ConfigError(
            f"--{min(of_finetune)} is for fine-tuning a model, but --{min(of_train)} for one from "
            "scratch; leave one out"
        )
    return "train" if of_train else "finetune"


def show_plan(setup: Setup, *, json: bool = False) -> None:
    """Print what a training will do and need: lines on stderr, or one JSON object on stdout.

    All processes that train together must call this.
    """
    from gpt2kit.training import plan

    needed = setup.memory_needed()
    free = plan.free_memory(setup.device)
    has_room = free is None or plan.fits(needed, free)
    seconds = _seconds_per_step(setup, has_room=has_room)
    if not setup.ranks.is_main:
        return
    trained = sum(each.numel() for each in setup.model.parameters() if each.requires_grad)
    if json:
        output.print_json(
            {
                "parameters": _n_params(setup),
                "parameters_trained": trained,
                "corpus": asdict(setup.corpus.report),
                "tokens_are_estimated": _is_estimate(setup),
                "memory": vars(needed),
                "memory_needed": needed.total,
                "memory_free": free,
                "seconds_per_step": seconds,
                "device": setup.settings.device,
                "training": asdict(setup.config),
            }
        )
        return
    for name, text in (
        *corpus_lines(setup.corpus.report, is_estimate=_is_estimate(setup)),
        *_training_lines(setup, trained),
        *_cost_lines(setup, needed, free, seconds),
    ):
        output.note(f"{name:<10}{text}")
    if not has_room:
        output.warn(f"this will not fit. {plan.advice_on_less(setup.less_memory(needed))}")


def _seconds_per_step(setup: Setup, *, has_room: bool) -> float | None:
    """Measure how long a step takes; None for a model that is not here and would not fit."""
    from gpt2kit.training import pace, plan

    if setup.model.device.type != "meta":
        return pace.seconds_per_step(setup.model, setup.corpus, setup.config, setup.ranks)
    if not has_room:
        return None
    windows, parts = plan.batch_parts(setup.config, setup.ranks)
    return pace.seconds_without_weights(
        setup.outline, setup.config, setup.device, windows=windows, parts=parts
    )


def _show_sizes(setup: Setup, *, json: bool) -> None:
    """Print what fine-tuning of every published model needs: a table, or JSON lines."""
    from gpt2kit.training import plan

    free = plan.free_memory(setup.device)
    if not json:
        for name, text in corpus_lines(setup.corpus.report, is_estimate=_is_estimate(setup)):
            output.note(f"{name:<10}{text}")
        output.note(f"{'training':<10}{_batches(setup)}, {setup.config.dtype}, on {setup.device}")
        if free is not None:
            output.note(f"{'memory':<10}{human_size(free)} are free")
        output.result(_ROW.format("model", "parameters", "full", "checkpointing", "LoRA", ""))
    for size in plan.compare_sizes(setup.config, setup.device, setup.outline.predicted):
        if json:
            output.print_json({**asdict(size), "memory_free": free})
            continue
        needed = [human_size(each.total) for each in (size.full, size.checkpointing, size.lora)]
        row = _ROW.format(size.model, f"{size.parameters:,}", *needed, size.verdict or "")
        output.result(row.rstrip())


def _is_estimate(setup: Setup) -> bool:
    """Return whether the tokens of the corpus are estimated from its characters."""
    from gpt2kit.training.published import RoughTokenizer

    return isinstance(setup.tokenizer, RoughTokenizer)


def corpus_lines(report: CorpusReport, *, is_estimate: bool = False) -> list[tuple[str, str]]:
    """Return what is to be said about a corpus, each line with its name."""
    from gpt2kit.data.corpus import ENGLISH_CHARACTERS_PER_TOKEN

    read = f"{', '.join(report.files)}: "
    if report.characters is not None:
        read += f"{report.characters:,} characters, "
    about = "about " if is_estimate else ""
    read += f"{about}{report.tokens:,} tokens"
    if about:
        read += (
            f", estimated: {ENGLISH_CHARACTERS_PER_TOKEN} characters per token, as in English; "
            "no model with GPT-2's vocabulary is on this machine"
        )
    elif report.characters_per_token:
        read += (
            f", {report.characters_per_token:.2f} characters per token "
            f"(GPT-2's vocabulary on English: {ENGLISH_CHARACTERS_PER_TOKEN})"
        )
    notes = report.oddities.notes if report.oddities else []
    if (examples := report.examples) is not None:
        return [("corpus", read), *(("", note) for note in notes), *_example_lines(examples)]
    split = (
        f"{about}{report.train_tokens:,} tokens to train with, "
        f"{about}{report.val_tokens:,} to validate with"
    )
    return [("corpus", read), *(("", note) for note in notes), ("split", split)]


def _example_lines(report: ExampleReport) -> list[tuple[str, str]]:
    """Return what is to be said about examples, each line with its name."""
    total = report.train + report.val
    what = f"{output.count(total, 'example')}, of which "
    what += f"{output.count(report.predicted_tokens, 'token')} are predicted"
    if report.labels:
        some = [f"{label} {n / total:.0%}" for label, n in [*report.labels.items()][:10]]
        more = f" and {len(report.labels) - 10:,} more" if len(report.labels) > 10 else ""
        what = f"{output.count(total, 'example')} with labels: {', '.join(some)}{more}"
    lines = [("examples", what)]
    if report.left_out:
        rows = output.count(report.left_out, "row")
        lines.append(("", f"{rows} without a completion or label left out"))
    lines.append(
        ("split", f"{report.train:,} examples to train with, {report.val:,} to validate with")
    )
    for purpose, counts in (
        ("train", {label: n - report.val_labels[label] for label, n in report.labels.items()}),
        ("validate", report.val_labels),
    ):
        if without := [label for label, n in counts.items() if not n]:
            named = ", ".join(map(repr, without[:5])) + (", …" if len(without) > 5 else "")
            labels = output.count(len(without), "label")
            lines.append(("", f"{labels} without an example to {purpose} with: {named}"))
    return lines


def _training_lines(setup: Setup, trained: int) -> list[tuple[str, str]]:
    config = setup.config
    read = "text" if setup.start.purpose is None else "examples"
    n_params = _n_params(setup)
    tokens = config.max_steps * config.batch_size * config.block_size
    steps = (
        f"{output.count(config.max_steps, 'step')} of {_batches(setup)}: {tokens:,} tokens, "
        f"{tokens / setup.corpus.epoch_tokens(config.block_size):.1f} times the {read}"
    )
    how = f"{config.optimizer}, learning rate {config.lr:g} {config.schedule}"
    if config.accumulate > 1:
        how += f", batches in {config.accumulate} parts"
    if config.checkpointing:
        how += ", blocks computed twice"
    lines = [
        ("model", f"{setup.name}: {n_params:,} parameters, {trained:,} of them trained"),
        *([("", _with_peft(setup))] if setup.start.merged_peft else []),
        ("training", steps),
        ("", how),
        *(("", line) for line in _cut_lines(setup)),
    ]
    device = f"{setup.settings.device}, {config.dtype}"
    if setup.ranks.world_size > 1:
        device += f", in {setup.ranks.world_size} processes"
    return [*lines, ("device", device)]


def _n_params(setup: Setup) -> int:
    """Return how many numbers the model has, with a head for labels and without adapters."""
    named = setup.model.named_parameters()
    return sum(each.numel() for name, each in named if ".lora_" not in name)


def _with_peft(setup: Setup) -> str:
    """Say what becomes of PEFT's adapters if they are the model to train."""
    if getattr(setup.options, "lora_rank", 0):
        return "PEFT's adapters are merged into their model first; new ones are trained over it"
    return (
        "PEFT's adapters are merged into their model first; all of that is trained, or only new "
        "adapters with --lora_rank 8"
    )


def _cut_lines(setup: Setup) -> Iterator[str]:
    """Yield what becomes of examples that are longer than a row."""
    from gpt2kit.data.example_rows import ExampleCorpus

    if not isinstance(setup.corpus, ExampleCorpus):
        return
    size = setup.config.block_size
    if n := setup.corpus.left_out(size):
        yield f"{output.count(n, 'example')} left out: a completion of more than {size:,} tokens"
    if n := setup.corpus.shortened(size):
        prompts = output.count(n, "example")
        yield f"{prompts} of more than {size:,} tokens without the beginning of the prompt"


def _batches(setup: Setup) -> str:
    kind = "window" if setup.start.purpose is None else "row"
    windows = output.count(setup.config.batch_size, kind)
    return f"{windows} of {output.count(setup.config.block_size, 'token')}"


def _short_time(seconds: float) -> str:
    """Return the time of a step, with two digits below ten seconds."""
    return f"{seconds:.2g} s" if seconds < 9.5 else human_time(seconds)


def _cost_lines(
    setup: Setup, needed: Memory, free: int | None, seconds: float | None
) -> list[tuple[str, str]]:
    memory = f"{human_size(needed.total)} at the peak"
    if free is not None:
        memory += f", of {human_size(free)} that are free"
    parts = ", ".join(f"{part} {human_size(size)}" for part, size in vars(needed).items() if size)
    time = "not measured, since it does not fit"
    if seconds is not None:
        in_all = human_time(setup.config.max_steps * seconds)
        time = f"about {in_all}, {_short_time(seconds)} a step, validations not included"
    return [
        ("memory", memory),
        ("", parts),
        ("time", time),
        ("saved in", str(output.as_typed_here(setup.folder))),
    ]
