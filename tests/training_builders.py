"""Small models, corpora and runs for the tests of training."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2kit.checkpoints.load import write_model
from gpt2kit.config import GPT2Config
from gpt2kit.data.corpus import Corpus, load_corpus
from gpt2kit.data.texts import Text
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import CharTokenizer
from gpt2kit.training.config import TrainConfig
from gpt2kit.training.loop import train
from gpt2kit.training.records import StepReport
from gpt2kit.training.run import Run
from gpt2kit.training.settings import Settings

VERSES = """Nel mezzo del cammin di nostra vita
mi ritrovai per una selva oscura,
ché la diritta via era smarrita.
Ahi quanto a dir qual era è cosa dura
esta selva selvaggia e aspra e forte
che nel pensier rinova la paura!
Tant' è amara che poco è più morte;
ma per trattar del ben ch'i' vi trovai,
dirò de l'altre cose ch'i' v'ho scorte.
Io non so ben ridir com' i' v'intrai,
tant' era pien di sonno a quel punto
che la verace via abbandonai.
"""
TOKENIZER = CharTokenizer.from_text(VERSES)


def small_model(**changes: Any) -> GPT2:
    """Return a model of 2 layers and width 16 with the same weights every time."""
    fields: dict[str, Any] = {
        "n_vocab": TOKENIZER.n_vocab,
        "n_ctx": 16,
        "n_embd": 16,
        "n_head": 2,
        "n_layer": 2,
    }
    model = GPT2(GPT2Config(**(fields | changes)))
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def small_corpus(text: str = VERSES, **changes: Any) -> Corpus:
    return load_corpus(
        Text((text,), (Path("verses.txt"),), len(text.encode())), TOKENIZER, **changes
    )


def small_config(**changes: Any) -> TrainConfig:
    fields: dict[str, Any] = {
        "max_steps": 12,
        "block_size": 8,
        "batch_size": 4,
        "warmup": 2,
        "eval_every": 4,
        "save_every": 3,
    }
    return TrainConfig(**(fields | changes))


def small_settings(**changes: Any) -> Settings:
    """Return the settings of a run, the same every time."""
    fields: dict[str, Any] = {
        "command": "train",
        "options": {},
        "corpus": "a" * 64,
        "start": "b" * 64,
        "model": small_model().config,
        "training": small_config(),
    }
    return Settings(**(fields | changes))


def go(
    folder: Path,
    *,
    steps: int | None = None,
    resume: bool = False,
    force: bool = False,
    keep_states: bool = False,
    write: Callable[[Path, GPT2], None] = write_model,
    stop: Callable[[], bool] = lambda: False,
    **config: Any,
) -> tuple[GPT2, list[StepReport]]:
    """Train a small model in a folder, to the end or until the report of a step."""
    model, reports = small_model(), []
    settings = small_settings(training=small_config(**config))
    how: dict[str, Any] = {"resume": resume, "force": force, "keep_states": keep_states}
    run = Run(folder, settings, write=write, **how)
    try:
        stream = train(model, small_corpus(), settings.training, run=run, stop=stop)
        for report in stream:
            reports.append(report)
            if report.step == steps:
                break
        stream.close()  # type: ignore[attr-defined]
    finally:
        run.close()
    return model, reports


class _Killed(BaseException):
    """Ends a block as a kill would, as far as files go."""


@contextlib.contextmanager
def killed_before_change(n: int) -> Iterator[Callable[[], bool]]:
    """Kill the block before its n-th change of the file system; give what says if that came."""
    changes, came = itertools.count(1), [False]

    def counted(change: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            if next(changes) >= n:
                raise _Killed
            return change(*args, **kwargs)

        return run

    with pytest.MonkeyPatch.context() as patch:
        for name in ("mkdir", "rename", "replace", "unlink", "rmdir"):
            patch.setattr(os, name, counted(getattr(os, name)))
        try:
            yield lambda: came[0]
        except _Killed:
            came[0] = True


def states(folder: Path) -> list[str]:
    """Return the names of a run's saved states, those set aside as damaged included."""
    return sorted(path.name for path in (folder / "states").iterdir())


def weights(model: GPT2) -> dict[str, torch.Tensor]:
    """Return a copy of all weights."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are the same to the last bit."""
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )
