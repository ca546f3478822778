"""The folder that holds the models, and what lies in it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from store_builders import make_directory

from gpt2kit import store
from gpt2kit.files import put_in_place
from gpt2kit.store.folders import remains


def test_the_folder_is_the_variable_then_weights_here_then_the_users_cache(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPT2KIT_WEIGHTS", "/somewhere/else")
    assert store.weights_dir() == Path("/somewhere/else")
    monkeypatch.delenv("GPT2KIT_WEIGHTS")
    assert store.weights_dir() == Path("weights")
    (tmp_path / "weights").rename(tmp_path / "gone")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert store.weights_dir().name == "gpt2kit"
    assert store.weights_dir().is_absolute()


def test_a_model_takes_its_place_and_the_older_one_goes(weights: Path) -> None:
    target, staging = (
        make_directory(weights, "124M", "hparams.json"),
        make_directory(weights, ".124M.download"),
    )
    make_directory(weights, ".124M.old")  # left by a kill
    put_in_place(staging, target)
    assert [path.name for path in weights.iterdir()] == ["124M"]
    assert [path.name for path in target.iterdir()] == ["config.json"]


def test_a_swap_killed_between_its_two_renames_is_undone(weights: Path) -> None:
    make_directory(weights, ".124M.old")
    store.undo_broken_swap(weights / "124M")
    assert store.find("124M") == weights / "124M"


@pytest.mark.parametrize("mark", [store.MANIFEST, "run.json"])
def test_int8_weights_lie_beside_downloads_and_runs(weights: Path, mark: str) -> None:
    model = make_directory(weights, "124M")
    (model / mark).write_text("{}")
    beside = model / f"model{store.INT8_SUFFIX}"
    assert store.int8_file(model) == store.int8_file(model / "model.safetensors") == beside
    assert store.int8_file(model / "model.ckpt") == beside


def test_int8_weights_of_others_lie_in_the_cache_and_never_beside_them(
    weights: Path, tmp_path: Path
) -> None:
    # They were written into the installed package, and into folders of other people.
    others = [
        make_directory(tmp_path / "a", "model"),
        make_directory(tmp_path / "b", "model"),
        make_directory(weights, "copied-here-by-hand"),
        make_directory(weights / "collection", "model"),
        store.BUNDLED / "dante",
    ]
    for folder in others[:4]:
        if folder.parent != weights:
            (folder / store.MANIFEST).write_text("{}")  # a copy of a download is not ours either
    (weights / "link").symlink_to(others[0])
    files = {store.int8_file(folder) for folder in others}
    assert len(files) == len(others)
    for folder in others:
        assert store.int8_file(folder / "model.safetensors") == store.int8_file(folder)
    assert store.int8_file(weights / "link") == store.int8_file(others[0])
    cache = Path(os.environ["XDG_CACHE_HOME"], "gpt2kit/.kept")
    assert {file.parent.parent for file in files} == {cache}
    assert not any(file.exists() for file in files)


def test_a_folder_with_a_long_name_has_a_shorter_one_in_the_cache(tmp_path: Path) -> None:
    folder = make_directory(tmp_path, "é" * 127)
    kept = store.int8_file(folder).parent
    assert len(os.fsencode(kept.name)) <= 255


def test_what_killed_processes_left_of_a_model_is_found_whoever_left_it(weights: Path) -> None:
    make_directory(weights, "124M")
    for name in (".124M.removed", ".124M.old", ".124M.old.removed", ".124M.download.removed"):
        make_directory(weights, name)
    make_directory(weights, ".124M.999999999.new")
    for name in (f".124M.{os.getpid()}.new", ".124M-openai.removed", ".124M.download"):
        make_directory(weights, name)
    assert {path.name for path in remains("124M")} == {
        ".124M.removed",
        ".124M.old",
        ".124M.old.removed",
        ".124M.download.removed",
        ".124M.999999999.new",
    }
    shutil.rmtree(weights / "124M")  # now the previous content is the only one
    assert weights / ".124M.old" not in remains("124M")
