"""The models on this machine, and what interrupted commands left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from store_builders import MANIFEST, make_directory

from gpt2kit import store


def test_installed_lists_the_models_with_size_and_origin(weights: Path) -> None:
    MANIFEST.write(make_directory(weights, "124M"))
    run = make_directory(weights, "run", "ckpt.pt")
    (run / "samples").mkdir()
    (run / "samples" / "one.txt").write_bytes(b"12345")
    (make_directory(weights, "damaged") / store.MANIFEST).write_text("[")
    make_directory(weights, ".124M.download")
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
    make_directory(weights, "dante")
    assert [(model.name, model.is_bundled) for model in store.installed()] == [("dante", False)]


def test_an_unfinished_download_is_listed_and_what_still_runs_is_not(weights: Path) -> None:
    make_directory(weights, ".124M.download")
    make_directory(weights, f".run.{os.getpid()}.new")
    (weights / ".124M.lock").write_text("")
    assert store.unfinished() == [store.Unfinished("124M", 2, is_download=True)]


def test_a_model_that_a_kill_left_under_its_previous_name_is_listed(weights: Path) -> None:
    make_directory(weights, ".run.old")
    assert [model.name for model in store.installed()] == ["run", "dante"]
    make_directory(weights, ".other.old")
    assert store.removable("other") == weights / "other"
