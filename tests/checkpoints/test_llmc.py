"""llm.c's files: in, out, and there and back bit for bit."""

from __future__ import annotations

import random
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import add_vocabulary
from campaigns.damage import mutate
from conftest import make_model
from gguf_builders import characters

import gpt2kit
from gpt2kit.checkpoints.exports import export_llmc
from gpt2kit.checkpoints.load import build_model, open_checkpoint, write_model
from gpt2kit.config import GPT2Config
from gpt2kit.errors import CheckpointError, CheckpointFormatError, ConfigError, Gpt2KitError
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import BPETokenizer, CharTokenizer

SMALL = GPT2Config(n_vocab=40, n_ctx=16, n_embd=32, n_head=2, n_layer=2)


def write_file(folder: Path, model: GPT2, **options: Any) -> Path:
    """Write a model with characters as a file of llm.c."""
    source = folder / "source"
    source.mkdir(parents=True)
    tokenizer = characters(model.config.n_vocab)
    write_model(source, model, tokenizer)
    return export_llmc(folder / "model.bin", open_checkpoint(source), tokenizer, **options).path


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_there_and_back_every_bit_is_the_same(tmp_path: Path, dtype: str) -> None:
    first = write_file(tmp_path, make_model(SMALL), dtype=dtype)
    checkpoint = open_checkpoint(first)
    assert checkpoint.config == SMALL
    export = export_llmc(tmp_path / "again.bin", checkpoint, characters(40))
    assert export.path.read_bytes() == first.read_bytes()
    assert (export.comparison.n_rounded, export.comparison.difference) == (0, 0)


def test_the_file_has_llm_cs_header_and_order(tmp_path: Path) -> None:
    # The order of llm.c's train_gpt2.c: each kind of tensor for all layers together.
    model = make_model(SMALL)
    data = write_file(tmp_path, model).read_bytes()
    assert struct.unpack("<8i", data[:32]) == (20240326, 3, 16, 40, 2, 2, 32, 128)
    assert data[32:1024] == bytes(992)
    padding = torch.zeros(88, 32)
    tensors = [model.wte.weight, padding, model.get_parameter("wpe.weight")]
    for module in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"):
        for kind in ("weight", "bias"):
            tensors += [model.get_parameter(f"h.{layer}.{module}.{kind}") for layer in range(2)]
    tensors += [model.get_parameter(f"ln_f.{kind}") for kind in ("weight", "bias")]
    assert data[1024:] == b"".join(tensor.detach().numpy().tobytes() for tensor in tensors)


def test_a_file_is_taken_as_a_model(tmp_path: Path) -> None:
    model = make_model(SMALL)
    path = write_file(tmp_path, model)
    found, tokenizer = gpt2kit.load(path, device="cpu", vocabulary=tmp_path / "source")
    assert isinstance(tokenizer, CharTokenizer)
    assert all(
        torch.equal(found.get_parameter(name), parameter)
        for name, parameter in model.named_parameters()
    )


def test_the_vocabulary_is_written_beside_it_as_the_bytes_of_each_token(tmp_path: Path) -> None:
    tokenizer = BPETokenizer.from_folder(add_vocabulary(tmp_path))
    assert tokenizer is not None
    model = make_model(replace(SMALL, n_vocab=tokenizer.n_vocab))
    write_model(tmp_path, model, tokenizer)
    export_llmc(tmp_path / "model.bin", open_checkpoint(tmp_path), tokenizer)
    data = (tmp_path / "gpt2_tokenizer.bin").read_bytes()
    header = (20240328, 2, tokenizer.n_vocab, tokenizer.stop_id)
    assert struct.unpack("<4I", data[:16]) == header
    found, offset = [], 1024
    while offset < len(data):
        found.append(data[offset + 1 : offset + 1 + data[offset]])
        offset += 1 + data[offset]
    assert found == [tokenizer.token_bytes(token) for token in range(tokenizer.n_vocab)]


def test_another_vocabulary_beside_it_is_kept_unless_forced(tmp_path: Path) -> None:
    (tmp_path / "gpt2_tokenizer.bin").write_bytes(b"another")
    with pytest.raises(CheckpointError, match=r"gpt2_tokenizer.bin already exists"):
        write_file(tmp_path, make_model(SMALL))
    assert not (tmp_path / "model.bin").exists()
    checkpoint = open_checkpoint(tmp_path / "source")
    export_llmc(tmp_path / "model.bin", checkpoint, characters(40), replace=True)
    assert (tmp_path / "gpt2_tokenizer.bin").read_bytes() != b"another"


@pytest.mark.parametrize(
    "fields",
    [
        {"tie_word_embeddings": False},
        {"layer_norm_epsilon": 1e-6},
        {"n_inner": 64},
        {"activation_function": "gelu"},
        {"norm": "rmsnorm"},
    ],
    ids=str,
)
def test_what_llm_c_cannot_compute_is_refused_by_name(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=f"llm.c cannot express {next(iter(fields))}"):
        write_file(tmp_path, make_model(replace(SMALL, **fields)))


def test_an_mlp_of_the_usual_width_may_be_said_in_numbers(tmp_path: Path) -> None:
    """A configuration that says 4 * n_embd itself was refused."""
    config = replace(SMALL, n_inner=4 * SMALL.n_embd)
    assert open_checkpoint(write_file(tmp_path, make_model(config))).config == SMALL


def test_the_name_of_the_vocabulary_is_no_name_for_a_model(tmp_path: Path) -> None:
    """The vocabulary was written to the same name, and then replaced by the model."""
    path = tmp_path / "source"
    path.mkdir()
    write_model(path, make_model(SMALL), characters(40))
    to = tmp_path / "gpt2_tokenizer.bin"
    with pytest.raises(CheckpointError, match="is the name of llm.c's vocabulary"):
        export_llmc(to, open_checkpoint(path), characters(40))
    assert not to.exists()


def test_missing_biases_are_zeros(tmp_path: Path) -> None:
    model = make_model(replace(SMALL, bias=False, qkv_bias=False))
    found = build_model(open_checkpoint(write_file(tmp_path, model)))
    ids = torch.arange(16)[None]
    with torch.no_grad():
        torch.testing.assert_close(found(ids), model(ids))


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (1, 1, "version 1; expected 3"),
        (2, 0, "n_ctx is 0"),
        (2, 17, "expected"),
        (3, -1, "n_vocab is -1"),
        (4, 2**31 - 1, "n_layer is"),
        (5, 3, "multiple of the number of heads"),
        (6, 2**15, "expected"),
        (7, 39, "39 rows of the token embedding for 40 tokens"),
        (7, 2**31 - 1, "rows of the token embedding"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path: Path, at: int, value: int, message: str) -> None:
    path = write_file(tmp_path, make_model(SMALL))
    data = bytearray(path.read_bytes())
    data[4 * at : 4 * at + 4] = struct.pack("<i", value)
    path.write_bytes(data)
    with pytest.raises(Gpt2KitError, match=message):
        open_checkpoint(path)


def test_random_damage_is_refused_or_harmless(tmp_path: Path) -> None:
    path = write_file(tmp_path, make_model(SMALL))
    content, generator = path.read_bytes(), random.Random(1)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(300):
        path.write_bytes(content[:4] + mutate(content[4:64], generator) + content[64:])
        try:
            for stored in open_checkpoint(path).tensors.values():
                stored.read()
            outcomes["read"] += 1
        except Gpt2KitError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 10


@pytest.mark.parametrize("keep", [500, 1024, 5000, -1])
def test_a_file_that_was_cut_short_is_refused(tmp_path: Path, keep: int) -> None:
    path = write_file(tmp_path, make_model(SMALL))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointFormatError, match="get it again"):
        open_checkpoint(path)
