"""What a process asks of the system for memory: large pages for weights, and that freed memory is kept."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import threading

LARGE_PAGE = 2**21  # bytes
_PIECE = 8 * LARGE_PAGE  # made ready at once: other threads that want memory wait for so much
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE of Linux 5.14, which Python has no name for

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h

_prepared: list[mmap.mmap] = []  # what `prepare` gets ready and nobody has taken


def available() -> bool:
    """Whether this system has large pages to ask for."""
    return hasattr(mmap, "MADV_HUGEPAGE")


def take(n: int) -> mmap.mmap:
    """Return n bytes of memory or a little more: those that were prepared, if that is about as much, or else untouched ones.

    Linux backs them with pages of 2 MB where it can: 500 times fewer to touch now, and to look up ever after.
    """
    for memory in _prepared:
        if n <= len(memory) <= 1.1 * n + 2 * LARGE_PAGE:
            _prepared.remove(memory)
            return memory
    memory = mmap.mmap(-1, n, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a wish: a refusal changes nothing
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def prepare(n: int) -> None:
    """Get memory for n bytes of weights ready, in a thread.

    The system fills each page with zeros when it is touched first, and a virtual machine may have to ask its host for it: up to a
    second for 500 MB.
    """
    if n > 0 and available():
        _prepared.append(take(n + 2 * LARGE_PAGE))  # tensors do not begin at any byte
        threading.Thread(target=_touch, args=(_prepared[-1],), daemon=True).start()


def release() -> None:
    """Give back what was prepared and not taken."""
    _prepared.clear()


def _touch(memory: mmap.mmap) -> None:
    """Let the system give every page now; where it cannot, it does so later."""
    madvise = ctypes.CDLL(
        None
    ).madvise  # lets other threads run meanwhile, as the one of mmap does not
    first = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for start in range(0, len(memory), _PIECE):
        piece = min(_PIECE, len(memory) - start)
        if madvise(ctypes.c_void_p(first + start), ctypes.c_size_t(piece), _POPULATE_WRITE):
            return


@functools.cache
def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, where glibc manages it; elsewhere nothing happens.

    By default glibc hands every large block back to the system and asks for a new one, which the system fills with zeros page by
    page. Training frees and takes the same blocks at every step; adding up one gradient of 154 MB took 59 ms so, and 10 ms in kept memory.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 2**30)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
