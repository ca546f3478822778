"""A server of gpt2kit in a process of its own, for hostile clients: a tiny model, short waits."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

KEY = "a-key-that-nobody-guesses-0123456789"
SITE = "https://friend.example"  # whose pages may call the server
SLOTS, QUEUE = 4, 12
SECONDS = 1.0  # for a client to send its request, or to take an answer


@dataclass(frozen=True)
class State:
    """What a process has of what it could lose."""

    memory: int  # bytes
    threads: int
    descriptors: int


class Server(Protocol):
    """A server that clients attack."""

    port: int
    process: int  # its id

    def log(self) -> str:
        """Return what it has written so far."""
        ...

    def is_alive(self) -> bool:
        """Whether it still runs."""
        ...

    def close(self) -> None:
        """End it."""
        ...


def state_of(process: int) -> State:
    """Return what a process has now, by Linux."""
    of = Path(f"/proc/{process}")
    lines = (line.split(":", 1) for line in (of / "status").read_text().splitlines())
    status = {name: value.split() for name, value in lines}
    descriptors = len(list((of / "fd").iterdir()))
    return State(int(status["VmRSS"][0]) * 1024, int(status["Threads"][0]), descriptors)


class Served:
    """The process of `gpt2kit.serve.server.run`, with a tiny model and its log in a file."""

    def __init__(self, folder: Path, seconds: float = SECONDS) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "log"
        tests = Path(__file__).parents[1]
        paths = [str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "campaigns.served", str(folder / "port"), str(seconds)],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=log,
            )
        self.process = self._process.pid
        end = time.monotonic() + 120
        while not (folder / "port").exists():
            if not self.is_alive() or time.monotonic() > end:
                self.close()
                raise RuntimeError(f"the server did not start:\n{self.log()}")
            time.sleep(0.02)
        self.port = int((folder / "port").read_text())

    def log(self) -> str:
        """Return what the server has written so far."""
        return self._log.read_text(errors="replace")

    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main(port: Path, seconds: float) -> int:
    """Serve until a signal comes; write the port to a file once the model is loaded."""
    import logging

    from serve_builders import tiny

    from gpt2kit.serve import settings
    from gpt2kit.serve.asgi import application
    from gpt2kit.serve.server import bind, run

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    settings.BODY_SECONDS = settings.UNREAD_SECONDS = seconds
    limits = settings.Settings(
        parallel=SLOTS, queue=QUEUE, drain=0, api_key=(KEY,), cors_origin=(SITE,)
    )
    bound = bind(settings.Address(port=0))

    def tell() -> None:
        part = port.with_suffix(".part")
        part.write_text(str(bound.getsockname()[1]))
        part.rename(port)

    return run(application(tiny(), settings=limits), bound, when_ready=tell)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2])))
