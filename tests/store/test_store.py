"""From a name to a directory, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from builders import write_hub
from conftest import make_model

from gpt2kit import store
from gpt2kit.checkpoints.load import load, open_checkpoint
from gpt2kit.config import GPT2Config
from gpt2kit.errors import (
    CheckpointError,
    CheckpointFormatError,
    CheckpointNotFoundError,
    DownloadError,
)
from gpt2kit.files import put_in_place

MANIFEST = store.Manifest("hub", "openai-community/gpt2", "c0ffee", {"config.json": (2, "a" * 64)})


@pytest.fixture(autouse=True)
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setenv("GPT2KIT_WEIGHTS", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def _model(folder: Path, name: str, file: str = "config.json") -> Path:
    directory = folder / name
    directory.mkdir(parents=True)
    (directory / file).write_text("{}")
    return directory


def test_the_folder_is_the_variable_then_weights_here_then_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPT2KIT_WEIGHTS", "/somewhere/else")
    assert store.weights_dir() == Path("/somewhere/else")
    monkeypatch.delenv("GPT2KIT_WEIGHTS")
    assert store.weights_dir() == Path("weights")
    (tmp_path / "weights").rename(tmp_path / "gone")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert store.weights_dir().name == "gpt2kit"
    assert store.weights_dir().is_absolute()


@pytest.mark.parametrize(
    ("model", "source", "expected"),
    [
        ("124M", "hub", "124M"),
        ("gpt2", "hub", "124M"),
        ("openai-community/gpt2-xl", "hub", "1558M"),
        ("117M", "openai", "124M-openai"),
        ("124M-openai", "openai", "124M-openai"),
        ("acme/tiny-gpt2", "hub", "acme--tiny-gpt2"),
    ],
)
def test_a_download_lands_under_the_canonical_name(model: str, source: str, expected: str) -> None:
    assert store.directory_name(model, source) == expected


def test_a_size_is_found_under_every_alias_and_from_the_hub_first(weights: Path) -> None:
    openai = _model(weights, "124M-openai", "hparams.json")
    assert store.find("124M") == store.find("GPT2") == store.find("117M-openai") == openai
    hub = _model(weights, "124M")
    assert store.find("124M") == store.find("small") == store.find("openai-community/gpt2") == hub
    assert store.find("124M-openai") == openai


def test_a_trained_run_is_found_by_its_own_name_even_if_that_is_an_alias(weights: Path) -> None:
    _model(weights, "124M")
    run = _model(weights, "small")
    assert store.find("small") == run
    assert store.find(_model(weights, "dante-124M", "ckpt.pt").name) == weights / "dante-124M"


def test_a_hub_id_is_found_where_its_download_lands(weights: Path) -> None:
    directory = _model(weights, "acme--tiny-gpt2")
    assert store.find("acme/tiny-gpt2") == directory


def test_an_existing_directory_wins_over_a_name(tmp_path: Path, weights: Path) -> None:
    _model(weights, "124M")
    here = _model(tmp_path, "124M")
    assert store.find("124M").resolve() == here
    assert store.find(str(weights / "124M")) == weights / "124M"
    assert (
        store.find(tmp_path) == tmp_path
    )  # a path is taken at its word, what is in it is for the reader to say


def test_a_folder_here_that_holds_no_model_does_not_hide_a_size(
    tmp_path: Path, weights: Path
) -> None:
    (tmp_path / "gpt2").mkdir()
    hub = _model(weights, "124M")
    assert store.find("gpt2") == hub


@pytest.mark.parametrize(
    ("model", "advice"),
    [
        ("124M", "gpt2kit download 124M"),
        ("gpt2-xl", "gpt2kit download 1558M"),
        ("117M-openai", "gpt2kit download 124M --source openai"),
        ("125M", "did you mean 124M? Run: gpt2kit download 124M"),
        ("gpt2-larg", "gpt2kit download 774M"),
        (
            "llama",
            "called llama. On this machine: dante-run, dante. To download one of distilgpt2, 124M, 355M, 774M, 1558M, run:",
        ),
        ("acme/tiny-gpt2", "gpt2kit download acme/tiny-gpt2"),
        ("dante-rum", "did you mean dante-run?"),
        ("./nothing/here", "there is no directory ./nothing/here"),
        ("../nothing", "there is no directory ../nothing"),
        ("notes", "holds no model"),
        ("", "no model"),
        ("x" * 5000, "no model"),
        ("nul\0", "no model"),
    ],
)
def test_what_is_not_here_says_what_to_type_and_is_never_guessed(
    weights: Path, tmp_path: Path, model: str, advice: str
) -> None:
    _model(weights, "dante-run")
    (weights / "notes").mkdir()
    with pytest.raises(CheckpointNotFoundError) as caught:
        store.find(model)
    assert advice in str(caught.value)


def test_a_run_of_adapters_says_how_it_becomes_a_model(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (weights / "named", tmp_path / "here"):
        place.mkdir()
        (place / "adapter.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for model, place in (("named", weights / "named"), ("here", Path("here"))):
        with pytest.raises(CheckpointNotFoundError) as caught:
            store.find(model)
        assert f"{place} holds LoRA adapters" in str(caught.value)
        assert str(caught.value).endswith(f"Run: gpt2kit merge {place} --out {place}-merged")
    with pytest.raises(CheckpointNotFoundError, match="holds LoRA adapters"):
        open_checkpoint(store.find("./here"))


@pytest.mark.parametrize("model", [".hidden", ".124M.download", "..", "sub/../../outside"])
def test_hidden_and_outside_names_are_no_models(weights: Path, model: str) -> None:
    _model(weights, ".hidden")
    _model(weights, ".124M.download")
    with pytest.raises(CheckpointNotFoundError):
        store.remove(model)
    if model != "..":
        with pytest.raises(CheckpointNotFoundError):
            store.find(model)


def test_installed_lists_the_models_with_size_and_origin(weights: Path) -> None:
    MANIFEST.write(_model(weights, "124M"))
    run = _model(weights, "run", "ckpt.pt")
    (run / "samples").mkdir()
    (run / "samples" / "one.txt").write_bytes(b"12345")
    (_model(weights, "damaged") / store.MANIFEST).write_text("[")
    _model(weights, ".124M.download")
    (weights / "notes").mkdir()
    (weights / "corpus.txt").write_text("")
    listed = {model.name: (model.size, model.manifest) for model in store.installed()}
    assert list(listed) == ["124M", "damaged", "run", "dante"]
    assert listed["run"] == (7, None)
    assert listed["124M"][1] == MANIFEST
    assert listed["damaged"][1] is None


def test_only_what_is_bundled_is_installed_where_the_folder_does_not_exist(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GPT2KIT_WEIGHTS", "/nowhere/at/all")
    assert [(model.name, model.is_bundled) for model in store.installed()] == [("dante", True)]


def test_a_model_of_ones_own_hides_the_bundled_one_of_its_name(weights: Path) -> None:
    _model(weights, "dante")
    assert [(model.name, model.is_bundled) for model in store.installed()] == [("dante", False)]


def test_a_manifest_is_read_as_it_was_written(weights: Path) -> None:
    directory = _model(weights, "124M")
    assert store.Manifest.read(directory) is None
    MANIFEST.write(directory)
    assert store.Manifest.read(directory) == MANIFEST
    assert MANIFEST.fits(directory)
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", "gpt2kit.json"]
    (directory / "config.json").write_text("longer")
    assert not MANIFEST.fits(directory)


_FIELDS = {
    "source": "hub",
    "repository": "r",
    "revision": None,
    "files": {"a": {"size": 1, "sha256": "b"}},
}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "null",
        "\x00",
        "[" * 100_000,
        " " * 2_000_000,
        json.dumps(_FIELDS | {"files": []}),
        json.dumps(_FIELDS | {"files": {"a": {"size": True, "sha256": "b"}}}),
        json.dumps(_FIELDS | {"files": {"../a": {"size": 1, "sha256": "b"}}}),
        json.dumps(_FIELDS | {"revision": 7}),
    ],
)
def test_a_damaged_manifest_is_one_error_of_ours(weights: Path, text: str) -> None:
    directory = _model(weights, "124M")
    (directory / store.MANIFEST).write_text(text)
    with pytest.raises(CheckpointFormatError):
        store.Manifest.read(directory)


def test_remove_deletes_exactly_the_one_model_and_its_unfinished_download(weights: Path) -> None:
    _model(weights, "124M")
    _model(weights, "124M-openai")
    (weights / ".124M.download").mkdir()
    (weights / ".124M.removed").mkdir()  # an earlier removal was killed
    assert store.remove("gpt2") == weights / "124M"
    assert {path.name for path in weights.iterdir() if not path.name.endswith(".lock")} == {
        "124M-openai"
    }
    with pytest.raises(CheckpointNotFoundError, match="124M-openai"):
        store.remove("355M")


def test_remove_unlinks_a_symlink_and_leaves_what_it_points_at(
    weights: Path, tmp_path: Path
) -> None:
    elsewhere = _model(tmp_path, "elsewhere")
    (weights / "run").symlink_to(elsewhere)
    store.remove("run")
    assert (elsewhere / "config.json").exists()
    assert not (weights / "run").is_symlink()


def test_remove_refuses_what_is_no_model_and_what_is_outside(weights: Path, tmp_path: Path) -> None:
    (weights / "notes").mkdir()
    (weights / "notes" / "diary.txt").write_text("")
    outside = _model(tmp_path, "outside")
    for name in ("notes", str(outside), "../outside", "/", ""):
        with pytest.raises(CheckpointError):
            store.remove(name)
    assert (weights / "notes" / "diary.txt").exists()
    assert outside.exists()


def test_remove_does_not_disturb_a_download_in_another_process(weights: Path) -> None:
    model = _model(weights, "124M")
    with store.locked("124M"), pytest.raises(DownloadError, match="another process"):
        store.remove("124M")
    assert model.exists()


def test_a_model_takes_its_place_and_the_older_one_goes(weights: Path) -> None:
    target, staging = _model(weights, "124M", "hparams.json"), _model(weights, ".124M.download")
    _model(weights, ".124M.old")  # left by a kill
    put_in_place(staging, target)
    assert [path.name for path in weights.iterdir()] == ["124M"]
    assert [path.name for path in target.iterdir()] == ["config.json"]


def test_a_swap_killed_between_its_two_renames_is_undone(weights: Path) -> None:
    _model(weights, ".124M.old")
    store.undo_broken_swap(weights / "124M")
    assert store.find("124M") == weights / "124M"


def test_files_and_checkpoint_prefixes_are_found_as_they_are(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ckpt.pt").write_text("")
    (tmp_path / "model-1000.index").write_text("")
    assert store.find("ckpt.pt") == Path("ckpt.pt")
    assert store.find(tmp_path / "model-1000") == tmp_path / "model-1000"


def test_a_model_that_a_kill_left_between_two_renames_is_found(weights: Path) -> None:
    _model(weights, "124M")
    (weights / "124M").rename(weights / ".124M.old")
    assert store.find("124M") == weights / "124M"


def test_the_memory_that_weights_will_need_is_known_before_they_are_loaded(tmp_path: Path) -> None:
    config = GPT2Config(n_vocab=300, n_ctx=32, n_embd=32, n_head=2, n_layer=2)
    for dtype, kind in (
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
        ("float64", torch.float64),
    ):
        folder = write_hub(tmp_path / dtype, make_model(config, dtype=kind))
        model, _ = load(folder, device="cpu", dtype=dtype)
        needed = sum(parameter.nbytes for parameter in model.parameters())
        assert (
            store.memory_needed(folder, dtype)
            == store.memory_needed(folder / "model.safetensors", dtype)
            == needed
        )
        assert (
            store.memory_needed(folder, "float32" if dtype == "bfloat16" else "bfloat16") == 0
        )  # while they are converted, there are more
    folder = tmp_path / "float32"
    assert store.memory_needed(folder, "auto") == store.memory_needed(folder, "float32")
    assert store.memory_needed(folder, "auto", "int8") == 0
    model, _ = load(folder, device="cpu", quantize="int8")
    needed = sum(parameter.nbytes for parameter in model.parameters())
    assert needed <= store.memory_needed(folder, "auto", "int8") < needed + 10_000


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"{",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32"}}',
        b'{"a": {"dtype": "F32", "shape": 3, "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": ["x", 8]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 1000000000]}}',  # more than the file has
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, Infinity]}}',
        b'{"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}',
        b'{"__metadata__": {"format": "pt"}}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_no_memory_is_asked_for_what_a_damaged_file_says(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert store.memory_needed(path) == store.memory_needed(tmp_path) == 0
    path.write_bytes(b"\xff" * 8 + header)
    assert store.memory_needed(path) == 0


def test_other_formats_do_not_tell_how_much_memory_they_need(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    assert (
        store.memory_needed(tmp_path)
        == store.memory_needed(tmp_path / "pytorch_model.bin")
        == store.memory_needed(tmp_path / "none")
        == 0
    )
