"""The models on this machine, and what interrupted commands left."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpt2kit.errors import CheckpointFormatError
from gpt2kit.store.folders import (
    BUNDLED,
    holds_model,
    holds_sae,
    remains,
    staging_dir,
    undo_broken_swap,
    weights_dir,
)
from gpt2kit.store.manifest import Manifest

# The hidden names of `folders`, and of folders that `files.new_directory` was writing.
_HIDDEN = re.compile(r"\.(.+?)(?:(?:\.download|\.old)?\.removed|\.download|\.old|\.\d+\.new)")


@dataclass(frozen=True)
class InstalledModel:
    """A model of `weights_dir()`, one that comes with the package, or a sparse autoencoder."""

    name: str
    path: Path
    size: int  # bytes of everything in the directory
    manifest: Manifest | None  # None if it was not downloaded
    is_bundled: bool = False  # whether it comes with the package


def installed() -> list[InstalledModel]:
    """List the models of `weights_dir()` by name, then the bundled ones with other names.

    A model that a kill left under the name of its previous content gets its name back.
    """
    for path in _entries(weights_dir()):
        if path.name.startswith(".") and path.name.endswith(".old"):
            with contextlib.suppress(OSError):
                undo_broken_swap(path.with_name(path.name[1:-4]))
    models = _listed(holds_model)
    names = {model.name for model in models}
    return models + [
        InstalledModel(path.name, path, bytes_in(path), None, is_bundled=True)
        for path in _entries(BUNDLED)
        if holds_model(path) and path.name not in names
    ]


def installed_saes() -> list[InstalledModel]:
    """List the sparse autoencoders of `weights_dir()` by name."""
    return _listed(holds_sae)


def _listed(is_wanted: Callable[[Path], bool]) -> list[InstalledModel]:
    return [
        InstalledModel(path.name, path, bytes_in(path), _manifest(path))
        for path in _entries(weights_dir())
        if not path.name.startswith(".") and path.is_dir() and is_wanted(path)
    ]


def _manifest(path: Path) -> Manifest | None:
    """Return a directory's manifest; a damaged one does not hide the model."""
    with contextlib.suppress(CheckpointFormatError):
        return Manifest.read(path)
    return None


@dataclass(frozen=True)
class Unfinished:
    """What an interrupted download, removal or replacement left of a model."""

    name: str
    size: int  # bytes
    is_download: bool  # whether there is a download to continue


def unfinished() -> list[Unfinished]:
    """List what interrupted commands left in `weights_dir()`; `remove` deletes it by name."""
    found = {
        match[1] for path in _entries(weights_dir()) if (match := _HIDDEN.fullmatch(path.name))
    }
    listed = []
    for name in sorted(found):
        is_download = staging_dir(name).is_dir()
        paths = remains(name) + ([staging_dir(name)] if is_download else [])
        if paths:
            listed.append(Unfinished(name, sum(map(bytes_in, paths)), is_download))
    return listed


def _entries(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted; nothing if it cannot be read."""
    with contextlib.suppress(OSError):
        return sorted(folder.iterdir())
    return []


def bytes_in(directory: Path) -> int:
    """Return the size of all files in a directory."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):  # another process may delete it
                total += os.stat(os.path.join(folder, name)).st_size
    return total
