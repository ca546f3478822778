"""Reading every format: fixtures bit for bit and with their logits; every damage is named."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import add_vocabulary, hub_state, write_hub, write_nanogpt
from conftest import GOLDEN, make_model
from peft_builders import adapted
from torch import Tensor

import gpt2kit
from gpt2kit.checkpoints.config_json import read_config
from gpt2kit.checkpoints.load import Checkpoint, build_model, open_checkpoint
from gpt2kit.checkpoints.names import is_transposed, openai_names, plain_names
from gpt2kit.config import GPT2Config
from gpt2kit.errors import (
    CheckpointError,
    CheckpointFormatError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    ConfigError,
    Gpt2KitError,
    Gpt2KitWarning,
    TokenizerError,
)
from gpt2kit.model import GPT2

TF = sorted(path for path in (GOLDEN / "tf").iterdir() if path.name != "sample-filters")
HF = sorted((GOLDEN / "hf").iterdir())


def name_of(path: Path) -> str:
    return path.name


# --- the fixtures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", [*TF, *HF], ids=name_of)
def test_every_tensor_is_the_files_bit_for_bit(folder: Path) -> None:
    listed = json.loads((folder / "tensors.json").read_text())
    listed = listed.get("tensors", listed)
    checkpoint = open_checkpoint(folder)
    if folder.parent.name == "tf":
        names = {ours: theirs for theirs, ours in openai_names(checkpoint.config).items()}
    else:
        names = plain_names(listed, folder)
    assert checkpoint.tensors.keys() == checkpoint.config.shapes().keys()
    for ours, stored in checkpoint.tensors.items():
        tensor = stored.read()
        raw = (tensor.t() if is_transposed(ours) else tensor).contiguous()
        digest = hashlib.sha256(raw.view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        assert digest == listed[names[ours]]["sha256"], ours
        assert stored.shape == tuple(tensor.shape) == checkpoint.config.shapes()[ours]
        assert stored.dtype == tensor.dtype


@pytest.mark.parametrize("folder", [*TF, *HF], ids=name_of)
def test_logits_equal_those_of_the_original_program(folder: Path) -> None:
    answers = np.load(folder / "reference.npz")
    model = build_model(open_checkpoint(folder))
    for length in ("1", "7", "ctx"):
        with torch.no_grad():
            logits = model(torch.from_numpy(answers[f"tokens_{length}"]).long())
        if f"positions_{length}" in answers.files:
            logits = logits[:, torch.from_numpy(answers[f"positions_{length}"]).long()]
        np.testing.assert_allclose(logits.double(), answers[f"logits_{length}"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("folder", HF, ids=name_of)
def test_float64_logits_equal_those_of_transformers_to_nine_digits(folder: Path) -> None:
    answers = np.load(folder / "reference.npz")
    model = build_model(open_checkpoint(folder), dtype=torch.float64)
    for length in ("1", "7", "ctx"):
        with torch.no_grad():
            logits = model(torch.from_numpy(answers[f"tokens_{length}"]).long())
        np.testing.assert_allclose(logits, answers[f"logits_{length}"], rtol=0, atol=1e-9)


def test_the_cache_equals_that_of_tensorflow() -> None:
    folder = GOLDEN / "tf" / "micro-a"
    answers = np.load(folder / "reference.npz")
    model = build_model(open_checkpoint(folder))
    cache = model.new_cache(2)
    with torch.no_grad():
        model(torch.from_numpy(answers["tokens_7"]).long(), cache)
    present = torch.from_numpy(answers["present_7"])  # (B, n_layer, 2, H, T, D)
    torch.testing.assert_close(
        cache.keys[:, :, :, :7], present[:, :, 0].transpose(0, 1), rtol=0, atol=2e-5
    )
    torch.testing.assert_close(
        cache.values[:, :, :, :7], present[:, :, 1].transpose(0, 1), rtol=0, atol=2e-5
    )


def test_what_is_not_the_model_is_listed_as_skipped() -> None:
    assert "model/h0/attn/c_attn/w/Adam_1" in open_checkpoint(GOLDEN / "tf" / "micro-adam").skipped
    assert "h.0.attn.bias" in open_checkpoint(GOLDEN / "hf" / "safetensors-hub").skipped


# --- a model in every dtype and format ------------------------------------------------------------


@pytest.mark.parametrize(
    "stored", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize(
    "wanted", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_any_float_dtype_is_read_into_any(
    tmp_path: Path, tiny_model: GPT2, stored: torch.dtype, wanted: torch.dtype, weights: str
) -> None:
    state = {name: tensor.to(stored) for name, tensor in hub_state(tiny_model).items()}
    model = build_model(
        open_checkpoint(write_hub(tmp_path, tiny_model, state=state, weights=weights)), dtype=wanted
    )
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, tiny_model.state_dict()[name].to(stored).to(wanted))
        assert tensor.is_contiguous()
        assert (
            tensor.untyped_storage().nbytes() == tensor.nbytes
        )  # nothing of the file is kept alive behind it


@pytest.mark.parametrize(
    "prefix", ["", "transformer.", "module.", "_orig_mod.transformer.", "module._orig_mod."]
)
@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_every_prefix_is_understood(
    tmp_path: Path, tiny_model: GPT2, prefix: str, weights: str
) -> None:
    folder = write_hub(tmp_path, tiny_model, state=hub_state(tiny_model, prefix), weights=weights)
    assert_same_model(build_model(open_checkpoint(folder)), tiny_model)


@pytest.mark.parametrize("prefix", ["transformer.", "pretrained_model.transformer."])
@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_the_value_head_of_trl_is_left_out_and_said(
    tmp_path: Path, tiny_model: GPT2, prefix: str, weights: str
) -> None:
    """It was an unexpected tensor, so that no model of TRL's PPO could be opened."""
    start = prefix.removesuffix("transformer.")
    head = {"weight": torch.ones(1, 16), "bias": torch.ones(1)}
    state = hub_state(tiny_model, prefix)
    state |= {f"{start}v_head.summary.{name}": tensor for name, tensor in head.items()}
    folder = write_hub(tmp_path / "trl", tiny_model, state=state, weights=weights)
    with pytest.warns(Gpt2KitWarning, match=r"v_head.summary.bias, .*summary.weight left out"):
        checkpoint = open_checkpoint(folder)
    assert checkpoint.skipped == tuple(sorted(f"{start}v_head.summary.{name}" for name in head))
    assert_same_model(build_model(checkpoint), tiny_model)


def test_the_value_head_of_trl_beside_adapters_is_no_model(
    tmp_path: Path, tiny_model: GPT2
) -> None:
    folder = adapted(tmp_path, tiny_model)
    torch.save({"v_head.summary.bias": torch.ones(1)}, folder / "pytorch_model.bin")
    assert open_checkpoint(folder).format.startswith("PEFT")


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.bool], ids=str)
@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_every_mask_buffer_is_left_out(
    tmp_path: Path, tiny_model: GPT2, dtype: torch.dtype, weights: str
) -> None:
    state = hub_state(tiny_model)
    for layer in range(2):
        state[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 32, 32).tril().to(dtype)
        state[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    checkpoint = open_checkpoint(write_hub(tmp_path, tiny_model, state=state, weights=weights))
    assert_same_model(build_model(checkpoint), tiny_model)


def test_a_file_is_read_by_what_is_in_it_and_not_by_its_name(
    tmp_path: Path, tiny_model: GPT2
) -> None:
    folder = write_hub(tmp_path, tiny_model, weights="pytorch_model.bin")
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    assert checkpoint.format == "torch file"
    assert_same_model(build_model(checkpoint), tiny_model)


def test_the_tensors_inside_a_lightning_checkpoint_are_found(
    tmp_path: Path, tiny_model: GPT2
) -> None:
    wrapped: Any = {"state_dict": hub_state(tiny_model), "epoch": 3}
    assert_same_model(
        build_model(
            open_checkpoint(
                write_hub(tmp_path, tiny_model, state=wrapped, weights="pytorch_model.bin")
            )
        ),
        tiny_model,
    )


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_read_from_the_files_that_the_index_names(
    tmp_path: Path, tiny_model: GPT2, suffix: str
) -> None:
    assert_same_model(
        build_model(open_checkpoint(write_shards(tmp_path, tiny_model, suffix))), tiny_model
    )


@pytest.mark.parametrize("listed", ["all masks", "no mask", "some masks"])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_with_masks_load_bit_for_bit_whether_the_index_lists_them_or_not(
    tmp_path: Path, tiny_model: GPT2, suffix: str, listed: str
) -> None:
    # As older transformers saved gpt2-xl: "the index and pytorch_model-… disagree on
    # transformer.h.0.attn.bias".
    state = {**hub_state(tiny_model), "lm_head.weight": tiny_model.wte.weight.detach().clone()}
    for layer in range(2):
        state[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 32, 32).tril().to(torch.uint8)
        state[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    write_shards(tmp_path, tiny_model, suffix, state)
    (index,) = tmp_path.glob("*.index.json")
    content = json.loads(index.read_text())
    masks = [name for name in state if name.endswith((".attn.bias", ".attn.masked_bias"))]
    for name in {"all masks": [], "no mask": masks, "some masks": masks[::2]}[listed]:
        del content["weight_map"][name]
    content["weight_map"]["transformer.h.7.attn.bias"] = next(iter(content["weight_map"].values()))
    index.write_text(json.dumps(content))
    found = build_model(open_checkpoint(tmp_path)).state_dict()
    assert found.keys() == tiny_model.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in tiny_model.state_dict().items())


def write_shards(
    folder: Path,
    model: GPT2,
    suffix: str = "safetensors",
    state: dict[str, Tensor] | None = None,
) -> Path:
    state = hub_state(model) if state is None else state
    base = {"safetensors": "model", "bin": "pytorch_model"}[suffix]
    names = [f"{base}-{number:05}-of-00003.{suffix}" for number in (1, 2, 3)]
    weight_map = {tensor: names[offset % 3] for offset, tensor in enumerate(state)}
    for name in names:
        write_hub(
            folder,
            model,
            state={tensor: state[tensor] for tensor, file in weight_map.items() if file == name},
            weights=name,
        )
    (folder / f"{base}.{suffix}.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    return folder


def test_a_tied_models_own_copy_of_the_head_is_read_once(tmp_path: Path, tiny_model: GPT2) -> None:
    state = {**hub_state(tiny_model), "lm_head.weight": tiny_model.wte.weight.detach().clone()}
    assert_same_model(
        build_model(open_checkpoint(write_hub(tmp_path, tiny_model, state=state))), tiny_model
    )


def test_an_untied_head_is_kept_apart(tmp_path: Path, tiny_config: GPT2Config) -> None:
    model = make_model(replace(tiny_config, tie_word_embeddings=False))
    assert_same_model(
        build_model(open_checkpoint(write_hub(tmp_path, model, tie_word_embeddings=False))), model
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("as_directory", [True, False])
def test_nanogpts_checkpoint_is_the_same_function(
    tmp_path: Path, tiny_config: GPT2Config, bias: bool, as_directory: bool
) -> None:
    model = make_model(replace(tiny_config, activation_function="gelu", bias=bias, qkv_bias=bias))
    path = write_nanogpt(tmp_path / "out" / "ckpt.pt", model)
    checkpoint = open_checkpoint(path.parent if as_directory else path)
    assert checkpoint.format == "nanoGPT"
    assert {"optimizer", "iter_num"} <= set(checkpoint.skipped)
    assert_same_model(build_model(checkpoint), model)


def test_the_prefix_of_an_older_checkpoint_can_be_named() -> None:
    folder = GOLDEN / "tf" / "micro-simple"
    newest, older = (
        build_model(open_checkpoint(folder)),
        build_model(open_checkpoint(folder / "model-10")),
    )
    assert not torch.equal(newest.wte.weight, older.wte.weight)
    assert_same_model(build_model(open_checkpoint(folder / "model-20.index")), newest)


@pytest.mark.parametrize(
    "named",
    [
        "model-20",
        "/home/someone/checkpoint/run1/model-20",
        "C:\\\\runs\\\\model-20",
        "../../model-20",
    ],
)
def test_the_checkpoint_file_of_another_machine_is_understood(tmp_path: Path, named: str) -> None:
    shutil.copytree(GOLDEN / "tf" / "micro-simple", tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoint").write_text(
        f'model_checkpoint_path: "{named}"\nall_model_checkpoint_paths: "{named}"\n'
    )
    assert_same_model(
        build_model(open_checkpoint(tmp_path)),
        build_model(open_checkpoint(GOLDEN / "tf" / "micro-simple")),
    )


def assert_same_model(found: GPT2, expected: GPT2) -> None:
    assert not found.training
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(found(ids), expected(ids), rtol=0, atol=1e-6)


# --- config.json ----------------------------------------------------------------------------------


def test_fields_that_do_not_change_the_function_are_ignored(
    tmp_path: Path, tiny_model: GPT2
) -> None:
    others: dict[str, Any] = {
        "summary_type": "cls_index",
        "task_specific_params": {},
        "_name_or_path": "x",
        "torch_dtype": "float32",
        "transformers_version": "5",
    }
    write_hub(
        tmp_path,
        tiny_model,
        **others,
        n_ctx=7,
        gradient_checkpointing=False,
        id2label={},
        do_sample=True,
    )
    assert read_config(tmp_path / "config.json") == tiny_model.config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("add_cross_attention", True),
        ("is_encoder_decoder", True),
        ("pruned_heads", {"0": [1]}),
        ("quantization_config", {"quant_method": "bitsandbytes"}),
        ("rotary_dim", 64),
        ("rope_theta", 10000.0),
        ("num_key_value_heads", 2),
        ("position_embedding_type", "relative_key"),
        ("norm", "rmsnorm"),  # ours only under our own model_type
        ("activation_function", "gelu_10"),
        ("n_layer", "12"),
        ("n_head", 5),
        ("model_type", "llama"),
    ],
)
def test_a_field_that_is_not_supported_is_refused_by_name(
    tmp_path: Path, tiny_model: GPT2, field: str, value: Any
) -> None:
    write_hub(tmp_path, tiny_model, **{field: value})
    with pytest.raises(ConfigError, match=field) as caught:
        open_checkpoint(tmp_path)
    assert "config.json" in str(caught.value)


def test_fields_that_nobody_knows_are_named_in_one_warning(
    tmp_path: Path, tiny_model: GPT2
) -> None:
    # Such a field stopped the loading; configurations on the Hub are full of leftovers.
    fields: dict[str, Any] = {"my_note": "x", "is_fancy": True, "\x1b[1m": 0}
    write_hub(tmp_path, tiny_model, **fields)
    with pytest.warns(Gpt2KitWarning) as caught:
        checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config == tiny_model.config
    (warning,) = caught
    message = str(warning.message)
    assert f"{tmp_path / 'config.json'}: 3 unknown fields ignored" in message
    assert "'my_note', 'is_fancy', '\\x1b[1m'" in message


def test_our_own_fields_with_gpt2s_values_are_no_reason_to_refuse(
    tmp_path: Path, tiny_model: GPT2
) -> None:
    write_hub(tmp_path, tiny_model, bias=True, norm="layernorm", position_embedding_type="absolute")
    assert open_checkpoint(tmp_path).config == tiny_model.config


BAD_JSON = {
    "empty": b"",
    "not an object": b"[1]",
    "cut": b'{"n_layer": 2',
    "not utf-8": b'{"a": "\xff"}',
    "utf-16": '{"n_layer": 2}'.encode("utf-16"),
    "a key twice": b'{"n_layer": 2, "n_layer": 3}',
    "deep": b"[" * 200_000,
    "a long number": b'{"n_layer": ' + b"1" * 5000 + b"}",
    "huge": b" " * (2**20 + 1),
    "a web page": b"<!DOCTYPE html><html>",
    "an lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "not a number": b'{"model_type": "gpt2", "layer_norm_epsilon": NaN}',
    "infinite": b'{"model_type": "gpt2", "n_layer": 1e400}',
}


@pytest.mark.parametrize("content", BAD_JSON.values(), ids=BAD_JSON)
@pytest.mark.parametrize("name", ["config.json", "hparams.json"])
def test_a_damaged_configuration_is_named(
    tmp_path: Path, tiny_model: GPT2, content: bytes, name: str
) -> None:
    if name == "config.json":
        write_hub(tmp_path, tiny_model)
    else:
        shutil.copytree(GOLDEN / "tf" / "micro-a", tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises((CheckpointFormatError, ConfigError), match=name):
        open_checkpoint(tmp_path)


def test_a_byte_order_mark_is_no_damage(tmp_path: Path, tiny_model: GPT2) -> None:
    write_hub(tmp_path, tiny_model)
    (tmp_path / "config.json").write_bytes(
        b"\xef\xbb\xbf" + (tmp_path / "config.json").read_bytes()
    )
    assert open_checkpoint(tmp_path).config == tiny_model.config


# --- tensors that do not fit ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wte.weight", "h.1.attn.c_proj.weight", "ln_f.bias"])
def test_a_missing_tensor_is_named(tmp_path: Path, tiny_model: GPT2, name: str) -> None:
    state = hub_state(tiny_model)
    del state["transformer." + name]
    with pytest.raises(CheckpointMismatchError) as caught:
        open_checkpoint(write_hub(tmp_path, tiny_model, state=state))
    assert (caught.value.missing, caught.value.unexpected, caught.value.misshapen) == (
        [name],
        [],
        {},
    )
    assert name in str(caught.value)


def test_all_differences_are_told_at_once(tmp_path: Path, tiny_model: GPT2) -> None:
    state = hub_state(tiny_model)
    del state["transformer.ln_f.bias"]
    state["transformer.h.0.mlp.c_fc.weight"] = (
        state["transformer.h.0.mlp.c_fc.weight"].t().contiguous()
    )
    state["classifier.weight"] = torch.zeros(2, 2)
    with pytest.raises(CheckpointMismatchError) as caught:
        open_checkpoint(write_hub(tmp_path, tiny_model, state=state))
    assert caught.value.missing == ["ln_f.bias"]
    assert caught.value.unexpected == ["classifier.weight"]
    assert caught.value.misshapen == {"h.0.mlp.c_fc.weight": ((64, 16), (16, 64))}


def test_a_configuration_of_another_model_is_a_mismatch(tmp_path: Path, tiny_model: GPT2) -> None:
    with pytest.raises(
        CheckpointMismatchError, match="Does config.json or hparams.json belong to another model"
    ):
        open_checkpoint(write_hub(tmp_path, tiny_model, n_layer=3))


def test_a_head_that_is_tied_and_differs_is_refused(tmp_path: Path, tiny_model: GPT2) -> None:
    state = {**hub_state(tiny_model), "lm_head.weight": torch.zeros(512, 16)}
    with pytest.raises(CheckpointFormatError, match="tie_word_embeddings"):
        build_model(open_checkpoint(write_hub(tmp_path, tiny_model, state=state)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_numbers_that_are_not_finite_are_refused_with_their_tensor(
    tmp_path: Path, tiny_model: GPT2, value: float, weights: str
) -> None:
    state = hub_state(tiny_model)
    state["transformer.h.1.mlp.c_fc.bias"][3] = value
    with pytest.raises(
        CheckpointFormatError,
        match=r"h\.1\.mlp\.c_fc\.bias holds 1 numbers that are NaN or infinite",
    ):
        build_model(open_checkpoint(write_hub(tmp_path, tiny_model, state=state, weights=weights)))


@pytest.mark.parametrize(
    ("stored", "wanted", "value"),
    [
        (torch.float32, torch.float16, 1e5),
        (torch.float64, torch.float32, -1e300),
        (torch.float32, torch.bfloat16, torch.finfo(torch.float32).max),
    ],
    ids=str,
)
def test_numbers_too_large_for_the_dtype_of_the_model_are_refused(
    tmp_path: Path, tiny_model: GPT2, stored: torch.dtype, wanted: torch.dtype, value: float
) -> None:
    """They became infinite in silence."""
    state = {name: tensor.to(stored) for name, tensor in hub_state(tiny_model).items()}
    state["transformer.h.1.mlp.c_fc.weight"][3, 3] = value
    checkpoint = open_checkpoint(write_hub(tmp_path, tiny_model, state=state))
    with pytest.raises(CheckpointFormatError, match=r"mlp\.c_fc\.weight holds 1 .*take a wider"):
        build_model(checkpoint, dtype=wanted)
    build_model(checkpoint, dtype=stored)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.complex64], ids=str)
@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_numbers_of_another_kind_are_refused(
    tmp_path: Path, tiny_model: GPT2, dtype: torch.dtype, weights: str
) -> None:
    state = hub_state(tiny_model)
    state["transformer.wpe.weight"] = state["transformer.wpe.weight"].to(dtype)
    with pytest.raises(CheckpointFormatError, match=r"wpe\.weight has dtype"):
        open_checkpoint(write_hub(tmp_path, tiny_model, state=state, weights=weights))


def test_a_vocabulary_larger_than_the_model_is_refused(
    tmp_path: Path, tiny_config: GPT2Config
) -> None:
    folder = add_vocabulary(write_hub(tmp_path, make_model(replace(tiny_config, n_vocab=100))))
    with pytest.raises(TokenizerError, match="vocabulary has 512 tokens, but the model only 100"):
        gpt2kit.load(folder)


# --- files that are not what they should be -------------------------------------------------------


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_cut_anywhere_is_refused(
    tmp_path: Path, tiny_model: GPT2, weights: str, legacy: bool
) -> None:
    write_hub(tmp_path, tiny_model, weights=weights)
    path = tmp_path / weights
    if legacy and path.suffix == ".bin":
        torch.save(hub_state(tiny_model), path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for size in {
        0,
        1,
        7,
        8,
        9,
        100,
        *np.random.default_rng(0).integers(0, len(whole), 30).tolist(),
        len(whole) - 1,
    }:
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=weights):
            build_model(open_checkpoint(tmp_path))


def test_a_flipped_bit_in_a_tensorflow_checkpoint_is_found(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "tf" / "micro-a", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "model.ckpt.data-00000-of-00001"
    damaged = bytearray(path.read_bytes())
    damaged[30_000] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(CheckpointFormatError, match="checksum|crc32c"):
        build_model(open_checkpoint(tmp_path))


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b'<?xml version="1.0"?><Error><Code>BlobNotFound</Code></Error>', "XML"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 548105171\n",
            "git lfs pull",
        ),
        (b"", "whole safetensors"),
        (b"\x00" * 4096, "whole safetensors"),
    ],
)
def test_what_was_saved_instead_of_weights_is_recognized(
    tmp_path: Path, tiny_model: GPT2, weights: str, content: bytes, message: str
) -> None:
    write_hub(tmp_path, tiny_model, weights=weights)
    (tmp_path / weights).write_bytes(content)
    with pytest.raises(CheckpointFormatError, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "broken link"])
def test_a_folder_pipe_or_broken_link_never_blocks(
    tmp_path: Path, tiny_model: GPT2, weights: str, kind: str
) -> None:
    write_hub(tmp_path, tiny_model, weights=weights)
    path = tmp_path / weights
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere")
    with pytest.raises(CheckpointError, match=r"expected a file|no weights"):
        open_checkpoint(tmp_path)


def test_weights_are_read_through_links(tmp_path: Path, tiny_model: GPT2) -> None:
    real = write_hub(tmp_path / "blobs", tiny_model)  # as the Hub's own cache is made
    (tmp_path / "snapshot").mkdir()
    for file in real.iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    assert_same_model(build_model(open_checkpoint(tmp_path / "snapshot")), tiny_model)


class Evil:
    """Pickles to a call that leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_never_run(
    tmp_path: Path, tiny_model: GPT2, zipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # switches torch's own default off
    write_hub(tmp_path, tiny_model, weights="pytorch_model.bin")
    trace = tmp_path / "executed"
    torch.save(
        {"wte.weight": Evil(trace)},
        tmp_path / "pytorch_model.bin",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(CheckpointFormatError, match="safetensors"):
        open_checkpoint(tmp_path)
    assert not trace.exists()


def test_a_compressed_archive_is_refused(tmp_path: Path, tiny_model: GPT2) -> None:
    path = write_hub(tmp_path, tiny_model, weights="pytorch_model.bin") / "pytorch_model.bin"
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    with pytest.raises(CheckpointFormatError, match="compressed"):
        open_checkpoint(tmp_path)


def test_a_storage_shorter_than_declared_is_refused(tmp_path: Path, tiny_model: GPT2) -> None:
    # torch maps it, and silently fills it up with the bytes of its neighbor.
    path = write_hub(tmp_path, tiny_model, weights="pytorch_model.bin") / "pytorch_model.bin"
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    first = min(name for name in records if "/data/" in name)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in records.items():
            archive.writestr(name, content[:-64] if name == first else content)
    with pytest.raises(CheckpointFormatError, match=r"declares|cannot be read"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "value",
    [
        [torch.zeros(2)],
        {"transformer.wte.weight": [1.0]},
        {
            "transformer.wte.weight": torch.sparse_coo_tensor(
                torch.zeros(2, 0), torch.zeros(0), (512, 16), check_invariants=True
            )
        },
        {"transformer.wte.weight": torch.zeros(1).expand(10**6, 10**6)},
        {"transformer.wte.weight": torch.zeros(512, 16, device="meta")},
    ],
    ids=["list", "plain numbers", "sparse", "expanded", "without data"],
)
def test_anything_but_a_plain_tensor_is_refused(
    tmp_path: Path, tiny_model: GPT2, value: Any
) -> None:
    write_hub(tmp_path, tiny_model, weights="pytorch_model.bin")
    torch.save(value, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path)


# --- shards ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shard",
    ["../secret.safetensors", "/etc/passwd", "C:\\x", "\\\\host\\x", "a\0b", "..", "", ".hidden"],
)
def test_a_shard_outside_the_folder_is_never_opened(
    tmp_path: Path, tiny_model: GPT2, shard: str
) -> None:
    folder = write_shards(tmp_path / "model", tiny_model)
    write_hub(tmp_path, tiny_model, weights="secret.safetensors")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["transformer.wte.weight"] = shard
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointFormatError, match="not a plain file name"):
        open_checkpoint(folder)


def test_an_index_that_disagrees_with_its_shards_is_refused(
    tmp_path: Path, tiny_model: GPT2
) -> None:
    folder = write_shards(tmp_path, tiny_model)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"]["transformer.wte.weight"]
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointFormatError, match=r"disagree on transformer\.wte\.weight"):
        open_checkpoint(folder)


def test_a_missing_shard_is_named(tmp_path: Path, tiny_model: GPT2) -> None:
    folder = write_shards(tmp_path, tiny_model)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointNotFoundError, match="model-00002-of-00003"):
        open_checkpoint(folder)


# --- folders --------------------------------------------------------------------------------------


def test_an_empty_folder_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointNotFoundError,
        match=r"config\.json with model\.safetensors, hparams\.json with model\.ckpt\.index",
    ):
        open_checkpoint(tmp_path)


def test_a_configuration_without_weights_says_what_was_expected(
    tmp_path: Path, tiny_model: GPT2
) -> None:
    (write_hub(tmp_path, tiny_model) / "model.safetensors").unlink()
    with pytest.raises(
        CheckpointNotFoundError, match=r"no weights; expected one of model\.safetensors"
    ):
        open_checkpoint(tmp_path)


def test_weights_without_a_configuration_say_what_was_expected(
    tmp_path: Path, tiny_model: GPT2
) -> None:
    (write_hub(tmp_path, tiny_model) / "config.json").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"expected config\.json beside them"):
        open_checkpoint(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["hparams.json", "checkpoint", "model.ckpt.data-00000-of-00001"])
def test_a_part_of_openais_checkpoint_is_answered_with_its_folder(name: str) -> None:
    # It was called weights that lack a config.json, and so was every text file.
    folder = GOLDEN / "tf" / "micro-a"
    with pytest.raises(CheckpointNotFoundError, match=f"give its folder instead: {folder}$"):
        open_checkpoint(folder / name)


def test_a_file_that_is_no_model_is_not_called_one(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("Nel mezzo")
    with pytest.raises(CheckpointNotFoundError, match=r"book\.txt: not a model; expected a folder"):
        open_checkpoint(tmp_path / "book.txt")


@pytest.mark.parametrize(
    "missing", ["hparams.json", "model.ckpt.index", "model.ckpt.data-00000-of-00001"]
)
def test_a_missing_file_of_openais_is_named(tmp_path: Path, missing: str) -> None:
    shutil.copytree(GOLDEN / "tf" / "micro-a", tmp_path, dirs_exist_ok=True)
    (tmp_path / missing).unlink()
    with pytest.raises(CheckpointNotFoundError, match=missing.replace(".", r"\.")):
        open_checkpoint(tmp_path)


def test_several_checkpoints_and_none_named_are_listed(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "tf" / "micro-simple", tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoint").unlink()
    with pytest.raises(CheckpointNotFoundError, match="model-10,model-20"):
        open_checkpoint(tmp_path)


def test_a_checkpoint_file_that_names_nothing_here_lists_what_is(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "tf" / "micro-simple", tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model-30"\n')
    with pytest.raises(
        CheckpointNotFoundError, match="names model-30, which is not here.*model-10,model-20"
    ):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        {"n_layer": 2},
        {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 32, "vocab_size": 512, "rope": 1},
    ],
)
def test_a_nanogpt_checkpoint_of_another_shape_is_refused(
    tmp_path: Path, tiny_model: GPT2, arguments: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="model_args"):
        open_checkpoint(write_nanogpt(tmp_path / "ckpt.pt", tiny_model, model_args=arguments))


def test_a_nanogpt_checkpoint_with_a_number_for_a_name_is_refused(
    tmp_path: Path, tiny_model: GPT2
) -> None:
    # It ended in a KeyError.
    path = write_nanogpt(tmp_path / "ckpt.pt", tiny_model)
    content = torch.load(path)
    content["model"][32] = torch.zeros(1)
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="32"):
        open_checkpoint(path)


def test_another_torch_file_is_not_taken_for_nanogpts(tmp_path: Path) -> None:
    torch.save(OrderedDict(a=torch.zeros(1)), tmp_path / "ckpt.pt")
    with pytest.raises(CheckpointFormatError, match=r"weights of nanoGPT, .*; found a$"):
        open_checkpoint(tmp_path)


# --- whatever the bytes ---------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin", "legacy"])
def test_random_damage_raises_only_our_own_errors(
    tmp_path: Path, tiny_config: GPT2Config, weights: str
) -> None:
    model = make_model(replace(tiny_config, n_layer=1, n_vocab=20))
    name = "pytorch_model.bin" if weights == "legacy" else weights
    path = write_hub(tmp_path, model, weights=name) / name
    if weights == "legacy":
        torch.save(hub_state(model), path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(random.integers(1, 4)):
            offset = int(random.integers(0, min(len(whole), 3000)))
            damaged[offset] = int(random.integers(0, 256))
        path.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                build_model(open_checkpoint(tmp_path))
            except Gpt2KitError:
                refused += 1
    assert refused > 30


def test_a_refused_tensor_leaves_the_number_of_threads_unchanged(
    tmp_path: Path, tiny_model: GPT2
) -> None:
    # It is set to one while tensors are read, and was not set back after an error.
    state = hub_state(tiny_model)
    state["transformer.ln_f.bias"][0] = float("nan")
    checkpoint = open_checkpoint(write_hub(tmp_path, tiny_model, state=state))
    torch.set_num_threads(2)
    try:
        with pytest.raises(CheckpointFormatError, match=r"ln_f\.bias"):
            build_model(checkpoint)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(1)


def test_a_model_can_be_loaded_in_inference_mode(tmp_path: Path, tiny_model: GPT2) -> None:
    # The threads that fill the parameters are not in that mode, and torch refused them.
    with torch.inference_mode():
        assert_same_model(build_model(open_checkpoint(write_hub(tmp_path, tiny_model))), tiny_model)


def test_opening_reads_no_tensor(
    tmp_path: Path, tiny_model: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint: Checkpoint = open_checkpoint(write_hub(tmp_path, tiny_model))

    def refuse(*_: Any) -> Tensor:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(torch, "empty", refuse)
    assert checkpoint.config == tiny_model.config
    assert checkpoint.tensors["wte.weight"].shape == (512, 16)
