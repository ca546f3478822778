"""What a model consists of at one time: its modules, its weights and where they lie, and that nothing listens in.

Whoever keeps addresses of weights, the native step and CUDA graphs, asks it whether they still hold.
"""

from __future__ import annotations

from torch import nn


class Snapshot:
    """A model's modules, weights and hooks, without the model itself. The weights stay in memory, should the model get others."""

    def __init__(self, model: nn.Module) -> None:
        self._storages = [parameter.untyped_storage() for parameter in model.parameters()]
        self._hooks = [
            hooks
            for module in model.modules()
            for hooks in (module._forward_hooks, module._forward_pre_hooks)
        ]
        self._modules = [
            (module._modules, name, child)
            for module in model.modules()
            for name, child in module._modules.items()
        ]
        self._parameters = [
            (module._parameters, name, parameter, parameter.data_ptr())
            for module in model.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None
        ]

    def is_current(self) -> bool:
        """Whether these are still the model's modules and weights, lie where they did, and have no hooks."""
        if any(self._hooks):
            return False
        return all(owner.get(name) is child for owner, name, child in self._modules) and all(
            owner.get(name) is parameter and parameter.data_ptr() == address
            for owner, name, parameter, address in self._parameters
        )
