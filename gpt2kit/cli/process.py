"""Faster start and exit of the command line."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator


def import_torch() -> None:
    """Import torch without searching its objects for garbage, neither now nor later.

    It makes some hundred thousand objects, and Python would look through all of them again and
    again while they become more. That is a quarter of the processor time of a short command.
    """
    if "torch" in sys.modules:
        return
    gc.disable()
    with _leaving_at_interrupt():
        import torch  # noqa: F401

    gc.freeze()
    gc.enable()


@contextlib.contextmanager
def _leaving_at_interrupt() -> Iterator[None]:
    """End the process at once at Ctrl-C, instead of by KeyboardInterrupt.

    Some modules swallow every exception that comes up while they import another one, as torch does
    for NumPy.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def end_at_once(code: object) -> None:
    """End the process as `sys.exit` does, but without taking the interpreter apart.

    That visits every object of torch, about 0.1 s of processor time. And after a training with
    --shard it can abort the process: torch's process group, which must live until then, still has
    threads running. What was registered with atexit runs, and all output is written.

    Returns if the interpreter's own exit is needed: for a message instead of a code, a profiler or
    debugger, another thread that is still at work, or with GPT2KIT_QUICK_EXIT=0.
    """
    others = [
        thread
        for thread in threading.enumerate()
        if not thread.daemon and thread is not threading.main_thread()
    ]
    if others or _is_watched() or not isinstance(code, int | None):
        return
    if os.environ.get("GPT2KIT_QUICK_EXIT") == "0":
        return
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return
    os._exit(code or 0)


def _is_watched() -> bool:
    """Whether a profiler, debugger or coverage tool waits for the end of the interpreter."""
    monitoring = getattr(sys, "monitoring", None)  # since Python 3.12
    tools = [monitoring.get_tool(number) for number in range(6)] if monitoring else []
    return bool(sys.getprofile() or sys.gettrace() or any(tools))
