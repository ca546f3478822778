"""The self-test: it passes on what is right, and each kind of wrong fails its own check."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import add_vocabulary, hub_state, write_hub
from conftest import make_model

from gpt2kit.checkpoints.load import load
from gpt2kit.config import SIZES, GPT2Config
from gpt2kit.evaluation import verify as verification
from gpt2kit.evaluation.verify import KnownAnswer, KnownModel, verify
from gpt2kit.model import GPT2
from gpt2kit.store import Manifest, int8_file
from gpt2kit.tokenizers import BPETokenizer


def outcomes(path: Path) -> dict[str, bool | None]:
    return {check.name: check.passed for check in verify(path)}


@pytest.fixture
def folder(tmp_path: Path, tiny_model: GPT2) -> Path:
    return add_vocabulary(write_hub(tmp_path / "model", tiny_model))


def write_manifest(folder: Path, **changes: Any) -> None:
    files = {
        path.name: (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in folder.iterdir()
    }
    Manifest(
        **{
            "source": "hub",
            "repository": "someone/model",
            "revision": "abc",
            "files": files,
            **changes,
        }
    ).write(folder)


def test_a_good_model_passes_everything_that_applies(folder: Path) -> None:
    write_manifest(folder)
    found = outcomes(folder)
    assert found == {
        **{
            f"file {name}": True
            for name in ("config.json", "model.safetensors", "vocab.json", "merges.txt")
        },
        "tensors": True,
        "reference": True,
        "cache": True,
        "device": None,
        "known answers": None,
        "other source": None,
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"norm": "rmsnorm", "mlp": "swiglu"},
        {"norm_first": False, "positions": "sinusoidal"},
        {"mlp": "none", "residual": False, "positions": "none", "head_bias": True},
        {"head": "none", "n_layer": 0, "norm": "none", "n_embd": 512},
        {"tie_word_embeddings": False},
        {"n_ctx": 1},
    ],
    ids=str,
)
def test_models_of_other_shapes_pass_too(
    tmp_path: Path, tiny_config: GPT2Config, fields: dict[str, Any]
) -> None:
    from gpt2kit.checkpoints.load import write_model

    write_model(tmp_path, make_model(replace(tiny_config, **fields)))
    assert False not in outcomes(tmp_path).values()


def test_files_without_a_record_are_skipped_and_not_passed(folder: Path) -> None:
    assert outcomes(folder)["files"] is None


def test_a_flipped_bit_fails_the_files_check(folder: Path) -> None:
    write_manifest(folder)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-9] ^= 1  # the sign or exponent of nothing: a change that no other check could see
    (folder / "model.safetensors").write_bytes(content)
    assert outcomes(folder)["file model.safetensors"] is False


def test_damaged_int8_weights_fail_their_check(folder: Path) -> None:
    # verify did not look at the file, whose flipped bits were another model.
    assert "int8 weights" not in outcomes(folder)
    load(folder, quantize="int8")
    assert outcomes(folder)["int8 weights"] is True
    path = int8_file(folder)
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    assert outcomes(folder)["int8 weights"] is False


def test_a_missing_and_a_short_file_fail_by_name(folder: Path) -> None:
    write_manifest(folder)
    (folder / "merges.txt").unlink()
    (folder / "vocab.json").write_text("{}")
    details = {check.name: check.detail for check in verify(folder) if check.passed is False}
    assert details["file merges.txt"] == "missing"
    assert "2 bytes, expected" in details["file vocab.json"]


def test_a_file_that_differs_from_the_published_one_fails(folder: Path) -> None:
    write_manifest(folder, repository="openai-community/gpt2")
    checks = {check.name: check for check in verify(folder)}
    assert checks["file vocab.json"].passed is False
    assert "the published one is 196139668be63f3b" in checks["file vocab.json"].detail


def test_a_tensor_that_is_not_finite_fails(tmp_path: Path, tiny_model: GPT2) -> None:
    state = hub_state(tiny_model)
    state["transformer.wpe.weight"][1, 1] = float("nan")
    checks = {check.name: check for check in verify(write_hub(tmp_path, tiny_model, state=state))}
    assert checks["tensors"].passed is False
    assert "wpe.weight" in checks["tensors"].detail


def test_a_model_that_computes_something_else_fails_the_reference(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpt2kit import variants

    monkeypatch.setitem(
        variants.ACTIVATION, "gelu_new", torch.nn.functional.gelu
    )  # the exact GELU: off by less than 5e-4
    found = outcomes(folder)
    assert found["reference"] is False
    assert found["cache"] is True


def test_a_cache_that_forgets_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpt2kit.cache import KVCache

    monkeypatch.setattr(KVCache, "append", lambda self, layer, keys, values: (keys, values))
    monkeypatch.setattr(KVCache, "mask", lambda self, n: None)
    assert outcomes(folder)["cache"] is False


@pytest.fixture
def known(
    folder: Path, tiny_model: GPT2, small_bpe: BPETokenizer, monkeypatch: pytest.MonkeyPatch
) -> KnownModel:
    """Publish the small model's behavior, computed without generate's cache."""
    text = "the end"
    ids = small_bpe.encode(text)
    for _ in range(8):
        ids.append(int(tiny_model(torch.tensor([ids]))[0, -1].argmax()))
    loss_ids = torch.tensor([[511, *small_bpe.encode("Hello")]])
    loss = torch.nn.functional.cross_entropy(tiny_model(loss_ids)[0, :-1], loss_ids[0, 1:])
    first, second = tiny_model.wte.weight[0, :2].tolist()
    answer = KnownAnswer(text, small_bpe.decode(ids[-8:]), "a test")
    known = KnownModel((first, second), (answer,), ("Hello", float(loss.detach())))
    monkeypatch.setitem(verification.KNOWN, "124M", known)
    monkeypatch.setitem(SIZES, "124M", tiny_model.config)
    return known


def test_known_answers_are_asked_of_the_real_weights(folder: Path, known: KnownModel) -> None:
    found = outcomes(folder)
    assert found["fingerprint"] is found["greedy 'the end'"] is found["loss of 'Hello'"] is True


def test_wrong_answers_fail_each_by_its_own(
    folder: Path, known: KnownModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = replace(
        known,
        answers=(replace(known.answers[0], continuation="something else"),),
        loss=("Hello", 1.0),
    )
    monkeypatch.setitem(verification.KNOWN, "124M", wrong)
    found = outcomes(folder)
    assert found["fingerprint"] is True
    assert found["greedy 'the end'"] is found["loss of 'Hello'"] is False


def test_other_weights_of_the_same_shape_are_not_asked(
    tmp_path: Path, known: KnownModel, tiny_config: GPT2Config
) -> None:
    other = add_vocabulary(write_hub(tmp_path / "other", make_model(tiny_config, seed=9)))
    assert outcomes(other)["known answers"] is None


def test_a_download_that_claims_to_be_the_real_one_is_asked_whatever_its_numbers(
    tmp_path: Path, known: KnownModel, tiny_config: GPT2Config
) -> None:
    other = add_vocabulary(write_hub(tmp_path / "other", make_model(tiny_config, seed=9)))
    write_manifest(other, repository="openai-community/gpt2")
    assert outcomes(other)["fingerprint"] is False


def test_the_same_model_from_both_sources_is_compared(
    folder: Path, tiny_config: GPT2Config
) -> None:
    other = folder.with_name("model-openai")
    shutil.copytree(folder, other)
    assert outcomes(folder)["other source"] is outcomes(other)["other source"] is True
    write_hub(other, make_model(tiny_config, seed=9))
    assert outcomes(folder)["other source"] is False


def test_the_folder_one_is_in_can_be_verified(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert outcomes(Path())["tensors"] is True


def test_checks_can_be_told_apart_by_programs(folder: Path) -> None:
    assert json.dumps([check.__dict__ for check in verify(folder)])
