"""config.json, as transformers writes it for GPT-2, in and out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gpt2kit.config import VARIED, GPT2Config
from gpt2kit.errors import CheckpointError, ConfigError, Gpt2KitWarning
from gpt2kit.files import read_json

CONFIG_FILE = "config.json"

# Fields that have the same name and meaning in GPT2Config.
_SAME_NAME = (
    *("n_embd", "n_head", "n_layer", "n_inner"),
    *("activation_function", "layer_norm_epsilon", "tie_word_embeddings"),
    *("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"),
    *("embd_pdrop", "attn_pdrop", "resid_pdrop"),
)

# Fields that do not change the function from ids to logits. transformers writes them, or did once.
_NO_EFFECT = {
    name
    for group in (
        # Where the model is from
        "_name_or_path name_or_path _commit_hash architectures auto_map license model_type",
        "transformers_version torch_dtype dtype tokenizer_class",
        # Sizes and ids that are read elsewhere
        "vocab_size n_positions n_ctx bos_token_id eos_token_id pad_token_id sep_token_id",
        "unk_token_id cls_token_id decoder_start_token_id forced_bos_token_id forced_eos_token_id",
        # Training, and heads for other tasks
        "initializer_range summary_type summary_use_proj summary_activation summary_proj_to_labels",
        "summary_first_dropout task_specific_params finetuning_task problem_type num_labels",
        "_num_labels id2label label2id prefix gradient_checkpointing",
        # How it is run, and what it returns
        "use_cache use_return_dict return_dict return_dict_in_generate output_past",
        "output_attentions output_hidden_states output_scores torchscript xla_device use_bfloat16",
        "tf_legacy_loss is_decoder transformers.js_config",
        "attn_implementation _attn_implementation _attn_implementation_autoset",
        # How to generate
        "do_sample early_stopping max_length min_length max_new_tokens num_beams num_beam_groups",
        "diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty",
        "no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids suppress_tokens",
        "begin_suppress_tokens exponential_decay_length_penalty num_return_sequences",
        "remove_invalid_values predict_special_tokens",
    )
    for name in group.split()
}

# Fields that change the function, and the only values under which it is GPT-2's.
_ONLY: dict[str, tuple[Any, ...]] = {
    # In every configuration of transformers
    "add_cross_attention": (False, None),
    "is_encoder_decoder": (False, None),
    "cross_attention_hidden_size": (None,),
    "tie_encoder_decoder": (False, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "chunk_size_feed_forward": (0, None),
    # In those of other architectures whose fields have GPT-2's names
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
    # Our own, which may differ from GPT-2's values only under "model_type": "gpt2kit"
    **{name: (value,) for name, value in VARIED.items()},
}


def is_transformers(path: Path) -> bool:
    """Whether a config.json is one of transformers or ours, and not another program's."""
    raw = read_json(path, error=CheckpointError)
    return "model_type" in raw or "n_embd" in raw


def read_config(path: Path) -> GPT2Config:
    """Read a config.json.

    A field that is known to change the function and is not supported raises ConfigError, as does an
    invalid value; unknown fields are named in one Gpt2KitWarning. Damage raises
    CheckpointFormatError.
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
        if name in _SAME_NAME or (ours and name in VARIED):
            values[name] = value
        elif name in _ONLY:
            if value not in _ONLY[name]:
                raise ConfigError(f"{path}: {name} is {value!r}, which gpt2kit does not support")
        elif name not in _NO_EFFECT:
            unknown.append(name)
    if unknown:
        _warn_of_unknown(path, unknown)
    # If n_positions and n_ctx differ, the first one counts, as in transformers.
    for theirs, name in (("vocab_size", "n_vocab"), ("n_ctx", "n_ctx"), ("n_positions", "n_ctx")):
        if theirs in raw:
            values[name] = raw[theirs]
    try:
        return GPT2Config(**values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _warn_of_unknown(path: Path, names: list[str]) -> None:
    """Name unknown fields in one warning."""
    shown = ", ".join(ascii(name[:40]) for name in names[:8]) + (", …" if len(names) > 8 else "")
    fields = "1 unknown field" if len(names) == 1 else f"{len(names)} unknown fields"
    message = f"{path}: {fields} ignored, as transformers does: {shown}"
    warnings.warn(message, Gpt2KitWarning, stacklevel=3)


def config_dict(
    config: GPT2Config,
    *,
    dtype: torch.dtype,
    stop_id: int | None,
    labels: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the content of config.json as transformers writes it, for `read_config`.

    With labels it is that of a classifier.
    """
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
    if labels:
        result |= {
            "architectures": ["GPT2ForSequenceClassification"],
            "id2label": {str(number): label for number, label in enumerate(labels)},
            "label2id": {label: number for number, label in enumerate(labels)},
            "pad_token_id": stop_id,  # transformers finds the last token of a text by it
        }
    if not config.is_gpt2:
        result |= {"architectures": ["GPT2"], **{name: getattr(config, name) for name in VARIED}}
    return result
