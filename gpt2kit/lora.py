"""Low-rank adapters: add, train, merge.

Each matrix W of a block gets two thin matrices A and B, and the layer computes W x + (alpha / rank)
B A x (Hu et al. 2021). Only A and B are trained: gradients and optimizer need a fraction of the
memory, and saving takes a few megabytes.

    C input width, O output width, R rank
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gpt2kit.errors import ConfigError
from gpt2kit.model import GPT2
from gpt2kit.variants import Linear

_LAYERS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


class LoRALinear(nn.Linear):
    """A linear layer with fixed weights and a learned update of low rank, at first zero."""

    lora_a: nn.Parameter  # (R, C)
    lora_b: nn.Parameter  # (O, R)
    scale: float

    @classmethod
    def beside(
        cls, linear: nn.Linear, rank: int, alpha: float, generator: torch.Generator | None = None
    ) -> LoRALinear:
        """Return a layer with an adapter that shares the given layer's parameters."""
        with torch.device("meta"):
            layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        layer.weight, layer.bias = linear.weight, linear.bias
        draws = torch.randn(rank, linear.in_features, generator=generator) / math.sqrt(
            linear.in_features
        )
        layer.lora_a = nn.Parameter(draws.to(linear.weight))
        layer.lora_b = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        layer.scale = alpha / rank
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer and its adapter: (…, C) -> (…, O)."""
        reduced = nn.functional.linear(x, self.lora_a)  # (…, C) -> (…, R)
        update = nn.functional.linear(reduced, self.lora_b)  # (…, R) -> (…, O)
        return super().forward(x) + self.scale * update

    @torch.no_grad()
    def merged(self) -> Linear:
        """Return a plain layer of the model's own class that computes the same function."""
        with torch.device("meta"):
            linear = Linear(self.in_features, self.out_features, bias=self.bias is not None)
        linear.weight = nn.Parameter(updated(self.weight, self.lora_a, self.lora_b, self.scale))
        linear.bias = self.bias
        return linear


def updated(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return W + scale B A in the dtype of W: (O, C), (R, C), (O, R) -> (O, C).

    The sum is made in float64, so that every machine rounds it to the same numbers.
    """
    wide = torch.float32 if weight.device.type == "mps" else torch.float64  # MPS has no float64
    update = b.to(wide) @ a.to(wide)  # (O, C)
    return torch.add(weight.to(wide), update, alpha=scale).to(weight.dtype)


def add_adapters(model: GPT2, rank: int, *, alpha: float | None = None, seed: int = 0) -> None:
    """Add an adapter to every matrix of the blocks, and freeze everything else.

    `alpha` is twice the rank unless given. Raises ConfigError for a rank or alpha out of range.
    """
    smallest = min(model.config.n_embd, model.config.inner_size)
    if not 1 <= rank <= smallest:
        limit = f"{smallest}, the smallest dimension of the model's matrices"
        raise ConfigError(f"lora_rank is {rank}, expected 1 to {limit}")
    alpha = 2.0 * rank if alpha is None else alpha
    if not 0 < alpha <= sys.float_info.max:  # integers can be larger
        found = "too large" if alpha > 0 else alpha
        raise ConfigError(f"lora_alpha is {found}, expected a finite number above 0")
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    for parent, layer in matrices(model):
        setattr(parent, layer, LoRALinear.beside(getattr(parent, layer), rank, alpha, generator))


def matrices(model: GPT2) -> Iterator[tuple[nn.Module, str]]:
    """Yield every matrix of the blocks: the module that has it, and its name there."""
    for block in model.h:
        for part, layer in (name.split(".") for name in _LAYERS):
            if hasattr(block, part):  # a block may have no MLP
                yield block.get_submodule(part), layer


def weight_of(layer: nn.Linear) -> Tensor:
    """Return the matrix that a layer multiplies by, (O, C), the update of its adapter included."""
    return layer.merged().weight if isinstance(layer, LoRALinear) else layer.weight


def settings(model: GPT2) -> dict[str, Any] | None:
    """Return the rank and alpha of a model's adapters, or None if it has none."""
    layer = next((layer for layer in model.modules() if isinstance(layer, LoRALinear)), None)
    if layer is None:
        return None
    rank = len(layer.lora_a)
    return {"rank": rank, "alpha": layer.scale * rank}


def merge_adapters(model: GPT2) -> None:
    """Add all adapters to the weights: a plain model again, which computes the same function."""
    for parent, layer in matrices(model):
        if isinstance(adapted := getattr(parent, layer), LoRALinear):
            setattr(parent, layer, adapted.merged())
    model.requires_grad_(True)
