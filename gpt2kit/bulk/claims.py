"""Claims: small files that say which worker has a part in hand.

A claim is a file that gets its name by a link, which fails if the name is there. Its worker touches
it while it works; a claim that nobody touched for a while, or whose process is gone from this
machine, may be taken over. Two workers may still come to do one part: both then write the same
bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gpt2kit.files import part_of

TOUCHED = 30.0  # seconds from one touch of a claim to the next
_BEAT = 1.0  # seconds from one look of the heartbeat to the next
STALE = 300.0  # seconds without a touch after which a claim is nobody's
CLOCK = "clock"  # of a file that is touched to learn the time


@dataclass(frozen=True)
class Claim:
    """A part that this process has in hand."""

    path: Path
    token: str

    def release(self) -> None:
        """Delete the claim, unless another worker has it; undoes `take` wherever that stopped."""
        _unnamed(self.path, self.token).unlink(missing_ok=True)
        if self._is_held():
            self.path.unlink(missing_ok=True)

    def touch(self) -> None:
        """Say that the part is still in hand, unless another worker has taken it over."""
        with contextlib.suppress(OSError):  # deleted in this moment
            if self._is_held():
                os.utime(self.path)

    def _is_held(self) -> bool:
        """Whether the claim is still this worker's."""
        return bool(owner(self.path).get("token") == self.token)


def take(path: Path, token: str) -> Claim | None:
    """Claim a part, or return None if another worker has it.

    The caller makes the token (`new_token`) before, so that `Claim(path, token).release()` undoes
    this at whichever point it was interrupted.
    """
    unnamed = _unnamed(path, token)
    unnamed.write_text(json.dumps({**_here(), "token": token}))
    try:
        for _ in range(2):
            try:
                os.link(unnamed, path)  # whole at once: a signal finds no claim without its token
            except FileExistsError:
                if not is_stale(path):
                    return None
                path.unlink(missing_ok=True)
            except FileNotFoundError:  # swept by the worker who was faster
                return None
            else:
                return Claim(path, token)
        return None
    finally:
        unnamed.unlink(missing_ok=True)


def _unnamed(path: Path, token: str) -> Path:
    """Return the name of a claim before it has its own."""
    return path.with_name(f".{path.name}.{token}")


def new_token() -> str:
    """Return a random name for one claim of this process."""
    return secrets.token_hex(8)


def owner(path: Path) -> dict[str, Any]:
    """Return what a claim says about its worker; nothing for one that is gone or half written."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def is_stale(path: Path) -> bool:
    """Whether the worker of a claim has died, as far as one can tell from here."""
    try:
        touched = path.stat().st_mtime
    except FileNotFoundError:
        return True
    if _file_system_time(path.parent) - touched > STALE:
        return True
    found = owner(path)
    here = _here()
    if any(found.get(key) != here[key] for key in ("host", "processes")):
        return False
    return _started(found.get("pid")) != found.get("started")


def _file_system_time(folder: Path) -> float:
    """Return what time it is for the file system; the clocks of hosts differ."""
    clock = part_of(folder / CLOCK)
    try:
        clock.touch()
        return clock.stat().st_mtime
    finally:
        clock.unlink(missing_ok=True)


def _here() -> dict[str, Any]:
    """Describe this process, so that others on this machine can see whether it still runs."""
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "processes": _process_numbers(),
        "pid": pid,
        "started": _started(pid),
    }


@cache
def _process_numbers() -> str:
    """Name the machine's boot and the namespace in which process ids count; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: Any) -> str | None:
    """Return when a process of this machine began, or None if there is none with this id."""
    try:
        # The name of the program, in parentheses, may contain spaces.
        state, *fields = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()
    except (OSError, TypeError, ValueError):
        return None if _process_numbers() else "unknown"
    return None if state in "ZX" else fields[18]


class Heartbeat:
    """A thread that touches the claim in hand, and notices if the parent process is gone."""

    def __init__(self, *, parent: int | None = None) -> None:
        self._claim: Claim | None = None
        self._parent = parent  # stop this process when another one becomes its parent
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def hold(self, claim: Claim | None) -> None:
        """Touch this claim from now on, and no other."""
        self._claim = claim

    def _beat(self) -> None:
        seconds = 0.0
        while not self._ended.wait(_BEAT):
            seconds += _BEAT
            claim = self._claim
            if claim is not None and seconds >= TOUCHED:
                seconds = 0.0
                claim.touch()
            if self._parent is not None and os.getppid() != self._parent:
                import signal

                os.kill(os.getpid(), signal.SIGTERM)
                return
