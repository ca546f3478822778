"""Large arrays in files without a name, so that they need no memory."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt2kit.files import naming


def mapped(shape: Sequence[int], folder: Path | None = None) -> Any:
    """Return a float32 array of zeros in a file without a name in a folder.

    Its room on the disk is taken at once: without it, writing into the array would end the process.
    """
    size = 4 * math.prod(shape)
    if not size:  # an empty file cannot be mapped
        return np.zeros(shape, dtype=np.float32)
    with naming(folder or Path(tempfile.gettempdir())), tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, dtype=np.float32, mode="w+", shape=tuple(shape))


class Growing:
    """A float32 array (N, *shape) whose rows go to a file in a folder as they come."""

    def __init__(self, shape: Sequence[int], folder: Path) -> None:
        self._shape, self._folder = tuple(shape), folder

    def __enter__(self) -> Growing:
        with naming(self._folder):
            self._file = tempfile.TemporaryFile(dir=self._folder).__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, rows: Any) -> None:
        """Add rows (n, *shape)."""
        data = np.asarray(rows, dtype=np.float32).reshape(-1, *self._shape)
        with naming(self._folder):
            self._file.write(data.tobytes())

    def array(self) -> Any:
        """Return all rows; they are read from the file as they are needed."""
        with naming(self._folder):
            self._file.flush()
        n = self._file.tell() // (4 * math.prod(self._shape))
        if not n:  # an empty file cannot be mapped
            return np.zeros((0, *self._shape), dtype=np.float32)
        return np.memmap(self._file, dtype=np.float32, mode="r", shape=(n, *self._shape))
