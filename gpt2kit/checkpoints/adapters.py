"""The files of low-rank adapters: adapter.json and the adapters' own tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from gpt2kit.errors import CheckpointError, CheckpointFormatError, CheckpointNotFoundError
from gpt2kit.files import read_json
from gpt2kit.lora import settings
from gpt2kit.model import GPT2
from gpt2kit.store import ADAPTERS_FILE as CONFIG_FILE

WEIGHTS_FILE = "adapter.safetensors"


def save_adapters(folder: Path, model: GPT2, *, base: str, base_sha256: str) -> None:
    """Write the adapters, and which model's they are, into an existing folder."""
    tensors = {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if ".lora_" in name
    }
    about = {"base": base, "base_sha256": base_sha256, **(settings(model) or {})}
    save_file(tensors, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def read_adapters(folder: Path) -> dict[str, Any]:
    """Return what adapter.json says: base, base_sha256, rank and alpha."""
    if not (folder / CONFIG_FILE).exists():
        message = f"{folder}: no adapters; expected {CONFIG_FILE} and {WEIGHTS_FILE}"
        raise CheckpointNotFoundError(message, path=folder, missing=[CONFIG_FILE])
    about = read_json(folder / CONFIG_FILE, error=CheckpointError)
    if (
        not isinstance(about.get("base"), str)
        or type(about.get("rank")) is not int
        or not isinstance(about.get("alpha"), int | float)
    ):
        raise CheckpointFormatError(folder / CONFIG_FILE, "expected base, rank and alpha")
    return about


def load_adapters(folder: Path, model: GPT2) -> None:
    """Set the adapters of a model to those in a folder; raises CheckpointFormatError unless they fit."""
    try:
        found = load_file(folder / WEIGHTS_FILE)
    except Exception as error:  # safetensors has several for a damaged file
        raise CheckpointFormatError(folder / WEIGHTS_FILE, f"cannot be read: {error}") from error
    wanted = {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}
    if {name: tensor.shape for name, tensor in found.items()} != {
        name: parameter.shape for name, parameter in wanted.items()
    }:
        raise CheckpointFormatError(
            folder / WEIGHTS_FILE, "these adapters are for a model of another shape"
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(found[name])
