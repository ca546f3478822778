"""What a training shows at its end: the figures before and after, and what to do next."""

from __future__ import annotations

import json as json_module
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2kit.cli import output
from gpt2kit.cli.classify import judgement_lines
from gpt2kit.cli.output import human_time
from gpt2kit.errors import MissingDependencyError
from gpt2kit.evaluation.classification import Classifier, judge, likeliest
from gpt2kit.evaluation.originality import TextIndex, baseline
from gpt2kit.files import write_whole
from gpt2kit.generation.request import Request
from gpt2kit.generation.text import generate
from gpt2kit.plots import Average, losses, save
from gpt2kit.training.card import REPORT
from gpt2kit.training.records import StepReport, read_metrics

if TYPE_CHECKING:
    from gpt2kit.model import GPT2
    from gpt2kit.training.setup import Setup

_SAMPLE_SEED = 1
_SAMPLE_TOKENS = 400  # of the text whose originality is measured
_MOST_JUDGED = 2000  # held-out texts whose labels are compared
_RECENT = 100  # steps whose training losses are averaged
_COUNTED = (  # of the corpus, in report.json
    *("documents", "bytes", "val_bytes", "characters", "val_characters"),
    *("train_tokens", "val_tokens"),
)
_LABELS = {"eval_train_loss": "training loss", "val_loss": "validation loss"}
_AVERAGES = (Average("simple", 20), Average("exponential", 0.95))  # drawn in loss.png


@dataclass(frozen=True)
class Ending:
    """What is known at the end of a training, beside what the run's folder holds."""

    last: StepReport
    seconds: float
    prompt: str
    first_sample: str | None
    index: TextIndex | None  # of the text that was trained on


def show_summary(
    setup: Setup, folder: Path, ending: Ending, model: GPT2 | None, *, json: bool
) -> None:
    """Measure and show the best weights, and leave report.json and loss.png in the run's folder.

    `model` is None if the run was stopped: then there is no last sample.
    """
    metrics = read_metrics(folder)
    summary = _summary(setup, metrics, ending)
    if model is not None:
        if "best_step" in summary:
            setup.files.read(folder, model)
        summary |= (_judged if setup.has_labels else _last_sample)(setup, model, ending)
    _draw_losses(folder, metrics)
    text = json_module.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    write_whole(folder / REPORT, text)  # the last: without it, --resume does all of this again
    if json:
        output.print_json(summary)
        return
    output.note()
    for line in _summary_lines(summary):
        output.note(line)
    if ending.first_sample is not None and "sample" in summary:
        output.note_text(f"\n--- before\n{ending.first_sample.rstrip()}", dim=True)
        output.note_text(f"\n--- after\n{summary['sample'].rstrip()}", dim=True)
    for line in _what_next(setup, folder, ending, model):
        output.note()
        output.note(line)


def _summary(setup: Setup, metrics: Sequence[dict[str, Any]], ending: Ending) -> dict[str, Any]:
    """Return the figures of a run: the losses before the first step and of the best weights."""
    report = setup.corpus.report
    recent = [line["train_loss"] for line in metrics if "train_loss" in line][-_RECENT:]
    summary: dict[str, Any] = {
        "finish_reason": ending.last.finish_reason,
        "steps": ending.last.step,
        "seconds": ending.seconds,
        "train_loss": sum(recent) / len(recent) if recent else None,
        "corpus": {name: getattr(report, name) for name in _COUNTED},
    }
    if measured := [line for line in metrics if "val_loss" in line]:
        best = min(measured, key=lambda line: line["val_loss"])
        summary["best_step"] = best["step"]
        for name, line in (("before", measured[0]), ("after", best)):
            measured_alike = {key: line[key] for key in ("eval_train_loss",) if key in line}
            figures = loss_figures(
                line["val_loss"], report.val_tokens, report.val_bytes, report.val_characters
            )
            if report.examples is not None:  # not all of their bytes are predicted
                figures = {key: figures[key] for key in ("val_loss", "perplexity")}
            summary[name] = measured_alike | figures
        if _overfits(best, measured[-1]):
            summary["overfitting"] = {
                name: {key: line[key] for key in ("step", "val_loss", "eval_train_loss")}
                for name, line in (("best", best), ("end", measured[-1]))
            }
    return summary


def _overfits(best: Mapping[str, Any], end: Mapping[str, Any]) -> bool:
    """Whether a model went on learning its training text when it no longer got better elsewhere.

    Both are records of validations: the best one and the last one. A rise of less than 0.5% may
    be chance.
    """
    if "eval_train_loss" not in best or "eval_train_loss" not in end:
        return False
    return bool(
        end["val_loss"] > 1.005 * best["val_loss"]
        and end["eval_train_loss"] < best["eval_train_loss"]
    )


def _judged(setup: Setup, model: GPT2, _: Ending) -> dict[str, Any]:
    """Return how often a model gives held-out texts the right labels."""
    purpose = setup.start.purpose
    assert purpose is not None
    held_out = purpose.parts(setup.options.val_fraction)[1][:_MOST_JUDGED]
    if not held_out:
        return {}
    classifier = Classifier(model, setup.tokenizer, purpose.words)
    separator = purpose.examples.separator
    texts = [each.prompt.removesuffix(separator) for each in held_out]
    given = [likeliest(classifier.labels, each) for each in classifier.probabilities(texts)]
    found = judge([each.completion for each in held_out], given, classifier.labels)
    return {"labels": found.as_record()}


def _last_sample(setup: Setup, model: GPT2, ending: Ending) -> dict[str, Any]:
    """Return a text that the model writes, and how much of it is copied from the corpus."""
    request = Request(max_tokens=_SAMPLE_TOKENS, seed=_SAMPLE_SEED, sampling=setup.options.sampling)
    text = ending.prompt + generate(model, setup.tokenizer, ending.prompt, request)
    if ending.index is None:
        return {"sample": text}
    found = ending.index.measure(text[len(ending.prompt) :])
    usual = baseline(setup.start.text.documents) if setup.start.text else None
    return {
        "sample": text,
        "copied": found.copied,
        "longest_copied_words": found.longest,
        "copied_held_out": usual and usual.copied,
    }


def loss_figures(
    loss: float, tokens: int, n_bytes: int, characters: int | None
) -> dict[str, float]:
    """Return a loss in nats per token, perplexity, bits per byte and bits per character."""
    bits = loss / math.log(2) * tokens
    figures = {
        "val_loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": bits / max(1, n_bytes),
    }
    return figures | ({"bits_per_character": bits / max(1, characters)} if characters else {})


def _draw_losses(folder: Path, metrics: Sequence[dict[str, Any]]) -> None:
    """Draw loss.png. If that fails the training was still worth it, so there is only a warning."""
    try:
        save(losses({output.one_line(folder.name): metrics}, _AVERAGES), folder / "loss.png")
    except MissingDependencyError as error:
        output.note(f"there is no picture of the losses: {error}")
    except Exception as error:  # any kind: matplotlib's settings, fonts, a full disk
        output.warn(f"the picture of the losses could not be drawn: {error}")


def _summary_lines(summary: dict[str, Any]) -> list[str]:
    took = human_time(summary["seconds"])
    lines = [f"{output.count(summary['steps'], 'step')} in {took} ({summary['finish_reason']})"]
    if "before" in summary:
        lines.append(f"{'':<22}{'before':>10}{'best':>10}   at step {summary['best_step']:,}")
        for name in summary["before"]:
            label = _LABELS.get(name, name.replace("_", " "))
            before, after = summary["before"][name], summary["after"][name]
            lines.append(f"{label:<22}{before:>10.3f}{after:>10.3f}")
    if summary["train_loss"] is not None:
        loss = f"{'loss of the batches':<22}{'':>10}{summary['train_loss']:>10.3f}"
        recent = output.count(min(_RECENT, summary["steps"]), "step")
        lines.append(f"{loss}   mean of the last {recent}")
    if "overfitting" in summary:
        best, end = (summary["overfitting"][name] for name in ("best", "end"))
        lines.append(
            f"overfitting: after step {best['step']:,} the validation loss rose from "
            f"{best['val_loss']:.3f} to {end['val_loss']:.3f}, while the training loss fell from "
            f"{best['eval_train_loss']:.3f} to {end['eval_train_loss']:.3f}. The weights of step "
            f"{best['step']:,} are kept. More text, a smaller model or more --dropout would help"
        )
    if "labels" in summary:
        lines += ["", *judgement_lines(summary["labels"])]
    if "copied" in summary:
        usual = summary["copied_held_out"]
        beside = "" if usual is None else f"; of the author's own held-out text {usual:.0%}"
        copied = f"{summary['copied']:.0%} of what it writes{beside}"
        lines.append(f"copied in runs of 5 words or more: {copied}")
    return lines


def _what_next(setup: Setup, folder: Path, ending: Ending, model: GPT2 | None) -> list[str]:
    """Return lines on what the user can type next."""
    shown = output.as_typed_here(folder)
    if model is None:
        return [
            f"stopped and saved in {shown}; the same command with --resume continues after step "
            f"{ending.last.step:,}"
        ]
    lines, how = [], "--model"
    made = shlex.quote(str(shown))
    if setup.has_labels:
        return [f"now try: gpt2kit classify {made} TEXTS.csv"]
    if getattr(setup.options, "lora_rank", 0):
        lines.append(f"the adapters become a model with: gpt2kit merge {made} --out {made}-merged")
        how = "--adapter"
    return [*lines, f"now try: gpt2kit generate {_shell_word(ending.prompt)} {how} {made}"]


def _shell_word(text: str) -> str:
    """Return the text as one word of a shell, with line ends and the like as in $'\\n'."""
    if text.isprintable():
        return shlex.quote(text)
    escapes = {"\\": r"\\", "'": r"\'", "\n": r"\n", "\t": r"\t"}
    shown = (c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
    return "$'" + "".join(escapes.get(c, e) for c, e in zip(text, shown, strict=True)) + "'"
