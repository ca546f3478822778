"""TransformerLens's numbers: those of a model whose weights were changed as its options say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import make_model

from gpt2kit.config import GPT2Config
from gpt2kit.errors import ConfigError
from gpt2kit.inspection import trace
from gpt2kit.model import GPT2

IDS = torch.randint(0, 512, (2, 9), generator=torch.Generator().manual_seed(1))


def changed(model: GPT2) -> GPT2:
    """Return a model of the same function with folded norms, value biases, and centered weights."""
    config = replace(model.config, tie_word_embeddings=False, head_bias=True)
    state = {name: x.clone() for name, x in model.state_dict().items()}
    C = config.n_embd
    head = state["wte.weight"].clone()
    state["lm_head.bias"] = head @ state["ln_f.bias"]
    head = head * state["ln_f.weight"]
    state["lm_head.weight"] = head - head.mean(dim=0)
    state["lm_head.bias"] -= state["lm_head.bias"].mean()
    for name in ("wte", "wpe"):
        state[f"{name}.weight"] -= state[f"{name}.weight"].mean(dim=1, keepdim=True)
    norms = {"ln_f"}
    for layer in range(config.n_layer):
        here = f"h.{layer}"
        for norm, reader in (("ln_1", "attn.c_attn"), ("ln_2", "mlp.c_fc")):
            norms.add(f"{here}.{norm}")
            weight = state[f"{here}.{reader}.weight"]
            state[f"{here}.{reader}.bias"] += weight @ state[f"{here}.{norm}.bias"]
            weight *= state[f"{here}.{norm}.weight"]
        values = state[f"{here}.attn.c_attn.bias"][2 * C :]
        state[f"{here}.attn.c_proj.bias"] += state[f"{here}.attn.c_proj.weight"] @ values
        values.zero_()
        for writer in ("attn.c_proj", "mlp.c_proj"):
            for kind in ("weight", "bias"):
                state[f"{here}.{writer}.{kind}"] -= state[f"{here}.{writer}.{kind}"].mean(dim=0)
    for norm in norms:
        state[f"{norm}.weight"].fill_(1)
        state[f"{norm}.bias"].zero_()
    other = GPT2(config).to(model.dtype).eval()
    other.load_state_dict(state)
    return other


def test_the_numbers_are_those_of_changed_weights(tiny_config: GPT2Config) -> None:
    model = make_model(tiny_config, dtype=torch.float64)
    expected = trace(changed(model), IDS)
    found = trace(model, IDS).as_transformer_lens()
    for name, x in found.items():
        if name == "logits":
            torch.testing.assert_close(x, expected.logits, rtol=0, atol=1e-9)
        elif "hook_scale" not in name and "hook_normalized" not in name:
            torch.testing.assert_close(x, expected[name], rtol=0, atol=1e-9, msg=name)
    normalized = found["ln_final.hook_normalized"]
    torch.testing.assert_close(normalized, expected.normalized, rtol=0, atol=1e-9)


def test_a_trace_gives_activations_by_either_name(tiny_model: GPT2) -> None:
    seen = trace(tiny_model, IDS)
    assert seen["z", 1].shape == (2, 9, 2, 8)
    assert torch.equal(seen["blocks.1.attn.hook_z"], seen.layers[1].head_outputs.transpose(1, 2))
    assert torch.equal(seen["layers.1.head_outputs"], seen.layers[1].head_outputs)
    assert seen["hook_pos_embed"].shape == (2, 9, 16)
    with pytest.raises(ConfigError, match="z: of which layer"):
        seen["z"]
    with pytest.raises(ConfigError, match="a trace does not have ln1.hook_scale; run"):
        seen["ln1.hook_scale", 0]


def test_models_that_cannot_be_folded_are_refused(tiny_config: GPT2Config) -> None:
    model = make_model(replace(tiny_config, norm="rmsnorm"))
    with pytest.raises(ConfigError, match="LayerNorm before each part"):
        trace(model, IDS).as_transformer_lens()
