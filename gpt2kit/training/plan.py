"""What a training will need, before it starts: memory by part, and how to fit into what there is."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from gpt2kit.config import GPT2Config
from gpt2kit.data.corpus import Corpus
from gpt2kit.model import GPT2
from gpt2kit.training.config import TrainConfig
from gpt2kit.training.distributed import Ranks
from gpt2kit.training.loss import FEW_LOGITS, LOGITS_AT_ONCE
from gpt2kit.training.optim import is_hidden_matrix, set_learning_rate
from gpt2kit.training.trainer import Trainer

_MARGIN = 0.9  # of the free memory may be planned for
_MOST_PROBES, _PROBE_SECONDS = 20, 0.5  # steps that are timed; no further one after so many seconds


def memory(model: GPT2, config: TrainConfig, ranks: Ranks | None = None) -> dict[str, int]:
    """Return the bytes that a training needs in each process, by part; activations are an estimate."""
    ranks = ranks or Ranks()
    trained = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    n_trained = sum(parameter.numel() for parameter in trained.values())
    # AdamW keeps two averages of each parameter, Muon one.
    n_muon = sum(
        p.numel()
        for name, p in trained.items()
        if config.optimizer == "muon" and is_hidden_matrix(name, p)
    )
    n_params = sum(parameter.numel() for parameter in model.parameters())
    windows = config.batch_size // config.accumulate // ranks.world_size
    shards = ranks.world_size if ranks.sharded else 1
    gathered = _gathered(model) if ranks.sharded else 0
    return {
        "weights": 4 * (n_params // shards + gathered),
        "gradients": 4 * (n_trained // shards + min(n_trained, gathered)),
        "optimizer": 4 * (2 * n_trained - n_muon) // shards,
        "activations": _activations(model.config, config, max(1, windows))
        + (2 * n_params if config.dtype == "bfloat16" else 0),
    }


def _gathered(model: GPT2) -> int:
    """Return how many parameters of a model in shards are whole at once: those outside of the blocks, and two blocks."""
    blocks = [sum(parameter.numel() for parameter in block.parameters()) for block in model.h]
    return (
        sum(parameter.numel() for parameter in model.parameters()) - sum(blocks) + sum(blocks[:2])
    )


def _activations(shape: GPT2Config, config: TrainConfig, windows: int) -> int:
    """Estimate what the backward pass needs of the forward pass, for so many windows at once."""
    C, T, size = shape.n_embd, config.block_size, 2 if config.dtype == "bfloat16" else 4
    # Per token and block: the residual stream twice and two normalised copies in float32; queries, keys, values, heads' output and
    # two inputs of matrices in the working precision; two masks of dropout; the hidden layer of the MLP before and after.
    block = 16 * C + 7 * size * C + 2 * C + 2 * size * shape.inner_size
    if shape.attn_pdrop and not torch.cuda.is_available():
        block += T * shape.n_head  # a CPU keeps which of the attention weights were dropped
    blocks = shape.n_layer * 4 * C + block if config.checkpointing else shape.n_layer * block
    logits = windows * T * shape.n_vocab
    logits = 3 * 4 * logits if logits <= FEW_LOGITS else size * min(logits, LOGITS_AT_ONCE)
    return windows * T * (blocks + 16 * C) + logits


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that are free on a device, or None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            values = dict(line.split(":", 1) for line in file)
        return int(values["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def fit(
    model: GPT2, config: TrainConfig, free: int, *, fixed: set[str], ranks: Ranks | None = None
) -> TrainConfig:
    """Return the configuration, with smaller parts of a batch or with checkpointing where it needs more memory than is free.

    Both change what a step costs and not what it computes; what is in `fixed` stays. The result may still not fit.
    """

    def fits(candidate: TrainConfig) -> bool:
        return sum(memory(model, candidate, ranks).values()) <= _MARGIN * free

    world_size = 1 if ranks is None else ranks.world_size
    if "accumulate" not in fixed:
        for accumulate in range(config.accumulate + 1, config.batch_size // world_size + 1):
            if fits(config):
                break
            if config.batch_size % (accumulate * world_size) == 0:
                config = replace(config, accumulate=accumulate)
    if "checkpointing" not in fixed and not fits(config):
        config = replace(config, checkpointing=True)
    return config


def advice(needed: int, free: int) -> str | None:
    """Say what would help where a training does not fit, else None."""
    if needed <= _MARGIN * free:
        return None
    return (
        "this will not fit: --lora_rank 8 trains few parameters, --block_size 128 and --batch_size 1 take less, and so does a smaller "
        "model; torchrun with --shard divides the model among several devices"
    )


def seconds_per_step(
    model: GPT2, corpus: Corpus, config: TrainConfig, ranks: Ranks | None = None
) -> float:
    """Return how long a step takes, where nothing else is in its way: the shortest of some.

    They are made at a learning rate of zero, which leaves the weights as they are. The first is long, for memory and kernels are
    made ready; others are, where the machine has something else to do for a moment.
    """
    ranks = ranks or Ranks()
    trainer = Trainer(model, corpus, config, ranks)
    set_learning_rate(trainer.optimizers, 0.0)
    model.train()
    seconds: list[float] = []
    while len(seconds) < 2 or (
        len(seconds) < _MOST_PROBES and not ranks.any(sum(seconds[1:]) > _PROBE_SECONDS)
    ):
        started = time.perf_counter()
        model.zero_grad(set_to_none=True)
        for loss in trainer.losses(len(seconds)):
            loss.backward()  # type: ignore[no-untyped-call]
            loss.item()  # waits for a GPU
        for optimizer in trainer.optimizers:
            optimizer.step()
        seconds.append(time.perf_counter() - started)
    model.zero_grad(set_to_none=True)
    return min(seconds)
