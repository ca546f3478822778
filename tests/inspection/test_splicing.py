"""Features in a model: what a splice changes, and how good an autoencoder is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from features_builders import matrices, write_old_sae, write_sae

from gpt2kit.errors import ConfigError
from gpt2kit.inspection.edits import Edit
from gpt2kit.inspection.features import SAE, activations, load_sae
from gpt2kit.inspection.running import run
from gpt2kit.inspection.splicing import Active, promoted, quality, splice, top_features
from gpt2kit.model import GPT2

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2], [2, 7, 1, 8, 2, 8, 1]])
HOOKS = [
    *("blocks.0.hook_resid_pre", "blocks.1.hook_resid_mid", "blocks.1.hook_resid_post"),
    *("blocks.0.hook_attn_out", "blocks.1.hook_mlp_out", "blocks.1.attn.hook_z"),
]


def sae_at(folder: Path, hook: str, model: GPT2) -> SAE:
    return load_sae(write_sae(folder, metadata={"hook_name": hook})).for_model(model)


@pytest.mark.parametrize("hook", HOOKS)
def test_an_sae_with_its_error_changes_nothing(tmp_path: Path, tiny_model: GPT2, hook: str) -> None:
    sae = sae_at(tmp_path, hook, tiny_model)
    torch.testing.assert_close(splice(tiny_model, IDS, sae), tiny_model(IDS), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("hook", HOOKS)
def test_without_its_error_the_model_reads_the_reconstruction(
    tmp_path: Path, tiny_model: GPT2, hook: str
) -> None:
    sae = sae_at(tmp_path, hook, tiny_model)
    new = sae.reconstruct(activations(tiny_model, IDS, hook))
    new = new.view(*IDS.shape, 2, 8) if hook.endswith("hook_z") else new
    expected = run(tiny_model, IDS, [Edit(hook, value=new)]).logits
    found = splice(tiny_model, IDS, sae, error=False)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, tiny_model(IDS), atol=1e-2)


def test_a_feature_that_is_set_moves_the_stream_along_its_direction_alone(
    tmp_path: Path, tiny_model: GPT2
) -> None:
    hook = "blocks.1.hook_resid_pre"
    sae = sae_at(tmp_path, hook, tiny_model)
    stream = activations(tiny_model, IDS, hook)
    by = 8.0 - sae.encode(stream)[..., 5:6]  # (B, T, 1)
    expected = run(tiny_model, IDS, [Edit(hook, value=stream + by * sae.direction(5))]).logits
    found = splice(tiny_model, IDS, sae, {5: 8.0})
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)

    # A function may say the same, and the first positions may be left alone.
    def change(features: torch.Tensor) -> torch.Tensor:
        features[..., 5] = 8.0
        return features

    torch.testing.assert_close(splice(tiny_model, IDS, sae, change), found)
    skipped = splice(tiny_model, IDS, sae, change, skip=3)
    torch.testing.assert_close(skipped[:, :3], tiny_model(IDS)[:, :3], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(skipped[:, 3:], tiny_model(IDS)[:, 3:], atol=1e-2)
    with pytest.raises(ConfigError, match="there is no feature 24"):
        splice(tiny_model, IDS, sae, {24: 0.0})


@pytest.mark.parametrize("hook", ["hook_resid_post", "attn.hook_z", "mlp.hook_post"])
@torch.no_grad()
def test_promoted_tokens_are_those_that_a_step_along_the_feature_raises(
    tmp_path: Path, tiny_model: GPT2, hook: str
) -> None:
    """Measured: a step in the last layer, with the scale of the last norm kept as it was."""
    name = f"blocks.1.{hook}"
    width = 64 if hook == "mlp.hook_post" else 16
    folder = write_sae(tmp_path, matrices(width, 24), metadata={"hook_name": name}, d_in=width)
    sae = load_sae(folder).for_model(tiny_model)
    before = run(tiny_model, IDS, record=["ln_final.hook_scale", "blocks.1.hook_mlp_out"])
    x = activations(tiny_model, IDS, name)
    moved = (x + 100 * sae.direction(5)).view_as(run(tiny_model, IDS, record=[name])[name])
    frozen = [
        Edit("ln_final.hook_scale", value=before["ln_final.hook_scale"]),
        Edit(name, value=moved),
    ]
    if hook == "attn.hook_z":  # its direct path does not lead through the MLP
        frozen.append(Edit("blocks.1.hook_mlp_out", value=before["blocks.1.hook_mlp_out"]))
    after = run(tiny_model, IDS, frozen)
    change = (after.logits - before.logits) * before["ln_final.hook_scale"] / 100  # (B, T, V)
    change = change[1, -1, :500]
    wanted = (change - change.mean()).topk(4)
    found = promoted(tiny_model, sae, 5, 4, n_vocab=500)
    assert [token for token, _ in found] == wanted.indices.tolist()
    assert [value for _, value in found] == pytest.approx(wanted.values.tolist(), rel=1e-3)


@pytest.mark.parametrize("is_old", [False, True], ids=["stream", "centered"])
def test_the_quality_is_that_of_the_formulas(
    tmp_path: Path, tiny_model: GPT2, is_old: bool
) -> None:
    """Explained variance as SAELens computes it, over all batches; here from one table of rows."""
    sae = load_sae((write_old_sae if is_old else write_sae)(tmp_path)).for_model(tiny_model)
    found = quality(tiny_model, sae, [IDS[:1], IDS[1:]])
    x = activations(tiny_model, IDS, "blocks.1.hook_resid_pre")[:, 1:].flatten(0, 1).double()
    read = x - x.mean(-1, keepdim=True) if is_old else x
    error = sae.error(x.float()).double().square().sum()
    spread = (read - read.mean(0)).square().sum()
    assert found.explained_variance == pytest.approx(float(1 - error / spread), rel=1e-4)
    features = sae.encode(x.float())
    assert found.l0 == pytest.approx(float((features > 0).sum(-1).double().mean()))
    assert found.n_tokens == 12

    def loss(logits: torch.Tensor) -> float:
        return float(F.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()))

    zero = Edit("blocks.1.hook_resid_pre", value=0.0, position=slice(1, None))
    assert found.loss == pytest.approx(loss(tiny_model(IDS)), rel=1e-5)
    spliced = splice(tiny_model, IDS, sae, error=False, skip=1)
    assert found.loss_spliced == pytest.approx(loss(spliced), rel=1e-5)
    assert found.loss_zero == pytest.approx(loss(run(tiny_model, IDS, [zero]).logits), rel=1e-5)
    expected = (found.loss_zero - found.loss_spliced) / (found.loss_zero - found.loss)
    assert found.loss_recovered == pytest.approx(expected)


def test_quality_needs_a_position_beside_the_first(tmp_path: Path, tiny_model: GPT2) -> None:
    sae = load_sae(write_sae(tmp_path)).for_model(tiny_model)
    with pytest.raises(ConfigError, match="too short to measure"):
        quality(tiny_model, sae, [IDS[:, :1]])


def test_the_quality_of_one_position_is_refused(tmp_path: Path, tiny_model: GPT2) -> None:
    # Nothing varies there, and the share of the variance was a ZeroDivisionError.
    sae = load_sae(write_sae(tmp_path)).for_model(tiny_model)
    with pytest.raises(ConfigError, match="it has 1 positions after the first 1"):
        quality(tiny_model, sae, [IDS[:1, :2]])


def test_the_strongest_features_of_each_position_are_those_that_are_active() -> None:
    features = torch.tensor([[0.0, 2.0, 3.0, 1.0], [0.0, 0.0, 0.5, 0.0]])
    assert top_features(features, 2) == [
        [Active(0, 2, 3.0), Active(0, 1, 2.0)],
        [Active(1, 2, 0.5)],
    ]
    assert len(top_features(features, 10)[0]) == 3
