"""Cases of files: one damaged file, what was read from it, and whether that is allowed."""

from __future__ import annotations

import random
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from campaigns.cases import Result, TooSlow, limited_time
from campaigns.damage import Damage
from gpt2kit.errors import Gpt2KitError, OutOfMemoryError

SECONDS = 5.0


@dataclass(frozen=True)
class FileTarget:
    """Something that reads files: how a whole one is made, and how it is damaged.

    `make` writes into an empty folder and returns what `read` takes. `read` returns a digest of all
    that it understood. `finds_all` says that checksums let no changed file pass for another one.
    """

    name: str
    make: Callable[[Path], Path]
    damaged: Sequence[str]  # files of the folder, one of which is damaged
    read: Callable[[Path], str]
    damage: Damage
    finds_all: bool = False
    limits_memory: bool = True
    stuck: float = 30.0

    def prepare(self, folder: Path) -> FileCases:
        """Write the whole file, and read it."""
        return FileCases(self, folder)


class FileCases:
    """The cases of a target in a folder of their own; each is known by its seed."""

    def __init__(self, target: FileTarget, folder: Path) -> None:
        self.target = target
        folder.mkdir(parents=True, exist_ok=True)
        self.path = target.make(folder)
        self._folder = folder
        self._files = {path for path in folder.rglob("*") if path.is_file()}
        self._whole = {str(path.relative_to(folder)): path.read_bytes() for path in self._files}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._digest, again = target.read(self.path), target.read(self.path)
        if again != self._digest:
            raise AssertionError(f"{target.name}: what is read is not the same twice")

    def describe(self, seed: int) -> tuple[str, bytes]:
        """Return the name and size of the damaged file, and its content."""
        name, content = self._damaged(seed)
        return f"{name}, {len(content):,} bytes", content

    def _damaged(self, seed: int) -> tuple[str, bytes]:
        draw = random.Random(f"{self.target.name} {seed}")
        name = draw.choice(self.target.damaged)
        data = self._whole[name]
        for _ in range(10):
            if (damaged := self.target.damage(data, draw)) != data:
                break
        return name, damaged

    def run(self, seed: int) -> Result:
        """Read a damaged file, and put the whole one back."""
        name, damaged = self._damaged(seed)
        self._replace(name, damaged)
        try:
            return self._outcome()
        finally:
            self._replace(name, self._whole[name])
            if {path for path in self._folder.rglob("*") if path.is_file()} != self._files:
                shutil.rmtree(self._folder)
                for each, data in self._whole.items():
                    (self._folder / each).parent.mkdir(parents=True, exist_ok=True)
                    (self._folder / each).write_bytes(data)

    def close(self) -> None:
        """Nothing was started."""

    def _replace(self, name: str, content: bytes) -> None:
        """Write a file anew: the one that was read before may still be mapped into memory."""
        path = self._folder / name
        if path.parent.exists():
            path.unlink(missing_ok=True)
            path.write_bytes(content)

    def _outcome(self) -> Result:
        try:
            with warnings.catch_warnings(), limited_time(SECONDS):
                warnings.simplefilter("ignore")
                digest = self.target.read(self.path)
        except OutOfMemoryError as error:
            return Result("failed", f"memory: {error}")
        except Gpt2KitError as error:
            return Result("refused", str(error))
        except (Exception, TooSlow) as error:
            return Result("failed", f"{type(error).__name__}: {error}")
        if digest == self._digest:
            return Result("same")
        if self.target.finds_all:
            return Result("failed", "something else was read, and the damage not found")
        return Result("undetectable")
