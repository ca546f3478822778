"""Sparse autoencoders: the numbers of SAELens and of OpenAI's program, and their use on a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from features_builders import ANSWERS, AT, SAES, X, matrices, write_old_sae, write_sae

from gpt2kit.errors import ConfigError
from gpt2kit.inspection.features import activations, load_sae
from gpt2kit.inspection.forward import trace
from gpt2kit.model import GPT2

NAMES = [name for name in ANSWERS if name not in ("x", "shape")]


@pytest.mark.parametrize("name", NAMES)
def test_features_and_what_is_made_of_them_equal_those_of_the_program_that_wrote_the_file(
    name: str,
) -> None:
    """The answers are SAELens's 6.54.12 and OpenAI's own: see tests/golden/README.md."""
    is_openai = name.startswith("openai")
    sae = load_sae(SAES / (f"{name}.pt" if is_openai else name), at=AT if is_openai else None)
    features = sae.encode(X)
    expected = torch.tensor(ANSWERS[name]["features"]).view(*X.shape[:2], -1)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
    assert (features > 0).any()
    decoded = sae.decode(features, X)
    if name == "centered":  # SAELens was given x without its mean
        decoded = decoded - X.mean(-1, keepdim=True)
    answer = torch.tensor(ANSWERS[name]["decoded"]).view(X.shape)
    torch.testing.assert_close(decoded, answer, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["standard", "gated", "topk-by-norm", "without-bias", "heads"])
def test_reconstruction_and_error_add_up_to_what_was_encoded(name: str) -> None:
    sae = load_sae(SAES / name)
    torch.testing.assert_close(sae.reconstruct(X) + sae.error(X), X)


def test_an_sae_of_the_first_versions_reads_the_stream_without_its_mean(tmp_path: Path) -> None:
    sae = load_sae(write_old_sae(tmp_path))
    x = torch.randn(2, 3, 16)
    torch.testing.assert_close(sae.encode(x), sae.encode(x + 5), atol=1e-4, rtol=1e-4)
    # The mean is no part of what features say, and comes back with the reconstruction.
    moved = sae.reconstruct(x + 5) - sae.reconstruct(x)
    torch.testing.assert_close(moved, torch.full_like(x, 5), atol=1e-4, rtol=1e-4)
    raw = load_sae(tmp_path, is_centered=False)
    assert not torch.allclose(raw.encode(x), raw.encode(x + 5))


def test_a_scaling_factor_of_finetuning_rescales_what_features_add(tmp_path: Path) -> None:
    tensors = matrices(16, 24)
    plain = load_sae(write_old_sae(tmp_path / "plain", tensors))
    scale = torch.linspace(0.5, 2, 24)
    sae = load_sae(write_old_sae(tmp_path / "scaled", {**tensors, "scaling_factor": scale}))
    x = torch.randn(4, 16)
    features = plain.encode(x)
    torch.testing.assert_close(sae.encode(x), features)
    torch.testing.assert_close(sae.decode(features, x), plain.decode(features * scale, x))


def test_activations_are_multiplied_by_an_input_scale_before_and_divided_after(
    tmp_path: Path,
) -> None:
    """As SAELens folds it: W_enc * s, W_dec / s, b_dec / s."""
    tensors, s, x = matrices(16, 24), 0.4, torch.randn(4, 16)
    folder = write_sae(tmp_path / "a", tensors, normalize_activations="expected_average_only_in")
    sae = load_sae(folder, input_scale=s)
    folded = {**tensors, "W_enc": tensors["W_enc"] * s, "W_dec": tensors["W_dec"] / s}
    judge = load_sae(write_sae(tmp_path / "b", {**folded, "b_dec": tensors["b_dec"] / s}))
    torch.testing.assert_close(sae.encode(x), judge.encode(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sae.reconstruct(x), judge.reconstruct(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sae.direction(3), judge.direction(3))
    with pytest.raises(ConfigError, match="give it: --input_scale"):
        load_sae(folder)
    with pytest.raises(ConfigError, match="expected a number above 0"):
        load_sae(folder, input_scale=-1.0)


def test_a_file_that_does_not_say_where_it_reads_must_be_told(tmp_path: Path) -> None:
    assert load_sae(SAES / "openai-relu.pt").hook is None
    with pytest.raises(ConfigError, match="give it: --at, such as blocks.8.hook_resid_pre"):
        _ = load_sae(SAES / "openai-relu.pt").layer
    assert load_sae(SAES / "openai-relu.pt", at=AT).layer == 1
    with pytest.raises(ConfigError, match=r"reads blocks.1.hook_resid_pre, not blocks.1.hook_resi"):
        load_sae(SAES / "standard", at=AT)
    with pytest.raises(ConfigError, match="'blocks.1.ln1' is not supported"):
        load_sae(SAES / "openai-relu.pt", at="blocks.1.ln1")


def test_an_sae_for_another_model_is_refused(tmp_path: Path, tiny_model: GPT2) -> None:
    with pytest.raises(ConfigError, match="reads 8 numbers at blocks.1.hook_resid_pre"):
        load_sae(SAES / "standard").for_model(tiny_model)
    sae = load_sae(write_sae(tmp_path))
    with pytest.raises(ConfigError, match="there is no block 7: the model has 2, from 0 to 1"):
        replace(sae, hook="blocks.7.hook_resid_pre").for_model(tiny_model)
    with pytest.raises(ConfigError, match="no feature 24: the SAE has 24, from 0 to 23"):
        sae.direction(24)


def test_z_is_read_as_transformerlens_folds_it(tmp_path: Path, tiny_model: GPT2) -> None:
    """Folded z is z - (b_V + β W_V): the same numbers as in TransformerLens 3.9's own model."""
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    folder = write_old_sae(tmp_path, hook_point="blocks.1.attn.hook_z")
    sae = load_sae(folder).for_model(tiny_model)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    z = activations(tiny_model, ids, "blocks.1.attn.hook_z")  # (1, 5, 16)
    # Values of a model whose values have neither bias: what c_attn makes of the standardized stream
    block: Any = tiny_model.h[1]
    seen = trace(tiny_model, ids).layers[1]
    plain = torch.nn.functional.layer_norm(seen.before, (16,), eps=block.ln_1.eps)
    values = plain * block.ln_1.weight @ block.attn.c_attn.weight[32:].T  # (1, 5, 16)
    heads = seen.weights @ values.view(1, 5, 2, 8).transpose(1, 2)  # (1, H, T, D)
    folded = heads.transpose(1, 2).flatten(2)  # (1, 5, 16)
    judge = replace(sae, shift=None)
    torch.testing.assert_close(sae.encode(z), judge.encode(folded), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sae.reconstruct(z) + sae.error(z), z)
    assert not torch.allclose(sae.encode(z), judge.encode(z), atol=1e-2)


def test_activations_are_those_of_the_trace(tiny_model: GPT2) -> None:
    ids = torch.tensor([[3, 1, 4]])
    seen = trace(tiny_model, ids).layers[1]
    for hook, expected in {
        "hook_resid_pre": seen.before,
        "hook_resid_mid": seen.middle,
        "hook_resid_post": seen.after,
        "hook_attn_out": seen.attention_update,
        "hook_mlp_out": seen.mlp_update,
        "mlp.hook_post": seen.mlp_after,
        "attn.hook_z": seen.head_outputs.transpose(1, 2).flatten(2),
    }.items():
        found = activations(tiny_model, ids, f"blocks.1.{hook}")
        torch.testing.assert_close(found, expected, msg=hook)
