"""Write small checkpoints of every format, for tests that damage them or read them back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from conftest import GOLDEN
from safetensors.torch import save_file
from torch import Tensor

from gpt2kit.checkpoints.layouts import Layout
from gpt2kit.checkpoints.names import is_transposed
from gpt2kit.config import GPT2Config
from gpt2kit.model import GPT2


def hub_state(model: GPT2, prefix: str = "transformer.") -> dict[str, Tensor]:
    """Return a model's tensors as in Hugging Face's files: with a prefix, Conv1D as (in, out)."""
    state = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.t() if is_transposed(name) else tensor
        state[("" if name == "lm_head.weight" else prefix) + name] = tensor.contiguous()
    return state


def hub_config(model: GPT2, **fields: Any) -> dict[str, Any]:
    """Return a config.json as transformers writes it, the given fields changed."""
    config = model.config
    shape = {
        "vocab_size": config.n_vocab,
        "n_positions": config.n_ctx,
        "n_embd": config.n_embd,
        "n_head": config.n_head,
        "n_layer": config.n_layer,
    }
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        **shape,
        "bos_token_id": 511,
        "eos_token_id": 511,
        **fields,
    }


def write_hub(
    folder: Path,
    model: GPT2,
    *,
    state: Mapping[str, Tensor] | None = None,
    weights: str = "model.safetensors",
    **fields: Any,
) -> Path:
    """Write a Hugging Face directory without a vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hub_config(model, **fields)))
    state = hub_state(model) if state is None else state
    if weights.endswith(".bin"):
        torch.save(dict(state), folder / weights)
    else:
        save_file(dict(state), folder / weights, {"format": "pt"})
    return folder


def write_nanogpt(path: Path, model: GPT2, **changes: Any) -> Path:
    """Write what nanoGPT's train.py saves for a model of exact GELU."""
    config = model.config
    content = {
        "model": {
            "_orig_mod.transformer." + name: tensor for name, tensor in model.state_dict().items()
        },
        "optimizer": {"state": {}, "param_groups": []},
        "model_args": {
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "n_embd": config.n_embd,
            "block_size": config.n_ctx,
            "bias": config.bias,
            "vocab_size": config.n_vocab,
            "dropout": 0.1,
        },
        "iter_num": 7,
        "best_val_loss": torch.tensor(3.5),
        "config": {"learning_rate": 6e-4},
    }
    content["model"]["_orig_mod.lm_head.weight"] = model.wte.weight.detach()  # type: ignore[index]
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**content, **changes}, path)
    return path


def write_layout(path: Path, layout: Layout, config: GPT2Config) -> Path:
    """Write weights alone, small random numbers, as a course's program names them."""
    state = {
        name: torch.randn(shape, generator=torch.Generator().manual_seed(0)) / 50
        for name, (_, shape) in layout.expected(config).items()
    }
    torch.save(state, path)
    return path


def add_vocabulary(folder: Path) -> Path:
    """Put the small BPE vocabulary of 512 tokens into a folder."""
    for file in (GOLDEN / "bpe" / "small").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder
