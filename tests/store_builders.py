"""Directories that look like models to the store."""

from __future__ import annotations

from pathlib import Path

from gpt2kit import store

MANIFEST = store.Manifest("hub", "openai-community/gpt2", "c0ffee", {"config.json": (2, "a" * 64)})


def make_directory(folder: Path, name: str, file: str = "config.json") -> Path:
    """Make a directory that the store takes for a model, with one file."""
    directory = folder / name
    directory.mkdir(parents=True)
    (directory / file).write_text("{}")
    return directory
