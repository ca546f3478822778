"""The names of the tensors in the programs of courses, and of others that save weights alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gpt2kit.checkpoints.layouts import Layout
from gpt2kit.checkpoints.names import OPENAI, holds_linear
from gpt2kit.errors import CheckpointError
from gpt2kit.files import read_json

OURS = {name: name for name in (*OPENAI.values(), "lm_head.weight")}

# A model of transformers, saved by torch.save(model.state_dict()).
_HUGGING_FACE = Layout("Hugging Face state_dict", OURS, is_conv1d=True)

# https://github.com/karpathy/minGPT: nn.Linear, GPT-2's own GELU, a head of its own. The sizes are
# those of its model types; the small ones do not have heads of width 64.
MINGPT = Layout(
    "minGPT",
    OURS,
    heads={(8, 512): 16, (6, 192): 6, (4, 128): 4, (3, 48): 3},
)

_MODEL_TYPES = {"gopher-44m": 16, "gpt-mini": 6, "gpt-micro": 4, "gpt-nano": 3}  # their heads

# The weights in nanoGPT's checkpoint, saved without it. They have no masks, unlike minGPT's.
_NANOGPT = Layout("nanoGPT state_dict", OURS, fields={"activation_function": "gelu"})

# https://github.com/rasbt/LLMs-from-scratch, from chapter 4 on.
LLMS_FROM_SCRATCH = Layout(
    "LLMs-from-scratch",
    {
        "tok_emb.weight": "wte.weight",
        "pos_emb.weight": "wpe.weight",
        "trf_blocks.{layer}.norm1.scale": "h.{layer}.ln_1.weight",
        "trf_blocks.{layer}.norm1.shift": "h.{layer}.ln_1.bias",
        "trf_blocks.{layer}.att.W_query.weight": "h.{layer}.attn.c_attn.weight[q]",
        "trf_blocks.{layer}.att.W_key.weight": "h.{layer}.attn.c_attn.weight[k]",
        "trf_blocks.{layer}.att.W_value.weight": "h.{layer}.attn.c_attn.weight[v]",
        "trf_blocks.{layer}.att.W_query.bias": "h.{layer}.attn.c_attn.bias[q]",
        "trf_blocks.{layer}.att.W_key.bias": "h.{layer}.attn.c_attn.bias[k]",
        "trf_blocks.{layer}.att.W_value.bias": "h.{layer}.attn.c_attn.bias[v]",
        "trf_blocks.{layer}.att.out_proj.weight": "h.{layer}.attn.c_proj.weight",
        "trf_blocks.{layer}.att.out_proj.bias": "h.{layer}.attn.c_proj.bias",
        "trf_blocks.{layer}.norm2.scale": "h.{layer}.ln_2.weight",
        "trf_blocks.{layer}.norm2.shift": "h.{layer}.ln_2.bias",
        "trf_blocks.{layer}.ff.layers.0.weight": "h.{layer}.mlp.c_fc.weight",
        "trf_blocks.{layer}.ff.layers.0.bias": "h.{layer}.mlp.c_fc.bias",
        "trf_blocks.{layer}.ff.layers.2.weight": "h.{layer}.mlp.c_proj.weight",
        "trf_blocks.{layer}.ff.layers.2.bias": "h.{layer}.mlp.c_proj.bias",
        "final_norm.scale": "ln_f.weight",
        "final_norm.shift": "ln_f.bias",
        "out_head.weight": "lm_head.weight",
    },
    buffers=(".att.mask",),
)

# The blocks of the lecture and of ToyGPT differ in the names of two parts.
_BLOCK = {
    "blocks.{layer}.ln1.weight": "h.{layer}.ln_1.weight",
    "blocks.{layer}.ln1.bias": "h.{layer}.ln_1.bias",
    "blocks.{layer}.ln2.weight": "h.{layer}.ln_2.weight",
    "blocks.{layer}.ln2.bias": "h.{layer}.ln_2.bias",
    "ln_f.weight": "ln_f.weight",
    "ln_f.bias": "ln_f.bias",
}

# Karpathy's lecture "Let's build GPT", https://github.com/karpathy/ng-video-lecture, gpt.py: each
# head has matrices of its own.
_LECTURE = Layout(
    "Let's build GPT",
    {
        "token_embedding_table.weight": "wte.weight",
        "position_embedding_table.weight": "wpe.weight",
        "blocks.{layer}.sa.heads.{head}.query.weight": "h.{layer}.attn.c_attn.weight[q]",
        "blocks.{layer}.sa.heads.{head}.key.weight": "h.{layer}.attn.c_attn.weight[k]",
        "blocks.{layer}.sa.heads.{head}.value.weight": "h.{layer}.attn.c_attn.weight[v]",
        "blocks.{layer}.sa.proj.weight": "h.{layer}.attn.c_proj.weight",
        "blocks.{layer}.sa.proj.bias": "h.{layer}.attn.c_proj.bias",
        "blocks.{layer}.ffwd.net.0.weight": "h.{layer}.mlp.c_fc.weight",
        "blocks.{layer}.ffwd.net.0.bias": "h.{layer}.mlp.c_fc.bias",
        "blocks.{layer}.ffwd.net.2.weight": "h.{layer}.mlp.c_proj.weight",
        "blocks.{layer}.ffwd.net.2.bias": "h.{layer}.mlp.c_proj.bias",
        **_BLOCK,
        "lm_head.weight": "lm_head.weight",
        "lm_head.bias": "lm_head.bias",
    },
    fields={"activation_function": "relu"},
    buffers=(".tril",),
)

# The lecture's first model, bigram.py: the row of each token is the logits of the next one.
_BIGRAM = Layout(
    "Let's build GPT, bigram",
    {"token_embedding_table.weight": "wte.weight"},
    fields={"head": "none", "norm": "none", "positions": "none", "mlp": "none", "n_ctx": 1024},
)

# A ToyGPT of characters, toy_gpt_model.pth: 3 layers of width 32 have 4 heads in its course.
TOY = Layout(
    "ToyGPT",
    {
        "token_embedding.weight": "wte.weight",
        "position_embedding.weight": "wpe.weight",
        "blocks.{layer}.attn.query.weight": "h.{layer}.attn.c_attn.weight[q]",
        "blocks.{layer}.attn.key.weight": "h.{layer}.attn.c_attn.weight[k]",
        "blocks.{layer}.attn.value.weight": "h.{layer}.attn.c_attn.weight[v]",
        "blocks.{layer}.attn.proj.weight": "h.{layer}.attn.c_proj.weight",
        "blocks.{layer}.attn.proj.bias": "h.{layer}.attn.c_proj.bias",
        "blocks.{layer}.ffn.0.weight": "h.{layer}.mlp.c_fc.weight",
        "blocks.{layer}.ffn.0.bias": "h.{layer}.mlp.c_fc.bias",
        "blocks.{layer}.ffn.2.weight": "h.{layer}.mlp.c_proj.weight",
        "blocks.{layer}.ffn.2.bias": "h.{layer}.mlp.c_proj.bias",
        **_BLOCK,
        "head.weight": "lm_head.weight",
        "head.bias": "lm_head.bias",
    },
    fields={"activation_function": "relu"},
    buffers=(".attn.mask",),
    heads={(3, 32): 4},
)


def mingpt_heads(config_file: Path) -> int | None:
    """Return the number of heads by the config.json that minGPT's projects write, or None.

    It gives either a type of model or its shape.
    """
    model = read_json(config_file, error=CheckpointError).get("model")
    if not isinstance(model, dict):
        return None
    n_head, kind = model.get("n_head"), model.get("model_type")
    if type(n_head) is int and n_head > 0:
        return n_head
    return _MODEL_TYPES.get(kind) if isinstance(kind, str) else None


_OTHERS = (LLMS_FROM_SCRATCH, _LECTURE, TOY)
FORMATS = ("nanoGPT", "minGPT", *(layout.format for layout in _OTHERS), "a GPT-2 of transformers")


def recognize(shapes: Mapping[str, tuple[int, ...]], *, has_masks: bool) -> Layout | None:
    """Return the layout that knows most of a file's names, or None if none knows the embedding.

    `shapes` are those of the tensors by their names without prefixes. GPT-2's own names have three
    layouts, which the shapes of matrices tell apart, and minGPT's masks.
    """
    linear = MINGPT if has_masks else _NANOGPT
    own = linear if holds_linear(shapes) else _HUGGING_FACE
    if shapes.keys() == _BIGRAM.names.keys():
        return _BIGRAM
    best = max((own, *_OTHERS), key=lambda layout: len(layout.targets(shapes)))
    return best if best.theirs("wte.weight") in shapes else None
