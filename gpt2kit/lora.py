"""Low-rank adapters: add, train, save, merge.

Beside each matrix W of a block lie two thin ones, and the layer computes W x + (alpha / rank) B A x (Hu et al. 2021). Only A and B are
trained: a fraction of the memory for gradients and optimizer, and a few megabytes to save.

    C input width, O output width, R rank
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gpt2kit.errors import CheckpointFormatError, CheckpointNotFoundError, ConfigError
from gpt2kit.files import read_json
from gpt2kit.model import GPT2
from gpt2kit.store import ADAPTERS_FILE

WEIGHTS_FILE = "adapter.safetensors"
CONFIG_FILE = ADAPTERS_FILE
_LAYERS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


class LoRALinear(nn.Linear):
    """A linear layer whose weights stay, and an update of low rank that is learned; it begins as zero."""

    lora_a: nn.Parameter  # (R, C)
    lora_b: nn.Parameter  # (O, R)
    scale: float

    @classmethod
    def beside(cls, linear: nn.Linear, rank: int, alpha: float, generator: torch.Generator | None = None) -> LoRALinear:
        """Return the layer with an adapter, sharing the layer's own parameters."""
        with torch.device("meta"):
            layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        layer.weight, layer.bias = linear.weight, linear.bias
        draws = torch.randn(rank, linear.in_features, generator=generator) / math.sqrt(linear.in_features)
        layer.lora_a = nn.Parameter(draws.to(linear.weight))
        layer.lora_b = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        layer.scale = alpha / rank
        return layer

    def forward(self, x: Tensor) -> Tensor:
        update = nn.functional.linear(nn.functional.linear(x, self.lora_a), self.lora_b)  # (…, C) -> (…, R) -> (…, O)
        return super().forward(x) + self.scale * update

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return a plain layer that computes the same."""
        with torch.device("meta"):
            linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        linear.weight = nn.Parameter(self.weight + self.scale * self.lora_b @ self.lora_a)  # (O, C)
        linear.bias = self.bias
        return linear


def add_adapters(model: GPT2, rank: int, *, alpha: float | None = None, seed: int = 0) -> None:
    """Put an adapter beside every matrix of the blocks, and leave nothing else to train. `alpha` is twice the rank unless given."""
    smallest = min(model.config.n_embd, model.config.inner_size)
    if not 1 <= rank <= smallest:
        raise ConfigError(f"lora_rank is {rank}, expected 1 to {smallest}, the smallest side of the model's matrices")
    alpha = 2.0 * rank if alpha is None else alpha
    if not 0 < alpha < math.inf:
        raise ConfigError(f"lora_alpha is {alpha}, expected more than 0")
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    for block in model.h:
        for name in _LAYERS:
            part, _, layer = name.partition(".")
            parent = block.get_submodule(part)
            setattr(parent, layer, LoRALinear.beside(getattr(parent, layer), rank, alpha, generator))


def settings(model: GPT2) -> dict[str, Any] | None:
    """Return the rank and alpha of a model's adapters, or None where it has none."""
    layer = next((layer for layer in model.modules() if isinstance(layer, LoRALinear)), None)
    return None if layer is None else {"rank": len(layer.lora_a), "alpha": layer.scale * len(layer.lora_a)}


def merge_adapters(model: GPT2) -> None:
    """Fold all adapters into the weights: the model computes the same, and is a plain one again."""
    for block in model.h:
        for name in _LAYERS:
            part, _, layer = name.partition(".")
            parent = block.get_submodule(part)
            if isinstance(adapted := getattr(parent, layer), LoRALinear):
                setattr(parent, layer, adapted.merged())
    model.requires_grad_(True)


def save_adapters(folder: Path, model: GPT2, *, base: str, base_sha256: str) -> None:
    """Write the adapters, and which model's they are, into an existing folder."""
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters() if ".lora_" in name}
    about = {"base": base, "base_sha256": base_sha256, **(settings(model) or {})}
    save_file(tensors, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def read_adapters(folder: Path) -> dict[str, Any]:
    """Return what adapter.json says: base, base_sha256, rank and alpha."""
    if not (folder / CONFIG_FILE).exists():
        message = f"{folder}: no adapters; expected {CONFIG_FILE} and {WEIGHTS_FILE}"
        raise CheckpointNotFoundError(message, path=folder, missing=[CONFIG_FILE])
    about = read_json(folder / CONFIG_FILE)
    if not isinstance(about.get("base"), str) or type(about.get("rank")) is not int or not isinstance(about.get("alpha"), int | float):
        raise CheckpointFormatError(folder / CONFIG_FILE, "expected base, rank and alpha")
    return about


def load_adapters(folder: Path, model: GPT2) -> None:
    """Set the adapters of a model to those in a folder; raises CheckpointFormatError unless they fit."""
    try:
        found = load_file(folder / WEIGHTS_FILE)
    except Exception as error:  # safetensors has several for a damaged file
        raise CheckpointFormatError(folder / WEIGHTS_FILE, f"cannot be read: {error}") from error
    wanted = {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}
    if {name: tensor.shape for name, tensor in found.items()} != {name: parameter.shape for name, parameter in wanted.items()}:
        raise CheckpointFormatError(folder / WEIGHTS_FILE, "these adapters are for a model of another shape")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(found[name])
