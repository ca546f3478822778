"""A model divided among processes (FSDP2): each keeps a part of every tensor.

Parameters, gradients and optimizer state are divided by rows. A block's weights are gathered while
the block computes and freed after it. The embeddings, the last normalization and the head stay
gathered from the forward pass to the end of the backward pass, because the loss reads the head
outside of the model. Between two steps every parameter is divided again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gpt2kit import lora
from gpt2kit.checkpoints.classifiers import add_class_head, class_head
from gpt2kit.checkpoints.names import CLASS_HEAD
from gpt2kit.errors import ConfigError
from gpt2kit.model import GPT2
from gpt2kit.training.distributed import Ranks, gathered, is_divided, take_part


def shard(model: GPT2, ranks: Ranks) -> None:
    """Divide a model among all processes, in place; a model that is already divided stays as it is.

    If this process has a GPU, its parts of the blocks move there one block at a time, so the whole
    model never has to fit on it. Raises ConfigError if only the head is trained.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    if isinstance(model, FSDPModule):
        return
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    # No gradient would pass through the modules that FSDP2 hooks:
    if trained <= {"lm_head.weight", CLASS_HEAD}:
        raise ConfigError(
            "only the head is trained, which needs no --shard: leave it out, or freeze less"
        )
    kind = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    mesh = init_device_mesh(kind, (ranks.world_size,))
    for block in model.h:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(model, "hidden")


def reshard_after_eval(module: nn.Module, model: GPT2) -> None:
    """Divide the model again after each forward pass of `module` without gradients.

    With gradients, the backward pass does so.
    """

    def after(*_: Any) -> None:
        if not torch.is_grad_enabled():
            model.reshard()  # type: ignore[operator]  # a method that fully_shard has given it

    module.register_forward_hook(after)


def whole(model: GPT2, ranks: Ranks) -> GPT2 | None:
    """Return the model in evaluation mode, to be saved or to generate with.

    Of a divided model the main process gets a whole float32 copy on the CPU, gathered tensor by
    tensor, and the others None; all processes must call this.
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
    """Return a model with the same modules as another, adapters included, and no weights yet."""
    with torch.device("meta"):
        copy = GPT2(model.config)
        if adapters := lora.settings(model):
            lora.add_adapters(copy, adapters["rank"], alpha=adapters["alpha"])
        if (head := class_head(model)) is not None:
            add_class_head(copy, head.labels)
    return copy
