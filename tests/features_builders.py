"""Small sparse autoencoders: those that other programs wrote, and files of any content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from conftest import GOLDEN
from safetensors.torch import save_file
from torch import Tensor

SAES = GOLDEN / "sae"
ANSWERS = json.loads((SAES / "answers.json").read_text())
# x (2, 3, 8), of which every answer is
X = torch.tensor(ANSWERS["x"]).view(ANSWERS["shape"])
# Where OpenAI's files, which do not say it, are said to read
AT = "blocks.1.hook_resid_post"


def matrices(width: int, n: int, *, seed: int = 0) -> dict[str, Tensor]:
    """Return the tensors of a standard SAE with random numbers, by SAELens's names."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "W_enc": torch.randn(width, n, generator=generator),
        "b_enc": torch.randn(n, generator=generator),
        "W_dec": torch.randn(n, width, generator=generator),
        "b_dec": torch.randn(width, generator=generator),
    }


def write_sae(folder: Path, tensors: Mapping[str, Tensor] | None = None, **config: Any) -> Path:
    """Write a SAELens folder; the given keys of cfg.json replace the usual ones, None removes."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = matrices(16, 24) if tensors is None else tensors
    usual = {
        "architecture": "standard",
        "d_in": 16,
        "d_sae": 24,
        "dtype": "float32",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.1.hook_resid_pre"},
    }
    fields = {name: value for name, value in {**usual, **config}.items() if value is not None}
    (folder / "cfg.json").write_text(json.dumps(fields))
    save_file(dict(tensors), folder / "sae_weights.safetensors")
    return folder


def write_old_sae(folder: Path, tensors: Mapping[str, Tensor] | None = None, **config: Any) -> Path:
    """Write a folder as the first versions of SAELens did, with the keys of gpt2-small-res-jb."""
    keys = {
        "hook_point": "blocks.1.hook_resid_pre",
        "hook_point_layer": 1,
        "hook_point_head_index": None,
        "model_name": "gpt2-small",
        "activation_fn_str": "relu",
        "normalize_activations": False,
        "prepend_bos": True,
        "context_size": 128,
    }
    nothing = {"architecture": None, "metadata": None, "apply_b_dec_to_input": None}
    return write_sae(folder, tensors, **{**nothing, **keys, **config})
