"""Notice that a model was changed, so that addresses of its weights are not used any longer.

The native step and CUDA graphs keep such addresses. They ask before every token, so the answer has
to cost microseconds: the comparisons run in C, over lists made once.
"""

from __future__ import annotations

import hashlib
from operator import is_

import torch
from torch import Tensor, nn


class Snapshot:
    """A model's modules, weights and hooks at one time.

    It keeps the weights' memory, so that no other tensor can come to lie at their addresses, but
    not the model itself.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        children = [
            (m._modules, name, child) for m in modules for name, child in m._modules.items()
        ]
        weights = [(m._parameters, name, w) for m in modules for name, w in m._parameters.items()]
        self._hooks = [hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self._child_owners = [owner for owner, _, _ in children]
        self._child_names = [name for _, name, _ in children]
        self._children = [child for _, _, child in children]
        self._weight_owners = [owner for owner, _, _ in weights]
        self._weight_names = [name for _, name, _ in weights]
        self._weights = [weight for _, _, weight in weights]  # None for a bias that is left out
        self._tensors = [weight for weight in self._weights if weight is not None]
        self._addresses = [*map(Tensor.data_ptr, self._tensors)]
        self._memory = [*map(Tensor.untyped_storage, self._tensors)]

    def is_current(self) -> bool:
        """Whether these are the model's modules and weights, where they were, without hooks."""
        # list == list compares modules by identity; weights would be compared by value.
        return (
            not any(self._hooks)
            and [*map(dict.get, self._child_owners, self._child_names)] == self._children
            and all(map(is_, map(dict.get, self._weight_owners, self._weight_names), self._weights))
            and [*map(Tensor.data_ptr, self._tensors)] == self._addresses
        )


def weights_sha256(model: nn.Module) -> str:
    """Return the sha256 of all parameters, trainable or not."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
