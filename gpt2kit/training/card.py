"""A model card: what a repository's README.md says of a model, from the record of its run.

It has names of models, settings and counts, never a text: of run.json, metrics.jsonl and
report.json only certain fields are read, and only if they are numbers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2kit import store
from gpt2kit.config import GPT2Config
from gpt2kit.errors import CheckpointError, ConfigError, TrainingError
from gpt2kit.fields import check, option
from gpt2kit.files import read_json
from gpt2kit.store.catalogue import PUBLICATIONS
from gpt2kit.store.lookup import HUB_ID
from gpt2kit.training.records import METRICS, read_metrics
from gpt2kit.training.settings import Settings

REPORT = "report.json"
_CODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,39}")

# Fields of report.json with their names in the card, and how each number is shown.
_CORPUS = {
    "documents": "documents",
    "characters": "characters",
    "bytes": "bytes in UTF-8",
    "train_tokens": "tokens to train on",
    "val_tokens": "tokens held out",
}
_LOSSES = {
    "eval_train_loss": "training loss",
    "val_loss": "validation loss",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
    "bits_per_character": "bits per character",
}
_SHAPE = {
    "n_layer": "layers",
    "n_head": "heads",
    "n_embd": "width",
    "n_ctx": "tokens of context",
    "n_vocab": "tokens of the vocabulary",
}
_TRAINING = ("max_steps", "batch_size", "block_size", "lr", "seed")


@dataclass(frozen=True, kw_only=True)
class CardOptions:
    """What only the user knows of a model."""

    license: str | None = option(
        None, "The license, as the Hub calls it: mit, apache-2.0, cc-by-4.0, other.", metavar="ID"
    )
    language: str | None = option(
        None, "The language of the model's texts, as a code: en, it, de.", metavar="CODE"
    )

    def __post_init__(self) -> None:
        check(self)
        for name in ("license", "language"):
            value = getattr(self, name)
            if value is not None and not _CODE.fullmatch(value):
                raise ConfigError(
                    f"{name} is {value!r}, expected a short code of letters, digits, and . + -"
                )


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The model that a card is about."""

    repository: str
    source: Path  # its folder, which may have the record of a run
    config: GPT2Config
    base: str | None = None  # the model below adapters, as the Hub calls it
    reads_text: bool = True  # whether transformers reads its vocabulary
    labels_texts: bool = False  # by a head, in place of writing
    labels_in_words: bool = False  # by writing the label behind a text

    @property
    def load_in_python(self) -> str | None:
        """The line that loads the model in Python; None if only gpt2kit can."""
        if self.base is not None:
            return f'peft.AutoPeftModelForCausalLM.from_pretrained("{self.repository}")'
        if not self.config.is_gpt2:
            return None
        if self.reads_text:
            return f'transformers.pipeline("{self.task}", model="{self.repository}")'
        kind = "GPT2ForSequenceClassification" if self.labels_texts else "GPT2LMHeadModel"
        return f'transformers.{kind}.from_pretrained("{self.repository}")'

    @property
    def task(self) -> str:
        """What the model does, as the Hub calls it."""
        return "text-classification" if self.labels_texts else "text-generation"

    @property
    def commands(self) -> list[str]:
        """The commands that fetch the model, and write or label texts with it."""
        use = f'gpt2kit generate "…" --model {self.repository}'
        if self.labels_texts or self.labels_in_words:
            use = f"gpt2kit classify {self.repository} texts.csv"
        return [f"gpt2kit download {self.repository}", use]


def model_card(subject: Subject, options: CardOptions) -> str:
    """Return the card of a model as Markdown, with the metadata that the Hub reads before it.

    A model without a run has a card that says what its files say. A damaged record is left out.
    """
    settings = _settings(subject.source)
    base = subject.base or base_model(subject.source, settings)
    parts = [
        _metadata(subject, base, options),
        f"# {subject.repository.partition('/')[2]}",
        _sentence(subject, settings, base),
        _table("The model", _model_rows(subject.config)),
        *_run_parts(subject.source, settings),
        _usage(subject),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(subject: Subject, base: str | None, options: CardOptions) -> str:
    """Return the YAML block; its values are JSON, so that no code such as `no` is a truth value."""
    is_gpt2 = subject.config.is_gpt2
    fields: dict[str, object] = {
        "license": options.license,
        "language": [options.language] if options.language else None,
        "base_model": base,
        "base_model_relation": "adapter" if subject.base else None,
        "library_name": "peft" if subject.base else "transformers" if is_gpt2 else "gpt2kit",
        "pipeline_tag": subject.task,
        "tags": ["gpt2kit", "gpt2", subject.task],
    }
    lines = [f"{name}: {json.dumps(value)}" for name, value in fields.items() if value is not None]
    return "\n".join(["---", *lines, "---"])


def _sentence(subject: Subject, settings: Settings | None, base: str | None) -> str:
    """Return the card's first sentence."""
    kind = "A GPT-2" if subject.config.is_gpt2 else "A variant of GPT-2"
    what = f"{kind} with {subject.config.n_params:,} parameters"
    if subject.base is not None:
        what = "LoRA adapters for a GPT-2"
    link = "" if base is None else f" [{base}](https://huggingface.co/{base})"
    if settings is None:
        return f"{what}{', made from' + link if link else ''}."
    if settings.command == "train":
        return f"{what}, trained from the beginning with gpt2kit."
    return f"{what}, fine-tuned with gpt2kit{' from' + link if link else ''}."


def _model_rows(config: GPT2Config) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [
        (label, f"{getattr(config, name):,}") for name, label in _SHAPE.items()
    ]
    return [*rows, ("parameters", f"{config.n_params:,}")]


def _run_parts(source: Path, settings: Settings | None) -> list[str]:
    """Return the card's parts on the run: settings, corpus, losses, originality."""
    if settings is None:
        return []
    report, metrics = _report(source), _metrics(source)
    training = [(name, f"{getattr(settings.training, name):,}") for name in _TRAINING]
    seen = [line["tokens_seen"] for line in metrics if "tokens_seen" in line]
    training += [("tokens_seen", f"{seen[-1]:,}")] if seen else []
    corpus = _numbers(report.get("corpus"), _CORPUS)
    counted = [(label, f"{corpus[name]:,}") for name, label in _CORPUS.items() if name in corpus]
    return [
        _table("The training", training),
        _table("The corpus", counted),
        _losses(report, metrics),
        _originality(report),
    ]


def _losses(report: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> str:
    """Return the losses before the first step and of the best weights, in nats per token."""
    measured = [line for line in metrics if "val_loss" in line]
    if not measured:
        return ""
    best = min(measured, key=lambda line: line["val_loss"])
    before, after = (
        {"perplexity": math.exp(min(line["val_loss"], 700.0)), **_numbers(line, _LOSSES)}
        for line in (measured[0], best)
    )
    # The report adds bits per byte, unless it is older than the last validation.
    if _numbers(report.get("after"), _LOSSES).get("val_loss") == best["val_loss"]:
        before |= _numbers(report.get("before"), _LOSSES)
        after |= _numbers(report.get("after"), _LOSSES)
    rows = [
        (label, f"{before[name]:.3f}" if name in before else "", f"{after[name]:.3f}")
        for name, label in _LOSSES.items()
        if name in after
    ]
    text = "Losses are in nats per token. The weights are those of the best validation"
    table = _table("Losses", rows, ("", "before training", f"step {best['step']:,}"))
    return f"{table}\n\n{text}."


def _originality(report: Mapping[str, Any]) -> str:
    """Return how much of a text that the model wrote stands in the corpus."""
    names = ("copied", "longest_copied_words", "copied_held_out")
    found = _numbers(report, names)
    if "copied" not in found:
        return ""
    rows = [("copied from the corpus, in runs of 5 words or more", f"{found['copied']:.0%}")]
    if "longest_copied_words" in found:
        rows.append(("longest run of copied words", f"{found['longest_copied_words']:,}"))
    if "copied_held_out" in found:
        rows.append(("the end of the corpus, copied likewise", f"{found['copied_held_out']:.0%}"))
    table = _table("Originality", rows)
    return f"{table}\n\nMeasured on one text that the model wrote at the end of its training."


def _usage(subject: Subject) -> str:
    """Return how the model is loaded."""
    lines = ["## How to load it", "", "```console"]
    lines += [f"$ {command}" for command in subject.commands] + ["```", ""]
    if subject.load_in_python is None:
        return "\n".join([*lines, "transformers does not have this variant of GPT-2."])
    module = subject.load_in_python.partition(".")[0]
    lines += ["```python", f"import {module}", "", f"model = {subject.load_in_python}", "```"]
    if not subject.reads_text:
        lines += ["", "transformers does not read its vocabulary: it is given ids there."]
    return "\n".join(lines)


def _table(heading: str, rows: Sequence[Sequence[str]], columns: Sequence[str] = ("", "")) -> str:
    """Return a heading with a table below it, or nothing if there are no rows."""
    if not rows:
        return ""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join([f"## {heading}", "", *(f"| {' | '.join(line)} |" for line in lines)])


# --- the record of a run --------------------------------------------------------------------------


def base_model(source: Path, settings: Settings | None) -> str | None:
    """Return what the Hub calls the model that a run or a download began with, or None."""
    if settings is not None:
        if settings.command == "train":
            return None
        return _on_the_hub(str(settings.options.get("model", "124M")))
    try:
        manifest = store.Manifest.read(source)
    except CheckpointError:
        return None
    known = manifest is not None and HUB_ID.fullmatch(manifest.repository)
    return manifest.repository if manifest is not None and known else None


def _on_the_hub(name: str) -> str | None:
    """Return the repository that a model's name means, or None for a folder of this machine."""
    canonical, origin = store.split_source(name)
    try:
        if store.find(name).name != store.directory_name(canonical, origin or "hub"):
            return None
    except CheckpointError:
        return None
    published = PUBLICATIONS.get(canonical)
    return published.repository if published else name if HUB_ID.fullmatch(name) else None


def _settings(source: Path) -> Settings | None:
    try:
        return Settings.read(source)
    except TrainingError:
        return None


def _report(source: Path) -> Mapping[str, Any]:
    try:
        found = read_json(source / REPORT, error=CheckpointError)
    except CheckpointError:
        return {}
    return found if isinstance(found, dict) else {}


def _metrics(source: Path) -> list[dict[str, Any]]:
    return read_metrics(source) if (source / METRICS).is_file() else []


def _numbers(values: object, names: Sequence[str] | Mapping[str, str]) -> dict[str, Any]:
    """Return those of the named values that are finite numbers."""
    if not isinstance(values, Mapping):
        return {}
    found = {name: values.get(name) for name in names}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
