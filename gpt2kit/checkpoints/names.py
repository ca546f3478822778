"""The names of the tensors: in OpenAI's files, in other people's, and here.

One table maps OpenAI's names to ours. Hugging Face's names are ours, often behind a prefix.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from gpt2kit.config import GPT2Config
from gpt2kit.errors import CheckpointFormatError

# OpenAI's and Hugging Face's files hold these four matrices as (in, out), because their Conv1D
# computes x @ W. nn.Linear computes x @ W.T and holds (out, in). attn.c_proj is square: without its
# transpose nothing fails, but the text is ruined.
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")

# OpenAI's variable -> our parameter; {layer} counts from 0.
OPENAI = {
    "model/wte": "wte.weight",
    "model/wpe": "wpe.weight",
    "model/h{layer}/ln_1/g": "h.{layer}.ln_1.weight",
    "model/h{layer}/ln_1/b": "h.{layer}.ln_1.bias",
    "model/h{layer}/attn/c_attn/w": "h.{layer}.attn.c_attn.weight",
    "model/h{layer}/attn/c_attn/b": "h.{layer}.attn.c_attn.bias",
    "model/h{layer}/attn/c_proj/w": "h.{layer}.attn.c_proj.weight",
    "model/h{layer}/attn/c_proj/b": "h.{layer}.attn.c_proj.bias",
    "model/h{layer}/ln_2/g": "h.{layer}.ln_2.weight",
    "model/h{layer}/ln_2/b": "h.{layer}.ln_2.bias",
    "model/h{layer}/mlp/c_fc/w": "h.{layer}.mlp.c_fc.weight",
    "model/h{layer}/mlp/c_fc/b": "h.{layer}.mlp.c_fc.bias",
    "model/h{layer}/mlp/c_proj/w": "h.{layer}.mlp.c_proj.weight",
    "model/h{layer}/mlp/c_proj/b": "h.{layer}.mlp.c_proj.bias",
    "model/ln_f/g": "ln_f.weight",
    "model/ln_f/b": "ln_f.bias",
}

# Prefixes that transformers' model with a head, DistributedDataParallel, torch.compile and TRL add.
PREFIXES = ("transformer.", "module.", "_orig_mod.", "pretrained_model.")

# The causal mask and its value, which older programs saved with the weights. Only these exact
# endings: attn.c_attn.bias is a parameter.
BUFFERS = (".attn.bias", ".attn.masked_bias")

# The head of transformers' GPT2ForSequenceClassification, beside which there is a whole GPT-2.
CLASS_HEAD = "score.weight"


# What predicts rewards in TRL's models for PPO, beside the GPT-2 itself.
VALUE_HEAD = "v_head."


def is_transposed(name: str) -> bool:
    """Whether OpenAI and Hugging Face hold this tensor as (in, out)."""
    return name.endswith(TRANSPOSED)


def holds_linear(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether matrices are (out, in), as nn.Linear has them, by shapes under Hugging Face's names.

    attn.c_proj is square and does not tell, but attn.c_attn is three times as high as wide.
    """
    found = [shape for name, shape in shapes.items() if name.endswith(TRANSPOSED[0])]
    return bool(found) and all(len(shape) == 2 and shape[0] == 3 * shape[1] for shape in found)


def openai_names(config: GPT2Config) -> dict[str, str]:
    """Return OpenAI's variable name -> our parameter name for a model with these layers."""
    # A model without layers has the names outside of them all the same.
    layers = range(max(1, config.n_layer))
    return {
        theirs.format(layer=layer): ours.format(layer=layer)
        for theirs, ours in OPENAI.items()
        for layer in layers
    }


def plain_names(names: Iterable[str], path: Path) -> dict[str, str]:
    """Return our name -> the file's name, without prefixes, masks and the value head of TRL.

    Raises CheckpointFormatError if two tensors of the file are the same parameter.
    """
    found: dict[str, str] = {}
    for theirs in names:
        ours = theirs
        while prefix := next((prefix for prefix in PREFIXES if ours.startswith(prefix)), None):
            ours = ours[len(prefix) :]
        if theirs.endswith(BUFFERS) or ours.startswith(VALUE_HEAD):
            continue
        if ours in found:
            detail = f"{found[ours]} and {theirs} are the same parameter; expected only one of them"
            raise CheckpointFormatError(path, detail)
        found[ours] = theirs
    return found
