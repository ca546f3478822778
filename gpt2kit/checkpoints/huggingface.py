"""Hugging Face directories: config.json and safetensors or torch files in, config.json and safetensors out."""

from __future__ import annotations

import json
import re
import struct
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gpt2kit.checkpoints import pickled
from gpt2kit.checkpoints.names import BUFFERS, plain_names
from gpt2kit.checkpoints.ranges import read_range
from gpt2kit.checkpoints.stored import (
    Checkpoint,
    StoredTensor,
    as_bytes,
    transpose_if_conv1d,
    view_into,
)
from gpt2kit.config import GPT2Config
from gpt2kit.errors import (
    CheckpointError,
    CheckpointFormatError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    ConfigError,
    Gpt2KitWarning,
)
from gpt2kit.files import impostor, read_json, read_start

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

# --- config.json -----------------------------------------------------------------------------------------------------

_SAME_NAME = (
    *(
        "n_embd",
        "n_head",
        "n_layer",
        "n_inner",
        "activation_function",
        "layer_norm_epsilon",
        "tie_word_embeddings",
    ),
    *(
        "scale_attn_weights",
        "scale_attn_by_inverse_layer_idx",
        "reorder_and_upcast_attn",
        "embd_pdrop",
        "attn_pdrop",
        "resid_pdrop",
    ),
)
# Our own fields, which may differ from GPT-2's values only under "model_type": "gpt2kit".
_OUR_OWN = {
    name: getattr(GPT2Config(), name)
    for name in ("qkv_bias", "bias", "norm", "norm_first", "mlp", "positions")
}

# Fields that do not touch the function from ids to logits: provenance, training, how to sample, what to return.
_NO_EFFECT = re.compile(
    r"_name_or_path|name_or_path|_commit_hash|architectures|model_type|transformers_version|torch_dtype|dtype|auto_map|license|"
    r"vocab_size|n_positions|n_ctx|(bos|eos|pad|sep|unk|cls|decoder_start|forced_bos|forced_eos)_token_id|tokenizer_class|"
    r"initializer_range|summary_\w+|task_specific_params|finetuning_task|problem_type|_?num_labels|id2label|label2id|prefix|"
    r"use_cache|use_return_dict|return_dict|return_dict_in_generate|output_(past|attentions|hidden_states|scores)|"
    r"gradient_checkpointing|torchscript|xla_device|use_bfloat16|tf_legacy_loss|is_decoder|_?attn_implementation(_autoset)?|"
    r"do_sample|early_stopping|max_length|min_length|max_new_tokens|num_beams|num_beam_groups|diversity_penalty|temperature|"
    r"top_k|top_p|typical_p|repetition_penalty|length_penalty|(encoder_)?no_repeat_ngram_size|bad_words_ids|suppress_tokens|"
    r"begin_suppress_tokens|exponential_decay_length_penalty|num_return_sequences|remove_invalid_values|predict_special_tokens"
)
# Fields that change the function, and the only values under which it is GPT-2's. The first group is in
# every configuration of transformers, the second in those of other architectures with GPT-2's names.
_ONLY: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False, None),
    "is_encoder_decoder": (False, None),
    "cross_attention_hidden_size": (None,),
    "tie_encoder_decoder": (False, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "chunk_size_feed_forward": (0, None),
    #
    "alibi": (False, None),
    "attention_types": (None,),
    "multi_query": (False, None),
    "num_experts": (0, None),
    "num_key_value_heads": (None,),
    "parallel_attn": (False, None),
    "position_embedding_type": ("absolute", None),
    "rope_parameters": (None,),
    "rope_scaling": (None,),
    "rope_theta": (None,),
    "rotary": (False, None),
    "rotary_dim": (None,),
    "rotary_emb_base": (None,),
    "sliding_window": (None,),
    "use_alibi": (False, None),
    "window_size": (None,),
    # Ours: GPT-2's values under the model type gpt2, any under gpt2kit.
    **{name: (value,) for name, value in _OUR_OWN.items()},
}


def read_config(path: Path) -> GPT2Config:
    """Read a config.json.

    A field that is known to change the function and is not supported raises ConfigError, as does an invalid
    value; unknown fields are named in one Gpt2KitWarning. Damage raises CheckpointFormatError.
    """
    raw = read_json(path, error=CheckpointError)
    model_type = raw.get("model_type", "gpt2" if "n_embd" in raw else None)
    if model_type not in ("gpt2", "gpt2kit"):
        raise ConfigError(
            f"{path}: model_type is {model_type!r}; gpt2kit reads gpt2 and its own gpt2kit"
        )
    ours = model_type == "gpt2kit"
    values: dict[str, Any] = {}
    unknown = []
    for name, value in raw.items():
        if name in _SAME_NAME or (ours and name in _OUR_OWN):
            values[name] = value
        elif name in _ONLY:
            if value not in _ONLY[name]:
                raise ConfigError(f"{path}: {name} is {value!r}, which gpt2kit does not support")
        elif not _NO_EFFECT.fullmatch(name):
            unknown.append(name)
    if unknown:
        _warn_of_unknown(path, unknown)
    for theirs, name in (("vocab_size", "n_vocab"), ("n_ctx", "n_ctx"), ("n_positions", "n_ctx")):
        if theirs in raw:  # of n_positions and n_ctx, transformers too goes by the first
            values[name] = raw[theirs]
    try:
        return GPT2Config(**values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _warn_of_unknown(path: Path, names: list[str]) -> None:
    shown = ", ".join(ascii(name[:40]) for name in names[:8]) + (", …" if len(names) > 8 else "")
    fields = "1 unknown field" if len(names) == 1 else f"{len(names)} unknown fields"
    message = f"{path}: {fields} ignored, as transformers does: {shown}"
    warnings.warn(message, Gpt2KitWarning, stacklevel=3)


def config_dict(config: GPT2Config, *, dtype: torch.dtype, stop_id: int | None) -> dict[str, Any]:
    """Return the contents of config.json: `read_config`'s inverse, in the terms of transformers."""
    shape = {"vocab_size": config.n_vocab, "n_positions": config.n_ctx, "n_ctx": config.n_ctx}
    result: dict[str, Any] = {
        "model_type": "gpt2" if config.is_gpt2 else "gpt2kit",
        "architectures": ["GPT2LMHeadModel"],
        **shape,
        **{name: getattr(config, name) for name in _SAME_NAME},
        "initializer_range": 0.02,
        "bos_token_id": stop_id,
        "eos_token_id": stop_id,
        "use_cache": True,
        "dtype": str(dtype).removeprefix("torch."),
    }
    if not config.is_gpt2:
        result |= {"architectures": ["GPT2"], **{name: getattr(config, name) for name in _OUR_OWN}}
    return result


# --- reading ---------------------------------------------------------------------------------------------------------


def open_directory(path: Path) -> Checkpoint:
    """Open a Hugging Face directory: its configuration and where each tensor lies."""
    config = read_config(path / CONFIG_FILE)
    found = [path / name for name in WEIGHTS_FILES if (path / name).exists()]
    if not found:
        message = f"{path}: no weights; expected one of {', '.join(WEIGHTS_FILES)}"
        raise CheckpointNotFoundError(message, path=path, missing=WEIGHTS_FILES[:1])
    return (
        _open_shards(found[0], config)
        if found[0].suffix == ".json"
        else open_file(found[0], config)
    )


def open_file(path: Path, config: GPT2Config) -> Checkpoint:
    """Open one weights file of a known configuration; what is inside decides how it is read, not what it is called."""
    tensors, kind = _read_headers(path)
    return _checkpoint(path, kind, config, {path: tensors})


def _open_shards(index: Path, config: GPT2Config) -> Checkpoint:
    """Open the weights files that an index lists, each name in the file that the index says."""
    weight_map = read_json(index, largest=2**24, error=CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(file, str) for file in weight_map.values()
    ):
        raise CheckpointFormatError(index, "expected a weight_map from tensor names to files")
    by_file: dict[Path, dict[str, StoredTensor]] = {}
    kind = ""
    for name in sorted(set(weight_map.values())):
        # The index comes with the weights and may be hostile: a shard is a plain name of this folder, never a path.
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,200}", name) or name.startswith("."):
            raise CheckpointFormatError(index, f"shard {name[:80]!r} is not a plain file name")
        file = index.parent / name
        by_file[file], kind = _read_headers(file)
        listed = {tensor for tensor, where in weight_map.items() if where == name}
        # Older versions of transformers saved masks, and listed them or not.
        if difference := sorted(
            tensor for tensor in listed ^ by_file[file].keys() if not tensor.endswith(BUFFERS)
        ):
            raise CheckpointFormatError(
                index,
                f"the index and {name} disagree on {', '.join(difference[:5])}; are all shards of one model?",
            )
    return _checkpoint(index.parent, f"{kind}, {len(by_file)} files", config, by_file)


def _read_headers(path: Path) -> tuple[dict[str, StoredTensor], str]:
    """Return the tensors of a weights file under its own names and as they lie there, and the name of its format."""
    start = read_start(path, error=CheckpointError)
    if explanation := impostor(start):
        raise CheckpointFormatError(path, explanation)
    if pickled.is_pickled(start):
        return _pickled_tensors(path), "torch file"
    return safetensors_file(path), "safetensors"


_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def safetensors_file(
    path: Path, *, dtypes: Mapping[str, torch.dtype] = _DTYPES
) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file: header length (uint64), JSON header, then the tensors at the offsets it gives."""
    try:
        safe_open(
            path, framework="pt", backend="pread"
        )  # checks all of the header against the file
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointFormatError(
            path, f"not a whole safetensors file ({error}); get it again"
        ) from error
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in dtypes and not name.endswith(BUFFERS):
            raise CheckpointFormatError(
                path, f"{name} has dtype {entry['dtype']}, expected one of {', '.join(dtypes)}"
            )
        shape, dtype = tuple(entry["shape"]), dtypes.get(entry["dtype"], torch.uint8)
        tensors[name] = StoredTensor(
            shape,
            dtype,
            partial(_read_tensor, path, name, 8 + length + entry["data_offsets"][0], shape, dtype),
        )
    return tensors


def _read_tensor(
    path: Path,
    name: str,
    offset: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    buffer: Tensor | None,
) -> Tensor:
    tensor = view_into(shape, dtype, buffer)
    read_range(path, name, offset, as_bytes(tensor).numpy())
    return tensor


def _pickled_tensors(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a file of torch.save, without masks, whose dtype may be any."""
    file = pickled.open_file(path)
    content = file.content
    if isinstance(content.get("state_dict"), dict):  # as PyTorch Lightning and others wrap it
        content = content["state_dict"]
    return {
        str(name): file.tensor(str(name), value)
        for name, value in content.items()
        if not str(name).endswith(BUFFERS)
    }


def _checkpoint(
    path: Path, kind: str, config: GPT2Config, by_file: Mapping[Path, Mapping[str, StoredTensor]]
) -> Checkpoint:
    """Put the tensors of all files under our names and in our orientation."""
    stored: dict[str, StoredTensor] = {}
    for file, tensors in by_file.items():
        if both := [name for name in stored.keys() & tensors.keys() if not name.endswith(BUFFERS)]:
            raise CheckpointFormatError(file, f"{min(both)} is in another file too")
        stored |= tensors
    names = plain_names(stored, path)
    skipped = tuple(sorted(stored.keys() - names.values()))
    ours = {name: transpose_if_conv1d(name, stored[theirs]) for name, theirs in names.items()}
    tied_copy = ours.pop("lm_head.weight", None) if config.tie_word_embeddings else None
    if tied_copy is not None and tied_copy.shape != config.shapes()["wte.weight"]:
        raise CheckpointMismatchError(
            path, misshapen={"lm_head.weight": (config.shapes()["wte.weight"], tied_copy.shape)}
        )
    return Checkpoint(path, kind, config, ours, skipped, tied_copy)


# --- writing ---------------------------------------------------------------------------------------------------------

_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()} | {torch.int8: "I8"}


def write_directory(
    folder: Path,
    config: GPT2Config,
    tensors: Mapping[str, StoredTensor],
    *,
    dtype: torch.dtype,
    stop_id: int | None,
) -> None:
    """Write config.json, generation_config.json and model.safetensors as transformers does, one tensor in memory at a time.

    The vocabulary is the tokenizer's to write. A GPT-2 without biases is written with zeros for them: the same function, in the
    only form that transformers has for it.
    """
    config, tensors = _with_zero_biases(config, tensors)
    _write_json(folder / CONFIG_FILE, config_dict(config, dtype=dtype, stop_id=stop_id))
    _write_json(
        folder / "generation_config.json", {"bos_token_id": stop_id, "eos_token_id": stop_id}
    )
    # OpenAI's own repository on the Hub has wte.weight, and mlx-lm reads nothing else. A model with a head of
    # its own, which mlx-lm does not have, needs the prefix: transformers 4 refuses lm_head.weight without it.
    prefix = "" if config.tie_word_embeddings else "transformer."
    in_file = {
        ("" if name == "lm_head.weight" else prefix) + name: transpose_if_conv1d(name, tensor)
        for name, tensor in tensors.items()
    }
    with (folder / WEIGHTS_FILE).open("wb") as file:
        write_safetensors(file, in_file, dtype)


def _with_zero_biases(
    config: GPT2Config, tensors: Mapping[str, StoredTensor]
) -> tuple[GPT2Config, Mapping[str, StoredTensor]]:
    complete = replace(config, bias=True, qkv_bias=True)
    if config.is_gpt2 or not complete.is_gpt2:
        return config, tensors

    def zeros(shape: tuple[int, ...]) -> StoredTensor:
        return StoredTensor(shape, torch.float32, lambda _: torch.zeros(shape))

    return complete, {
        name: tensors.get(name) or zeros(shape) for name, shape in complete.shapes().items()
    }


def write_safetensors(
    file: BinaryIO,
    tensors: Mapping[str, StoredTensor],
    dtype: torch.dtype | None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file: header length (uint64), JSON header, then the tensors end to end, each in its own dtype for None.

    Unlike the library's writer, which takes all tensors at once, this holds one tensor at a time: a model larger than half the
    memory can be converted.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name, stored in tensors.items():
        own = dtype or stored.dtype
        start, end = end, end + torch.Size(stored.shape).numel() * own.itemsize
        header[name] = {
            "dtype": _DTYPE_NAMES[own],
            "shape": list(stored.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data is aligned
    file.write(struct.pack("<Q", len(text)) + text)
    for stored in tensors.values():
        file.write(as_bytes(stored.read().to(dtype or stored.dtype).contiguous()).numpy().data)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
