"""What a training shows while it goes: losses, samples, a progress bar."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2kit.cli import output
from gpt2kit.cli.plan import show_plan
from gpt2kit.cli.training_summary import Ending, show_summary
from gpt2kit.data.corpus import Corpus
from gpt2kit.errors import FileError
from gpt2kit.evaluation.originality import TextIndex
from gpt2kit.files import read_json
from gpt2kit.generation.request import Request
from gpt2kit.generation.text import complete
from gpt2kit.tokenizers.listed import boundaries
from gpt2kit.training.card import REPORT
from gpt2kit.training.records import StepReport, read_metrics
from gpt2kit.training.run import Run
from gpt2kit.training.sharding import whole
from gpt2kit.training.tensorboard import EventWriter

if TYPE_CHECKING:
    from gpt2kit.model import GPT2
    from gpt2kit.training.setup import Setup

SAMPLE_SEED = 1


class Reporter:
    """Shows a training on stderr, or with `json` every report as a line on stdout.

    Of several processes only the main one shows anything; all must call every method.
    """

    def __init__(self, setup: Setup, run: Run, *, json: bool, tensorboard: bool = False) -> None:
        self.stop = False  # whether too much of a sample is copied
        self._setup, self._run, self._json = setup, run, json
        self._is_main = setup.ranks.is_main
        documents = setup.train_documents
        self._index = TextIndex(documents) if documents else None
        self._prompt = setup.options.prompt or first_prompt(setup)
        self._bar: _Bar | None = None
        if self._is_main and not json and sys.stderr.isatty():
            self._bar = _Bar(setup.config.max_steps)
        self._events: EventWriter | None = None
        if self._is_main and tensorboard:
            self._events = EventWriter(run.folder / "tensorboard")
        self._last: StepReport | None = None
        self._first_sample: str | None = None
        self._started = time.monotonic()

    def __enter__(self) -> Reporter:
        if not self._json:
            show_plan(self._setup)
            if self._is_main and self._setup.carried is not None:
                self._tell(self._setup.carried.reason)
            if self._run.extension is not None:
                self._tell(str(self._run.extension))
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
        """Show what a step did, and write a sample if it is time for one."""
        self._last = report
        # Gathering a divided model takes all processes.
        model = whole(self._setup.model, self._setup.ranks) if self._sample_is_due(report) else None
        if not self._is_main:
            return
        if self._events:
            self._events.write(report)
        if self._json:
            output.print_json(report.as_record())
        elif self._bar:
            self._bar.show(report)
        if report.val_loss is not None and not self._json:
            self._tell(_line(report))
        if model is not None:
            self._write_samples(report.step, model)

    def _sample_is_due(self, report: StepReport) -> bool:
        """Whether to write a sample: also if stopped here, since a resumed run begins after it."""
        if self._setup.has_labels:  # a label is no text worth reading
            return False
        every = self._setup.options.sample_every
        if every is None:
            every = self._setup.config.eval_every
        goes_on = report.finish_reason in (None, "stopped")
        return goes_on and every > 0 and report.step % every == 0

    def _write_samples(self, step: int, model: GPT2) -> None:
        """Write samples and record them; ask for a stop if too much of one is copied."""
        options = self._setup.options
        request = Request(
            max_tokens=options.sample_tokens,
            num_samples=options.sample_count,
            seed=SAMPLE_SEED,
            sampling=options.sampling,
        )
        for number, found in enumerate(
            complete(model, self._setup.tokenizer, self._prompt, request)
        ):
            text = self._prompt + found.text
            self._first_sample = self._first_sample or text
            sample: dict[str, Any] = {"step": step, "sample": number, "text": text}
            too_much = False
            if self._index is not None:
                sample["copied"] = self._index.measure(found.text).copied
                too_much = sample["copied"] >= options.stop_when_copied < 1
                self.stop = self.stop or too_much
            self._run.record_sample(sample)
            if self._json:
                continue
            self._tell(text.rstrip() + "\n", dim=True)
            if too_much:
                self._tell(f"{sample['copied']:.0%} of this is copied from the corpus: stopping")

    def _tell(self, text: str, *, dim: bool = False) -> None:
        """Write a text to stderr, above the progress bar if there is one."""
        if self._bar:
            output.console().print(text, style="dim" if dim else None, soft_wrap=True)
        else:
            output.note_text(text, dim=dim)

    def end(self) -> None:
        """Show what became of the model."""
        if self._bar:
            self._bar.stop()
        copied = self._setup.ranks.any(self.stop)
        last = self._last or _unreported(self._run.folder)
        has_ended = last is not None and (last.finish_reason in ("steps", "patience") or copied)
        model = whole(self._setup.model, self._setup.ranks) if has_ended else None
        if not self._is_main:
            return
        if last is None:
            folder = output.as_typed_here(self._run.folder)
            output.note(f"this run has ended already; its model is in {folder}")
            return
        seconds = time.monotonic() - self._started
        ending = Ending(last, seconds, self._prompt, self._first_sample, self._index)
        show_summary(self._setup, self._run.folder, ending, model, json=self._json)


def _unreported(folder: Path) -> StepReport | None:
    """Return the last step of a run that has ended, if it was killed before its report."""
    metrics = read_metrics(folder)
    ended = metrics[-1] if metrics else {}
    reported = None
    with contextlib.suppress(FileError):
        reported = read_json(folder / REPORT).get("steps")
    if ended.get("finish_reason") not in ("steps", "patience") or reported == ended["step"]:
        return None
    return StepReport(step=ended["step"], finish_reason=ended["finish_reason"])


def _line(report: StepReport) -> str:
    """Return the figures of a validation, those of the training text measured alike if they are."""
    train = ""
    if report.eval_train_loss is not None:
        train = f"train {report.eval_train_loss:.4f}  "
    elif report.train_loss is not None:
        train = f"batch {report.train_loss:.4f}  "
    star = " *" if report.is_best else ""
    seen = f"  {output.count(report.tokens_seen, 'token')} seen" if report.tokens_seen else ""
    speed = f", {report.tokens_per_second:,.0f} tokens/s" if report.tokens_per_second else ""
    return f"step {report.step:>6}  {train}val {report.val_loss:.4f}{star}{seen}{speed}"


def first_prompt(setup: Setup) -> str:
    """Return what samples continue: a held-out prompt, or how the held-out text begins."""
    if (purpose := setup.start.purpose) is not None:
        train, held_out = purpose.parts(setup.options.val_fraction)
        prompt = (held_out or train)[0].prompt
        ids = setup.tokenizer.encode(prompt)
        size = setup.config.block_size
        return prompt if len(ids) <= size else setup.tokenizer.decode(ids[-size:])
    assert isinstance(setup.corpus, Corpus)
    return _first_line(setup, setup.corpus)


def _first_line(setup: Setup, corpus: Corpus) -> str:
    """Return the beginning of the validation text, at most a line."""
    ids = corpus.val_ids if len(corpus.val_ids) else corpus.train_ids
    n = min(20, max(1, setup.config.block_size // 2))
    outside = boundaries(setup.tokenizer)
    inside = itertools.dropwhile(outside.__contains__, ids[:n].tolist())
    text = setup.tokenizer.decode([*itertools.takewhile(lambda id: id not in outside, inside)])
    return text.lstrip().split("\n")[0] or text


class _Bar:
    """A progress bar with the losses, the speed and the time left."""

    def __init__(self, steps: int) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=output.console(),
        )
        self._task = self._progress.add_task("", total=steps)
        self._val = ""

    def start(self) -> None:
        self._progress.start()

    def stop(self) -> None:
        self._progress.stop()

    def show(self, report: StepReport) -> None:
        """Move to a step and show its figures."""
        if report.val_loss is not None:
            self._val = f"  val {report.val_loss:.3f}"
        if report.train_loss is not None:
            speed = f"{report.tokens_per_second or 0:,.0f} tokens/s"
            text = f"loss {report.train_loss:.3f}{self._val}  {speed}"
            self._progress.update(self._task, completed=report.step, description=text)
