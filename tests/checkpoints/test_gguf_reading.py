"""GGUF files read: by their keys and tensors, whoever wrote them, and refused if damaged."""

from __future__ import annotations

import random
import shutil
import struct
from pathlib import Path

import pytest
import torch
from campaigns.damage import mutate
from conftest import make_model
from gguf_builders import gguf, key, tensor, text, write_file

import gpt2kit
from gpt2kit.checkpoints.gguf.header import read_header
from gpt2kit.checkpoints.load import build_model, open_checkpoint
from gpt2kit.checkpoints.unsaid import Unsaid
from gpt2kit.config import GPT2Config
from gpt2kit.errors import (
    CheckpointError,
    CheckpointFormatError,
    ConfigError,
    Gpt2KitError,
    Gpt2KitWarning,
)
from gpt2kit.model import GPT2

SMALL = GPT2Config(n_vocab=40, n_ctx=16, n_embd=32, n_head=2, n_layer=2)
ARCHITECTURE = key("general.architecture", "gpt2")


@pytest.fixture(scope="module")
def model() -> GPT2:
    return make_model(SMALL)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, model: GPT2) -> Path:
    return write_file(tmp_path_factory.mktemp("good"), model)


def test_a_file_is_taken_as_a_model_and_so_is_a_folder_with_only_one(
    good: Path, model: GPT2, tmp_path: Path
) -> None:
    shutil.copy(good, tmp_path / "other.gguf")
    shutil.copy(good, tmp_path / "plain")  # the contents tell, not the name
    for path in (good, tmp_path, tmp_path / "plain"):
        found, tokenizer = gpt2kit.load(path, device="cpu", dtype="float32")
        assert found.config == SMALL
        assert tokenizer is not None
        assert tokenizer.decode(tokenizer.encode("è già")) == "è già"
        for name, parameter in model.named_parameters():
            assert torch.equal(found.get_parameter(name), parameter)


def test_epsilon_is_the_shortest_decimal_that_was_rounded_to_float32(tmp_path: Path) -> None:
    # The file has 9.99999975e-06 for 1e-05.
    for epsilon in (1e-5, 1e-6, 0.01, 3.7e-5):
        config = GPT2Config(
            n_vocab=40, n_ctx=16, n_embd=32, n_head=2, n_layer=1, layer_norm_epsilon=epsilon
        )
        path = write_file(tmp_path / str(epsilon), make_model(config))
        assert open_checkpoint(path).config.layer_norm_epsilon == epsilon


def test_a_second_copy_of_the_embedding_is_a_tied_head_and_another_head_is_not(
    tmp_path: Path, model: GPT2
) -> None:
    path = write_file(tmp_path, model, untie=True)
    assert "output.weight" in read_header(path).tensors
    checkpoint = open_checkpoint(path)
    assert checkpoint.config.tie_word_embeddings
    assert build_model(checkpoint).config == SMALL
    data = bytearray(path.read_bytes())
    data[-40] ^= 1  # in the last tensor, the head
    path.write_bytes(data)
    assert not open_checkpoint(path).config.tie_word_embeddings


def test_what_the_file_says_cannot_be_overruled(good: Path) -> None:
    with pytest.raises(ConfigError, match="n_head cannot be given"):
        open_checkpoint(good, unsaid=Unsaid(n_head=2))


# --- refused --------------------------------------------------------------------------------------


def many(name: str) -> bytes:
    """Return a key with as many numbers as an array may have."""
    return text(name) + struct.pack("<IIQ", 9, 0, 2**21) + bytes(2**21)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a GGUF file"),
        (b"<html>", "web page"),
        (b"GGUF\3\0\0", "ends inside its version"),
        (gguf([], [], version=1), "version 1, expected 2 or 3"),
        (gguf([], [], version=3 << 24), "big-endian"),
        (gguf([], []), "general.architecture is missing"),
        (gguf([key("general.architecture", "llama")], []), "architecture 'llama'"),
        (gguf([key("general.architecture", 3)], []), "of type int, expected str"),
        (gguf([ARCHITECTURE, ARCHITECTURE], []), "general.architecture is there twice"),
        (gguf([ARCHITECTURE], []), "gpt2.context_length is missing"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), "tensors, expected at most 65,536"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), "keys, expected at most 65,536"),
        (gguf([struct.pack("<Q", 2**63)], []), "a text of 9,223,372,036,854,775,808 bytes"),
        (gguf([struct.pack("<Q", 1000)], []), "ends inside the name of key 0"),
        (gguf([key(b"\xff", 1)], []), "the name of key 0 is not UTF-8"),
        (gguf([text("a") + struct.pack("<I", 99)], []), "the key a has the unknown type 99"),
        (gguf([text("a") + struct.pack("<IB", 7, 2)], []), "neither 0 nor 1"),
        (gguf([text("a") + struct.pack("<IIQ", 9, 8, 2**62)], []), "an array of 4,611"),
        (gguf([text("a") + struct.pack("<IIQ", 9, 8, 2**20)], []), "ends inside the key a"),
        (gguf([text("a") + struct.pack("<IIQ", 9, 4, 2**20)], []), "ends inside the key a"),
        (gguf([text("a") + struct.pack("<IIQ", 9, 9, 1)], []), "the key a has the unknown type 9"),
        (gguf([many(name) for name in "abc"], []), "its arrays have more than 4,194,304 elements"),
        (gguf([], [tensor("a", (8,)), tensor("a", (8,))]), "the tensor a is there twice"),
        (gguf([], [tensor("a", ())]), "has 0 axes"),
        (gguf([], [tensor("a", (1,) * 5)]), "has 5 axes"),
        (gguf([], [text("a") + struct.pack("<I", 2**31)]), "axes, expected 1 to 4"),
        (gguf([], [tensor("a", (0,))]), r"shape \[0\]"),
        (gguf([], [tensor("a", (2**63, 2**63))]), "ends before the tensor a does"),
        (gguf([], [tensor("a", (2**32, 2**32))]), "ends before the tensor a does"),
        (gguf([], [tensor("a", (65,))]), "ends before the tensor a does"),
        (gguf([], [tensor("a", (8,), offset=2**64 - 32)]), "ends before the tensor a does"),
        (gguf([], [tensor("a", (8,), offset=8)]), "at 8, which is no multiple of 32"),
        (
            gguf([], [tensor("a", (32,)), tensor("b", (8,), offset=96)]),
            "the tensor b overlaps the tensor a",
        ),
        (gguf([], [tensor("a", (33,), kind=8)]), "which Q8_0 cannot have"),
        (gguf([], [tensor("a", (256,), kind=12)]), "type Q4_K, expected one of F32"),
        (gguf([], [tensor("a", (8,), kind=77)]), "type 77, expected one of F32"),
        (gguf([key("general.alignment", 0)], [tensor("a", (8,))]), "alignment is 0"),
        (gguf([key("general.alignment", 24)], [tensor("a", (8,))]), "alignment is 24"),
        (gguf([key("general.alignment", "8")], [tensor("a", (8,))]), "alignment is 8, expected"),
    ],
)
def test_a_hostile_file_is_refused_with_the_reason(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointFormatError, match=message):
        open_checkpoint(path)


def renamed(path: Path, old: str, new: str) -> None:
    """Replace a name of a file with one of the same length."""
    assert len(old) == len(new)
    content = path.read_bytes()
    assert old.encode() in content
    path.write_bytes(content.replace(old.encode(), new.encode()))


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("blk.1.ffn_up.weight", "blk.9.ffn_up.weight", CheckpointError),
        ("output_norm.bias", "output_norm.scal", CheckpointError),
        ("token_embd.weight", "token_embd.weighs", CheckpointError),
        ("gpt2.attention.head_count", "gpt2.attention.head_court", CheckpointError),
    ],
)
def test_tensors_and_keys_of_another_model_are_named(
    tmp_path: Path, good: Path, old: str, new: str, error: type[Gpt2KitError]
) -> None:
    path = tmp_path / "model.gguf"
    shutil.copy(good, path)
    renamed(path, old, new)
    with pytest.raises(error, match=old.replace(".", r"\.")):
        open_checkpoint(path)


def test_a_key_that_nobody_knows_is_named_in_a_warning(tmp_path: Path, good: Path) -> None:
    path = tmp_path / "model.gguf"
    shutil.copy(good, path)
    renamed(path, "gpt2.feed_forward_length", "gpt2.feed_backward_lengt")
    with pytest.warns(Gpt2KitWarning, match="gpt2.feed_backward_lengt"):
        open_checkpoint(path)


@pytest.mark.filterwarnings("ignore::gpt2kit.errors.Gpt2KitWarning")
def test_random_damage_is_refused_or_harmless(tmp_path: Path, good: Path) -> None:
    content, path = good.read_bytes(), tmp_path / "model.gguf"
    header = min(read_header(good).offsets.values())
    generator, outcomes = random.Random(1), {"read": 0, "refused": 0}
    for _ in range(600):
        path.write_bytes(mutate(content[:header], generator) + content[header:])
        try:
            checkpoint = open_checkpoint(path)
            assert sum(each.nbytes for each in checkpoint.tensors.values()) <= len(content)
            assert checkpoint.own_vocabulary is not None
            checkpoint.own_vocabulary()
            for stored in checkpoint.tensors.values():
                stored.read()
            outcomes["read"] += 1
        except Gpt2KitError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 10
