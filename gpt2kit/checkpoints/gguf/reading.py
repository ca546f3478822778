"""From a GGUF file of llama.cpp's architecture gpt2 to a checkpoint."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gpt2kit.checkpoints.gguf.header import MAGIC, GGUFFile, are_equal, read_header
from gpt2kit.checkpoints.gguf.vocabulary import read_vocabulary
from gpt2kit.checkpoints.layouts import Layout, checkpoint_of
from gpt2kit.checkpoints.stored import Checkpoint
from gpt2kit.checkpoints.unsaid import Unsaid
from gpt2kit.errors import CheckpointFormatError, ConfigError, Gpt2KitWarning

SUFFIX = ".gguf"
HEAD, EMBEDDING = "output.weight", "token_embd.weight"

# The matrices are (out, in), as ours are: llama.cpp's converter transposes those of Conv1D.
NAMES = {
    EMBEDDING: "wte.weight",
    "position_embd.weight": "wpe.weight",
    **{
        f"blk.{{layer}}.{theirs}.{kind}": f"h.{{layer}}.{ours}.{kind}"
        for theirs, ours in {
            "attn_norm": "ln_1",
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        }.items()
        for kind in ("weight", "bias")
    },
    "output_norm.weight": "ln_f.weight",
    "output_norm.bias": "ln_f.bias",
    HEAD: "lm_head.weight",
}

# The key of the file -> our field
SIZES = {
    "gpt2.context_length": "n_ctx",
    "gpt2.embedding_length": "n_embd",
    "gpt2.block_count": "n_layer",
    "gpt2.attention.head_count": "n_head",
    "gpt2.feed_forward_length": "n_inner",
}
EPSILON = "gpt2.attention.layer_norm_epsilon"
# Keys that repeat what the tensors or other keys say
_NO_EFFECT = {"gpt2.vocab_size", "gpt2.attention.head_count_kv", "gpt2.attention.causal"}


def is_gguf(path: Path, start: bytes) -> bool:
    """Whether a file is, or should be, GGUF: by its first bytes or its name."""
    return start.startswith(MAGIC) or path.suffix == SUFFIX


def open_file(path: Path) -> Checkpoint:
    """Open a GGUF file: its configuration, its vocabulary, and where each tensor is.

    Numbers in blocks (Q8_0, Q4_0) are read as float32. Raises CheckpointFormatError for damage and
    for another architecture, and ConfigError for a key that changes the function.
    """
    file = read_header(path)
    architecture = file.value("general.architecture", str)
    if architecture != "gpt2":
        found = ascii(architecture[:40])
        raise CheckpointFormatError(path, f"a model of architecture {found}; gpt2kit reads gpt2")
    fields = _fields(file)
    # Old versions of llama.cpp need a head, and it is the embedding again if that is the head.
    has_copy = HEAD in file.tensors and EMBEDDING in file.tensors
    is_tied = HEAD not in file.tensors or (has_copy and are_equal(file, HEAD, EMBEDDING))
    layout = Layout("llama.cpp", NAMES, fields)
    checkpoint = checkpoint_of(
        path,
        layout,
        file.tensors,
        unsaid=Unsaid(n_head=fields["n_head"]),
        is_tied=is_tied,
        skipped=(),
    )
    kinds = sorted({kind.name for kind in file.types.values()})
    return replace(
        checkpoint,
        tensors={name: checkpoint.tensors[name] for name in checkpoint.config.shapes()},
        format=f"GGUF, {' and '.join(kinds)}",
        own_vocabulary=lambda: read_vocabulary(file),
    )


def _fields(file: GGUFFile) -> dict[str, Any]:
    """Return the fields of our configuration that the keys say."""
    fields: dict[str, Any] = {
        ours: file.value(theirs, int)
        for theirs, ours in SIZES.items()
        if theirs in file.keys or ours != "n_inner"
    }
    if fields["n_head"] < 1:
        raise ConfigError(f"{file.path}: gpt2.attention.head_count is {fields['n_head']}")
    if fields.get("n_inner") == 4 * fields["n_embd"]:
        fields["n_inner"] = None
    shared = file.value("gpt2.attention.head_count_kv", int, fields["n_head"])
    if shared != fields["n_head"]:
        raise ConfigError(
            f"{file.path}: heads share keys and values (head_count_kv is {shared}), which gpt2kit "
            "does not support"
        )
    # It is a float32 there: the shortest decimal that it rounds from is what somebody once wrote.
    fields["layer_norm_epsilon"] = float(str(np.float32(file.value(EPSILON, float))))
    known = {*SIZES, EPSILON, *_NO_EFFECT}
    if unknown := [name for name in file.keys if name.startswith("gpt2.") and name not in known]:
        shown = ", ".join(ascii(name[:60])[1:-1] for name in unknown[:8])
        message = f"{file.path}: keys that gpt2kit does not know are ignored: {shown}"
        warnings.warn(message, Gpt2KitWarning, stacklevel=2)
    return fields
