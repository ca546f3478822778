"""Models with adapters over them: found, stacked, merged, exchanged on one model, given to PEFT."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from gpt2kit import lora, store
from gpt2kit.checkpoints.adapters import WEIGHTS_FILE, load_adapters, read_adapters
from gpt2kit.checkpoints.classifiers import LabelWords
from gpt2kit.checkpoints.load import build_model, is_peft, open_checkpoint
from gpt2kit.checkpoints.peft.reading import open_adapters
from gpt2kit.checkpoints.peft.writing import write_peft
from gpt2kit.checkpoints.stored import Checkpoint
from gpt2kit.engine.snapshot import weights_sha256
from gpt2kit.errors import CheckpointError, CheckpointNotFoundError, ConfigError
from gpt2kit.files import new_directory
from gpt2kit.model import GPT2
from gpt2kit.store.catalogue import PUBLICATIONS


@dataclass(frozen=True)
class Stack:
    """The name of a model, and the folders of the adapters that lie over it, the lowest first."""

    base: str  # the model's name
    folders: tuple[Path, ...]


def find_adapters(name: str | Path) -> Path | None:
    """Return the folder of adapters that a path or a run's name means, or None."""
    path = Path(os.path.expanduser(name))
    folders = [path]
    if str(name) == path.name:  # a run's name
        folders.append(store.weights_dir() / path)
    return next((folder for folder in folders if store.adapters_alone(folder)), None)


def find_peft(name: str | Path) -> Path | None:
    """Return the folder of PEFT's adapters that a path or name means, or None."""
    try:
        folder = store.find(name)
    except CheckpointNotFoundError:
        return None
    return folder if is_peft(folder) else None


def require_adapters(name: str | Path) -> Path:
    """Return the folder of adapters that a name means; raise CheckpointNotFoundError if none."""
    folder = find_adapters(name)
    if folder is None:
        raise CheckpointNotFoundError(
            f"{name}: no adapters; expected the folder of a run with --lora_rank, which has "
            f"{store.ADAPTERS_FILE}, or a folder of PEFT, which has {store.PEFT_FILE}",
            path=Path(name),
        )
    return folder


def find_stack(model: str) -> Stack:
    """Return the adapters that a name means, and the model below them; or the model alone.

    The adapters of a folder may lie over other adapters.

    Raises CheckpointError if one of them is damaged, or lies over itself.
    """
    folders: list[Path] = []
    while (folder := find_adapters(model)) is not None:
        if folder.resolve() in [each.resolve() for each in folders]:
            raise CheckpointError(f"{folder}: its adapters lie over themselves")
        folders.insert(0, folder)
        model = str(read_adapters(folder)["base"])
    return Stack(model, tuple(folders))


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


# --- for PEFT -------------------------------------------------------------------------------------


def export_peft(
    name: str, to: Path, locate: Callable[[str], Path], *, replace: bool = False
) -> str | None:
    """Write the adapters of a run as a folder for PEFT, which is read back before it gets its name.

    Returns a warning if transformers cannot load their model from where it is. Raises ConfigError
    for adapters that PEFT cannot express, and CheckpointError if the folder cannot be written.
    """
    if find_peft(name):
        raise ConfigError(f"{name} is a folder of PEFT already; copy it")
    stack = find_stack(str(require_adapters(name)))
    top = stack.folders[-1]
    if len(stack.folders) > 1:
        raise ConfigError(
            f"{top}: its adapters lie over those of {stack.folders[-2]}, and PEFT has one layer of "
            f"them; to make a model of both, run: gpt2kit merge {top} --out DIR"
        )
    path = locate(stack.base)
    checkpoint = open_checkpoint(path)
    if not checkpoint.config.is_gpt2:
        raise ConfigError(f"{top}: its model is a variant of GPT-2 that transformers does not have")
    base = _name_for_transformers(stack.base, path)
    merged = build_merged(checkpoint, stack.folders)  # and so the adapters are checked
    with new_directory(to, replace=replace, error=CheckpointError) as folder:
        write_peft(folder, top, base)
        if (words := LabelWords.read(top)) is not None:
            words.write(folder)
        _check_written(folder, checkpoint, merged)
    if base != str(path.absolute()) or (path / "config.json").is_file():
        return None
    return f"transformers cannot read {path}; run: gpt2kit convert {path} --to DIR, and name that"


def _name_for_transformers(base: str, path: Path) -> str:
    """Return what transformers calls a model: a name of the Hub, or else the path of its folder."""
    published = PUBLICATIONS.get(store.split_source(base)[0])
    if published is not None and not Path(base).exists():
        return published.repository
    return base if path.name == base.replace("/", "--") and "/" in base else str(path.absolute())


def _check_written(folder: Path, checkpoint: Checkpoint, merged: GPT2) -> None:
    """Raise CheckpointError unless a folder for PEFT gives the merged model, to the bit."""
    found = open_adapters(folder, checkpoint)
    for name, tensor in merged.state_dict().items():
        if name in found.tensors and not torch.equal(found.tensors[name].read().float(), tensor):
            raise CheckpointError(f"{folder}: {name} was not written as it is; write it again")
