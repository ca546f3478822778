"""How weights move: which of them, by which optimizer, at what rate.

Muon (orthogonalised momentum) moves the matrices inside the blocks and AdamW everything else, or AdamW moves all. Matrices and
embeddings decay, biases and gains do not; a tied head is the token embedding and is there once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from gpt2kit.errors import ConfigError
from gpt2kit.model import GPT2
from gpt2kit.training.distributed import gathered

OptimizerName = Literal["muon", "adamw"]
Schedule = Literal["cosine", "linear", "constant"]
OPTIMIZERS: tuple[OptimizerName, ...] = ("muon", "adamw")
SCHEDULES: tuple[Schedule, ...] = ("cosine", "linear", "constant")


def build_optimizers(
    model: nn.Module,
    *,
    optimizer: OptimizerName,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.95),
) -> list[Optimizer]:
    """Return the optimizers of a model's trainable parameters; their learning rate is set before each step, by `set_learning_rate`.

    Muon's updates are scaled to the size of AdamW's ("match_rms_adamw"), so one learning rate serves both.
    """
    trainable = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    if not trainable:
        raise ConfigError("no parameter is left to train; freeze less")
    hidden = {
        name
        for name in trainable
        if optimizer == "muon" and is_hidden_matrix(name, trainable[name])
    }
    optimizers: list[Optimizer] = []
    if hidden:
        matrices = [(name, trainable[name]) for name in trainable if name in hidden]
        optimizers.append(Muon(matrices, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))
    others = [(name, parameter) for name, parameter in trainable.items() if name not in hidden]
    decaying = [(name, parameter) for name, parameter in others if parameter.ndim >= 2]
    plain = [(name, parameter) for name, parameter in others if parameter.ndim < 2]
    groups = [
        {"params": decaying, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    if groups := [group for group in groups if group["params"]]:
        fused = next(iter(trainable.values())).device.type in ("cpu", "cuda")
        optimizers.append(AdamW(groups, betas=betas, fused=fused))
    return optimizers


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a matrix from one hidden layer to another, which is what Muon is for."""
    return name.startswith("h.") and parameter.ndim == 2


def named_state(optimizers: Sequence[Optimizer]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
    """Yield the name of every optimized parameter, the parameter, and the dictionary in which its optimizer keeps its state."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for name, parameter in zip(group["param_names"], group["params"], strict=True):
                yield name, parameter, optimizer.state[parameter]


def set_learning_rate(optimizers: Iterable[Optimizer], lr: float) -> None:
    """Set the learning rate of all parameters."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr


def learning_rate(
    step: int, *, lr: float, max_steps: int, warmup: int, schedule: Schedule
) -> float:
    """Return the learning rate of step 0 … max_steps - 1: up to `lr` in `warmup` steps, then down to nearly nothing, or constant."""
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    if schedule == "constant":
        return lr
    left = (max_steps - step) / (max_steps - warmup)  # from 1 down to the last step's share
    return lr * (left if schedule == "linear" else (1 - math.cos(math.pi * left)) / 2)


def clip_gradients(parameters: Iterable[Tensor], largest: float) -> float:
    """Scale the gradients down to the norm `largest` (0: leave them) and return the norm they had; one that is not finite is left."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = float(gathered(nn.utils.get_total_norm(gradients)))
    if math.isfinite(norm) and norm > largest > 0:
        torch._foreach_mul_(gradients, largest / norm)
    return norm


def freeze(model: GPT2, what: str) -> None:
    """Exclude parts of a model from training, such as `embeddings,blocks:0-5`.

    Raises ConfigError for a part that a GPT-2 does not have.
    """
    for part in filter(None, (part.strip() for part in what.split(","))):
        pattern = _pattern(part, model.config.n_layer)
        for name, parameter in model.named_parameters():
            if re.match(pattern, name):
                parameter.requires_grad_(False)


_PARTS = {
    "embeddings": r"(wte|wpe)\.",
    "norms": r"(ln_f|h\.\d+\.ln_[12])\.",
    "attention": r"h\.\d+\.attn\.",
    "mlp": r"h\.\d+\.mlp\.",
    "head": r"lm_head\.",
}


def _pattern(part: str, n_layer: int) -> str:
    """Return the regular expression of the names of a part's parameters."""
    if part in _PARTS:
        return _PARTS[part]
    blocks = re.fullmatch(r"blocks:(\d+)(?:-(\d+))?", part)
    if blocks is None:
        raise ConfigError(
            f"freeze is {part!r}, expected {', '.join(_PARTS)} or blocks:FIRST-LAST, such as blocks:0-5"
        )
    first, last = int(blocks[1]), int(blocks[2] or blocks[1])
    if not first <= last < n_layer:
        raise ConfigError(f"freeze is {part!r}, but the model has the blocks 0 to {n_layer - 1}")
    return rf"h\.({'|'.join(map(str, range(first, last + 1)))})\."
