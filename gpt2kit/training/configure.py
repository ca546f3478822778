"""The training configuration: as given, and otherwise as suits text, model and machine."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch

from gpt2kit.data.batches import Batches
from gpt2kit.errors import ConfigError
from gpt2kit.fields import rules
from gpt2kit.model import GPT2
from gpt2kit.training import plan
from gpt2kit.training.config import TrainConfig
from gpt2kit.training.distributed import Ranks
from gpt2kit.training.loss import best_dtype
from gpt2kit.training.options import FinetuneOptions, TrainingOptions, TrainOptions
from gpt2kit.training.outline import Outline

Options = TrainOptions | FinetuneOptions


def configure(
    options: Options, model: GPT2, corpus: Batches, ranks: Ranks, device: torch.device
) -> TrainConfig:
    """Return the configuration of a new run on a device.

    Raises ConfigError for windows that do not fit.
    """
    block_size = _block_size(options, model, corpus)
    usual = corpus.usual_batch_size(block_size, options.BATCH_SIZE)
    batch_size = options.batch_size or _multiple(usual, ranks.world_size)
    max_steps = _max_steps(options, corpus, block_size, batch_size)
    eval_every = options.eval_every or math.ceil(max_steps / options.VALIDATIONS)
    chosen: dict[str, Any] = {
        "lr": _learning_rate(options),
        "warmup": min(options.MOST_WARMUP, max_steps // 10),
        "dtype": best_dtype(device, model.config.n_embd),
        "save_every": eval_every,
    }
    sizes = {
        "block_size": block_size,
        "batch_size": batch_size,
        "max_steps": max_steps,
        "eval_every": eval_every,
    }
    given = _given(options)
    config = TrainConfig(**(chosen | given | sizes))
    free = plan.free_memory(device)
    if free is None:
        return config
    free = ranks.least(free)
    outline = Outline.of(model, corpus.predicted_in_row(block_size))
    return plan.fit(outline, config, device, free, fixed=set(given), ranks=ranks)


def reconfigure(
    options: Options, given: Collection[str], before: TrainConfig, corpus: Batches
) -> TrainConfig:
    """Return the configuration of a resumed run: as before, but for what is given now."""
    changes = {name: value for name, value in _given(options).items() if name in given}
    if options.epochs is not None:
        changes["max_steps"] = _max_steps(options, corpus, before.block_size, before.batch_size)
    return replace(before, **changes)


def _given(options: TrainingOptions) -> dict[str, Any]:
    """Return the fields of a TrainConfig that the options decide."""
    names = rules(TrainConfig).keys() & rules(type(options)).keys()
    values = {name: getattr(options, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _block_size(options: Options, model: GPT2, corpus: Batches) -> int:
    limit = model.config.n_ctx
    if options.block_size is not None and options.block_size > limit:
        found = f"the model has {limit} positions"
        if isinstance(options, TrainOptions):
            found = f"the text is too short for two such windows; expected at most {limit}"
        raise ConfigError(f"block_size is {options.block_size}, but {found}")
    wanted = options.block_size or min(corpus.usual_block_size(options.BLOCK_SIZE), limit)
    return min(corpus.fit_block_size(wanted), limit)


def _multiple(n: int, of: int) -> int:
    """Return n, or the next multiple of a number."""
    return of * math.ceil(n / of)


def _max_steps(options: Options, corpus: Batches, block_size: int, batch_size: int) -> int:
    if options.max_steps is not None:
        return options.max_steps
    epochs = options.epochs
    if epochs is None:
        if isinstance(options, TrainOptions):
            return options.MAX_STEPS
        epochs = options.EPOCHS
    return max(1, round(epochs * corpus.epoch_tokens(block_size) / (block_size * batch_size)))


def _learning_rate(options: Options) -> float:
    if isinstance(options, TrainOptions):
        return options.lr
    return options.LORA_LR if options.lora_rank else options.LR
