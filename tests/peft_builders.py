"""Write folders of LoRA adapters as PEFT saves them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from builders import write_hub
from safetensors.torch import save_file
from torch import Tensor

from gpt2kit.model import GPT2

PREFIX = "base_model.model."


def pair(module: str, n_in: int, n_out: int, rank: int, seed: int = 0) -> dict[str, Tensor]:
    """Return random matrices of an adapter under PEFT's names."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{PREFIX}{module}.lora_A.weight": torch.randn(rank, n_in, generator=generator) / 8,
        f"{PREFIX}{module}.lora_B.weight": torch.randn(n_out, rank, generator=generator) / 8,
    }


def attention_pairs(model: GPT2, rank: int = 2) -> dict[str, Tensor]:
    """Return adapters of every attn.c_attn, PEFT's default for GPT-2."""
    width = model.config.n_embd
    found: dict[str, Tensor] = {}
    for layer in range(model.config.n_layer):
        found |= pair(f"transformer.h.{layer}.attn.c_attn", width, 3 * width, rank, seed=layer)
    return found


def write_peft(
    folder: Path,
    tensors: Mapping[str, Tensor],
    base: str | Path,
    *,
    weights: str = "adapter_model.safetensors",
    **fields: Any,
) -> Path:
    """Write adapter_config.json, its fields changed by `fields`, and the tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": 2,
        "lora_alpha": 4,
        "bias": "none",
        "fan_in_fan_out": True,
        "target_modules": ["c_attn"],
        **fields,
    }
    (folder / "adapter_config.json").write_text(json.dumps(content))
    state = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if weights.endswith(".bin"):
        torch.save(state, folder / weights)
    else:
        save_file(state, folder / weights, {"format": "pt"})
    return folder


def adapted(folder: Path, model: GPT2, **fields: Any) -> Path:
    """Write a model and adapters of its attention; return the folder of the adapters."""
    base = write_hub(folder / "base", model)
    return write_peft(folder / "peft", attention_pairs(model), base, **fields)
