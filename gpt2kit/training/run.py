"""A training run on disk: its settings, states, records and best weights; whole at every instant.

RUN/
├── run.json                              what decides how the run goes
├── states/step-00000100/                 what --resume continues from
├── metrics.jsonl, samples.jsonl          what happened at each step
└── config.json, model.safetensors, …     the best weights so far, as a model for `load`
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
from torch.optim import Optimizer

from gpt2kit.checkpoints.load import write_model
from gpt2kit.errors import TrainingError
from gpt2kit.files import delete, fsync_directory
from gpt2kit.model import GPT2
from gpt2kit.training import records
from gpt2kit.training.distributed import Ranks
from gpt2kit.training.extension import Extension
from gpt2kit.training.records import METRICS, SAMPLES, StepReport
from gpt2kit.training.settings import SETTINGS, Settings
from gpt2kit.training.sharding import whole
from gpt2kit.training.states import STATES, LoopState, States, new_state

_LOCK = ".lock"
_BEST = ".best"  # the name of the folder of new best weights until they are complete
_EMPTY = {_LOCK, f"{SETTINGS}.tmp"}  # all that a kill before run.json was written can leave


class Run:
    """The folder of a training run, which no other process can use until `close`.

    Raises TrainingError if the folder is taken, or if `resume` has nothing to continue from or
    other settings. `write` saves the best weights into an empty folder. Of several processes only
    the main one writes; all read.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        *,
        resume: bool = False,
        force: bool = False,
        keep_states: bool = False,
        write: Callable[[Path, GPT2], None] = write_model,
        ranks: Ranks | None = None,
    ) -> None:
        self.folder = Path(os.path.abspath(folder))
        self._ranks = ranks or Ranks()
        self._write = write
        self._states = States(self.folder / STATES, self._ranks, keep_all=keep_states)
        self.extension: Extension | None = None  # if the run is given more steps now
        self._settings = settings
        self._lock = filelock.FileLock(self.folder / _LOCK)
        if self._ranks.is_main:
            with _writing(self.folder):
                self._claim(settings, resume=resume, force=force)
        self._ranks.wait()

    def _claim(self, settings: Settings, *, resume: bool, force: bool) -> None:
        """Make the folder this run's own. A kill at any point leaves one that can be claimed."""
        stored = Settings.read(self.folder) if resume else None
        if stored is None:
            self._check_free(force)
        else:
            stored.check_resumed_by(settings, self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._acquire()
        self._delete_leftovers()
        if stored is None:
            self._clear()
        else:
            self._go_back(stored)  # as far as a killed process did not
            settings = self._extend(stored, settings)
        if settings != stored:
            settings.write(self.folder)
        self._settings = settings
        self._go_back(settings)  # once run.json says so: the next start completes it after a kill
        self._states.folder.mkdir(exist_ok=True)

    def _extend(self, stored: Settings, settings: Settings) -> Settings:
        """Return settings with the history of the run, extended if there are more steps now."""
        settings = replace(settings, history=stored.history, goes_back_to=stored.goes_back_to)
        is_longer = settings.training.max_steps != stored.training.max_steps
        kept = self._states.kept() if is_longer else []  # which reads them whole
        if not kept:
            return settings
        if 0 < stored.training.patience <= kept[-1].since_best:
            raise TrainingError(
                f"{self.folder} ended at step {kept[-1].step:,}, since {kept[-1].since_best} "
                "validations brought no better one, so it does no more steps; train its best "
                f"weights in another run: finetune --model {self.folder}"
            )
        extension = Extension.plan(stored.training, settings.training, kept, stored.last_phase)
        self.extension = extension
        return replace(
            settings,
            history=[*stored.history, extension.as_record()],
            goes_back_to=extension.step if extension.goes_back else stored.goes_back_to,
        )

    def _go_back(self, settings: Settings) -> None:
        """Delete the states of steps that are given up."""
        if settings.goes_back_to is not None:
            self._states.go_back(settings.goes_back_to)

    def _check_free(self, force: bool) -> None:
        """Raise TrainingError if there is something in the folder that may not be replaced."""
        if not os.path.lexists(self.folder):
            return
        if self.folder.is_dir() and {path.name for path in self.folder.iterdir()} <= _EMPTY:
            return
        if not (self.folder / SETTINGS).exists():
            raise TrainingError(
                f"{self.folder} already exists and holds no training run, so it is not replaced; "
                "--out names another folder"
            )
        if not force:
            raise TrainingError(
                f"{self.folder} already exists; --resume continues it, --force replaces it, "
                "--out names another folder"
            )

    def _acquire(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise TrainingError(
                f"{self.folder} is in use by another training; --out names another folder"
            ) from None

    def _delete_leftovers(self) -> None:
        """Delete the unfinished folders that killed processes left."""
        for folder in (
            *self.folder.glob(f"{_BEST}*"),
            *self.folder.glob(f".{_BEST}*"),
            *self.folder.glob(f".{STATES}.removed"),
            *self._states.folder.glob(".step-*"),
        ):
            shutil.rmtree(folder, ignore_errors=True)

    def _clear(self) -> None:
        """Delete the run that is there, all but its run.json: with it the folder stays a run.

        The states go first and at once, so that what a kill leaves can only start from step 0.
        """
        if self._states.folder.exists():
            delete(self._states.folder)
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in (_LOCK, SETTINGS):
                path.unlink()

    def close(self) -> None:
        """Let other processes use the folder."""
        if self._ranks.is_main:
            self._lock.release()

    # --- states and best weights ----------------------------------------------------------------

    @property
    def last_step(self) -> int | None:
        """The step of the newest whole state, or None before the first one."""
        return self._states.last_step

    def restore(self, model: GPT2, optimizers: Sequence[Optimizer]) -> LoopState | None:
        """Set model and optimizers to the newest whole state; None if nothing was saved yet."""
        state = self._states.load_newest(model, optimizers)
        if self._ranks.any(self._settings.goes_back_to is not None):
            if state is not None:  # else a new run writes its own before the first step
                self.write_best(model)  # in place of weights that a longer run would not have had
            self._arrive()
        return state

    def _arrive(self) -> None:
        """Note in run.json that nothing is left of the steps that were given up."""
        self._settings = replace(self._settings, goes_back_to=None)
        if self._ranks.is_main:
            with _writing(self.folder):
                self._settings.write(self.folder)

    def save(
        self,
        model: GPT2,
        optimizers: Sequence[Optimizer],
        state: LoopState,
        *,
        is_last: bool = False,
    ) -> None:
        """Save a state; if the model is divided among processes, all of them must call this."""
        self._states.save(model, optimizers, state, is_last=is_last)

    def write_best(self, model: GPT2) -> None:
        """Make the run's folder a model with these weights; all processes must call this."""
        complete = whole(model, self._ranks)
        if complete is None or not self._ranks.is_main:
            return
        finished = self.folder / _BEST
        with new_state(finished) as folder:
            self._write(folder, complete)
        with _writing(self.folder):
            for path in finished.iterdir():
                path.replace(self.folder / path.name)
            finished.rmdir()
            fsync_directory(self.folder)

    # --- records --------------------------------------------------------------------------------

    def record(self, report: StepReport) -> None:
        """Add a report to metrics.jsonl."""
        self._append(METRICS, report.as_record())

    def record_sample(self, sample: Mapping[str, Any]) -> None:
        """Add a sample to samples.jsonl."""
        self._append(SAMPLES, sample)

    def _append(self, file: str, record: Mapping[str, Any]) -> None:
        if self._ranks.is_main:
            with _writing(self.folder):
                records.append(self.folder / file, record)

    def rewind_records(self, step: int) -> None:
        """Remove the records of steps after this one, since they will be done again."""
        if self._ranks.is_main:
            with _writing(self.folder):
                for file in (METRICS, SAMPLES):
                    records.rewind(self.folder / file, step)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Raise a TrainingError if the system refuses to write."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"cannot write in {folder}: {error.strerror or error}; what was saved before is whole"
        ) from error
