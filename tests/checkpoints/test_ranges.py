"""Ranges of files: the right bytes with the right checksum, and files that end too early."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

from gpt2kit.checkpoints.ranges import Bytes, read_range
from gpt2kit.errors import CheckpointFormatError

SIZE = 3_000_001  # more than two of the pieces that are read at once, and part of another


@pytest.fixture
def path(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)
    (tmp_path / "data").write_bytes(values.tobytes())
    return tmp_path / "data"


def crc32(checksum: int, data: Bytes) -> int:
    return zlib.crc32(data.tobytes(), checksum)


@pytest.mark.parametrize(
    ("offset", "size"), [(0, SIZE), (17, 2**20), (2**20 - 1, 2), (SIZE - 1, 1), (SIZE, 0)]
)
def test_a_range_is_its_bytes_with_their_checksum(path: Path, offset: int, size: int) -> None:
    out = np.zeros(size, np.uint8)
    expected = path.read_bytes()[offset : offset + size]
    assert read_range(path, "a tensor", offset, out, extend=crc32) == zlib.crc32(expected)
    assert out.tobytes() == expected
    assert read_range(path, "a tensor", offset, out) == 0


def test_a_checksum_cannot_change_what_was_read(path: Path) -> None:
    def overwrite(_: int, data: Bytes) -> int:
        data[0] = 0
        return 0

    with pytest.raises(ValueError, match="read-only"):
        read_range(path, "a tensor", 0, np.zeros(10, np.uint8), extend=overwrite)


@pytest.mark.parametrize("offset", [SIZE - 9, SIZE, SIZE + 100])
def test_a_file_that_ends_inside_the_range_is_refused_by_the_name_of_its_content(
    path: Path, offset: int
) -> None:
    with pytest.raises(CheckpointFormatError, match="ends inside tensor wte; it was cut short"):
        read_range(path, "tensor wte", offset, np.zeros(10, np.uint8))
