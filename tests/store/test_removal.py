"""Deleting a model, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from store_builders import make_directory

from gpt2kit import store
from gpt2kit.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    DownloadError,
)


def test_remove_deletes_exactly_the_one_model_and_its_unfinished_download(weights: Path) -> None:
    make_directory(weights, "124M")
    make_directory(weights, "124M-openai")
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
    elsewhere = make_directory(tmp_path, "elsewhere")
    (weights / "run").symlink_to(elsewhere)
    store.remove("run")
    assert (elsewhere / "config.json").exists()
    assert not (weights / "run").is_symlink()


def test_remove_refuses_what_is_no_model_and_what_is_outside(weights: Path, tmp_path: Path) -> None:
    (weights / "notes").mkdir()
    (weights / "notes" / "diary.txt").write_text("")
    outside = make_directory(tmp_path, "outside")
    for name in ("notes", str(outside), "../outside", "/", ""):
        with pytest.raises(CheckpointError):
            store.remove(name)
    assert (weights / "notes" / "diary.txt").exists()
    assert outside.exists()


def test_remove_does_not_disturb_a_download_in_another_process(weights: Path) -> None:
    model = make_directory(weights, "124M")
    with store.locked("124M"), pytest.raises(DownloadError, match="another process"):
        store.remove("124M")
    assert model.exists()


class Killed(BaseException):
    """Ends a deletion as a kill would: nothing after it is executed."""


def test_a_deletion_that_was_killed_is_finished_by_rm_and_listed_until_then(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # rm said "there is no model", models listed nothing, and the gigabytes stayed.
    def kill(*_: object, **__: object) -> None:
        raise Killed

    model = make_directory(weights, "124M")
    (model / "model.safetensors").write_bytes(b"x" * 1000)
    with monkeypatch.context() as context:
        real = shutil.rmtree

        def rmtree(path: Path, **options: Any) -> None:
            (kill if path.is_dir() else real)(path, **options)

        context.setattr("gpt2kit.files.shutil.rmtree", rmtree)
        with pytest.raises(Killed):
            store.remove("124M")
    assert [path.name for path in weights.iterdir() if path.is_dir()] == [".124M.removed"]
    assert store.unfinished() == [store.Unfinished("124M", 1002, is_download=False)]
    assert store.remove("gpt2") == weights / "124M"
    assert not [path for path in weights.iterdir() if path.is_dir()]
    assert store.unfinished() == []
    with pytest.raises(CheckpointNotFoundError):
        store.remove("124M")


@pytest.mark.parametrize("left", [".run.old", ".run.old.removed", ".run.999999999.new"])
def test_what_a_killed_replacement_left_goes_with_the_model(weights: Path, left: str) -> None:
    make_directory(weights, "run")
    make_directory(weights, left)
    assert [model.name for model in store.unfinished()] == ["run"]
    store.remove("run")
    assert not [path for path in weights.iterdir() if path.is_dir()]


def test_what_the_cache_keeps_for_models_elsewhere_is_removed_by_their_names(
    weights: Path, tmp_path: Path
) -> None:
    elsewhere = make_directory(tmp_path, "elsewhere")
    for name, folder in (("dante", store.BUNDLED / "dante"), (str(elsewhere), elsewhere)):
        file = store.int8_file(folder)
        file.parent.mkdir(parents=True)
        file.write_bytes(b"int8")
        assert store.removable(name) == store.remove(name) == file.parent
        assert not file.parent.exists()
        assert store.holds_model(folder)
        with pytest.raises(CheckpointError):
            store.remove(name)


def test_int8_weights_that_the_cache_keeps_go_with_the_model(weights: Path) -> None:
    model = make_directory(weights, "copied-here-by-hand")
    file = store.int8_file(model)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"int8")
    store.remove("copied-here-by-hand")
    assert not file.parent.exists()
