"""Training in several processes: which share of a batch each computes, and how they agree.

Started by `torchrun`, every process computes the gradients of its share of a batch's windows, and
the gradients are averaged. Each process has the whole model (DDP), or with `sharded` a part of
every tensor (FSDP2; see `gpt2kit.training.sharding`).
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
    """This process's number among those that train together; by default it is the only one."""

    rank: int = 0
    world_size: int = 1
    sharded: bool = False  # whether the model is divided among the processes

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes files and prints."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return a module whose backward pass averages the gradients of all processes."""
        if self.world_size == 1:
            return module
        return nn.parallel.DistributedDataParallel(module, static_graph=False)

    def sync_gradients(self, module: nn.Module, sync: bool) -> AbstractContextManager[None]:
        """Return a context in which a backward pass averages gradients only if `sync` is true.

        A batch in several parts does so once, in the last part. FSDP2 does so in each: a process
        keeps only its own part of a gradient between them.
        """
        if sync or self.world_size == 1 or self.sharded:
            return nullcontext()
        return module.no_sync()  # type: ignore[operator, no-any-return]

    def mean(self, value: float) -> float:
        """Return the mean of every process's number."""
        return value if self.world_size == 1 else self._reduced(value) / self.world_size

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return flag if self.world_size == 1 else self._reduced(float(flag)) > 0

    def least(self, value: int) -> int:
        """Return the smallest of every process's number."""
        if self.world_size == 1:
            return value
        return int(self._reduced(value, torch.distributed.ReduceOp.MIN))

    def wait(self) -> None:
        """Wait until every process has reached this point."""
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
    """Join the processes that torchrun started together with this one, if any.

    Raises ConfigError for `shard` if there is only this process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        if shard:
            raise ConfigError(
                "--shard divides a model among processes, but this one is alone; start several: "
                "torchrun --nproc-per-node 2 -m gpt2kit …"
            )
        return Ranks()
    if not torch.distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # DDP and FSDP import this module, whose functions keep the process group that exists at
        # import as a default argument, for ever. The group's threads would then outlive `leave` and
        # could abort the process at exit. So it is imported before the group exists.
        importlib.import_module("torch.distributed.nn.functional")
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size(), shard)


def leave() -> None:
    """Wait for every process, then destroy the process group, if there is one.

    A process that left early would break the others. With FSDP2 torch keeps a group until the
    process ends; see `gpt2kit.cli.process.end_at_once`.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        gc.collect()  # modules that DDP wraps hold the group, and are in reference cycles
        torch.distributed.destroy_process_group()


# --- tensors divided among processes --------------------------------------------------------------


def is_divided(tensor: Tensor) -> bool:
    """Return whether this process has only a part of a tensor."""
    return hasattr(tensor, "full_tensor")  # a DTensor, whose module takes a second to import


def gathered(tensor: Tensor) -> Tensor:
    """Return the whole tensor, in the same dtype and on the same device.

    If it is divided, all processes must call this, in the same order.
    """
    return tensor.full_tensor() if is_divided(tensor) else tensor  # type: ignore[attr-defined]


def take_part(tensors: Iterable[Tensor]) -> None:
    """Take part in gathering tensors that only another process needs."""
    for tensor in tensors:
        gathered(tensor)


@torch.no_grad()
def like(tensor: Tensor, whole: Tensor) -> Tensor:
    """Return this process's part of a whole tensor, on the device and divided as `tensor` is.

    The dtype stays that of `whole`.
    """
    if not is_divided(tensor):
        return whole.to(tensor.device)
    from torch.distributed.tensor import distribute_tensor

    part: Any = tensor
    return distribute_tensor(
        whole.to(tensor.device), part.device_mesh, part.placements, src_data_rank=None
    )
