"""LoRA adapters of PEFT, applied to the checkpoint that they were trained on.

adapter_config.json                        see `config`
adapter_model.safetensors or .bin          tensors, each name after "base_model.model.":
    MODULE.lora_A.weight (R, C), MODULE.lora_B.weight (O, R)              beside a matrix
    MODULE.lora_embedding_A (R, V), MODULE.lora_embedding_B (C, R)        beside wte or wpe
    MODULE.weight, MODULE.bias, MODULE.base_layer.weight or .bias         in place of the model's

    C input width, O output width, R rank, V rows of a table of vectors
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gpt2kit.checkpoints.huggingface import read_headers
from gpt2kit.checkpoints.peft.config import PeftConfig, read_peft_config
from gpt2kit.checkpoints.stored import Checkpoint, StoredTensor, transpose_if_conv1d
from gpt2kit.checkpoints.vocabularies import load_vocabulary
from gpt2kit.config import GPT2Config
from gpt2kit.errors import (
    CheckpointMismatchError,
    CheckpointNotFoundError,
    ConfigError,
)
from gpt2kit.lora import updated
from gpt2kit.tokenizers import Tokenizer, load_tokenizer

WEIGHTS_FILES = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."
LAYERS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
HEAD = "lm_head"

_TABLES = ("wte", "wpe")
# What PEFT saves once more, under names of its own modules, if biases and modules are trained.
_COPIES = (".original_module.", ".modules_to_save.")
_NAME = re.compile(
    r"(?P<module>.+?)\.(?:lora_(?P<matrix>A|B)\.weight|lora_embedding_(?P<table>A|B)"
    r"|(?:base_layer\.)?(?P<whole>weight|bias))"
)


@dataclass(frozen=True)
class _Found:
    """The tensors of a file: pairs A and B by module, and whole ones by our names."""

    names: Mapping[tuple[str, str], str]  # module of PEFT, "A" or "B" -> the name in the file
    low: Mapping[tuple[str, str], StoredTensor]
    whole: Mapping[str, StoredTensor]
    prefix: str  # of the modules' names: "transformer.", or "" for a model without its head


def base_of(folder: Path) -> str:
    """Return the name of the model that the adapters in a folder were trained on."""
    return read_peft_config(folder).base


def open_adapters(folder: Path, base: Checkpoint) -> Checkpoint:
    """Return a checkpoint with the adapters of a folder applied to it; only headers are read.

    Each matrix W with an adapter is W + scale B A. A head that is tied to the embedding becomes one
    of its own if only one of the two was trained. Raises CheckpointMismatchError for tensors that
    are not those of the configuration and of this model, and what `read_peft_config` raises.
    """
    config = read_peft_config(folder)
    path = _weights_file(folder)
    found = _tensors(path, base.config)
    _check_pairs(path, config, found, base.config)
    _check_whole(path, config, found, base.config)
    tensors = {**base.tensors, **found.whole}
    shape, tensors, tied_copy = _head(config, found, base, tensors)
    for ours, module in _modules(base.config, found.prefix):
        name = f"{ours}.weight"
        if (module, "A") in found.low:
            a, b = found.low[module, "A"], found.low[module, "B"]
            tensors[name] = _merged(tensors[name], a, b, config.scale_of(module))

    def own_vocabulary() -> Tokenizer | None:
        return load_tokenizer(folder) or load_vocabulary(base)

    return Checkpoint(
        folder,
        f"PEFT's LoRA over {base.format}",
        shape,
        tensors,
        base.skipped,
        tied_copy,
        is_alone=base.is_alone,
        own_vocabulary=own_vocabulary,
        base=base,
    )


def _weights_file(folder: Path) -> Path:
    for name in WEIGHTS_FILES:
        if (folder / name).exists():
            return folder / name
    message = f"{folder}: no adapters; expected {' or '.join(WEIGHTS_FILES)}"
    raise CheckpointNotFoundError(message, path=folder, missing=WEIGHTS_FILES[:1])


def _tensors(path: Path, shape: GPT2Config) -> _Found:
    """Sort the tensors of a file by what they are; raise CheckpointMismatchError for others."""
    stored, _ = read_headers(path)
    parsed = {
        name: _NAME.fullmatch(name.removeprefix(PREFIX))
        for name in stored
        if name.startswith(PREFIX)
    }
    prefix = "transformer." if any(f"{PREFIX}transformer." in name for name in stored) else ""
    known = {*shape.shapes(), f"{HEAD}.weight"}
    modules = {module for _, module in _modules(shape, prefix)}
    names, low, whole, unexpected = {}, {}, {}, []
    for name, tensor in stored.items():
        if any(part in name for part in _COPIES):
            continue
        match = parsed.get(name)
        if match is None:
            unexpected.append(name)
            continue
        module, part = match["module"], match["matrix"] or match["table"]
        ours = f"{module.removeprefix(prefix)}.{match['whole']}"
        is_table = module.removeprefix(prefix) in _TABLES
        if part is not None and module in modules and is_table == (match["table"] is not None):
            # A table's vectors are its rows: its update is the transpose of B A.
            part = {"A": "B", "B": "A"}[part] if is_table else part
            names[module, part] = name
            low[module, part] = tensor.turned() if is_table else tensor
        elif part is None and ours in known and ours not in whole:
            whole[ours] = transpose_if_conv1d(ours, tensor)
        else:
            unexpected.append(name)
    if unexpected:
        raise CheckpointMismatchError(path, unexpected=unexpected, advice=_ADVICE)
    return _Found(names, low, whole, prefix)


_ADVICE = "Are these adapters of this GPT-2? base_model_name_or_path says what they were trained on"


def _modules(shape: GPT2Config, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield our name and PEFT's of every module that can have an adapter."""
    shapes = shape.shapes()
    layers = [f"h.{layer}.{name}" for layer in range(shape.n_layer) for name in LAYERS]
    for ours in (*_TABLES, *layers):
        if f"{ours}.weight" in shapes:
            yield ours, prefix + ours
    yield HEAD, HEAD


def _check_pairs(path: Path, config: PeftConfig, found: _Found, shape: GPT2Config) -> None:
    """Raise CheckpointMismatchError unless the pairs are those of the configuration."""
    shapes = {**shape.shapes(), f"{HEAD}.weight": (shape.n_vocab, shape.n_embd)}
    missing, misshapen, unexpected = [], {}, []
    for ours, module in _modules(shape, found.prefix):
        if not config.is_target(module):
            unexpected += [
                found.names[module, part] for part in "AB" if (module, part) in found.low
            ]
            continue
        n_out, n_in = shapes[f"{ours}.weight"]
        if ours in _TABLES and f"{ours}.weight" in found.whole:
            n_out = found.whole[f"{ours}.weight"].shape[0]
        rank = config.rank_of(module)
        for part, expected in (("A", (rank, n_in)), ("B", (n_out, rank))):
            if (module, part) not in found.low:
                missing.append(f"{PREFIX}{module}.lora_{part}.weight")
            elif (is_there := found.low[module, part].shape) != expected:
                misshapen[found.names[module, part]] = (expected, is_there)
    if missing or misshapen or unexpected:
        raise CheckpointMismatchError(
            path, missing=missing, misshapen=misshapen, unexpected=unexpected, advice=_ADVICE
        )


def _check_whole(path: Path, config: PeftConfig, found: _Found, shape: GPT2Config) -> None:
    """Raise CheckpointMismatchError if a module that was trained whole is not there."""
    parameters = {*shape.shapes(), f"{HEAD}.weight"}
    missing = []
    for name in parameters - found.whole.keys():
        ours = name.rpartition(".")[0]
        if config.is_saved(ours if ours == HEAD else found.prefix + ours):
            missing.append(PREFIX + (name if ours == HEAD else found.prefix + name))
    if missing:
        raise CheckpointMismatchError(path, missing=missing, advice=_ADVICE)


def _head(
    config: PeftConfig, found: _Found, base: Checkpoint, tensors: dict[str, StoredTensor]
) -> tuple[GPT2Config, dict[str, StoredTensor], StoredTensor | None]:
    """Return the configuration, tensors with PEFT's embedding and head, and a copy of a tied head.

    In PEFT a module that was trained whole is a copy, and so is an adapter's sum: the other end of
    the tie stays as it was. Any other tensor of the file replaces the parameter that both share.
    """
    embedding, head = "wte.weight", f"{HEAD}.weight"
    shape, tied_copy = base.config, None
    if shape.tie_word_embeddings:
        modules = {embedding: f"{found.prefix}wte", head: HEAD}
        is_tied = not any(
            config.is_saved(module) or (module, "A") in found.low for module in modules.values()
        )
        if config.keeps_tied and not is_tied:
            raise ConfigError(
                f"{config.path}: ensure_weight_tying is true, which gpt2kit does not support for "
                "adapters of the embedding or the head; in PEFT, merge_and_unload() makes a model"
            )
        plain = [
            found.whole[name]
            for name, module in modules.items()
            if name in found.whole and not config.is_saved(module)
        ]
        shared = plain[0] if plain else base.tensors[embedding]
        tensors = {**tensors, **{name: found.whole.get(name, shared) for name in modules}}
        if is_tied:
            tied_copy = tensors.pop(head) if plain else base.tied_copy
            tensors.pop(head, None)
        shape = replace(shape, tie_word_embeddings=is_tied)
    return replace(shape, n_vocab=tensors[embedding].shape[0]), tensors, tied_copy


def _merged(weight: StoredTensor, a: StoredTensor, b: StoredTensor, scale: float) -> StoredTensor:
    """Return W + scale B A, computed when it is read, in the dtype that holds all of them."""
    dtype = torch.promote_types(torch.promote_types(weight.dtype, a.dtype), b.dtype)
    return StoredTensor(
        weight.shape,
        dtype,
        lambda _: updated(weight.read().to(dtype), a.read(), b.read(), scale),
    )
