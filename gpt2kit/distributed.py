"""One process or many: who does which share of a batch, and what all of them agree on.

Under `torchrun` every process has a whole model and computes the gradients of its share of the windows, which are then averaged.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those that train together; alone unless `join` says otherwise."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module so that its backward pass averages the gradients of all processes."""
        if self.world_size == 1:
            return module
        return nn.parallel.DistributedDataParallel(module, static_graph=False)

    def gradients_together(self, module: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Let the processes exchange gradients only in the last part of a batch."""
        return nullcontext() if last or self.world_size == 1 else module.no_sync()  # type: ignore[operator]

    def mean(self, value: float) -> float:
        """Return the mean of the processes' numbers."""
        return value if self.world_size == 1 else self._reduced(value) / self.world_size

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return flag if self.world_size == 1 else self._reduced(float(flag)) > 0

    def least(self, value: int) -> int:
        """Return the smallest of the processes' numbers."""
        return value if self.world_size == 1 else int(self._reduced(value, torch.distributed.ReduceOp.MIN))

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.world_size > 1:
            torch.distributed.barrier()

    @staticmethod
    def _reduced(value: float, how: torch.distributed.ReduceOp.RedOpType = torch.distributed.ReduceOp.SUM) -> float:
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        tensor = torch.tensor(value, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(tensor, how)
        return tensor.item()


def join() -> Ranks:
    """Join the processes that torchrun has started with this one; without torchrun, this process is alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks()
    if not torch.distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())


def leave() -> None:
    """Part from the other processes, where there are any, when all have come so far: one that left early would break the others."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
