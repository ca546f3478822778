"""The record of a download."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from store_builders import MANIFEST, make_directory

from gpt2kit import store
from gpt2kit.errors import (
    CheckpointFormatError,
)


def test_a_manifest_is_read_as_it_was_written(weights: Path) -> None:
    directory = make_directory(weights, "124M")
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
    directory = make_directory(weights, "124M")
    (directory / store.MANIFEST).write_text(text)
    with pytest.raises(CheckpointFormatError):
        store.Manifest.read(directory)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "nowhere", "itself", "folder"])
def test_a_manifest_that_is_no_file_is_refused_at_once_and_hides_no_model(
    weights: Path, kind: str
) -> None:
    # A pipe was waited for, a device filled the memory, a link to nothing counted as no manifest.
    directory = make_directory(weights, "124M")
    path = directory / store.MANIFEST
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path if kind == "itself" else kind)
    with pytest.raises(CheckpointFormatError, match="expected gpt2kit's record of a download"):
        store.Manifest.read(directory)
    model = store.installed()[0]
    assert (model.name, model.manifest) == ("124M", None)
