"""Write a model in the format of llama.cpp."""

from __future__ import annotations

import json
import os
from pathlib import Path


def write_gguf(model: Path, out: Path, kind: str) -> None:
    """Write a model as a GGUF file, with its vocabulary."""
    import gguf
    import torch

    from gpt2kit.checkpoints.load import open_checkpoint

    checkpoint = open_checkpoint(model)
    config = checkpoint.config
    stored = {
        "f32": None,
        "bf16": gguf.GGMLQuantizationType.BF16,
        "q8_0": gguf.GGMLQuantizationType.Q8_0,
    }[kind]
    writer = gguf.GGUFWriter(str(out.with_suffix(".part")), "gpt2")
    writer.add_context_length(config.n_ctx)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.inner_size)
    writer.add_block_count(config.n_layer)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    vocabulary = json.loads((checkpoint.folder / "vocab.json").read_text(encoding="utf-8"))
    merges = (checkpoint.folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.__getitem__))
    writer.add_token_types([1] * (config.n_vocab - 1) + [3])
    writer.add_token_merges([line for line in merges if line and not line.startswith("#version")])
    names = {
        "wte": "token_embd",
        "wpe": "position_embd",
        "ln_f": "output_norm",
        "ln_1": "attn_norm",
        "ln_2": "ffn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    }

    def add(name: str, tensor: torch.Tensor) -> None:
        array = tensor.float().contiguous().numpy()
        if array.ndim == 2 and stored is not None and name != "position_embd.weight":
            writer.add_tensor(name, gguf.quants.quantize(array, stored), raw_dtype=stored)
        else:
            writer.add_tensor(name, array)

    for name, tensor in checkpoint.tensors.items():
        module, kind_of_tensor = name.rsplit(".", 1)
        if module.startswith("h."):
            _, layer, inside = module.split(".", 2)
            add(f"blk.{layer}.{names[inside]}.{kind_of_tensor}", tensor.read())
        else:
            add(f"{names[module]}.{kind_of_tensor}", tensor.read())
    add("output.weight", checkpoint.tensors["wte.weight"].read())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(out.with_suffix(".part"), out)
