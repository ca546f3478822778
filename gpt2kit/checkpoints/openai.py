"""OpenAI's directories: hparams.json beside a TensorFlow checkpoint, as published or as gpt-2-simple leaves them."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from gpt2kit.checkpoints.names import is_transposed, openai_names
from gpt2kit.checkpoints.stored import (
    FLOAT_DTYPES,
    Checkpoint,
    StoredTensor,
    as_bytes,
    transpose_if_conv1d,
    view_into,
)
from gpt2kit.checkpoints.tf_bundle import TensorBundle
from gpt2kit.config import GPT2Config
from gpt2kit.errors import (
    CheckpointError,
    CheckpointFormatError,
    CheckpointNotFoundError,
    ConfigError,
)
from gpt2kit.files import read_json, read_text

HPARAMS_FILE = "hparams.json"
_HPARAMS = ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer")


def open_directory(path: Path, prefix: Path | None = None) -> Checkpoint:
    """Open an OpenAI checkpoint: its configuration and where each tensor lies.

    Which of several checkpoints is meant says `prefix`, or the `checkpoint` file. Optimizer slots and counters are skipped.
    """
    if not (path / HPARAMS_FILE).exists():
        message = f"{path}: no {HPARAMS_FILE} beside the checkpoint; write one with {', '.join(_HPARAMS)}, as the model was trained with"
        raise CheckpointNotFoundError(message, path=path, missing=[HPARAMS_FILE])
    config = read_hparams(path / HPARAMS_FILE)
    bundle = TensorBundle(prefix or find_prefix(path))
    names = openai_names(config)
    tensors: dict[str, StoredTensor] = {}
    skipped = []
    for variable in bundle.entries:
        if variable in names:
            tensors[names[variable]] = _stored(bundle, variable, names[variable])
        elif _is_slot(variable, names):
            skipped.append(variable)
        else:
            tensors[variable] = _stored(
                bundle, variable, variable
            )  # unexpected: the checkpoint will say so
    return Checkpoint(path, "OpenAI TensorFlow", config, tensors, tuple(skipped))


def read_hparams(path: Path) -> GPT2Config:
    """Read OpenAI's hparams.json; raises ConfigError for a missing, unknown or impossible field."""
    raw = read_json(path, error=CheckpointError)
    if raw.keys() != set(_HPARAMS):
        wrong = ", ".join(sorted(raw.keys() ^ set(_HPARAMS)))
        raise ConfigError(
            f"{path}: expected exactly {', '.join(_HPARAMS)}; missing or unknown: {wrong}"
        )
    try:
        return GPT2Config(**raw)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def find_prefix(path: Path) -> Path:
    """Return the prefix of the checkpoint in a folder: the one that `checkpoint` names, else the only one there is.

    The name may come from another machine as an absolute path: only its last part counts.
    """
    indexes = sorted(file.name.removesuffix(".index") for file in path.glob("*.index"))
    if not indexes:
        message = f"{path}: no TensorFlow checkpoint; expected model.ckpt.index and model.ckpt.data-00000-of-00001"
        raise CheckpointNotFoundError(message, path=path, missing=["model.ckpt.index"])
    if (path / "checkpoint").is_file():
        named = re.search(
            r'^model_checkpoint_path:\s*"([^"]*)"',
            read_text(path / "checkpoint", largest=2**20, error=CheckpointError),
            re.MULTILINE,
        )
        if named is None:
            raise CheckpointFormatError(
                path / "checkpoint", 'expected a line model_checkpoint_path: "NAME"'
            )
        name = re.split(r"[/\\]", named[1])[-1]
        if name not in indexes:
            message = f"{path}: the file checkpoint names {name}, which is not here; give one of these instead: {path}/{{{','.join(indexes)}}}"
            raise CheckpointNotFoundError(message, path=path, missing=[f"{name}.index"])
        return path / name
    if len(indexes) > 1 and "model.ckpt" not in indexes:
        raise CheckpointNotFoundError(
            f"{path}: several checkpoints; give the one that you mean: {path}/{{{','.join(indexes)}}}",
            path=path,
        )
    return path / ("model.ckpt" if "model.ckpt" in indexes else indexes[0])


def _is_slot(variable: str, names: dict[str, str]) -> bool:
    """Whether a variable belongs to the training: a counter, or something kept beside a variable of the model (…/Adam)."""
    return not variable.startswith("model/") or any(
        variable.startswith(name + "/") for name in names
    )


def _stored(bundle: TensorBundle, variable: str, name: str) -> StoredTensor:
    entry = bundle.entries[variable]
    path = bundle.prefix.with_name(bundle.prefix.name + ".index")
    dtype = getattr(torch, entry.dtype, None)
    if dtype not in FLOAT_DTYPES:
        raise CheckpointFormatError(
            path,
            f"{variable} has dtype {entry.dtype}, expected float32, float16, bfloat16 or float64",
        )
    shape = entry.shape
    if is_transposed(name):
        if len(shape) != 3 or shape[0] != 1:
            raise CheckpointFormatError(
                path, f"{variable} has shape {list(shape)}, expected [1, in, out]"
            )
        shape = shape[1:]

    def read(buffer: Tensor | None) -> Tensor:
        tensor = view_into(shape, dtype, buffer)
        bundle.read_into(variable, as_bytes(tensor).numpy())
        return tensor

    return transpose_if_conv1d(name, StoredTensor(shape, dtype, read))
