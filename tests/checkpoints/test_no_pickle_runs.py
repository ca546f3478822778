"""Readers of pickled formats run no pickle: Python's own audit events say so, of every one."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from campaigns.file_cases import FileCases
from campaigns.hostile_files import CAMPAIGN

from gpt2kit.checkpoints.load import open_checkpoint
from gpt2kit.checkpoints.vocabularies import read_vocabulary
from gpt2kit.data.ids import read_ids
from gpt2kit.errors import Gpt2KitError

# What Python tells its audit hooks of when a pickle names something, and of what that may do then.
EVENTS = {
    *("pickle.find_class", "exec", "compile", "import", "marshal.loads", "code.__new__"),
    *("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "ctypes.dlopen", "os.mkdir"),
}
_watching: list[list[str]] = []  # the lists that take events now; a hook is never removed


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event in EVENTS:
        for seen in _watching:
            seen.append(event)


sys.addaudithook(_hook)


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """Give the list of all events of this block."""
    seen: list[str] = []
    _watching.append(seen)
    try:
        yield seen
    finally:
        _watching.remove(seen)


class Planted:
    """An object whose pickle makes a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_the_hook_sees_a_pickle_that_is_run(tmp_path: Path) -> None:
    program = pickle.dumps(Planted(tmp_path / "made"))
    with watched() as seen:
        pickle.loads(program)
    assert (tmp_path / "made").is_dir()
    assert seen == ["pickle.find_class", "os.mkdir"]
    np.save(tmp_path / "ids.npy", np.array([Planted(tmp_path / "again")]), allow_pickle=True)
    with watched() as seen:
        np.load(tmp_path / "ids.npy", allow_pickle=True)
    assert {"pickle.find_class", "os.mkdir"} <= set(seen)


@pytest.mark.filterwarnings("ignore::gpt2kit.errors.Gpt2KitWarning")
@pytest.mark.parametrize("format", ["torch", "old torch", "nanoGPT", "course", "OpenAI's SAE"])
def test_no_reader_of_weights_runs_a_pickle_whole_or_damaged(tmp_path: Path, format: str) -> None:
    (target, *_) = (each for each in CAMPAIGN.targets if each.name.startswith(f"{format}: "))
    programs = [each for each in CAMPAIGN.targets if each.name == f"{format}: pickle program"]
    cases = FileCases((programs or [target])[0], tmp_path / "case")  # reads the whole file twice
    cases.run(0)  # what is imported at the first refusal is imported now
    with watched() as seen:
        cases.target.read(cases.path)
        outcomes = {cases.run(seed).outcome for seed in range(12)}
    assert "refused" in outcomes
    assert seen == []


def archived(path: Path, program: bytes) -> None:
    """Put a pickle into an archive of torch, as the description of its tensors."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", program)
        file.writestr("archive/version", "3\n")


@pytest.mark.parametrize("kind", ["zip", "before 1.6", "meta.pkl", "npy"])
def test_a_planted_pickle_is_refused_and_does_nothing(tmp_path: Path, kind: str) -> None:
    made = tmp_path / "made"
    program = pickle.dumps({"model": Planted(made), "stoi": Planted(made)}, protocol=2)
    path = tmp_path / {"zip": "a.pt", "before 1.6": "b.pt", "meta.pkl": "meta.pkl"}.get(
        kind, "i.npy"
    )
    if kind == "zip":
        archived(path, program)
    elif kind == "npy":
        np.save(path, np.array([Planted(made)]), allow_pickle=True)
    else:
        path.write_bytes(program)

    def read() -> None:
        if kind == "meta.pkl":
            read_vocabulary(path, 65)
        elif kind == "npy":
            read_ids(path, 50)
        else:
            open_checkpoint(path)

    with pytest.raises(Gpt2KitError):
        read()
    with watched() as seen, pytest.raises(Gpt2KitError):
        read()
    assert "pickle.find_class" not in seen
    assert set(seen) <= ({"compile"} if kind == "npy" else set())  # NumPy's header is a literal
    assert not made.exists()
