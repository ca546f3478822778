"""Writing: a directory that transformers loads as it is, and that is there whole or not at all."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import add_vocabulary, hub_state, write_hub, write_nanogpt
from conftest import GOLDEN, make_model
from safetensors.torch import load_file

import gpt2kit
from gpt2kit.checkpoints.load import build_model, open_checkpoint, write_checkpoint, write_model
from gpt2kit.config import GPT2Config
from gpt2kit.errors import CheckpointError
from gpt2kit.files import new_directory, put_in_place
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import BPETokenizer

GPT2_VARIANTS: list[dict[str, Any]] = [
    {},
    {"activation_function": "gelu", "n_inner": 10},
    {"tie_word_embeddings": False},
    {"scale_attn_by_inverse_layer_idx": True, "layer_norm_epsilon": 0.01},
    {"scale_attn_weights": False, "activation_function": "relu"},
    {"bias": False, "qkv_bias": False},
    {"qkv_bias": False},
]


@pytest.mark.parametrize("fields", GPT2_VARIANTS, ids=str)
def test_transformers_loads_what_is_written_and_computes_the_same(
    tmp_path: Path, tiny_config: GPT2Config, fields: dict[str, Any]
) -> None:
    transformers = pytest.importorskip("transformers")
    model = make_model(replace(tiny_config, **fields), dtype=torch.float64)
    write_model(tmp_path, model)
    theirs, report = transformers.GPT2LMHeadModel.from_pretrained(
        tmp_path, dtype=torch.float64, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.arange(30)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(ids).logits, model(ids), rtol=0, atol=1e-9)


def test_names_are_those_of_openais_repository_on_the_hub(tmp_path: Path, tiny_model: GPT2) -> None:
    # With transformer. before them, mlx-lm could not read the folder.
    write_model(tmp_path, tiny_model)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert {"wte.weight", "wpe.weight", "h.0.attn.c_attn.weight", "ln_f.bias"} <= names
    assert names == tiny_model.config.shapes().keys()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["n_ctx"] == config["n_positions"] == tiny_model.config.n_ctx  # mlx-lm needs it


def test_a_model_with_its_own_head_keeps_the_prefix(
    tmp_path: Path, tiny_config: GPT2Config
) -> None:
    # transformers 4 calls a file corrupted that has lm_head.weight beside names without a prefix.
    write_model(tmp_path, make_model(replace(tiny_config, tie_word_embeddings=False)))
    names = load_file(tmp_path / "model.safetensors").keys()
    assert {name.partition(".")[0] for name in names} == {"transformer", "lm_head"}


def test_transformers_tokenizes_as_we_do(
    tmp_path: Path, tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    transformers = pytest.importorskip("transformers")
    write_model(tmp_path, tiny_model, small_bpe)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("the end of the text", "Perché 🙂\r\n  x", ""):
        assert theirs(text)["input_ids"] == small_bpe.encode(text)
    assert theirs.eos_token_id == small_bpe.stop_id


@pytest.mark.parametrize(
    "fields",
    [
        *GPT2_VARIANTS,
        {"norm": "rmsnorm", "mlp": "swiglu", "bias": False, "qkv_bias": False},
        {"norm_first": False, "positions": "sinusoidal"},
        {"norm": "none", "mlp": "none", "residual": False, "positions": "none"},
        {"head_bias": True},
        {"head_bias": True, "tie_word_embeddings": False},
        {"head": "none", "n_layer": 0, "n_embd": 512},
        {"n_layer": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_written_is_read_back(
    tmp_path: Path, tiny_config: GPT2Config, fields: dict[str, Any], dtype: torch.dtype
) -> None:
    model = make_model(replace(tiny_config, **fields), dtype=dtype)
    write_model(tmp_path, model)
    again = build_model(open_checkpoint(tmp_path), dtype=dtype)
    # A GPT-2 without biases is written with zeros for them.
    assert again.config == (
        replace(model.config, bias=True, qkv_bias=True) if again.config.is_gpt2 else model.config
    )
    ids = torch.arange(30)[None]
    assert torch.equal(again(ids), model(ids))


def test_models_that_transformers_does_not_have_get_our_model_type(
    tmp_path: Path, tiny_config: GPT2Config
) -> None:
    write_model(tmp_path, make_model(replace(tiny_config, norm="rmsnorm")))
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "gpt2kit"


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str
)
def test_the_file_is_what_the_library_reads(
    tmp_path: Path, tiny_model: GPT2, dtype: torch.dtype
) -> None:
    model = tiny_model.to(dtype)
    write_model(tmp_path, model)
    found = load_file(tmp_path / "model.safetensors")
    expected = hub_state(model, prefix="")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "folder", sorted((GOLDEN / "tf").glob("micro-*")), ids=lambda path: path.name
)
def test_openais_checkpoints_become_directories_of_the_same_bits(
    tmp_path: Path, folder: Path
) -> None:
    checkpoint = open_checkpoint(folder)
    write_checkpoint(tmp_path, checkpoint, checkpoint.tensors["wte.weight"].dtype)
    again = open_checkpoint(tmp_path)
    assert again.config == checkpoint.config
    for name, stored in checkpoint.tensors.items():
        assert again.tensors[name].dtype == stored.dtype
        assert torch.equal(again.tensors[name].read(), stored.read())


@pytest.mark.parametrize("folder", sorted((GOLDEN / "hf").glob("*")), ids=lambda path: path.name)
def test_hub_to_ours_to_hub_changes_no_bit(tmp_path: Path, folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    write_checkpoint(tmp_path, checkpoint, checkpoint.tensors["wte.weight"].dtype)
    again = open_checkpoint(tmp_path)
    assert again.config == checkpoint.config
    assert all(
        torch.equal(again.tensors[name].read(), stored.read())
        for name, stored in checkpoint.tensors.items()
    )


def test_nanogpts_model_without_biases_becomes_a_gpt2_with_zeros(
    tmp_path: Path, tiny_config: GPT2Config
) -> None:
    model = make_model(replace(tiny_config, activation_function="gelu", bias=False, qkv_bias=False))
    checkpoint = open_checkpoint(write_nanogpt(tmp_path / "ckpt.pt", model))
    (tmp_path / "out").mkdir()
    write_checkpoint(tmp_path / "out", checkpoint, torch.float32)
    again = build_model(open_checkpoint(tmp_path / "out"))
    assert again.config.is_gpt2
    assert torch.equal(again(torch.arange(9)[None]), model(torch.arange(9)[None]))


def test_a_trained_model_survives_the_round_trip_with_its_vocabulary(
    tmp_path: Path, tiny_model: GPT2
) -> None:
    folder = add_vocabulary(write_hub(tmp_path / "model", tiny_model))
    model, tokenizer = gpt2kit.load(folder, device="cpu")
    (tmp_path / "copy").mkdir()
    write_model(tmp_path / "copy", model, tokenizer)
    again, vocabulary = gpt2kit.load(tmp_path / "copy", device="cpu")
    options: Any = {"max_tokens": 20, "seed": 1}
    assert gpt2kit.generate(again, vocabulary, "the", **options) == gpt2kit.generate(
        model, tokenizer, "the", **options
    )
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["eos_token_id"] == 511


# --- whole or not at all --------------------------------------------------------------------------


def test_a_new_folder_is_there_only_when_its_block_has_ended(tmp_path: Path) -> None:
    with new_directory(tmp_path / "a" / "model") as folder:
        (folder / "file").write_text("x")
        assert not (tmp_path / "a" / "model").exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["model"]
    assert (tmp_path / "a" / "model" / "file").read_text() == "x"


def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "file").write_text("old")
    with (
        pytest.raises(ZeroDivisionError),
        new_directory(tmp_path / "model", replace=True) as folder,
    ):
        (folder / "file").write_text("new")
        raise ZeroDivisionError
    assert (tmp_path / "model" / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_with_something_in_it_is_replaced_only_when_told(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with new_directory(tmp_path / "model") as folder:  # an empty one is nothing to lose
        (folder / "file").write_text("old")
    with (
        pytest.raises(CheckpointError, match="already exists"),
        new_directory(tmp_path / "model", error=CheckpointError),
    ):
        pass
    with new_directory(tmp_path / "model", replace=True) as folder:
        (folder / "file").write_text("new")
    assert (tmp_path / "model" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_a_kill_left_is_mended_at_the_next_attempt(tmp_path: Path) -> None:
    (tmp_path / ".model.old").mkdir()
    (tmp_path / ".model.old" / "file").write_text("old")
    (tmp_path / ".model.999999999.new").mkdir()
    with (
        pytest.raises(CheckpointError, match="already exists"),
        new_directory(tmp_path / "model", error=CheckpointError),
    ):
        pass
    assert (tmp_path / "model" / "file").read_text() == "old"
    with new_directory(tmp_path / "model", replace=True) as folder:
        (folder / "file").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_disk_that_refuses_is_one_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(CheckpointError, match="cannot write"),
        new_directory(tmp_path / "file" / "model", error=CheckpointError),
    ):
        pass


def test_a_failed_second_rename_gives_the_old_folder_its_name_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    rename = os.rename
    monkeypatch.setattr(
        os,
        "rename",
        lambda a, b: (
            rename(a, b) if Path(a).name != "new" else (_ for _ in ()).throw(OSError(28, "full"))
        ),
    )
    with pytest.raises(OSError, match="full"):
        put_in_place(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "file").read_text() == "old"
