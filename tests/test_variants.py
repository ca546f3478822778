"""Variants: their gradients, transformers as the judge of those that it has, and who runs them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import compiled, make_model
from test_model import VARIANTS, weights_of

from gpt2kit import reference
from gpt2kit.checkpoints.load import write_model
from gpt2kit.config import VARIED, GPT2Config
from gpt2kit.engine.decoder import Decoder
from gpt2kit.model import GPT2
from gpt2kit.training import loss as loss_module
from gpt2kit.training.loss import NextTokenLoss

IDS = [3, 1, 4, 1, 5, 9, 2, 6]
BIASES = {"bias", "qkv_bias"}  # which the native step can do without
OF_HEADS = {"head", "head_bias", "tie_word_embeddings"}
SMALL = GPT2Config(n_vocab=12, n_ctx=8, n_embd=8, n_head=2, n_layer=1)


def reference_loss(config: GPT2Config, weights: Any) -> float:
    """Return the mean loss, in nats, of predicting each of the ids from those before it."""
    logits = reference.logits(config, weights, IDS[:-1])  # (T, V)
    log_sums = np.log(np.exp(logits).sum(axis=1))
    return float((log_sums - logits[range(len(IDS) - 1), IDS[1:]]).mean())


@pytest.mark.parametrize(
    ("name", "in_pieces"),
    [(name, False) for name in VARIANTS if name != "upcast"]
    + [(name, True) for name, fields in VARIANTS.items() if fields.keys() & OF_HEADS],
)
def test_gradients_are_the_slopes_of_the_reference_loss(
    name: str, in_pieces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_pieces:  # the loss of many logits, with gradients of its own
        monkeypatch.setattr(loss_module, "FEW_LOGITS", 1)
        monkeypatch.setattr(loss_module, "LOGITS_AT_ONCE", 30)
    fields = VARIANTS[name]
    config = replace(SMALL, **(fields | ({"n_embd": 12} if "n_embd" in fields else {})))
    model = make_model(config, dtype=torch.float64)
    NextTokenLoss(model)(torch.tensor([IDS])).backward()
    generator = np.random.default_rng(0)
    weights = dict(weights_of(model))
    for parameter, value in model.named_parameters():
        direction = generator.normal(size=value.shape) * 1e-5
        ahead, behind = (
            reference_loss(config, {**weights, parameter: weights[parameter] + sign * direction})
            for sign in (1, -1)
        )
        assert value.grad is not None, parameter
        expected = float((value.grad.numpy() * direction).sum())
        assert (ahead - behind) / 2 == pytest.approx(expected, rel=1e-5, abs=1e-11), parameter


# Each variant as a GPT-2 with some weights set to zero, which has the same function.
AS_GPT2: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "attention only": ({"mlp": "none"}, (".mlp.c_proj.",)),
    "no positions": ({"positions": "none"}, ("wpe.",)),
    "no biases": ({"bias": False, "qkv_bias": False}, (".bias",)),
    "exact gelu": ({"activation_function": "gelu"}, ()),
    "relu": ({"activation_function": "relu"}, ()),
    "attention only, one head": (
        {"mlp": "none", "n_head": 1, "tie_word_embeddings": False}, (".mlp.c_proj.",)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", AS_GPT2)
def test_transformers_computes_the_same_with_zeros_in_place_of_what_is_left_out(
    tmp_path: Path, tiny_config: GPT2Config, name: str
) -> None:
    transformers = pytest.importorskip("transformers")
    fields, zeros = AS_GPT2[name]
    as_gpt2 = {key: value for key, value in fields.items() if key not in VARIED}
    whole = make_model(replace(tiny_config, **as_gpt2), dtype=torch.float64)
    with torch.no_grad():
        for parameter, value in whole.named_parameters():
            if any(zero in parameter for zero in zeros):
                value.zero_()
    model = GPT2(replace(tiny_config, **fields)).double().eval()
    model.load_state_dict({key: whole.state_dict()[key] for key in model.state_dict()})
    write_model(tmp_path, whole)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, dtype=torch.float64).eval()
    ids = torch.arange(30)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, rtol=0, atol=1e-9)


def test_blocks_that_normalize_after_adding_are_those_of_the_first_gpt_in_transformers(
    tiny_config: GPT2Config,
) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.OpenAIGPTLMHeadModel(
        transformers.OpenAIGPTConfig(
            vocab_size=512, n_positions=32, n_embd=16, n_layer=2, n_head=2, afn="gelu"
        )
    )
    theirs = theirs.double().eval()  # the GELU of the first GPT is the one by tanh, too
    model = make_model(replace(tiny_config, norm_first=False), dtype=torch.float64)
    names = {"wte": "tokens_embed", "wpe": "positions_embed"}
    state = {}
    for name, value in model.state_dict().items():
        part, _, rest = name.partition(".")
        if part != "ln_f":  # it has no norm after the last block
            is_matrix = part == "h" and value.dim() == 2
            theirs_name = f"transformer.{names.get(part, part)}.{rest}"
            state[theirs_name] = value.T if is_matrix else value
    state["lm_head.weight"] = model.wte.weight.detach()
    missing = theirs.load_state_dict(state, strict=False).missing_keys
    assert not [name for name in missing if not name.endswith("attn.bias")]  # the causal masks
    model.ln_f = torch.nn.Identity()
    ids = torch.arange(30)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, rtol=0, atol=1e-9)


@compiled
def test_the_native_step_runs_gpt2_and_leaves_other_variants_to_torch(
    tiny_config: GPT2Config,
) -> None:
    # A field that the native step ignored would give other logits.
    native = set()
    for name, fields in VARIANTS.items():
        if Decoder(make_model(replace(tiny_config, **fields))).name() != "torch":
            native.add(name)
    other = {name for name, fields in VARIANTS.items() if fields.keys() & (VARIED.keys() - BIASES)}
    assert native == VARIANTS.keys() - other
