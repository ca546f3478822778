"""The life of a server: it loads, answers, drains, and ends."""

from __future__ import annotations

import asyncio
import logging
from typing import Literal

from gpt2kit.serve.errors import Refusal, not_ready
from gpt2kit.serve.worker import Worker

State = Literal["new", "loading", "ready", "draining", "failed"]
log = logging.getLogger("gpt2kit.serve")


class Life:
    """What a server does at the moment, and whether it takes requests."""

    def __init__(self, worker: Worker) -> None:
        self.state: State = "new"
        self.error: BaseException | None = None  # why it failed
        self.ended = asyncio.Event()  # set once it has failed
        self._worker = worker

    def fail(self, error: BaseException) -> None:
        """Note that nothing can be answered any more: the process should end."""
        self.state, self.error = "failed", error
        self.ended.set()

    def refusal(self) -> Refusal | None:
        """Return why no request is taken now, or None."""
        if self.state in ("new", "loading"):
            return not_ready("the model is being loaded; try again in a moment")
        if self.state == "draining":
            return not_ready("the server is about to stop; try another one")
        if self.state == "failed":
            return not_ready("the server has failed and stops; its log says why")
        return None

    def ill_health(self) -> Refusal | None:
        """Return why a load balancer should send its requests elsewhere, or None."""
        if refusal := self.refusal():
            return refusal
        return None if self._worker.is_well else not_ready("the engine has not moved for a while")
