"""The modules of a model: a tree with shapes, dtypes and parameter counts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from gpt2kit.checkpoints.stored import Checkpoint
from gpt2kit.model import GPT2


@dataclass(frozen=True)
class Parameter:
    """One tensor of a module: its name there, its shape, and its dtype in the file."""

    name: str  # weight or bias
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class ModuleSummary:
    """One module, with what it holds itself and the modules inside it."""

    name: str  # inside the module above: c_attn, or 3 for a block; a fold of equal ones is 0-11
    kind: str  # the class: Linear, Embedding, LayerNorm, Block …
    parameters: tuple[Parameter, ...]  # its own, without those of the modules inside
    n_params: int  # of all that is inside, in one of the modules that a fold stands for
    children: tuple[ModuleSummary, ...] = ()
    count: int = 1  # how many equal modules a fold stands for


def module_tree(checkpoint: Checkpoint) -> ModuleSummary:
    """Return the tree of the modules that a checkpoint's model has, in forward order.

    No weights are read: shapes come from the model, dtypes from the headers of the files. A tied
    head has no module, since it is the token embedding.
    """
    with torch.device("meta"):
        model = GPT2(checkpoint.config)
    return _summary("", model, checkpoint, "")


def _summary(name: str, module: nn.Module, checkpoint: Checkpoint, prefix: str) -> ModuleSummary:
    """Summarize a module; `prefix` begins the names of its tensors: "h.0.attn."."""
    own = tuple(
        Parameter(each, tuple(tensor.shape), _dtype(checkpoint, f"{prefix}{each}"))
        for each, tensor in module.named_parameters(recurse=False)
    )
    children = tuple(
        _summary(each, child, checkpoint, f"{prefix}{each}.")
        for each, child in module.named_children()
    )
    n_params = sum(parameter.numel() for parameter in nn.Module.parameters(module))
    return ModuleSummary(name, type(module).__name__, own, n_params, children)


def _dtype(checkpoint: Checkpoint, name: str) -> str:
    return str(checkpoint.tensors[name].dtype).removeprefix("torch.")


def folded(module: ModuleSummary) -> ModuleSummary:
    """Return the tree with neighbors that are equal in everything but their names as one: 0-11."""
    children = tuple(map(folded, module.children))
    return replace(module, children=tuple(_folds(children)))


def _folds(children: Sequence[ModuleSummary]) -> Iterator[ModuleSummary]:
    """Yield modules, numbered ones that are equal and follow each other as one."""
    for _, group in itertools.groupby(
        children, key=lambda child: (replace(child, name=""), child.name.isdecimal() or child.name)
    ):
        first, *rest = group
        name = f"{first.name}-{rest[-1].name}" if rest else first.name
        yield replace(first, name=name, count=1 + len(rest))


def every_module(module: ModuleSummary, prefix: str = "") -> Iterator[tuple[str, ModuleSummary]]:
    """Yield each module below one with its whole name, h.0.attn.c_attn, in forward order."""
    for child in module.children:
        name = f"{prefix}{child.name}"
        yield name, child
        yield from every_module(child, f"{name}.")
