"""GGUF files written: there and back bit for bit, and the same function in other programs."""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import add_vocabulary
from conftest import GOLDEN, make_model
from gguf_builders import characters, write_file

from gpt2kit import store
from gpt2kit.checkpoints.exports import GGUF_TYPES, export_gguf, rarest
from gpt2kit.checkpoints.gguf.header import read_header
from gpt2kit.checkpoints.gguf.reading import NAMES
from gpt2kit.checkpoints.load import (
    build_model,
    load_vocabulary,
    open_checkpoint,
    write_checkpoint,
    write_model,
)
from gpt2kit.config import GPT2Config
from gpt2kit.errors import CheckpointError, CheckpointFormatError, ConfigError, TokenizerError
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import BPETokenizer, CharTokenizer, WordTokenizer, load_tokenizer

SMALL = GPT2Config(n_vocab=40, n_ctx=16, n_embd=32, n_head=2, n_layer=2)


def source(folder: Path, model: GPT2, dtype: torch.dtype = torch.float32) -> Path:
    """Write a model with characters as a folder of transformers."""
    whole, folder = folder / "whole", folder / "folder"
    for each in (whole, folder):
        each.mkdir(parents=True)
    tokenizer = characters(model.config.n_vocab)
    write_model(whole, model, tokenizer)
    write_checkpoint(folder, open_checkpoint(whole), dtype, tokenizer)
    return folder


@pytest.mark.parametrize("fields", [{}, {"tie_word_embeddings": False}, {"n_inner": 64}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_there_and_back_every_bit_is_the_same(
    tmp_path: Path, dtype: torch.dtype, fields: dict[str, Any]
) -> None:
    folder = source(tmp_path, make_model(replace(SMALL, **fields)), dtype)
    checkpoint = open_checkpoint(folder)
    to = tmp_path / "model.gguf"
    export = export_gguf(to, checkpoint, load_tokenizer(folder))
    assert (export.comparison.n_rounded, export.comparison.difference) == (0, 0)
    (tmp_path / "back").mkdir()
    found = open_checkpoint(to)
    write_checkpoint(tmp_path / "back", found, dtype, load_vocabulary(found))
    for name in ("model.safetensors", "gpt2kit_tokenizer.json"):
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("dtype", ["q8_0", "q4_0"])
def test_rounded_once_a_file_is_written_again_with_equal_bytes(tmp_path: Path, dtype: str) -> None:
    first = write_file(tmp_path / "a", make_model(SMALL), dtype=dtype)
    checkpoint = open_checkpoint(first)
    second = tmp_path / "model.gguf"
    export_gguf(second, checkpoint, load_vocabulary(checkpoint), dtype=dtype)
    assert second.read_bytes() == first.read_bytes()


@pytest.mark.parametrize("dtype", GGUF_TYPES)
def test_matrices_have_the_type_and_the_rest_is_float32(tmp_path: Path, dtype: str) -> None:
    file = read_header(write_file(tmp_path, make_model(SMALL), dtype=dtype))
    types = {name: kind.name for name, kind in file.types.items()}
    head = "Q8_0" if dtype == "q4_0" else dtype.upper()  # as llama-quantize keeps the head
    assert types.pop("token_embd.weight") == head
    matrices = {name for name in types if name.startswith("blk.") and "norm" not in name}
    matrices = {name for name in matrices if name.endswith(".weight")}
    assert {types[name] for name in matrices} == {dtype.upper()}
    assert {types[name] for name in types.keys() - matrices} == {"F32"}
    assert all(offset % 32 == 0 for offset in file.offsets.values())


def test_rows_that_cannot_be_cut_into_blocks_are_float16(tmp_path: Path) -> None:
    config = replace(SMALL, n_embd=24, n_inner=32)
    types = read_header(write_file(tmp_path, make_model(config), dtype="q8_0")).types
    assert types["blk.0.ffn_up.weight"].name == "F16"  # rows of 24
    assert types["blk.0.ffn_down.weight"].name == "Q8_0"  # rows of 32


@pytest.mark.parametrize(
    "fields",
    [
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True, "n_head": 4},
        {"bias": False, "qkv_bias": False},
        {"qkv_bias": False, "layer_norm_epsilon": 1e-6},
        {"reorder_and_upcast_attn": True},
    ],
    ids=str,
)
def test_what_the_format_cannot_say_is_folded_into_the_weights(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    model = make_model(replace(SMALL, **fields))
    found = build_model(open_checkpoint(write_file(tmp_path, model)))
    plain = replace(SMALL, layer_norm_epsilon=model.config.layer_norm_epsilon)
    assert found.config == replace(plain, n_head=model.config.n_head)
    ids = torch.arange(16)[None]
    with torch.no_grad():
        torch.testing.assert_close(found(ids), model(ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"activation_function": "gelu"},
        {"activation_function": "relu"},
        {"norm": "rmsnorm"},
        {"norm_first": False},
        {"mlp": "swiglu"},
        {"positions": "sinusoidal"},
        {"residual": False},
        {"head_bias": True, "mlp": "none"},
    ],
    ids=str,
)
def test_what_cannot_be_folded_is_refused_by_name(tmp_path: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        write_file(tmp_path, make_model(replace(SMALL, **fields)))
    assert all(name in str(caught.value) for name in fields)
    assert not (tmp_path / "model.gguf").exists()


def test_a_number_that_the_type_cannot_hold_leaves_no_file(tmp_path: Path) -> None:
    model = make_model(SMALL)
    with torch.no_grad():
        model.get_parameter("h.0.mlp.c_fc.weight")[3, 4] = 1e6
    with pytest.raises(CheckpointError, match="too large for F16; take a wider --dtype"):
        write_file(tmp_path, model, dtype="f16")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("size", [1, 1e-7])
def test_a_file_that_was_written_wrong_gets_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: float
) -> None:
    # The comparison must notice two tensors of one shape that change places. What float16 loses of
    # tiny numbers was allowed to float32, too.
    names = dict(NAMES)
    one, other = "blk.{layer}.attn_norm.weight", "blk.{layer}.ffn_norm.weight"
    names[one], names[other] = names[other], names[one]
    monkeypatch.setattr("gpt2kit.checkpoints.gguf.writing.NAMES", names)
    model = make_model(SMALL)
    with torch.no_grad():
        for layer in range(2):
            model.get_parameter(f"h.{layer}.ln_1.weight").fill_(2 * size)
            model.get_parameter(f"h.{layer}.ln_2.weight").fill_(size)
    with pytest.raises(CheckpointFormatError, match="was not written as it is"):
        write_file(tmp_path, model)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


# --- vocabularies ---------------------------------------------------------------------------------


def test_characters_of_several_bytes_are_made_by_merges(tmp_path: Path) -> None:
    tokenizer = characters(40)
    file = read_header(write_file(tmp_path, make_model(SMALL), tokenizer))
    merges = file.texts("tokenizer.ggml.merges")
    assert "Ã ł" in merges  # à
    assert merges[-1].count(" ") == 1
    assert {"â Ģ", "âĢ Ļ"} <= {*merges}  # ’, of three bytes
    found = load_vocabulary(open_checkpoint(tmp_path / "model.gguf"))
    assert isinstance(found, CharTokenizer)
    assert found.tokens == tokenizer.tokens


def test_a_model_without_an_end_token_gets_its_rarest_character(tmp_path: Path) -> None:
    # llama.cpp would take the token 11, which may be a common character.
    model = make_model(SMALL)
    with torch.no_grad():
        # Every token is followed by the same distribution.
        model.get_parameter("ln_f.weight").zero_()
        model.get_parameter("ln_f.bias").copy_(-model.wte.weight[23])
        model.wte.weight[23] *= 5
    path = write_file(tmp_path, model)
    assert rarest(open_checkpoint(path), characters(40)) == 23
    assert read_header(path).keys["tokenizer.ggml.eos_token_id"] == 23
    found = load_vocabulary(open_checkpoint(path))
    assert found is not None
    assert found.stop_id is None  # it only stands in for one


def test_an_end_token_among_characters_is_a_control_token(tmp_path: Path) -> None:
    tokenizer = CharTokenizer([*characters(39).tokens, "<|endoftext|>"])
    file = read_header(write_file(tmp_path, make_model(SMALL), tokenizer))
    assert file.keys["tokenizer.ggml.eos_token_id"] == 39
    assert file.keys["tokenizer.ggml.token_type"][37:] == [1, 1, 3]
    found = load_vocabulary(open_checkpoint(tmp_path / "model.gguf"))
    assert found is not None
    assert found.stop_id == 39


def test_a_byte_level_vocabulary_comes_back_with_its_files_and_unused_rows(tmp_path: Path) -> None:
    tokenizer = BPETokenizer.from_folder(add_vocabulary(tmp_path))
    assert tokenizer is not None
    model = make_model(replace(SMALL, n_vocab=tokenizer.n_vocab + 3))
    path = write_file(tmp_path / "out", model, tokenizer)
    keys = read_header(path).keys
    assert keys["tokenizer.ggml.tokens"][-1] == f"[PAD{tokenizer.n_vocab + 2}]"
    assert keys["tokenizer.ggml.token_type"][-4:] == [3, 5, 5, 5]
    found = load_vocabulary(open_checkpoint(path))
    assert found is not None
    assert found.files() == tokenizer.files()
    assert found.stop_id == tokenizer.stop_id
    cases = json.loads((GOLDEN / "bpe" / "expected.json").read_text(encoding="utf-8"))["cases"]
    for case in cases:
        assert found.encode(case["text"]) == tokenizer.encode(case["text"])


def test_words_are_refused_and_so_is_a_model_without_a_vocabulary(tmp_path: Path) -> None:
    words = WordTokenizer.from_text(" ".join(f"w{number}" for number in range(39)))
    model = make_model(replace(SMALL, n_vocab=words.n_vocab))
    with pytest.raises(TokenizerError, match="no vocabulary of words"):
        write_file(tmp_path / "a", model, words)
    folder = source(tmp_path / "b", make_model(SMALL))
    with pytest.raises(TokenizerError, match="no vocabulary, which the file must have"):
        export_gguf(tmp_path / "model.gguf", open_checkpoint(folder), None)


def test_a_vocabulary_of_another_kind_is_named_and_can_be_replaced(tmp_path: Path) -> None:
    path = write_file(tmp_path, make_model(SMALL))
    content = path.read_bytes().replace(
        b"tokenizer.ggml.pre" + struct.pack("<IQ", 8, 5) + b"gpt-2",
        b"tokenizer.ggml.pre" + struct.pack("<IQ", 8, 5) + b"phi-9",
    )
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match="cut 'phi-9', expected 'gpt2' with cut 'gpt-2'"):
        load_vocabulary(open_checkpoint(path))
    assert load_vocabulary(open_checkpoint(path), tmp_path / "source") is not None


# --- other programs -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dtype", GGUF_TYPES)
def test_transformers_computes_the_same_from_the_file(tmp_path: Path, dtype: str) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    tokenizer = BPETokenizer.from_folder(add_vocabulary(tmp_path))
    assert tokenizer is not None
    # It takes n_ctx to be 1,024, whatever the file says.
    config = replace(SMALL, n_vocab=tokenizer.n_vocab, n_ctx=1024, n_embd=64)
    path = write_file(tmp_path / "out", make_model(config), tokenizer, dtype=dtype)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    (tmp_path / "back").mkdir()
    write_checkpoint(tmp_path / "back", open_checkpoint(path), torch.float32)
    ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    ids = torch.arange(100, 160)[None]
    with torch.no_grad():
        assert torch.equal(theirs.eval()(ids).logits, ours.eval()(ids).logits)


@pytest.mark.slow
def test_the_gguf_package_reads_the_same_keys_and_numbers(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = write_file(tmp_path, make_model(SMALL), dtype="q8_0")
    theirs, ours = gguf.GGUFReader(path), read_header(path)
    assert {tensor.name for tensor in theirs.tensors} == ours.tensors.keys()
    for tensor in theirs.tensors:
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert torch.equal(torch.tensor(numbers), ours.tensors[tensor.name].read())
    fields = {name: each.contents() for name, each in theirs.fields.items() if "GGUF" not in name}
    assert fields == ours.keys


@pytest.mark.slow
def test_llama_cpp_writes_the_same_greedy_text_from_the_bundled_model(tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    folder = store.find("dante")
    checkpoint, tokenizer = open_checkpoint(folder), load_tokenizer(folder)
    assert tokenizer is not None
    path = export_gguf(tmp_path / "dante.gguf", checkpoint, tokenizer, dtype="f32").path
    theirs = llama_cpp.Llama(str(path), n_ctx=256, verbose=False, logits_all=True)
    text = "Nel mezzo del cammin di nostra vita\n"
    ids = tokenizer.encode(text)
    assert theirs.tokenize(text.encode(), add_bos=False) == ids
    model = build_model(checkpoint)
    for _ in range(60):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    theirs.eval(ids)
    with torch.no_grad():
        ours = model(torch.tensor([ids]))[0]
    found = torch.tensor(theirs.scores[: len(ids)])
    assert float((found - ours).abs().max()) < 0.02  # its cache and its GELU are float16
    assert found[len(ids) - 61 : -1].argmax(-1).tolist() == ids[-60:]


def test_the_bundled_model_is_written_for_llama_cpp(tmp_path: Path) -> None:
    folder = tmp_path / "dante"
    shutil.copytree(store.find("dante"), folder)
    export = export_gguf(
        tmp_path / "dante.gguf", open_checkpoint(folder), load_tokenizer(folder), dtype="q8_0"
    )
    assert export.comparison.difference < 0.1 * export.comparison.spread
    assert export.command.endswith("--ignore-eos")
    assert "no end token" in export.warnings[0]
