"""A model made ready to train: the module that computes its loss, its optimizers, its batches."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from gpt2kit.data.batches import Batches
from gpt2kit.errors import ConfigError, Gpt2KitWarning
from gpt2kit.model import GPT2
from gpt2kit.training.config import TrainConfig
from gpt2kit.training.distributed import Ranks
from gpt2kit.training.loss import NextTokenLoss
from gpt2kit.training.optim import build_optimizers
from gpt2kit.training.readings import n_predicted
from gpt2kit.training.sharding import reshard_after_eval, shard


class Trainer:
    """A model with all that a training step needs.

    Raises ConfigError for weights, settings and processes that do not go together.
    """

    def __init__(self, model: GPT2, corpus: Batches, config: TrainConfig, ranks: Ranks) -> None:
        if model.dtype != torch.float32:
            found = str(model.dtype).removeprefix("torch.")
            raise ConfigError(
                f"the weights are {found}, expected float32; dtype in the configuration is that of "
                "matrix products"
            )
        self.model, self.corpus, self.config, self.ranks = model, corpus, config, ranks
        self.module = self._module()  # computes the mean loss of windows or rows
        self.optimizers = build_optimizers(
            model,
            optimizer=config.optimizer,
            weight_decay=config.weight_decay,
            betas=(config.beta1, config.beta2),
        )
        self.parameters = {
            name: each for name, each in model.named_parameters() if each.requires_grad
        }
        if config.batch_size % ranks.world_size:
            raise ConfigError(
                f"batch_size is {config.batch_size}, expected a multiple of the "
                f"{ranks.world_size} processes that share it"
            )
        # A process that has fewer windows than `accumulate` cuts them into fewer parts.
        self._n_parts = math.gcd(config.accumulate, config.batch_size // ranks.world_size)
        self._loss: Callable[[Tensor], Tensor] = self.module
        if config.compile:
            self._loss = _compiled(self.module, self._parts(0)[0].to(model.device))

    def _module(self) -> nn.Module:
        """Return the module that computes the loss, prepared for several processes."""
        module = NextTokenLoss(self.model, self.config.dtype, self.config.checkpointing)
        if not self.ranks.sharded:
            return self.ranks.wrap(module)
        if self.config.compile:
            raise ConfigError(
                "--compile does not work on a model in shards; leave out --compile or --shard"
            )
        shard(self.model, self.ranks)
        reshard_after_eval(module, self.model)
        return module

    def losses(self, step: int) -> Iterator[Tensor]:
        """Yield the loss of each part of a step's batch, (), which add up to the batch's mean loss.

        Call backward() on each before taking the next: several processes average their gradients
        during the last one. Torch's global random stream is seeded first.
        """
        key = (step, self.ranks.rank)
        sequence = np.random.SeedSequence(self.config.seed, spawn_key=key)
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
        parts = self._parts(step)
        counts = [n_predicted(part) for part in parts]
        # Of rows of examples, parts and processes have different numbers of targets.
        in_process = self.ranks.mean(sum(counts))
        for number, (part, count) in enumerate(zip(parts, counts, strict=True), 1):
            with self.ranks.sync_gradients(self.module, number == len(parts)):
                yield self._loss(part.to(self.model.device)) / (in_process / count)

    def _parts(self, step: int) -> tuple[Tensor, ...]:
        """Return this process's share of a step's batch, on the CPU, in parts."""
        batch = self.corpus.batch(
            "train",
            step,
            block_size=self.config.block_size,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            shuffle=self.config.shuffle,
            stride=self.config.stride,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
        )  # (B, T + 1) windows or (B, 3, T) rows
        return batch.chunk(self._n_parts)


def _compiled(module: nn.Module, ids: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the compiled module, or with a warning the module itself if torch cannot compile."""
    compiled: Callable[[Tensor], Tensor] = torch.compile(module)
    try:
        module.train()
        compiled(ids).backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # many kinds: no compiler, no headers, an unsupported processor
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        message = f"torch cannot compile here ({reason}): training continues without"
        warnings.warn(message, Gpt2KitWarning, stacklevel=2)
        return module
    return compiled
