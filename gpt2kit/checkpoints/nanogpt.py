"""nanoGPT's ckpt.pt: weights as nn.Linear holds them, together with the shape of the model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gpt2kit.checkpoints.names import plain_names
from gpt2kit.checkpoints.pickled import TorchFile
from gpt2kit.checkpoints.stored import Checkpoint
from gpt2kit.config import GPT2Config
from gpt2kit.errors import ConfigError

# nanoGPT's word -> ours
_MODEL_ARGS = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "block_size": "n_ctx",
    "vocab_size": "n_vocab",
}

_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


def is_checkpoint(file: TorchFile) -> bool:
    """Whether a file has the two parts of nanoGPT's checkpoints that make a model."""
    return all(isinstance(file.content.get(part), dict) for part in ("model", "model_args"))


def checkpoint_of(file: TorchFile) -> Checkpoint:
    """Return what nanoGPT's train.py saved, without optimizer state and counters."""
    path, content = file.path, file.content
    # The names of a hostile file may be anything.
    model = {str(name): tensor for name, tensor in content["model"].items()}
    settings = content.get("config")
    config = _config(path, content["model_args"])
    dataset = settings.get("dataset") if isinstance(settings, dict) else None
    stored = {
        ours: file.tensor(theirs, model[theirs])
        for ours, theirs in plain_names(model, path).items()
    }
    skipped = tuple(sorted(str(key) for key in content.keys() - {"model", "model_args"}))
    return Checkpoint(
        path,
        "nanoGPT",
        config,
        stored,
        skipped,
        tied_copy=stored.pop("lm_head.weight", None),
        is_alone=True,
        # It becomes part of a path, and the file may be hostile.
        dataset=dataset if isinstance(dataset, str) and _PLAIN.fullmatch(dataset) else None,
    )


def _config(path: Path, arguments: dict[str, Any]) -> GPT2Config:
    """Return the configuration that model_args describes."""
    known = {*_MODEL_ARGS, "bias", "dropout"}
    if arguments.keys() - known or _MODEL_ARGS.keys() - arguments.keys():
        found = ", ".join(ascii(name)[1:-1] for name in arguments)
        raise ConfigError(f"{path}: model_args has {found}; expected {', '.join(sorted(known))}")
    dropout, bias = arguments.get("dropout", 0.0), arguments.get("bias", True)
    try:
        return GPT2Config(
            **{ours: arguments[theirs] for theirs, ours in _MODEL_ARGS.items()},
            activation_function="gelu",  # nanoGPT's nn.GELU() is the exact one, not GPT-2's
            **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), dropout),
            **dict.fromkeys(("bias", "qkv_bias"), bias),
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
