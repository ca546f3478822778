"""Which parameters are trained, by which optimizer, and at what learning rate.

Muon (orthogonalized momentum) updates the matrices inside the blocks and AdamW everything else, or
AdamW updates everything. Matrices and embeddings decay; biases and gains do not. A tied head is the
token embedding, and is optimized once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from gpt2kit.errors import ConfigError
from gpt2kit.model import GPT2
from gpt2kit.training.config import OptimizerName, TrainConfig
from gpt2kit.training.distributed import gathered


def build_optimizers(
    model: nn.Module,
    *,
    optimizer: OptimizerName,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.95),
) -> list[Optimizer]:
    """Return the optimizers of a model's trainable parameters.

    `set_learning_rate` sets their learning rate before each step: one for all, since Muon's updates
    are scaled to the size of AdamW's ("match_rms_adamw"). Raises ConfigError if no parameter is
    trainable.
    """
    trainable = [(name, each) for name, each in model.named_parameters() if each.requires_grad]
    if not trainable:
        raise ConfigError("no parameter is left to train; freeze less")
    hidden, others = [], trainable
    if optimizer == "muon":
        hidden = [(name, each) for name, each in trainable if is_hidden_matrix(name, each)]
        others = [(name, each) for name, each in trainable if not is_hidden_matrix(name, each)]
    optimizers: list[Optimizer] = []
    if hidden:
        optimizers.append(Muon(hidden, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))
    groups: list[dict[str, Any]] = [
        {"params": [(name, each) for name, each in others if each.ndim >= 2]},
        {"params": [(name, each) for name, each in others if each.ndim < 2], "weight_decay": 0.0},
    ]
    if groups := [group for group in groups if group["params"]]:
        fused = trainable[0][1].device.type in ("cpu", "cuda")
        optimizers.append(AdamW(groups, weight_decay=weight_decay, betas=betas, fused=fused))
    return optimizers


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a matrix between two hidden layers, which is what Muon is made for."""
    return name.startswith("h.") and parameter.ndim == 2


def named_state(optimizers: Sequence[Optimizer]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
    """Yield each optimized parameter's name, the parameter, and what its optimizer keeps for it."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for name, parameter in zip(group["param_names"], group["params"], strict=True):
                yield name, parameter, optimizer.state[parameter]


def set_learning_rate(optimizers: Iterable[Optimizer], lr: float) -> None:
    """Set the learning rate of all parameters."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the learning rate of a step, counted from 0.

    It rises to `config.lr` during `warmup` steps, then falls to nearly zero, or stays:
    with `warmdown`, up to that many steps before the end.
    """
    if step < config.warmup:
        return config.lr * (step + 1) / (config.warmup + 1)
    if config.schedule == "constant":
        return config.lr * min(1.0, (config.max_steps - step) / (config.warmdown + 1))
    left = (config.max_steps - step) / (config.max_steps - config.warmup)  # from 1 down to nearly 0
    return config.lr * (left if config.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2)


def clip_gradients(
    parameters: Mapping[str, Tensor], largest: float
) -> tuple[float, dict[str, float]]:
    """Scale the gradients down to the norm `largest`; return the norms that they had.

    These are the norm of all gradients together, and that of each part of the model that has any:
    a block, `h.0`, or a module outside of the blocks, such as `wte` and `ln_f`. A largest norm of 0
    leaves the gradients as they are, and so does a norm that is not finite.
    """
    named = [(name, each.grad) for name, each in parameters.items() if each.grad is not None]
    gradients = [gradient for _, gradient in named]
    each_norm = torch.stack(torch._foreach_norm(gradients))  # (number of gradients,)
    norm = float(gathered(torch.linalg.vector_norm(each_norm)))
    parts: dict[str, list[float]] = {}
    for (name, _), of_one in zip(named, gathered(each_norm).tolist(), strict=True):
        parts.setdefault(_part(name), []).append(of_one)
    if math.isfinite(norm) and norm > largest > 0:
        torch._foreach_mul_(gradients, largest / norm)
    return norm, {part: math.hypot(*norms) for part, norms in parts.items()}


def _part(name: str) -> str:
    """Return the block, or the module outside of the blocks, that a parameter belongs to."""
    first, *rest = name.split(".")
    return f"h.{rest[0]}" if first == "h" else first


def freeze(model: GPT2, what: str) -> None:
    """Exclude parts of a model from training, such as `embeddings,blocks:0-5`.

    Raises ConfigError for a part that the model does not have.
    """
    for part in filter(None, (part.strip() for part in what.split(","))):
        pattern = _pattern(part, model.config.n_layer)
        found = [each for name, each in model.named_parameters() if re.match(pattern, name)]
        if not found:
            is_tied = part == "head" and model.config.tie_word_embeddings
            why = "its weights are those of the embeddings" if is_tied else "the model has none"
            raise ConfigError(f"freeze is {part!r}, but {why}; leave it out")
        for parameter in found:
            parameter.requires_grad_(False)


_PARTS = {
    "embeddings": r"(wte|wpe)\.",
    "norms": r"(ln_f|h\.\d+\.ln_[12])\.",
    "attention": r"h\.\d+\.attn\.",
    "mlp": r"h\.\d+\.mlp\.",
    "head": r"lm_head\.",
}


def _pattern(part: str, n_layer: int) -> str:
    """Return a regular expression that matches the names of a part's parameters."""
    if part in _PARTS:
        return _PARTS[part]
    blocks = re.fullmatch(r"blocks:(\d+)(?:-(\d+))?", part)
    if blocks is None:
        raise ConfigError(
            f"freeze is {part!r}, expected {', '.join(_PARTS)} or blocks:FIRST-LAST, "
            "such as blocks:0-5"
        )
    first, last = int(blocks[1]), int(blocks[2] or blocks[1])
    if not first <= last < n_layer:
        raise ConfigError(f"freeze is {part!r}, but the model has the blocks 0 to {n_layer - 1}")
    return rf"h\.({'|'.join(map(str, range(first, last + 1)))})\."
