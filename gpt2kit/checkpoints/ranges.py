"""Read a range of a file straight into memory, with its checksum.

Files are read and never mapped: if another program shortens a mapped file, the process dies of
SIGBUS. Shortened while it is read, it is a CheckpointFormatError.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpt2kit.errors import CheckpointError, CheckpointFormatError
from gpt2kit.files import open_regular

# Bytes that are read, then checksummed while they are still in the processor's cache.
_CHUNK = 1 << 20

Bytes = npt.NDArray[np.uint8]
Extend = Callable[[int, Bytes], int]  # (checksum so far, next bytes) -> checksum


def read_range(
    path: Path, what: str, offset: int, out: Bytes, *, extend: Extend | None = None
) -> int:
    """Fill `out`, contiguous uint8, with the bytes of a file from `offset` on.

    Return their checksum, by `extend`. The checksum is 0 without `extend`. `what` names the content
    in error messages. The file is opened for each range, so threads share no position in it. Raises
    CheckpointFormatError if the file ends too early.
    """
    frozen = out.view()
    frozen.flags.writeable = False  # google_crc32c takes read-only memory only
    done = checksum = 0
    with open_regular(path, error=CheckpointError) as file:
        file.seek(offset)
        while done < len(out):
            count = file.readinto(out[done : done + _CHUNK])  # type: ignore[arg-type]
            if not count:
                raise CheckpointFormatError(
                    path, f"ends inside {what}; it was cut short: get it again"
                )
            if extend is not None:
                checksum = extend(checksum, frozen[done : done + count])
            done += count
    return checksum
