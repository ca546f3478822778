"""What a training tells its user: the plan before, progress and samples while it goes, the result after."""

from __future__ import annotations

import json as json_module
import math
import shlex
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from gpt2kit.cli import options, output
from gpt2kit.cli.options import human_size
from gpt2kit.data.corpus import ENGLISH_CHARACTERS_PER_TOKEN
from gpt2kit.evaluation.originality import TextIndex, baseline
from gpt2kit.files import write_whole
from gpt2kit.generation.text import generate
from gpt2kit.plots import Average, losses, save
from gpt2kit.training import plan
from gpt2kit.training.records import StepReport, read_metrics
from gpt2kit.training.run import Run
from gpt2kit.training.sharding import whole
from gpt2kit.training.tensorboard import EventWriter

if TYPE_CHECKING:
    from gpt2kit.model import GPT2
    from gpt2kit.training.setup import Setup

_SAMPLE_SEED = 1
_AVERAGES = (Average("simple", 20), Average("exponential", 0.95))  # in the picture of the losses
_RECENT = 100  # steps whose training losses are averaged
_MEASURED_TOKENS = 400  # of a text whose originality is measured


def _say(text: str, **style: Any) -> None:
    typer.secho(text, err=True, **style)


# --- before ----------------------------------------------------------------------------------------------------------


def show_plan(setup: Setup, *, json: bool) -> None:
    """Print what a training will be and need: with --json one object on stdout, else lines."""
    needed, free = (
        plan.memory(setup.model, setup.config, setup.ranks),
        plan.free_memory(setup.model.device),
    )
    seconds = plan.seconds_per_step(
        setup.model, setup.corpus, setup.config, setup.ranks
    )  # all processes take part in it
    if not setup.ranks.is_main:
        return
    trained = sum(
        parameter.numel() for parameter in setup.model.parameters() if parameter.requires_grad
    )
    if json:
        facts = {
            "parameters": setup.model.config.n_params,
            "parameters_trained": trained,
            "corpus": asdict(setup.corpus.report),
        }
        cost = {"memory": needed, "memory_free": free, "seconds_per_step": seconds}
        options.print_json({**facts, **cost, "training": asdict(setup.config)})
        return
    for name, text in _plan_lines(setup, trained, needed, free, seconds):
        typer.echo(f"{name:<10}{text}", err=True)
    if advice := free and plan.advice(sum(needed.values()), free):
        _say(f"warning: {advice}", fg="yellow")


def _plan_lines(
    setup: Setup, trained: int, needed: dict[str, int], free: int | None, seconds: float
) -> list[tuple[str, str]]:
    corpus, config, report = setup.corpus, setup.config, setup.corpus.report
    lines = []
    size = f"{report.characters:,} characters, " if report.characters is not None else ""
    per_token = report.characters_per_token
    ratio = (
        f", {per_token:.2f} characters per token (GPT-2's vocabulary on English: {ENGLISH_CHARACTERS_PER_TOKEN})"
        if per_token
        else ""
    )
    lines.append(("corpus", f"{', '.join(report.files)}: {size}{report.tokens:,} tokens{ratio}"))
    lines += [("", note) for note in (report.oddities.notes if report.oddities else [])]
    lines.append(
        (
            "split",
            f"{report.train_tokens:,} tokens to train with, {report.val_tokens:,} to validate with",
        )
    )
    lines.append(
        (
            "model",
            f"{setup.name}: {setup.model.config.n_params:,} parameters, {trained:,} of them trained",
        )
    )
    tokens = config.max_steps * config.batch_size * config.block_size
    epochs = tokens / len(corpus.train_ids)
    steps = (
        f"{config.max_steps:,} steps of {config.batch_size} windows of {config.block_size} tokens"
    )
    lines.append(("training", f"{steps}: {tokens:,} tokens, {epochs:.1f} times the text"))
    cut = f", batches in {config.accumulate} parts" if config.accumulate > 1 else ""
    again = ", blocks computed twice" if config.checkpointing else ""
    lines.append(
        (
            "",
            f"{config.optimizer}, learning rate {config.lr:g} {config.schedule}, {config.dtype}{cut}{again}",
        )
    )
    parts = ", ".join(f"{part} {human_size(size)}" for part, size in needed.items())
    of_free = f" of {human_size(free)} that are free" if free else ""
    lines.append(("memory", f"{human_size(sum(needed.values()))}{of_free}: {parts}"))
    lines.append(
        (
            "time",
            f"about {human_time(config.max_steps * seconds)}, {seconds:.2g} s a step, validations aside",
        )
    )
    lines.append(("saved in", str(options.as_typed_here(setup.folder))))
    return lines


def human_time(seconds: float) -> str:
    """Return a duration as people say it: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


# --- while it goes, and after ----------------------------------------------------------------------------------------


class Reporter:
    """Shows a training on stderr, or with --json each report as a line on stdout."""

    def __init__(self, setup: Setup, run: Run, *, json: bool, tensorboard: bool = False) -> None:
        self.stop = False  # whether too much is copied
        self._setup, self._run, self._json = setup, run, json
        self._folder = options.as_typed_here(run.folder)
        self._quiet = not setup.ranks.is_main
        documents = setup.train_documents
        self._index = TextIndex(documents) if documents else None
        self._prompt: str = setup.options.get("prompt", _first_line(setup))
        self._bar = (
            _Bar(setup.config.max_steps)
            if sys.stderr.isatty() and not json and not self._quiet
            else None
        )
        self._events = (
            EventWriter(run.folder / "tensorboard") if tensorboard and not self._quiet else None
        )
        self._last: StepReport | None = None
        self._sample_before: str | None = None
        self._started = time.monotonic()

    def __enter__(self) -> Reporter:
        if not self._json:
            show_plan(self._setup, json=False)
        self._started = time.monotonic()
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()
        if self._events:
            self._events.close()

    def step(self, report: StepReport) -> None:
        """Show what a step did; all processes must call it."""
        every = self._setup.options.get("sample_every", self._setup.config.eval_every)
        # After a stop too: a run that is resumed there does not come back to this step.
        going_on = report.finish_reason in (None, "stopped")
        due = every and report.step % every == 0 and going_on
        model = (
            whole(self._setup.model, self._setup.ranks) if due else None
        )  # in shards, this takes all processes
        self._last = report
        if self._quiet:
            return
        if self._events:
            self._events.write(report)
        if self._json:
            options.print_json(
                {name: value for name, value in asdict(report).items() if value is not None}
            )
        elif self._bar:
            self._bar.show(report)
        if report.val_loss is not None and not self._json:
            self._tell(_line(report))
        if model is not None:
            self._sample(report.step, model)

    def _sample(self, step: int, model: GPT2) -> None:
        text = self._write(model, self._setup.options.get("sample_tokens", 100), _SAMPLE_SEED)
        if self._sample_before is None:
            self._sample_before = text
        copied = None
        limit = self._setup.options.get("stop_when_copied", 1.0)
        if self._index is not None:
            copied = self._index.measure(text[len(self._prompt) :]).copied
            self.stop = self.stop or (limit < 1 and copied >= limit)
        self._run.record_sample(
            {"step": step, "text": text, **({} if copied is None else {"copied": copied})}
        )
        if not self._json:
            self._tell(text.rstrip() + "\n", dim=True)
            if self.stop:
                self._tell(f"{copied:.0%} of this is copied from the corpus: stopping")

    def _write(self, model: GPT2, n: int, seed: int) -> str:
        """Let the model as it is write."""
        return self._prompt + generate(
            model, self._setup.tokenizer, self._prompt, max_tokens=n, seed=seed
        )

    def _tell(self, text: str, **style: Any) -> None:
        if self._bar:
            self._bar.print(text)
        else:
            _say(text, **style)

    def end(self) -> None:
        """Report what became of the model."""
        if self._bar:
            self._bar.stop()
        copied = self._setup.ranks.any(self.stop)
        ended = self._last is not None and (
            self._last.finish_reason in ("steps", "patience") or copied
        )
        model = whole(self._setup.model, self._setup.ranks) if ended else None
        if self._quiet:
            return
        if self._last is None:
            _say(f"this run has ended already; its model is in {self._folder}")
            return
        metrics = read_metrics(self._run.folder)
        summary = self._summary(metrics, model)
        text = json_module.dumps(summary, indent=2, ensure_ascii=False) + "\n"
        write_whole(self._run.folder / "report.json", text)
        self._draw(metrics)
        if self._json:
            options.print_json(summary)
            return
        for line in _summary_lines(summary):
            _say(line)
        if self._sample_before and "sample" in summary:
            _say(
                f"\n--- before\n{self._sample_before.rstrip()}\n\n--- after\n{summary['sample'].rstrip()}",
                dim=True,
            )
        if self._last.finish_reason == "stopped" and not self.stop:
            _say(
                f"\nstopped and saved in {self._folder}; the same command with --resume goes on from step {self._last.step:,}"
            )
            return
        made = shlex.quote(str(self._folder))
        if self._setup.options.get("lora_rank"):
            _say(f"\nthe adapters become a model with: gpt2kit merge {made} --out {made}-merged")
            made += "-merged"
        _say(f"\nnow try: gpt2kit generate {shlex.quote(self._prompt)} --model {made}")

    def _draw(self, metrics: list[dict[str, Any]]) -> None:
        """Draw loss.png; the report is worth more, so a failure is no more than a warning."""
        name = output.one_line(self._run.folder.name)
        try:
            save(losses({name: metrics}, _AVERAGES), self._run.folder / "loss.png")
        except Exception as error:  # of any kind: of fonts, of names, of matplotlib's own settings
            output.warn(f"there is no loss.png: {error}")

    def _summary(self, metrics: list[dict[str, Any]], model: GPT2 | None) -> dict[str, Any]:
        """Return the figures of the run: losses before and after, what the best weights write, and how much of that is copied."""
        assert self._last is not None
        report = self._setup.corpus.report
        measured = [line for line in metrics if "val_loss" in line]
        recent = [line["train_loss"] for line in metrics if "train_loss" in line][-_RECENT:]
        summary: dict[str, Any] = {
            "finish_reason": self._last.finish_reason,
            "steps": self._last.step,
            "seconds": time.monotonic() - self._started,
            "train_loss": sum(recent) / len(recent) if recent else None,
        }
        if measured:
            best = min(measured, key=lambda line: line["val_loss"])
            summary["best_step"] = best["step"]
            for name, line in (("before", measured[0]), ("after", best)):
                summary[name] = loss_figures(
                    line["val_loss"], report.val_tokens, report.val_bytes, report.val_characters
                )
        if model is not None:
            if "best_step" in summary:
                self._setup.read(self._run.folder, model)
            summary["sample"] = self._write(model, _MEASURED_TOKENS, _SAMPLE_SEED)
            if self._index is not None:
                found = self._index.measure(summary["sample"][len(self._prompt) :])
                usual = baseline(self._setup.texts.documents) if self._setup.texts else None
                summary["copied"], summary["longest_copied_words"] = found.copied, found.longest
                summary["copied_held_out"] = usual and usual.copied
        return summary


def loss_figures(
    loss: float, tokens: int, n_bytes: int, characters: int | None
) -> dict[str, float]:
    """Return a loss per token and what it means: perplexity, bits per byte, bits per character."""
    bits = loss / math.log(2) * tokens
    figures = {
        "val_loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": bits / max(1, n_bytes),
    }
    return figures | ({"bits_per_character": bits / max(1, characters)} if characters else {})


def _summary_lines(summary: dict[str, Any]) -> list[str]:
    lines = [
        f"\n{summary['steps']:,} steps in {human_time(summary['seconds'])} ({summary['finish_reason']})"
    ]
    if "before" in summary:
        lines.append(f"{'':<22}{'before':>10}{'best':>10}   at step {summary['best_step']:,}")
        for name in summary["before"]:
            label = "validation loss" if name == "val_loss" else name.replace("_", " ")
            lines.append(
                f"{label:<22}{summary['before'][name]:>10.3f}{summary['after'][name]:>10.3f}"
            )
    if summary["train_loss"] is not None:
        lines.append(
            f"{'training loss':<22}{'':>10}{summary['train_loss']:>10.3f}   mean of the last {_RECENT} steps"
        )
    if "copied" in summary:
        usual = summary["copied_held_out"]
        beside = "" if usual is None else f"; of the author's own held-out text {usual:.0%}"
        lines.append(
            f"copied in runs of 5 words or more: {summary['copied']:.0%} of what it writes{beside}"
        )
    return lines


def _line(report: StepReport) -> str:
    train = f"train {report.train_loss:.4f}  " if report.train_loss is not None else ""
    speed = f"  {report.tokens_per_second:,.0f} tokens/s" if report.tokens_per_second else ""
    return f"step {report.step:>6}  {train}val {report.val_loss:.4f}{' *' if report.is_best else ''}{speed}"


def _first_line(setup: Setup) -> str:
    """Return the beginning of the validation text up to a line end: what samples go on from unless told."""
    ids = setup.corpus.val_ids if len(setup.corpus.val_ids) else setup.corpus.train_ids
    text = setup.tokenizer.decode(ids[: min(20, max(1, setup.config.block_size // 2))].tolist())
    return text.lstrip().split("\n")[0] or text


class _Bar:
    """A progress bar on a terminal, with losses, speed and the time that is left."""

    def __init__(self, steps: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._task = self._progress.add_task("", total=steps)
        self._val = ""

    def start(self) -> None:
        self._progress.start()

    def stop(self) -> None:
        self._progress.stop()

    def show(self, report: StepReport) -> None:
        if report.val_loss is not None:
            self._val = f"  val {report.val_loss:.3f}"
        if report.train_loss is not None:
            text = f"loss {report.train_loss:.3f}{self._val}  {report.tokens_per_second or 0:,.0f} tokens/s"
            self._progress.update(self._task, completed=report.step, description=text)

    def print(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, markup=False)
