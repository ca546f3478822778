# mypy: ignore-errors
"""Run by TransformerLens's Python: what it computes for a folder, as a file of tensors.

python hooked_transformer.py FOLDER IDS.pt OUT.pt
"""

import copy
import sys
from importlib.metadata import version

import torch
from transformers import AutoTokenizer, GPT2LMHeadModel

folder, ids_path, out = sys.argv[1:]
ids, edits = torch.load(ids_path)
hf = GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager").eval()
major = int(version("transformer_lens").split(".")[0])
if major >= 4:
    from transformer_lens.model_bridge import TransformerBridge

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = TransformerBridge.boot_transformers(
        "gpt2", hf_model=copy.deepcopy(hf), tokenizer=tokenizer
    )
else:
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

    shape = hf.config
    config = HookedTransformerConfig(
        n_layers=shape.n_layer,
        d_model=shape.n_embd,
        n_ctx=shape.n_positions,
        d_head=shape.n_embd // shape.n_head,
        n_heads=shape.n_head,
        d_mlp=4 * shape.n_embd,
        d_vocab=shape.vocab_size,
        act_fn="gelu_new",
        normalization_type="LNPre",
        eps=shape.layer_norm_epsilon,
        original_architecture="GPT2LMHeadModel",
        device="cpu",
    )
    model = HookedTransformer(config)
    model.load_and_process_state_dict(
        convert_gpt2_weights(hf, config),
        fold_ln=True,
        center_writing_weights=True,
        center_unembed=True,
        fold_value_biases=True,
    )
with torch.no_grad():
    logits, cache = model.run_with_cache(ids)
    found = {name: x for name, x in cache.items() if isinstance(x, torch.Tensor)}
    edited = []
    for name, head, position, value in edits:

        def change(x, hook, name=name, head=head, position=position, value=value):
            x = x.clone()
            if head is None:
                x[:, position] = value
            elif "pattern" in name or "scores" in name:
                x[:, head, position] = value
            else:
                x[:, position, head] = value
            return x

        edited.append(model.run_with_hooks(ids, fwd_hooks=[(name, change)]))
torch.save({"activations": found, "logits": logits, "edited": edited}, out)
