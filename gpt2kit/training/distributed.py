"""One process or many: who does which share of a batch, and what all of them agree on.

Under `torchrun` every process computes the gradients of its share of the windows, which are then averaged. It has a whole model for
that, or with `sharded` a part of every tensor, as `gpt2kit.sharding` divides them.
"""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gpt2kit.errors import ConfigError


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those that train together; alone unless `join` says otherwise."""

    rank: int = 0
    world_size: int = 1
    sharded: bool = False  # whether the model is divided among the processes

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
        alone = (
            self.world_size == 1 or self.sharded
        )  # of shards, only their own gradients are kept from part to part
        return nullcontext() if last or alone else module.no_sync()  # type: ignore[operator]

    def mean(self, value: float) -> float:
        """Return the mean of the processes' numbers."""
        return value if self.world_size == 1 else self._reduced(value) / self.world_size

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return flag if self.world_size == 1 else self._reduced(float(flag)) > 0

    def least(self, value: int) -> int:
        """Return the smallest of the processes' numbers."""
        return (
            value
            if self.world_size == 1
            else int(self._reduced(value, torch.distributed.ReduceOp.MIN))
        )

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.world_size > 1:
            torch.distributed.barrier()

    @staticmethod
    def _reduced(
        value: float, how: torch.distributed.ReduceOp.RedOpType = torch.distributed.ReduceOp.SUM
    ) -> float:
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        tensor = torch.tensor(value, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(tensor, how)
        return tensor.item()


def join(*, shard: bool = False) -> Ranks:
    """Join the processes that torchrun has started with this one; without torchrun, this process is alone.

    Raises ConfigError where a model is to be divided and there is nobody to share it with.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        if shard:
            raise ConfigError(
                "--shard divides a model among processes, but this one is alone; start several: torchrun --nproc-per-node 2 -m gpt2kit …"
            )
        return Ranks()
    if not torch.distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # This module keeps the group that is there when it is imported in the defaults of its functions, for ever; DDP and FSDP
        # import it. The group's threads would then outlive `leave`, and the interpreter: at exit they could end the process.
        importlib.import_module("torch.distributed.nn.functional")
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size(), shard)


def leave() -> None:
    """Part from the other processes, where there are any, when all have come so far: one that left early would break the others.

    The group's threads end here, where every process had a whole model; of shards, torch keeps a group to the end of the process,
    which the command line therefore makes a short one.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        gc.collect()  # modules that DDP wraps hold the group, and are in cycles
        torch.distributed.destroy_process_group()


# --- tensors in shards ------------------------------------------------------------------------------------------------


def is_divided(tensor: Tensor) -> bool:
    """Whether this process has only a part of a tensor."""
    return hasattr(tensor, "full_tensor")  # a DTensor, whose module takes a second to import


def gathered(tensor: Tensor) -> Tensor:
    """Return a tensor whole; of one in shards all processes must ask for it, in the same order."""
    return tensor.full_tensor() if is_divided(tensor) else tensor  # type: ignore[attr-defined]


def take_part(tensors: Iterable[Tensor]) -> None:
    """Do another process's share of `gathered`, where that one alone has use for the tensors."""
    for tensor in tensors:
        gathered(tensor)


@torch.no_grad()
def like(tensor: Tensor, whole: Tensor) -> Tensor:
    """Return this process's part of a whole tensor, divided and placed as `tensor` is."""
    if not is_divided(tensor):
        return whole.to(tensor.device)
    from torch.distributed.tensor import distribute_tensor

    part: Any = tensor
    return distribute_tensor(
        whole.to(tensor.device), part.device_mesh, part.placements, src_data_rank=None
    )
