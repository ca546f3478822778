"""The files of low-rank adapters: adapter.json and adapter.safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from gpt2kit.checkpoints.safetensors_files import read_safetensors, write_safetensors
from gpt2kit.checkpoints.stored import StoredTensor, check_finite
from gpt2kit.errors import CheckpointError, CheckpointFormatError, CheckpointNotFoundError
from gpt2kit.files import read_json
from gpt2kit.lora import settings
from gpt2kit.model import GPT2
from gpt2kit.store import ADAPTERS_FILE as CONFIG_FILE

WEIGHTS_FILE = "adapter.safetensors"


def save_adapters(folder: Path, model: GPT2, *, base: str, base_sha256: str) -> None:
    """Write a model's adapters, and the name of their base model, into an existing folder."""
    tensors = {
        name: StoredTensor.of(parameter)
        for name, parameter in model.named_parameters()
        if ".lora_" in name
    }
    about = {"base": base, "base_sha256": base_sha256, **(settings(model) or {})}
    with (folder / WEIGHTS_FILE).open("wb") as file:
        write_safetensors(file, tensors)
    (folder / CONFIG_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def read_adapters(folder: Path) -> dict[str, Any]:
    """Return the content of adapter.json: base, base_sha256, rank and alpha.

    Raises CheckpointError if it is missing or damaged.
    """
    path = folder / CONFIG_FILE
    if not path.exists():
        message = f"{folder}: no adapters; expected {CONFIG_FILE} and {WEIGHTS_FILE}"
        raise CheckpointNotFoundError(message, path=folder, missing=[CONFIG_FILE])
    about = read_json(path, error=CheckpointError)
    types: dict[str, tuple[type, ...]] = {"base": (str,), "rank": (int,), "alpha": (int, float)}
    if any(type(about.get(name)) not in kinds for name, kinds in types.items()):  # true is an int
        raise CheckpointFormatError(path, "expected base, rank and alpha")
    return about


def load_adapters(folder: Path, model: GPT2) -> None:
    """Set the adapters of a model to those in a folder.

    Raises CheckpointFormatError if they are damaged, with a NaN or an infinity, or have other names
    or shapes.
    """
    path = folder / WEIGHTS_FILE
    wanted = {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}
    found = read_safetensors(path)
    shapes = {name: tuple(parameter.shape) for name, parameter in wanted.items()}
    if {name: stored.shape for name, stored in found.items()} != shapes:
        raise CheckpointFormatError(path, "these adapters are for a model of another shape")
    with torch.no_grad():
        for name, parameter in wanted.items():
            tensor = found[name].read()
            check_finite(path, name, tensor)
            parameter.copy_(tensor)
