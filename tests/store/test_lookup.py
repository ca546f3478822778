"""From a name to a directory, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_builders import make_directory

from gpt2kit import store
from gpt2kit.checkpoints.load import open_checkpoint
from gpt2kit.errors import (
    CheckpointNotFoundError,
)


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
    openai = make_directory(weights, "124M-openai", "hparams.json")
    assert store.find("124M") == store.find("GPT2") == store.find("117M-openai") == openai
    hub = make_directory(weights, "124M")
    assert store.find("124M") == store.find("small") == store.find("openai-community/gpt2") == hub
    assert store.find("124M-openai") == openai


def test_a_trained_run_is_found_by_its_own_name_even_if_that_is_an_alias(weights: Path) -> None:
    make_directory(weights, "124M")
    run = make_directory(weights, "small")
    assert store.find("small") == run
    assert (
        store.find(make_directory(weights, "dante-124M", "ckpt.pt").name) == weights / "dante-124M"
    )


def test_a_hub_id_is_found_where_its_download_lands(weights: Path) -> None:
    directory = make_directory(weights, "acme--tiny-gpt2")
    assert store.find("acme/tiny-gpt2") == directory


def test_an_existing_directory_wins_over_a_name(tmp_path: Path, weights: Path) -> None:
    make_directory(weights, "124M")
    here = make_directory(tmp_path, "124M")
    assert store.find("124M").resolve() == here
    assert store.find(str(weights / "124M")) == weights / "124M"
    assert (
        store.find(tmp_path) == tmp_path
    )  # whether a path holds a model is for the readers to say


def test_a_folder_here_that_holds_no_model_does_not_hide_a_size(
    tmp_path: Path, weights: Path
) -> None:
    (tmp_path / "gpt2").mkdir()
    hub = make_directory(weights, "124M")
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
            "called llama. On this machine: dante-run, dante. "
            "To download one of distilgpt2, 124M, 355M, 774M, 1558M, run:",
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
    make_directory(weights, "dante-run")
    (weights / "notes").mkdir()
    with pytest.raises(CheckpointNotFoundError) as caught:
        store.find(model)
    assert advice in str(caught.value)


def test_a_run_of_adapters_says_how_it_becomes_a_model(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (weights / "named", tmp_path / "here"):
        folder.mkdir()
        (folder / "adapter.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for model, folder in (("named", weights / "named"), ("here", Path("here"))):
        with pytest.raises(CheckpointNotFoundError) as caught:
            store.find(model)
        assert f"{folder} holds LoRA adapters" in str(caught.value)
        assert f"gpt2kit generate --adapter {folder};" in str(caught.value)
        assert str(caught.value).endswith(f"run: gpt2kit merge {folder} --out {folder}-merged")
    with pytest.raises(CheckpointNotFoundError, match="holds LoRA adapters"):
        open_checkpoint(store.find("./here"))


@pytest.mark.parametrize("model", [".hidden", ".124M.download", "..", "sub/../../outside"])
def test_hidden_and_outside_names_are_no_models(weights: Path, model: str) -> None:
    make_directory(weights, ".hidden")
    make_directory(weights, ".124M.download")
    with pytest.raises(CheckpointNotFoundError):
        store.remove(model)
    if model != "..":
        with pytest.raises(CheckpointNotFoundError):
            store.find(model)


def test_files_and_checkpoint_prefixes_are_found_as_they_are(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ckpt.pt").write_text("")
    (tmp_path / "model-1000.index").write_text("")
    assert store.find("ckpt.pt") == Path("ckpt.pt")
    assert store.find(tmp_path / "model-1000") == tmp_path / "model-1000"


def test_a_model_that_a_kill_left_between_two_renames_is_found(weights: Path) -> None:
    make_directory(weights, "124M")
    (weights / "124M").rename(weights / ".124M.old")
    assert store.find("124M") == weights / "124M"


def test_a_lookup_renames_nothing_outside_the_weights_folder_but_says_what_to_type(
    weights: Path, tmp_path: Path
) -> None:
    # Any path that somebody typed was renamed back.
    make_directory(tmp_path, ".novel.old")
    with pytest.raises(CheckpointNotFoundError, match=r"run: mv \.novel\.old novel"):
        store.find("novel")
    with pytest.raises(CheckpointNotFoundError, match=r"run: mv .*/\.novel\.old .*/novel"):
        store.find(tmp_path / "novel")
    assert (tmp_path / ".novel.old").is_dir()
    make_directory(weights, ".run.old")
    assert store.find("weights/run") == Path("weights/run")


def test_the_current_folder_is_found_by_its_dot(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make_directory(weights, "run"))
    assert store.find(".") == Path(".")
