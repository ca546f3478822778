"""Models with adapters over them: found, stacked, merged, and exchanged on one base model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gpt2kit import lora, store
from gpt2kit.checkpoints.adapters import WEIGHTS_FILE, load_adapters, read_adapters
from gpt2kit.checkpoints.load import build_model, open_checkpoint
from gpt2kit.checkpoints.stored import Checkpoint
from gpt2kit.engine.snapshot import weights_sha256
from gpt2kit.errors import CheckpointError, CheckpointNotFoundError
from gpt2kit.model import GPT2


@dataclass(frozen=True)
class Stack:
    """A model on disk, and the folders of the adapters that lie over it, the lowest first."""

    base: str  # the model's name
    checkpoint: Checkpoint
    folders: tuple[Path, ...]


def find_adapters(name: str | Path) -> Path | None:
    """Return the folder of adapters that a path or a run's name means, or None."""
    path = Path(os.path.expanduser(name))
    folders = [path]
    if str(name) == path.name:  # a run's name
        folders.append(store.weights_dir() / path)
    return next((folder for folder in folders if store.adapters_alone(folder)), None)


def require_adapters(name: str | Path) -> Path:
    """Return the folder of adapters that a name means; raise CheckpointNotFoundError if none."""
    folder = find_adapters(name)
    if folder is None:
        raise CheckpointNotFoundError(
            f"{name}: no adapters; expected the folder of a run with --lora_rank, which has "
            f"{store.ADAPTERS_FILE}",
            path=Path(name),
        )
    return folder


def open_stack(model: str, locate: Callable[[str], Path]) -> Stack:
    """Open a model, or the adapters over one: those of a folder may lie over other adapters.

    Raises CheckpointError if one of them is damaged, or lies over itself.
    """
    folders: list[Path] = []
    while (folder := find_adapters(model)) is not None:
        if folder.resolve() in [each.resolve() for each in folders]:
            raise CheckpointError(f"{folder}: its adapters lie over themselves")
        folders.insert(0, folder)
        model = str(read_adapters(folder)["base"])
    return Stack(model, open_checkpoint(locate(model)), tuple(folders))


def build_merged(checkpoint: Checkpoint, folders: Sequence[Path]) -> GPT2:
    """Return a float32 model with adapters merged into its weights, in order.

    Raises CheckpointError for adapters that were trained on another model.
    """
    model = build_model(checkpoint)
    merge_all(model, folders)
    return model


def merge_all(model: GPT2, folders: Sequence[Path]) -> None:
    """Merge adapters into a model without any, in order.

    Raises CheckpointError for adapters that were trained on another model.
    """
    digest = weights_sha256(model) if folders else ""
    for folder in folders:
        put_adapters(folder, model, digest)
        lora.merge_adapters(model)
        digest = digest_over(folder)


def digest_of(model: GPT2, folders: Sequence[Path]) -> str:
    """Return what tells a model apart into which adapters were merged, in order.

    It is the sha256 of its weights, or if there are adapters, one made of what was merged and not
    of the sums, whose last bits depend on the machine.
    """
    return digest_over(folders[-1]) if folders else weights_sha256(model)


def digest_over(folder: Path) -> str:
    """Return the digest of the model that adapters make of the one that they were trained on."""
    below = str(read_adapters(folder).get("base_sha256"))
    return hashlib.sha256(below.encode() + (folder / WEIGHTS_FILE).read_bytes()).hexdigest()


def put_adapters(folder: Path, model: GPT2, digest: str) -> None:
    """Add the adapters of a folder to the model that they were trained on, and freeze the rest.

    Raises CheckpointError if they were trained on a model of another digest.
    """
    about = read_adapters(folder)
    if about.get("base_sha256") != digest:
        raise CheckpointError(
            f"{folder}: its adapters were trained on other weights than these; expected those of "
            f"{about['base']}"
        )
    lora.add_adapters(model, about["rank"], alpha=about["alpha"])
    load_adapters(folder, model)


@contextmanager
def with_adapters(model: GPT2, folders: Sequence[Path]) -> Iterator[GPT2]:
    """Give a model with adapters merged into it, and at the end make it as it was, to the bit.

    So one base model in memory serves many adapters, one at a time; what is given is the model
    itself. Raises CheckpointError for adapters that were trained on other weights.
    """
    trained = [(each, each.requires_grad) for each in model.parameters()]
    layers = [(parent, name, getattr(parent, name)) for parent, name in lora.matrices(model)]
    try:
        merge_all(model, folders)
        yield model
    finally:
        for parent, name, layer in layers:
            setattr(parent, name, layer)
        for parameter, flag in trained:
            parameter.requires_grad_(flag)
