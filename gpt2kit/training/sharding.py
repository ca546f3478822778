"""A model in shards: of every tensor each process keeps a part (FSDP2), and it is whole again where that is needed.

Parameters, gradients and optimizer state are divided by rows among the processes. A block's weights are gathered when the block
computes and let go of after it; the embeddings, the last normalisation and the head stay gathered from the forward pass to the end
of the backward pass, since the loss reads the head outside of the model. Between two steps every parameter is a shard again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gpt2kit import lora
from gpt2kit.errors import ConfigError
from gpt2kit.model import GPT2
from gpt2kit.training.distributed import Ranks, gathered, is_divided, take_part


def shard(model: GPT2, ranks: Ranks) -> None:
    """Divide a model, in place, among all processes; a model that is divided already stays as it is.

    The blocks go to this process's accelerator, where it has one, one after the other: the whole model need never fit there.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    if isinstance(model, FSDPModule):
        return
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if trained <= {
        "lm_head.weight"
    }:  # no gradient would pass through what is gathered for the backward pass
        raise ConfigError(
            "only the head is trained, which needs no --shard: leave it out, or freeze less"
        )
    kind = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    mesh = init_device_mesh(kind, (ranks.world_size,))
    for block in model.h:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(model, "hidden")


def let_go_without_backward(module: nn.Module, model: GPT2) -> None:
    """Let a module that computes a loss of a divided model leave shards behind where no backward pass will."""

    def after(*_: Any) -> None:
        if not torch.is_grad_enabled():
            model.reshard()  # type: ignore[operator]  # a method that fully_shard has given it

    module.register_forward_hook(after)


def whole(model: GPT2, ranks: Ranks) -> GPT2 | None:
    """Return a model that can be written or generate, in evaluation mode: of one in shards a whole copy, for the main process alone.

    All processes must call it. The copy is in the main process's memory, not on an accelerator, and has float32's four bytes for each
    parameter; tensors pass through one at a time.
    """
    if not any(map(is_divided, model.parameters())):
        return model.eval()
    parameters = dict(model.named_parameters())
    if not ranks.is_main:
        take_part(parameters.values())
        return None
    copy = _same_modules(model)
    state = {name: gathered(parameter).detach().cpu() for name, parameter in parameters.items()}
    copy.load_state_dict(state, strict=True, assign=True)
    return copy.eval()


def _same_modules(model: GPT2) -> GPT2:
    """Return a model with the modules of another, adapters too, and no weights yet."""
    with torch.device("meta"):
        copy = GPT2(model.config)
        if adapters := lora.settings(model):
            lora.add_adapters(copy, adapters["rank"], alpha=adapters["alpha"])
    return copy
