"""nanoGPT's ckpt.pt: weights as nn.Linear holds them, together with the shape of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt2kit.checkpoints import pickled
from gpt2kit.checkpoints.names import plain_names
from gpt2kit.checkpoints.stored import Checkpoint
from gpt2kit.config import GPT2Config
from gpt2kit.errors import CheckpointFormatError, ConfigError

# nanoGPT's word -> ours
_MODEL_ARGS = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "block_size": "n_ctx",
    "vocab_size": "n_vocab",
}


def open_file(path: Path) -> Checkpoint:
    """Open a checkpoint of nanoGPT's train.py; its optimizer state and counters are skipped."""
    file = pickled.open_file(path)
    content = file.content
    model, arguments = content.get("model"), content.get("model_args")
    if not isinstance(model, dict) or not isinstance(arguments, dict):
        raise CheckpointFormatError(
            path, 'expected a nanoGPT checkpoint with "model" and "model_args"'
        )
    config = _config(path, arguments)
    stored = {
        ours: file.tensor(theirs, model[theirs])
        for ours, theirs in plain_names(map(str, model), path).items()
    }
    skipped = tuple(sorted(str(key) for key in content.keys() - {"model", "model_args"}))
    return Checkpoint(
        path, "nanoGPT", config, stored, skipped, tied_copy=stored.pop("lm_head.weight", None)
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
