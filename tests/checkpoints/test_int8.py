"""The file of int8 weights: made once, made anew after changes or damage, never another model."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import struct
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import pytest
import torch
from conftest import GOLDEN, make_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import gpt2kit
from gpt2kit import store
from gpt2kit.checkpoints import int8
from gpt2kit.checkpoints.int8 import build_int8_model, check_int8_file
from gpt2kit.checkpoints.load import open_checkpoint, read_checked, write_model
from gpt2kit.config import GPT2Config
from gpt2kit.errors import CheckpointFormatError, ConfigError, Gpt2KitWarning
from gpt2kit.model import GPT2
from gpt2kit.quantize import Int8GPT2, quantized
from gpt2kit.store import INT8_SUFFIX, int8_file

TINY = GPT2Config(n_vocab=256, n_ctx=32, n_embd=80, n_head=4, n_layer=2)


@pytest.fixture
def folder() -> Path:
    """A training run of ours with a tiny model: int8 weights are written into it."""
    path = store.weights_dir() / "tiny"
    path.mkdir()
    (path / "run.json").write_text("{}")
    torch.manual_seed(0)
    write_model(path, GPT2(TINY))
    return path


def test_a_second_load_reads_the_file_that_the_first_one_wrote(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(path.name for path in folder.iterdir())
    first, _ = gpt2kit.load(folder, quantize="int8")
    file = int8_file(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*before, file.name])
    monkeypatch.setattr(int8, "quantized_state", None)  # would fail if it were made again
    second, _ = gpt2kit.load(folder, quantize="int8")
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
    assert file.stat().st_size < 0.35 * (folder / "model.safetensors").stat().st_size


def test_the_caller_is_told_of_a_file_that_was_written_and_may_forbid_it(folder: Path) -> None:
    # It was written without a word.
    before = {path.name for path in folder.iterdir()}
    written: list[Path] = []
    gpt2kit.load(folder, quantize="int8", write_cache=False, on_write=written.append)
    assert written == []
    assert {path.name for path in folder.iterdir()} == before
    gpt2kit.load(folder, quantize="int8", on_write=written.append)
    gpt2kit.load(folder, quantize="int8", on_write=written.append)  # which only reads it
    assert written == [int8_file(folder)]


def test_for_somebody_elses_folder_the_file_is_in_the_users_cache(tmp_path: Path) -> None:
    write_model(tmp_path, GPT2(TINY))
    before = sorted(tmp_path.iterdir())
    written: list[Path] = []
    gpt2kit.load(tmp_path, quantize="int8", on_write=written.append)
    assert sorted(tmp_path.iterdir()) == before
    assert written[0].is_relative_to(Path(os.environ["XDG_CACHE_HOME"]))
    assert written[0].is_file()


def test_changed_weights_are_noticed(folder: Path) -> None:
    gpt2kit.load(folder, quantize="int8")
    torch.manual_seed(1)
    write_model(folder, GPT2(TINY))
    model, exact = gpt2kit.load(folder, quantize="int8")[0], gpt2kit.load(folder)[0]
    whole, _ = quantized(exact.wte.weight.detach())
    assert torch.equal(model.wte.weight, whole)


def test_two_checkpoints_of_one_folder_have_int8_weights_of_their_own(tmp_path: Path) -> None:
    """The second one was given the int8 weights of the first."""
    shutil.copytree(GOLDEN / "tf" / "micro-simple", tmp_path, dirs_exist_ok=True)
    for prefix in ("model-10", "model-20"):
        found, _ = gpt2kit.load(tmp_path / prefix, quantize="int8")
        plain, _ = gpt2kit.load(tmp_path / prefix, device="cpu")
        assert torch.equal(found.wte.weight, quantized(plain.wte.weight)[0])


def test_torchs_default_dtype_does_not_round_norms_and_positions(folder: Path) -> None:
    """They were rounded to it in silence, and stayed so in the file."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        found, _ = gpt2kit.load(folder, quantize="int8")
    finally:
        torch.set_default_dtype(torch.float32)
    plain, _ = gpt2kit.load(folder, device="cpu")
    assert torch.equal(found.get_parameter("wpe.weight"), plain.get_parameter("wpe.weight"))


def test_a_folder_may_have_files_whose_names_are_not_utf8(folder: Path) -> None:
    """int8 weights were not made: UnicodeEncodeError."""
    (folder / os.fsdecode(b"\xff")).touch()
    first, _ = gpt2kit.load(folder, quantize="int8")
    assert first.is_quantized
    assert check_int8_file(open_checkpoint(folder))


@pytest.mark.parametrize("damage", ["cut", "empty", "other tensors", "another checksum"])
def test_a_damaged_file_is_made_anew_with_a_warning(damage: str, folder: Path) -> None:
    first, _ = gpt2kit.load(folder, quantize="int8")
    file = int8_file(folder)
    whole = file.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = whole[8 : 8 + length]
    changed = {
        "cut": whole[:-100],
        "empty": b"",
        "other tensors": whole[:8] + header.replace(b'"wpe.w', b'"wpe.v') + whole[8 + length :],
        "another checksum": whole[:8]
        + re.sub(rb'"crc32c":"........"', b'"crc32c":"00000000"', header)
        + whole[8 + length :],
    }
    file.write_bytes(changed[damage])
    with pytest.warns(Gpt2KitWarning, match=r"gpt2kit-int8: this file .*made anew"):
        second, _ = gpt2kit.load(folder, quantize="int8")
    assert torch.equal(first.wte.weight, second.wte.weight)
    assert file.read_bytes() == whole


def test_a_folder_that_cannot_be_written_still_loads(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("gpt2kit.files.os.replace", refuse)
    model, _ = gpt2kit.load(folder, quantize="int8")
    assert isinstance(model, Int8GPT2)
    assert not list(folder.glob(f"*{INT8_SUFFIX}*"))
    assert not list(folder.glob(".*"))


def test_the_directory_stays_loadable_by_transformers_and_by_us(folder: Path) -> None:
    gpt2kit.load(folder, quantize="int8")
    transformers = pytest.importorskip("transformers")
    ids = torch.arange(9)[None]
    theirs, ours = (
        transformers.GPT2LMHeadModel.from_pretrained(folder).eval(),
        gpt2kit.load(folder)[0],
    )
    with torch.inference_mode():
        assert torch.allclose(ours(ids), theirs(ids).logits, atol=1e-5)


def test_weights_with_nan_are_refused(folder: Path) -> None:
    model = GPT2(TINY)
    with torch.no_grad():
        model.wte.weight[1, 2] = float("nan")
    write_model(folder, model)
    with pytest.raises(CheckpointFormatError, match="NaN"):
        gpt2kit.load(folder, quantize="int8")
    assert not list(folder.glob(f"*{INT8_SUFFIX}"))


@pytest.mark.parametrize(
    "options", [{"quantize": "int3"}, {"dtype": "bfloat16"}, {"device": "cuda"}, {"device": "mps"}]
)
def test_an_impossible_combination_is_refused_by_name(
    options: dict[str, Any], folder: Path
) -> None:
    with pytest.raises(ConfigError, match="int"):
        gpt2kit.load(folder, **{"quantize": "int8", **options})


def test_the_file_is_plain_safetensors(folder: Path) -> None:
    model, _ = gpt2kit.load(folder, quantize="int8")
    stored = load_file(int8_file(folder))
    assert stored.keys() == model.state_dict().keys()


# --- damage that only a checksum finds ------------------------------------------------------------


def flips(content: bytes, count: int) -> list[tuple[int, int]]:
    """Return all bits of some bytes of the header, of the float32 tensors and of the matrices."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__")
    assert metadata.keys() == {"format", "source", "crc32c"}
    first = 8 + length
    floats = max(entry["data_offsets"][1] for entry in header.values() if entry["dtype"] == "F32")
    chance = random.Random(0)
    regions = [(8, first), (first, first + floats), (first + floats, len(content))]
    offsets = [chance.randrange(*region) for region in regions for _ in range(count)]
    return [(offset, bit) for offset in [*range(8), *offsets] for bit in range(8)]


def test_no_flipped_bit_gives_another_model(folder: Path) -> None:
    # 641 of 1,499 damaged files were other models: one bit of a scale gave another text, and exit
    # code 0.
    write_model(folder, make_model(replace(TINY, n_embd=16, n_layer=1, n_ctx=8)))
    expected = gpt2kit.load(folder, quantize="int8")[0].state_dict()
    checkpoint = open_checkpoint(folder)
    path = int8_file(folder)
    whole = path.read_bytes()
    for offset, bit in flips(whole, 8):
        damaged = bytearray(whole)
        damaged[offset] ^= 1 << bit
        path.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Gpt2KitWarning)
            model = build_int8_model(
                checkpoint, lambda name: read_checked(checkpoint, name), write=False
            )
        found = model.state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected), (offset, bit)


def test_a_flipped_bit_is_a_warning_and_the_file_is_rewritten(folder: Path) -> None:
    gpt2kit.load(folder, quantize="int8")
    path = int8_file(folder)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[-1000] ^= 1
    path.write_bytes(damaged)
    with pytest.warns(Gpt2KitWarning, match="does not match its checksum"):
        gpt2kit.load(folder, quantize="int8")
    assert path.read_bytes() == whole


def test_a_nan_scale_is_damage_even_if_the_checksum_is_right(folder: Path) -> None:
    expected, _ = gpt2kit.load(folder, quantize="int8")
    path = int8_file(folder)
    state = load_file(path)
    state["wte.scales"][3] = float("nan")
    crc = 0  # the checksum is right
    for name, tensor in sorted(state.items()):
        crc = google_crc32c.extend(
            google_crc32c.extend(crc, name.encode()), tensor.numpy().tobytes()
        )
    with safe_open(path, "pt") as file:
        metadata = {**file.metadata(), "crc32c": f"{crc:08x}"}
    save_file(state, path, metadata)
    with pytest.warns(Gpt2KitWarning, match="made anew"):
        found, _ = gpt2kit.load(folder, quantize="int8")
    assert torch.equal(found.state_dict()["wte.scales"], expected.state_dict()["wte.scales"])


def test_numbers_beyond_float32_cannot_become_int8(folder: Path) -> None:
    model = GPT2(TINY).to(torch.float64)
    with torch.no_grad():
        model.get_parameter("ln_f.weight")[5] = 1e300
    write_model(folder, model)
    with pytest.raises(
        CheckpointFormatError, match=r"ln_f\.weight .*too large.*without --quantize"
    ):
        gpt2kit.load(folder, quantize="int8")


def test_the_file_can_be_checked_without_loading_the_model(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    assert check_int8_file(checkpoint) is None
    gpt2kit.load(folder, quantize="int8")
    assert check_int8_file(checkpoint) is True
    path = int8_file(folder)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointFormatError, match="checksum"):
        check_int8_file(checkpoint)
    path.write_bytes(content[:-1])
    with pytest.raises(CheckpointFormatError, match="damaged"):
        check_int8_file(checkpoint)
    path.unlink()
    gpt2kit.load(folder, quantize="int8")
    torch.manual_seed(1)
    write_model(folder, GPT2(TINY))
    assert check_int8_file(open_checkpoint(folder)) is False
