"""Saved states of a run: all that training needs to continue exactly where it was.

    states/step-00000100/
    ├── weights.safetensors      the trained parameters, float32
    ├── optimizer.safetensors    the optimizer's averages
    ├── state.json               the step, the best validation loss
    └── manifest.json            size and sha256 of the other three

A state is written under another name, synced, and renamed when it is whole; only then are older
ones deleted. Nothing is pickled. Tensors are saved whole even if the model is divided among
processes, so any number of processes can continue. Random numbers and the order of the windows are
functions of seed and step, so they have no state to save.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.optim import Optimizer

from gpt2kit.checkpoints.safetensors_files import read_safetensors, write_safetensors
from gpt2kit.checkpoints.stored import StoredTensor
from gpt2kit.errors import (
    CheckpointError,
    CheckpointFormatError,
    Gpt2KitWarning,
    TrainingError,
)
from gpt2kit.fields import build, check, option
from gpt2kit.files import delete, new_directory, read_json
from gpt2kit.model import GPT2
from gpt2kit.training.distributed import Ranks, gathered, like, take_part
from gpt2kit.training.optim import named_state

STATES = "states"  # the folder of a run that they are in
_FILES = ("weights.safetensors", "optimizer.safetensors", "state.json")
_MANIFEST = "manifest.json"
_OLD_FIELDS = {"finished"}  # of state.json in earlier versions; step and since_best say the same
_KEPT = 2  # of a run that goes on: the newest state, and the one before in case it gets damaged


@dataclass
class LoopState:
    """What the training loop carries from step to step, besides weights and optimizers."""

    step: int = option(0, at_least=0)  # steps done
    best_val_loss: float | None = option(None)
    since_best: int = option(0, at_least=0)  # validations since then

    def note(self, val_loss: float | None) -> bool:
        """Take note of a validation and return whether it is the best so far.

        Without a validation text there is no loss, and the newest weights are the best.
        """
        if val_loss is None:
            return True
        best = self.best_val_loss
        if math.isfinite(val_loss) and (best is None or val_loss < best):
            self.best_val_loss, self.since_best = val_loss, 0
        else:
            self.since_best += 1
        return self.since_best == 0


class States:
    """The saved states in a folder. Of several processes only the main one writes; all read."""

    def __init__(self, folder: Path, ranks: Ranks, *, keep_all: bool = False) -> None:
        self.folder = folder
        self.last_step: int | None = None  # of the newest whole state
        self._ranks = ranks
        self._keep_all = keep_all

    def load_newest(self, model: GPT2, optimizers: Sequence[Optimizer]) -> LoopState | None:
        """Set model and optimizers to the newest whole state; None if nothing was saved yet.

        A damaged state is named in a warning and set aside, and the one before is used. Raises
        TrainingError if every state is damaged, or if they are another model's.
        """
        saved = self._saved()
        for folder in reversed(saved):
            try:
                state = _load(folder, model, optimizers)
            except CheckpointFormatError as error:
                message = f"{error}; continuing from the state before"
                warnings.warn(message, Gpt2KitWarning, stacklevel=3)
                if self._ranks.is_main:
                    _set_aside(folder)
                continue
            self.last_step = state.step
            return state
        if saved or any(self.folder.glob(".damaged-*")):
            raise TrainingError(
                f"{self.folder}: every saved state is damaged; --force starts the run anew"
            )
        return None

    def kept(self) -> list[LoopState]:
        """Return what the whole states say of the loop, the oldest first."""
        found = []
        for folder in self._saved():
            with contextlib.suppress(CheckpointFormatError), _naming_damage(folder):
                _check_manifest(folder)
                found.append(_read_loop(folder))
        return found

    def newest(self) -> tuple[Path, int] | None:
        """Return the folder of the newest state and its step; None if nothing was saved."""
        saved = self._saved()
        return (saved[-1], _step(saved[-1])) if saved else None

    def go_back(self, step: int) -> None:
        """Delete the states after a step."""
        for folder in reversed(self._saved()):
            if _step(folder) > step:
                delete(folder)

    def save(
        self,
        model: GPT2,
        optimizers: Sequence[Optimizer],
        state: LoopState,
        *,
        is_last: bool = False,
    ) -> None:
        """Save a state, then delete older ones; the last state of a run is kept alone.

        If the model is divided among processes, all of them must call this.
        """
        if state.step == self.last_step:
            if is_last and self._ranks.is_main:
                self._delete_older(kept=1)  # which a kill may have prevented
            return
        weights = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        averages = {
            f"{name}.{key}": tensor
            for name, _, tensors in named_state(optimizers)
            for key, tensor in sorted(tensors.items())
        }
        if self._ranks.is_main:
            self._write(weights, averages, state)
            self._delete_older(kept=1 if is_last else _KEPT)
        else:
            take_part([*weights.values(), *averages.values()])
        self.last_step = state.step

    def _write(
        self, weights: Mapping[str, Tensor], averages: Mapping[str, Tensor], state: LoopState
    ) -> None:
        with new_state(self.folder / f"step-{state.step:08d}") as folder:
            _write_tensors(folder / "weights.safetensors", weights)
            _write_tensors(folder / "optimizer.safetensors", averages)
            (folder / "state.json").write_text(json.dumps(asdict(state), indent=2) + "\n")
            manifest = {
                name: {"size": (folder / name).stat().st_size, "sha256": _sha256(folder / name)}
                for name in _FILES
            }
            (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")

    def _delete_older(self, kept: int) -> None:
        if not self._keep_all:
            for folder in self._saved()[:-kept]:
                with contextlib.suppress(OSError):
                    delete(folder)

    def _saved(self) -> list[Path]:
        """Return the folders of saved states, the oldest first."""
        found = [
            path for path in self.folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)
        ]
        return sorted(found, key=_step)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _set_aside(folder: Path) -> None:
    """Rename a damaged state, in place of an older one of the same step."""
    aside = folder.with_name(f".damaged-{folder.name}")
    if aside.exists():
        delete(aside)
    folder.rename(aside)


def new_state(target: Path) -> AbstractContextManager[Path]:
    """Give an empty folder to write in, which becomes `target` when it is whole."""
    return new_directory(
        target,
        replace=True,
        error=lambda message: TrainingError(f"{message}; what was saved before is whole"),
    )


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    stored = {name: _gathered_when_read(tensor) for name, tensor in tensors.items()}
    with path.open("wb") as file:
        write_safetensors(file, stored, dtype=torch.float32)


def _gathered_when_read(tensor: Tensor) -> StoredTensor:
    """Present a tensor for writing; if it is divided among processes, reading it gathers it."""
    return StoredTensor(
        tuple(tensor.shape), tensor.dtype, lambda _: gathered(tensor.detach()).cpu()
    )


def _load(folder: Path, model: GPT2, optimizers: Sequence[Optimizer]) -> LoopState:
    """Put a state into model and optimizers.

    Raises CheckpointFormatError for damage, before anything is changed.
    """
    with _naming_damage(folder):
        _check_manifest(folder)
        state = _read_loop(folder)
        weights: Any = safe_open(folder / "weights.safetensors", framework="pt", backend="pread")
        averages: Any = safe_open(folder / "optimizer.safetensors", framework="pt", backend="pread")
    parameters = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    _check_same_model(folder, parameters, weights)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(like(parameter, weights.get_tensor(name)))
    _set_averages(optimizers, averages)
    return state


@contextlib.contextmanager
def _naming_damage(folder: Path) -> Iterator[None]:
    """Raise CheckpointFormatError for whatever keeps a state from being read in the block."""
    try:
        yield
    except CheckpointFormatError:
        raise
    except (OSError, ValueError, SafetensorError, CheckpointError) as error:
        raise CheckpointFormatError(folder, f"damaged: {error}") from error


def _set_averages(optimizers: Sequence[Optimizer], averages: Any) -> None:
    """Set what the optimizers keep to the tensors of an opened file."""
    optimized = {name: (each, kept) for name, each, kept in named_state(optimizers)}
    for key in averages.keys():  # noqa: SIM118
        name, _, what = key.rpartition(".")  # such as h.0.attn.c_attn.weight.exp_avg
        tensor = averages.get_tensor(key)
        optimized_parameter, kept = optimized[name]
        if tensor.shape == optimized_parameter.shape:
            kept[what] = like(optimized_parameter, tensor)
        else:  # the number of the step
            kept[what] = tensor.to(optimized_parameter.device)


def read_averages(folder: Path) -> dict[str, StoredTensor]:
    """Return what the optimizer kept in a saved state, by the names of the file.

    Raises CheckpointFormatError for damage.
    """
    with _naming_damage(folder):
        _check_manifest(folder)
        return read_safetensors(folder / "optimizer.safetensors")


def load_averages(folder: Path, optimizers: Sequence[Optimizer]) -> None:
    """Set the averages of optimizers to those of a saved state.

    Raises CheckpointFormatError for damage.
    """
    with _naming_damage(folder):
        _check_manifest(folder)
        averages: Any = safe_open(folder / "optimizer.safetensors", framework="pt", backend="pread")
    _set_averages(optimizers, averages)


def _read_loop(folder: Path) -> LoopState:
    """Return what a state says of the loop; raise an error if it is damaged."""
    values = read_json(folder / "state.json", error=CheckpointError)
    values = {name: value for name, value in values.items() if name not in _OLD_FIELDS}
    state = build(LoopState, values, what="state.json")
    check(state)
    return state


def _check_manifest(folder: Path) -> None:
    """Raise CheckpointFormatError unless the manifest lists every file with its sha256."""
    manifest = read_json(folder / _MANIFEST, error=CheckpointError)
    for name in _FILES:
        entry = manifest.get(name)
        expected = entry.get("sha256") if isinstance(entry, dict) else None
        if not isinstance(expected, str):
            raise CheckpointFormatError(folder / _MANIFEST, f"damaged: it has no sha256 of {name}")
        if _sha256(folder / name) != expected:
            raise CheckpointFormatError(
                folder / name, "damaged: its sha256 is not the one in the manifest"
            )


def _check_same_model(folder: Path, parameters: Mapping[str, Tensor], weights: Any) -> None:
    """Raise TrainingError unless a state has the parameters of this model, by name and shape."""
    expected = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    found = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    different = sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    )
    if different:
        raise TrainingError(
            f"{folder} is another model's state: {len(different)} parameters differ, "
            f"such as {different[0]}"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
