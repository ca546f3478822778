"""A training run on disk: its settings, its saved states, its best weights, its record; whole at every instant.

    RUN/
    ├── run.json                    what the run was started with; resuming with anything else is refused
    ├── states/step-00000100/       what training goes on from: weights.safetensors, optimizer.safetensors, state.json, manifest.json
    ├── metrics.jsonl               one report a line; samples.jsonl: one sample
    └── config.json, model.safetensors, …     the best weights so far, as a directory that transformers loads

A state is written beside its place, synced and renamed, and only then are older ones removed; the manifest holds the size and sha256
of its files. Nothing is pickled. Tensors are whole there, also those of a model in shards, so that any number of processes can go on with
them. Random streams and the order of the data are functions of seed and step, so no state of theirs exists.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.optim import Optimizer

from gpt2kit.checkpoints.huggingface import write_safetensors
from gpt2kit.checkpoints.load import write_model
from gpt2kit.checkpoints.stored import StoredTensor
from gpt2kit.errors import CheckpointError, CheckpointFormatError, Gpt2KitWarning, TrainingError
from gpt2kit.files import fsync_directory, new_directory, read_json, write_whole
from gpt2kit.model import GPT2
from gpt2kit.training.distributed import Ranks, gathered, like, take_part
from gpt2kit.training.optim import named_state
from gpt2kit.training.sharding import whole

SETTINGS = "run.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
STATES = "states"
_MANIFEST = "manifest.json"
_BEST = ".best"  # what becomes the best weights, until they are whole
_KEPT = 2  # states: the newest, and the one before in case it is damaged


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0
    best_val_loss: float | None = None
    since_best: int = 0  # validations since then
    finished: bool = False

    def note(self, val_loss: float) -> bool:
        """Take note of a validation, and return whether it is the best."""
        if self.best_val_loss is None or val_loss < self.best_val_loss:
            self.best_val_loss, self.since_best = val_loss, 0
        else:
            self.since_best += 1
        return self.since_best == 0


class Run:
    """The folder of a training run, held by this process alone until `close`.

    `settings` is all that decides how the run goes; `write` puts the model into an empty folder.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        resume: bool = False,
        force: bool = False,
        write: Callable[[Path, GPT2], None] = write_model,
        ranks: Ranks | None = None,
    ) -> None:
        self.folder = Path(os.path.abspath(folder))
        self._ranks = ranks or Ranks()  # of several processes, only the main one writes; all read
        self.last_step: int | None = None  # of the newest whole state
        self._write = write
        if self._ranks.is_main:
            with _writing(self.folder):
                self._claim(dict(settings), resume, force)
        self._ranks.wait()

    def _claim(self, settings: dict[str, Any], resume: bool, force: bool) -> None:
        occupied = self.folder.is_file() or (
            self.folder.is_dir() and any(path.name != ".lock" for path in self.folder.iterdir())
        )
        if resume:
            check_settings(self.folder, settings)
        elif occupied and not force:
            advice = "--resume goes on with it, " if (self.folder / SETTINGS).exists() else ""
            raise TrainingError(
                f"{self.folder} already exists; {advice}--force replaces it, --out names another folder"
            )
        elif occupied and not (self.folder / SETTINGS).exists():
            raise TrainingError(
                f"{self.folder} holds no training run, so it is not replaced; --out names another folder"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = filelock.FileLock(self.folder / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise TrainingError(
                f"{self.folder} is in use by another training; --out names another folder"
            ) from None
        if occupied and not resume:
            for path in self.folder.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.name != ".lock":
                    path.unlink()
        for unfinished in [
            *self.folder.glob(f"{_BEST}*"),
            *self.folder.glob(f".{_BEST}*"),
            *self._states.glob(".step-*"),
        ]:  # a kill left them
            shutil.rmtree(unfinished, ignore_errors=True)
        if not resume:
            write_whole(self.folder / SETTINGS, json.dumps(settings, indent=2) + "\n")
        self._states.mkdir(exist_ok=True)

    def close(self) -> None:
        """Let others use the folder."""
        if self._ranks.is_main:
            self._lock.release()

    @property
    def _states(self) -> Path:
        return self.folder / STATES

    # --- what training calls -----------------------------------------------------------------------------------------

    def restore(self, model: GPT2, optimizers: Sequence[Optimizer]) -> Progress:
        """Set model and optimizers to the newest whole state and return how far it is; do nothing where there is none."""
        folders = sorted(
            (path for path in self._states.glob("step-*") if re.fullmatch(r"step-\d+", path.name)),
            reverse=True,
        )
        for folder in folders:
            try:
                progress = _load(folder, model, optimizers)
            except CheckpointFormatError as error:
                warnings.warn(
                    f"{error}; going on from the state before", Gpt2KitWarning, stacklevel=2
                )
                if self._ranks.is_main:
                    folder.rename(folder.with_name(f".damaged-{folder.name}"))
                continue
            self.last_step = progress.step
            self._trim_records(progress.step)
            return progress
        if folders or any(self._states.glob(".damaged-*")):
            raise TrainingError(
                f"{self._states}: every saved state is damaged; --force starts anew"
            )
        self._trim_records(-1)
        return Progress()

    def save(self, model: GPT2, optimizers: Sequence[Optimizer], progress: Progress) -> None:
        """Save a state, then remove the ones that are too old; of a model in shards, the processes save it together."""
        if progress.step == self.last_step:
            return
        weights = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        moments = {
            f"{name}.{key}": tensor
            for name, _, state in named_state(optimizers)
            for key, tensor in sorted(state.items())
        }
        if self._ranks.is_main:
            self._write_state(weights, moments, progress)
        else:
            take_part([*weights.values(), *moments.values()])
        self.last_step = progress.step

    def _write_state(
        self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor], progress: Progress
    ) -> None:
        with self._new_directory(self._states / f"step-{progress.step:08d}") as folder:
            _write_tensors(folder / "weights.safetensors", weights)
            _write_tensors(folder / "optimizer.safetensors", moments)
            (folder / "state.json").write_text(json.dumps(asdict(progress), indent=2) + "\n")
            files = {
                path.name: {"size": path.stat().st_size, "sha256": _sha256(path)}
                for path in folder.iterdir()
            }
            (folder / _MANIFEST).write_text(json.dumps(files, indent=2) + "\n")
        for old in sorted(path for path in self._states.iterdir() if path.name.startswith("step-"))[
            :-_KEPT
        ]:
            shutil.rmtree(old, ignore_errors=True)

    def write_best(self, model: GPT2) -> None:
        """Make these weights the ones that the run's folder is a model of; all processes must call it."""
        complete = whole(model, self._ranks)
        if complete is None or not self._ranks.is_main:
            return
        finished = self.folder / _BEST
        with self._new_directory(finished) as folder:
            self._write(folder, complete)
        with _writing(self.folder):
            for path in finished.iterdir():
                path.replace(self.folder / path.name)
            finished.rmdir()
            fsync_directory(self.folder)

    def _new_directory(self, target: Path) -> AbstractContextManager[Path]:
        return new_directory(
            target,
            replace=True,
            error=lambda message: TrainingError(f"{message}; what was saved before is whole"),
        )

    def record(self, report: Mapping[str, Any], file: str = METRICS) -> None:
        """Add a line to metrics.jsonl, or another file of that kind."""
        if not self._ranks.is_main:
            return
        with _writing(self.folder), (self.folder / file).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(dict(report), ensure_ascii=False) + "\n")

    def _trim_records(self, step: int) -> None:
        """Take back the records of steps that will be done again, and a last line that is not whole."""
        for path in (self.folder / METRICS, self.folder / SAMPLES):
            if path.exists() and self._ranks.is_main:
                kept = [line for line in _read_lines(path) if line.get("step", 0) <= step]
                with _writing(self.folder):
                    write_whole(
                        path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
                    )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the reports of a run, of its folder or its metrics.jsonl, up to a line that a kill cut short or that is none."""
    return _read_lines(path / METRICS if path.is_dir() else path)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


# --- settings --------------------------------------------------------------------------------------------------------


def read_settings(folder: Path) -> dict[str, Any]:
    """Return what a run was started with; raises TrainingError where there is no run."""
    if not (folder / SETTINGS).exists():
        raise TrainingError(
            f"{folder}: no training run to resume; expected {SETTINGS} in it. Leave out --resume to start one"
        )
    return read_json(folder / SETTINGS, error=CheckpointError)


def check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raise TrainingError with the differences unless the run was started with these settings."""
    before, now = _flat(read_settings(folder)), _flat(settings)
    missing = object()
    differences = [
        f"{name} was {_shown(before.get(name, missing))} and is now {_shown(now.get(name, missing))}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name, missing) != now.get(name, missing)
    ]
    if differences:
        raise TrainingError(
            f"{folder} was started differently: {'; '.join(differences)}. Resume with what it was, or start another run with --out"
        )


def fingerprint(model: GPT2) -> str:
    """Return the sha256 of all parameters, trainable or not."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in settings.items():
        result |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return result


def _shown(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value):
        return value[:8] + "…"
    return "nothing" if type(value) is object else repr(value)


# --- files -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn what the system has against writing into a TrainingError."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"cannot write in {folder}: {error.strerror or error}; what was saved before is whole"
        ) from error


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with path.open("wb") as file:
        write_safetensors(
            file,
            {name: _whole_when_read(tensor) for name, tensor in tensors.items()},
            torch.float32,
        )


def _whole_when_read(tensor: Tensor) -> StoredTensor:
    """Present a tensor, perhaps in shards: reading it gathers it on the CPU."""
    return StoredTensor(
        tuple(tensor.shape), tensor.dtype, lambda _: gathered(tensor.detach()).cpu()
    )


def _load(folder: Path, model: GPT2, optimizers: Sequence[Optimizer]) -> Progress:
    """Put a state into model and optimizers; raises CheckpointFormatError for damage, before anything is changed."""
    try:
        files = read_json(folder / _MANIFEST, error=CheckpointError)
        for name, about in files.items():
            if _sha256(folder / name) != about["sha256"]:
                raise CheckpointFormatError(
                    folder / name, "damaged: its sha256 is not the one in the manifest"
                )
        progress = Progress(**read_json(folder / "state.json", error=CheckpointError))
        weights: Any
        moments: Any
        weights, moments = (
            safe_open(folder / name, framework="pt", backend="pread")
            for name in ("weights.safetensors", "optimizer.safetensors")
        )
    except CheckpointFormatError:
        raise
    except (OSError, SafetensorError, CheckpointError, KeyError, TypeError) as error:
        raise CheckpointFormatError(folder, f"damaged: {error}") from error
    parameters = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    found = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    _check_same(
        folder, {name: tuple(parameter.shape) for name, parameter in parameters.items()}, found
    )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(like(parameter, weights.get_tensor(name)))
    for name, moved, state in named_state(optimizers):
        for key in [key for key in moments.keys() if key.rpartition(".")[0] == name]:  # noqa: SIM118
            tensor = moments.get_tensor(key)
            state[key.rpartition(".")[2]] = (
                like(moved, tensor) if tensor.shape == moved.shape else tensor.to(moved.device)
            )
    return progress


def _check_same(
    folder: Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise TrainingError unless a state has the parameters of this model, by name and shape."""
    different = sorted(
        name
        for name in expected.keys() | found.keys()
        if name not in found or expected.get(name) != found[name]
    )
    if different:
        raise TrainingError(
            f"{folder} is another model's state: {len(different)} parameters differ, such as {different[0]}"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
