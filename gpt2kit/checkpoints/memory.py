"""What a process asks of the system: large pages for weights, and to keep the memory it frees."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os

LARGE_PAGE = 2**21  # bytes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt in glibc's malloc.h


def available() -> bool:
    """Whether to ask for large pages: this system has them and GPT2KIT_LARGE_PAGES is not 0."""
    return hasattr(mmap, "MADV_HUGEPAGE") and os.environ.get("GPT2KIT_LARGE_PAGES") != "0"


def take(n: int) -> mmap.mmap:
    """Return n bytes of untouched memory, all zeros, in pages of 2 MB if Linux grants them.

    There are 500 times fewer of these pages to fill with zeros at first, and to look up later.
    """
    memory = mmap.mmap(-1, n, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # it works with small pages too
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


@functools.cache
def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for as long as it runs, if it uses glibc.

    By default glibc returns every large block to the system and asks for a new one, which the
    system fills with zeros. Training frees and allocates the same blocks at every step: adding one
    gradient of 154 MB to another took 59 ms so, and 10 ms in memory that was kept. The setting is
    for the whole process, so only a program that owns its process may call this, no library.
    With GPT2KIT_KEPT_MEMORY=0 in the environment nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and os.environ.get("GPT2KIT_KEPT_MEMORY") != "0":
        mallopt(_MMAP_THRESHOLD, 2**30)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
