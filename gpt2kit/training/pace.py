"""How long a training step takes: measured with the model itself, or with parts of it.

Without weights, one block and the rest of the model are measured, with random weights; a step takes
as long as the rest and all blocks together.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gpt2kit.data.batches import Batches
from gpt2kit.model import GPT2
from gpt2kit.training.config import TrainConfig
from gpt2kit.training.distributed import Ranks
from gpt2kit.training.loss import NextTokenLoss, autocast
from gpt2kit.training.optim import build_optimizers, set_learning_rate
from gpt2kit.training.outline import Outline
from gpt2kit.training.readings import Reading, blank_batch
from gpt2kit.training.trainer import Trainer

_MOST_PROBES = 20
_PROBE_SECONDS = 0.5  # after this long, nothing is measured again


def seconds_per_step(
    model: GPT2, corpus: Batches, config: TrainConfig, ranks: Ranks | None = None
) -> float:
    """Return how long a step takes, in seconds: the shortest of several.

    The steps have a learning rate of zero, so the weights stay as they are. All processes that
    train together must call this.
    """
    ranks = ranks or Ranks()
    trainer = Trainer(model, corpus, config, ranks)
    set_learning_rate(trainer.optimizers, 0.0)
    model.train()

    def step(number: int) -> None:
        model.zero_grad(set_to_none=True)
        for loss in trainer.losses(number):
            loss.backward()  # type: ignore[no-untyped-call]
            loss.item()  # waits for a GPU
        for optimizer in trainer.optimizers:
            optimizer.step()

    seconds = shortest(step, ranks)
    model.zero_grad(set_to_none=True)
    return seconds


def seconds_without_weights(
    outline: Outline, config: TrainConfig, device: torch.device, windows: int, parts: int
) -> float:
    """Return about how long a step on `parts` times `windows` windows takes, in seconds.

    It needs the memory of a model with one block.
    """
    with torch.device(device):
        rest = _rest_of_model(outline, config, windows)
        block = _block(outline, config, windows)
    n_layer = outline.config.n_layer
    return parts * (rest[0] + n_layer * block[0]) + rest[1] + n_layer * block[1]


def _rest_of_model(outline: Outline, config: TrainConfig, windows: int) -> tuple[float, float]:
    """Measure a model without blocks: seconds of both passes, and of the optimizer."""
    model = outline.with_blocks(0).build()
    optimizer = _optimizer_seconds(model, config)
    if not any(each.requires_grad for each in model.parameters()):
        model.ln_f.requires_grad_(True)  # the gradient passes through the head to the adapters
    loss = NextTokenLoss(model, config.dtype).train()
    batch = blank_batch(windows, config.block_size, outline.predicted)
    ids = batch if outline.predicted is None else batch[:, 0]
    ids.random_(model.config.n_vocab)

    def step(_: int) -> None:
        model.zero_grad(set_to_none=True)
        value = loss(batch)
        value.backward()
        value.item()  # waits for a GPU

    return shortest(step), optimizer


def _block(outline: Outline, config: TrainConfig, windows: int) -> tuple[float, float]:
    """Measure one block: seconds of forward and backward pass, and of the optimizer."""
    if not outline.config.n_layer:
        return 0.0, 0.0
    # A vocabulary of one token, so that the block is nearly all of the model.
    model = outline.with_blocks(1, n_vocab=1).build().train()
    reading = Reading.of(blank_batch(windows, config.block_size, outline.predicted))
    mask = reading.cache and reading.cache.mask(config.block_size)  # (B, 1, T, T)
    x = torch.randn(windows, config.block_size, model.config.n_embd, requires_grad=True)

    def step(_: int) -> None:
        model.zero_grad(set_to_none=True)
        with autocast(x.device, config.dtype):
            if config.checkpointing:
                y = checkpoint(model.h[0], x, mask, None, use_reentrant=False)
            else:
                y = model.h[0](x, mask, None)  # (B, T, C)
        total = y.sum()
        total.backward()
        total.item()  # waits for a GPU

    return shortest(step), _optimizer_seconds(model, config)


def _optimizer_seconds(model: nn.Module, config: TrainConfig) -> float:
    """Measure an update of a model's weights."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        return 0.0
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizers = build_optimizers(
        model, optimizer=config.optimizer, weight_decay=config.weight_decay
    )

    def step(_: int) -> None:
        for optimizer in optimizers:
            optimizer.step()
        trained[0].sum().item()  # waits for a GPU

    return shortest(step)


def shortest(step: Callable[[int], None], ranks: Ranks | None = None) -> float:
    """Call `step` with 0, 1, 2 … and return the seconds of the shortest call.

    The first call also warms up; the shortest one is the least disturbed by other programs.
    """
    ranks = ranks or Ranks()
    seconds: list[float] = []
    while len(seconds) < 2 or (
        len(seconds) < _MOST_PROBES and not ranks.any(sum(seconds[1:]) > _PROBE_SECONDS)
    ):
        started = time.perf_counter()
        step(len(seconds))
        seconds.append(time.perf_counter() - started)
    return min(seconds)
