"""Hugging Face folders: safetensors or torch files, whole or in shards, in; safetensors out."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gpt2kit.checkpoints import pickled
from gpt2kit.checkpoints.config_json import CONFIG_FILE, config_dict, read_config
from gpt2kit.checkpoints.names import (
    BUFFERS,
    CLASS_HEAD,
    VALUE_HEAD,
    holds_linear,
    plain_names,
)
from gpt2kit.checkpoints.safetensors_files import read_safetensors, write_safetensors
from gpt2kit.checkpoints.stored import Checkpoint, StoredTensor, transpose_if_conv1d
from gpt2kit.config import GPT2Config
from gpt2kit.errors import (
    CheckpointError,
    CheckpointFormatError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    Gpt2KitWarning,
)
from gpt2kit.files import impostor, read_json, read_start

WEIGHTS_FILE = "model.safetensors"
_WEIGHTS_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_LARGEST_INDEX = 2**24  # bytes

# --- reading --------------------------------------------------------------------------------------


def open_directory(path: Path) -> Checkpoint:
    """Open a Hugging Face folder: its configuration, and where each tensor is."""
    config = read_config(path / CONFIG_FILE)
    found = weights_in(path)
    if not found:
        message = f"{path}: no weights; expected one of {', '.join(_WEIGHTS_FILES)}"
        if holds_graph(path):
            message = (
                f"{path}: a graph for programs that compute with ONNX, and no weights; expected "
                "the model that it was made of"
            )
        raise CheckpointNotFoundError(message, path=path, missing=_WEIGHTS_FILES[:1])
    if found[0].suffix == ".json":
        return _open_shards(found[0], config)
    return open_file(found[0], config)


def holds_graph(path: Path) -> bool:
    """Whether a folder has an ONNX graph for other programs, and no weights."""
    graphs = (*path.glob("*.onnx"), *path.glob("onnx/*.onnx"))
    return bool(graphs) and not weights_in(path)


def weights_in(path: Path) -> list[Path]:
    """Return the files of a folder whose names are those of transformers' weights."""
    return [path / name for name in _WEIGHTS_FILES if (path / name).exists()]


def open_file(path: Path, config: GPT2Config) -> Checkpoint:
    """Open one weights file; its content decides how it is read, not its name."""
    tensors, kind = read_headers(path)
    return _checkpoint(path, kind, config, {path: tensors})


def _open_shards(index: Path, config: GPT2Config) -> Checkpoint:
    """Open the weights files that an index lists; it must name the file of every tensor."""
    content = read_json(index, largest=_LARGEST_INDEX, error=CheckpointError)
    files = content.get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise CheckpointFormatError(index, "expected a weight_map from tensor names to files")
    by_file: dict[Path, dict[str, StoredTensor]] = {}
    kind = ""
    for name in sorted(set(files.values())):
        # The index may be hostile: a shard is a plain name in this folder, never a path.
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,200}", name) or name.startswith("."):
            raise CheckpointFormatError(index, f"shard {name[:80]!r} is not a plain file name")
        tensors, kind = read_headers(index.parent / name)
        by_file[index.parent / name] = tensors
        listed = {tensor for tensor, file in files.items() if file == name}
        # Older versions of transformers saved masks, and listed them or not.
        different = [tensor for tensor in listed ^ tensors.keys() if not tensor.endswith(BUFFERS)]
        if different:
            detail = f"the index and {name} disagree on {', '.join(sorted(different)[:5])}"
            raise CheckpointFormatError(index, f"{detail}; are all shards of one model?")
    return _checkpoint(index.parent, f"{kind}, {len(by_file)} files", config, by_file)


def read_headers(path: Path) -> tuple[dict[str, StoredTensor], str]:
    """Return the tensors of a file as they are there, and the name of its format."""
    start = read_start(path, error=CheckpointError)
    if explanation := impostor(start):
        raise CheckpointFormatError(path, explanation)
    if pickled.is_pickled(start):
        return _pickled_tensors(path), "torch file"
    return read_safetensors(path), "safetensors"


def _pickled_tensors(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a file of torch.save, without masks, whose dtype may be any."""
    file = pickled.open_file(path)
    content = file.content
    if isinstance(content.get("state_dict"), dict):  # as PyTorch Lightning and others wrap it
        content = content["state_dict"]
    # Names should be texts; a number is shown as one in the list of unexpected tensors.
    named = {str(name): value for name, value in content.items()}
    return {
        name: file.tensor(name, value)
        for name, value in named.items()
        if not name.endswith(BUFFERS)
    }


def _checkpoint(
    path: Path, kind: str, config: GPT2Config, by_file: Mapping[Path, Mapping[str, StoredTensor]]
) -> Checkpoint:
    """Bring the tensors of all files under our names and into our orientation."""
    stored: dict[str, StoredTensor] = {}
    for file, tensors in by_file.items():
        twice = [name for name in stored.keys() & tensors.keys() if not name.endswith(BUFFERS)]
        if twice:
            raise CheckpointFormatError(file, f"{min(twice)} is in another file, too")
        stored |= tensors
    names = plain_names(stored, path)
    skipped = tuple(sorted(stored.keys() - names.values()))
    if heads := [name for name in skipped if VALUE_HEAD in name]:
        listed = ", ".join(ascii(name[:60])[1:-1] for name in heads[:4])
        message = f"{path}: {listed} left out: the value head of TRL, which is not needed for text"
        warnings.warn(message, Gpt2KitWarning, stacklevel=2)
    ours = {name: stored[theirs] for name, theirs in names.items()}
    if holds_linear({name: tensor.shape for name, tensor in ours.items()}):
        kind += ", matrices of nn.Linear"
    else:
        ours = {name: transpose_if_conv1d(name, tensor) for name, tensor in ours.items()}
    tied_copy = ours.pop("lm_head.weight", None) if config.tie_word_embeddings else None
    expected = config.shapes()["wte.weight"]
    if tied_copy is not None and tied_copy.shape != expected:
        misshapen = {"lm_head.weight": (expected, tied_copy.shape)}
        raise CheckpointMismatchError(path, misshapen=misshapen)
    class_head = ours.pop(CLASS_HEAD, None)
    return Checkpoint(path, kind, config, ours, skipped, tied_copy, class_head=class_head)


# --- writing --------------------------------------------------------------------------------------


def write_directory(
    folder: Path,
    config: GPT2Config,
    tensors: Mapping[str, StoredTensor],
    *,
    dtype: torch.dtype,
    stop_id: int | None,
    labels: Sequence[str] = (),
) -> None:
    """Write config.json, generation_config.json and model.safetensors.

    Only one tensor is in memory at a time.

    transformers loads them as they are. `labels` are those of a head for classification, if that is
    among the tensors. The vocabulary is the tokenizer's to write. A GPT-2 without
    biases gets biases of zero: the same function, in the only form that transformers has for it.
    """
    config, tensors = _with_zero_biases(config, tensors)
    described = config_dict(config, dtype=dtype, stop_id=stop_id, labels=labels)
    _write_json(folder / CONFIG_FILE, described)
    generation = {"bos_token_id": stop_id, "eos_token_id": stop_id}
    _write_json(folder / "generation_config.json", generation)
    # OpenAI's own repository on the Hub has wte.weight, and mlx-lm reads nothing else. A model with
    # a head of its own, which mlx-lm does not have, needs the prefix: transformers 4 refuses
    # lm_head.weight without it. Beside the head of a classifier, transformers expects it.
    prefix = "" if config.tie_word_embeddings and not labels else "transformer."
    heads = ("lm_head.weight", CLASS_HEAD)
    in_file = {
        ("" if name in heads else prefix) + name: transpose_if_conv1d(name, tensor)
        for name, tensor in tensors.items()
    }
    with (folder / WEIGHTS_FILE).open("wb") as file:
        write_safetensors(file, in_file, dtype=dtype)


def _with_zero_biases(
    config: GPT2Config, tensors: Mapping[str, StoredTensor]
) -> tuple[GPT2Config, Mapping[str, StoredTensor]]:
    """Add zeros for missing biases if that makes the model one that transformers has."""
    complete = replace(config, bias=True, qkv_bias=True)
    if config.is_gpt2 or not complete.is_gpt2:
        return config, tensors
    shapes = complete.shapes()
    ordered = {
        name: tensors.get(name) or StoredTensor.zeros(shape) for name, shape in shapes.items()
    }
    return complete, {**ordered, **tensors}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
