"""Files of sparse autoencoders: three layouts, and one line for whatever is none of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from features_builders import SAES, matrices, write_old_sae, write_sae

from gpt2kit.checkpoints.sparse import open_sparse
from gpt2kit.errors import CheckpointError, CheckpointMismatchError, CheckpointNotFoundError


def refusal(path: Path) -> str:
    """Return the message with which a path is refused, one line."""
    with pytest.raises(CheckpointError) as caught:
        open_sparse(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def attention(folder: Path, **changes: Any) -> Path:
    """Write an attention SAE: a .pt, and what it reads beside it."""
    path = folder / "layer5.pt"
    torch.save({**matrices(16, 24), **changes}, path)
    about = {"act_name": "blocks.5.attn.hook_z", "act_size": 16, "dict_size": 24}
    (folder / "layer5_cfg.json").write_text(json.dumps(about))
    return path


@pytest.mark.parametrize(
    ("name", "layout", "kind"),
    [
        ("standard", "SAELens", "standard"),
        ("gated", "SAELens", "gated"),
        ("jumprelu", "SAELens", "jumprelu"),
        ("topk", "SAELens", "topk"),
        ("openai-relu.pt", "OpenAI", "standard"),
        ("openai-topk.pt", "OpenAI", "topk"),
        ("openai-tied.pt", "OpenAI", "standard"),
    ],
)
def test_the_contents_tell_which_layout_a_file_has(name: str, layout: str, kind: str) -> None:
    file = open_sparse(SAES / name)
    assert (file.layout, file.kind) == (layout, kind)
    assert file.tensors["W_enc"].shape == (8, 12)
    assert file.tensors["W_dec"].shape == (12, 8)


def test_the_weights_file_of_a_folder_stands_for_the_folder() -> None:
    assert open_sparse(SAES / "topk" / "sae_weights.safetensors").k == 3


def test_an_attention_sae_reads_the_z_that_the_file_beside_it_names(tmp_path: Path) -> None:
    file = open_sparse(attention(tmp_path))
    assert file.layout == "attention"
    assert file.hook == "blocks.5.attn.hook_z"
    assert file.is_folded
    assert not file.is_centered


def test_a_folder_of_the_first_versions_was_trained_on_the_centered_stream(tmp_path: Path) -> None:
    file = open_sparse(write_old_sae(tmp_path))
    assert file.hook == "blocks.1.hook_resid_pre"
    assert file.is_centered
    assert not open_sparse(SAES / "standard").is_centered
    assert open_sparse(SAES / "centered").is_centered


def test_topk_is_found_under_its_old_keys(tmp_path: Path) -> None:
    old = write_old_sae(tmp_path, activation_fn_str="topk", activation_fn_kwargs={"k": 4})
    assert (open_sparse(old).kind, open_sparse(old).k) == ("topk", 4)


def test_a_scaling_factor_counts_unless_it_is_1(tmp_path: Path) -> None:
    ones = {**matrices(16, 24), "scaling_factor": torch.ones(24)}
    assert "scaling_factor" not in open_sparse(write_old_sae(tmp_path / "1", ones)).tensors
    two = {**matrices(16, 24), "scaling_factor": torch.full((24,), 2.0)}
    assert "scaling_factor" in open_sparse(write_old_sae(tmp_path / "2", two)).tensors


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"architecture": "temporal"}, "gpt2kit reads standard, topk, jumprelu, gated"),
        ({"architecture": ["standard"]}, "architecture is ['standard']"),
        ({"activation_fn": "tanh-relu"}, "'tanh-relu', expected relu or topk"),
        ({"normalize_activations": "covariance_whitening"}, "'covariance_whitening'; gpt2kit"),
        ({"architecture": "topk", "k": "3"}, "k is '3', expected a whole number"),
        ({"architecture": "topk", "k": 25}, "k is 25, expected from 1 to 24"),
        ({"metadata": {"hook_name": 5}}, "hook_name is 5, expected a name"),
        ({"hook_head_index": 3}, "it reads a single head"),
    ],
)
def test_a_configuration_that_is_not_supported_is_named(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    assert expected in refusal(write_sae(tmp_path, **changes))


def test_missing_and_misshapen_tensors_are_listed(tmp_path: Path) -> None:
    tensors = matrices(16, 24)
    del tensors["b_enc"]
    tensors["W_dec"] = torch.zeros(24, 15)
    tensors["odd"] = torch.zeros(3)
    with pytest.raises(CheckpointMismatchError) as caught:
        open_sparse(write_sae(tmp_path, tensors))
    assert caught.value.missing == ["b_enc"]
    assert caught.value.unexpected == ["odd"]
    assert set(caught.value.misshapen) == {"W_dec"}
    assert "a standard SAE" in str(caught.value)


def test_a_folder_of_saes_says_what_to_name(tmp_path: Path) -> None:
    write_sae(tmp_path / "blocks.8.hook_resid_pre")
    assert "it has blocks.8.hook_resid_pre: name one of these" in refusal(tmp_path)


def test_a_folder_without_an_sae_says_which_files_are_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError) as caught:
        open_sparse(tmp_path)
    assert caught.value.missing == ["cfg.json", "sae_weights.safetensors"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"weight": torch.zeros(2)}, "expected encoder.weight or W_enc"),
        ({"encoder.weight": torch.zeros(3)}, "a W_enc of shape [3]"),
        ({"encoder.weight": 5}, "encoder.weight is a int, expected a tensor"),
        ({"encoder.weight": torch.zeros(2, 2), "activation": "GELU"}, "expected ReLU or TopK"),
        (
            {
                "encoder.weight": torch.zeros(2, 2),
                "activation": "TopK",
                "activation_state_dict": {"k": 1, "postact_fn": "os.system"},
            },
            "postact_fn is 'os.system', expected ReLU or Identity",
        ),
    ],
)
def test_a_pt_that_is_no_sae_is_refused(
    tmp_path: Path, content: dict[str, Any], expected: str
) -> None:
    torch.save(content, tmp_path / "some.pt")
    assert expected in refusal(tmp_path / "some.pt")


class _Runs:
    """Asks unpickling to call a function."""

    def __reduce__(self) -> Any:
        return print, ("a pickle ran",)


def test_a_pt_is_never_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"encoder.weight": _Runs()}, tmp_path / "hostile.pt")
    assert "only plain tensors and values are read" in refusal(tmp_path / "hostile.pt")
    assert capsys.readouterr().out == ""


def test_damage_is_one_line(tmp_path: Path) -> None:
    folder = write_sae(tmp_path)
    weights = folder / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    assert "not a whole safetensors file" in refusal(folder)
    (folder / "cfg.json").write_text("[]")
    assert "cfg.json" in refusal(folder)


def test_what_an_attention_sae_reads_must_be_a_name(tmp_path: Path) -> None:
    path = attention(tmp_path)
    (tmp_path / "layer5_cfg.json").write_text('{"act_name": null}')
    assert "act_name is None, expected a name" in refusal(path)
