"""OpenAI's folders, also those of gpt-2-simple: hparams.json and a TensorFlow checkpoint."""

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
_LARGEST_TEXT = 2**20  # bytes of the file `checkpoint`


def open_directory(path: Path, prefix: Path | None = None) -> Checkpoint:
    """Open an OpenAI checkpoint: its configuration, and where each tensor is.

    If there are several, `prefix` or else the file `checkpoint` says which one. Optimizer slots and
    counters are skipped.
    """
    if not (path / HPARAMS_FILE).exists():
        advice = f"write one with the {', '.join(_HPARAMS)} that the model was trained with"
        message = f"{path}: no {HPARAMS_FILE} beside the checkpoint; {advice}"
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
            # Not a tensor of this model: Checkpoint lists it as unexpected.
            tensors[variable] = _stored(bundle, variable, variable)
    # The prefix tells one checkpoint from the others in a folder.
    return Checkpoint(prefix or path, "OpenAI TensorFlow", config, tensors, tuple(skipped))


def read_hparams(path: Path) -> GPT2Config:
    """Read OpenAI's hparams.json; raises ConfigError for a missing, unknown or invalid field."""
    raw = read_json(path, error=CheckpointError)
    # Another field would be of another architecture: OpenAI's code has only these.
    if raw.keys() != set(_HPARAMS):
        wrong = ", ".join(sorted(raw.keys() ^ set(_HPARAMS)))
        expected = f"expected exactly {', '.join(_HPARAMS)}"
        raise ConfigError(f"{path}: {expected}; missing or unknown: {wrong}")
    try:
        return GPT2Config(**raw)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def find_prefix(path: Path) -> Path:
    """Return the prefix of the checkpoint that the file `checkpoint` names, or of the only one.

    The name may be an absolute path of another machine: only its last part counts.
    """
    indexes = sorted(file.name.removesuffix(".index") for file in path.glob("*.index"))
    if not indexes:
        expected = "expected model.ckpt.index and model.ckpt.data-00000-of-00001"
        message = f"{path}: no TensorFlow checkpoint; {expected}"
        raise CheckpointNotFoundError(message, path=path, missing=["model.ckpt.index"])
    choices = f"{path}/{{{','.join(indexes)}}}"
    if (path / "checkpoint").is_file():
        name = _named_in(path / "checkpoint")
        if name not in indexes:
            found = f"the file checkpoint names {name}, which is not here"
            message = f"{path}: {found}; give one of these instead: {choices}"
            raise CheckpointNotFoundError(message, path=path, missing=[f"{name}.index"])
        return path / name
    if len(indexes) > 1 and "model.ckpt" not in indexes:
        message = f"{path}: several checkpoints; give the one that you mean: {choices}"
        raise CheckpointNotFoundError(message, path=path)
    return path / ("model.ckpt" if "model.ckpt" in indexes else indexes[0])


def _named_in(path: Path) -> str:
    """Return the name of the checkpoint that the file `checkpoint` gives, without folders."""
    # A protobuf message in text form; only this line of it matters.
    text = read_text(path, largest=_LARGEST_TEXT, error=CheckpointError)
    named = re.search(r'^model_checkpoint_path:\s*"([^"]*)"', text, re.MULTILINE)
    if named is None:
        raise CheckpointFormatError(path, 'expected a line model_checkpoint_path: "NAME"')
    return re.split(r"[/\\]", named[1])[-1]


def _is_slot(variable: str, names: dict[str, str]) -> bool:
    """Whether a variable is a counter or the optimizer's, such as model/wte/Adam."""
    is_beside = any(variable.startswith(name + "/") for name in names)
    return is_beside or not variable.startswith("model/")


def _stored(bundle: TensorBundle, variable: str, name: str) -> StoredTensor:
    """Return a variable under our name and in our orientation."""
    entry = bundle.entries[variable]
    path = bundle.prefix.with_name(bundle.prefix.name + ".index")
    dtype = getattr(torch, entry.dtype, None)
    if dtype not in FLOAT_DTYPES:
        detail = f"has dtype {entry.dtype}, expected float32, float16, bfloat16 or float64"
        raise CheckpointFormatError(path, f"{variable} {detail}")
    shape = entry.shape
    if is_transposed(name):
        # Conv1D is a convolution of width 1 in OpenAI's code: its weights are (1, in, out).
        if len(shape) != 3 or shape[0] != 1:
            detail = f"{variable} has shape {list(shape)}, expected [1, in, out]"
            raise CheckpointFormatError(path, detail)
        shape = shape[1:]  # (in, out)

    def read(buffer: Tensor | None) -> Tensor:
        tensor = view_into(shape, dtype, buffer)
        bundle.read_into(variable, as_bytes(tensor).numpy())
        return tensor

    return transpose_if_conv1d(name, StoredTensor(shape, dtype, read))
