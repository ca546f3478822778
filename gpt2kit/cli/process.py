"""How a process that runs a model begins and ends, without the seconds that neither needs to take"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
import threading

_GPUS = (
    "/dev/nvidiactl",
    "/dev/kfd",
    "/dev/dxg",
)  # what is there where `auto` may be a GPU: NVIDIA's, AMD's, Windows' under Linux


def begin(model: str, device: str, dtype: str, quantize: str | None) -> None:
    """Import torch, which takes a second; another thread gets memory for the model ready meanwhile."""
    if "torch" in sys.modules:
        return
    from gpt2kit import memory, store
    from gpt2kit.errors import Gpt2KitError

    with contextlib.suppress(
        Gpt2KitError, OSError
    ):  # what is wrong with the model, its loading will say
        if device == "cpu" or (device == "auto" and not any(map(os.path.exists, _GPUS))):
            memory.prepare(store.memory_needed(store.find(model), dtype, quantize))
    # Torch is some hundred thousand objects, and none of them is garbage: they are not searched for it, now or later.
    gc.disable()
    import torch  # noqa: F401

    gc.freeze()
    gc.enable()


def end_at_once(code: object) -> None:
    """End the process with everything written and every function of atexit run, but without taking the interpreter apart.

    That would visit every object of torch, which takes as long as half of its import. And torch holds the group of a model in shards
    to the last: its threads, still going meanwhile, could abort the process after everything went well. Returns where the interpreter's
    own end is needed: for a message in place of a code, a profiler that waits for it, a thread that has not finished, or a full disk.
    """
    others = [
        thread
        for thread in threading.enumerate()
        if not thread.daemon and thread is not threading.main_thread()
    ]
    if others or sys.getprofile() or sys.gettrace() or not isinstance(code, int | None):
        return
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return
    os._exit(code or 0)
