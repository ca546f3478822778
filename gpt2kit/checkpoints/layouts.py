"""Weights under another program's names: a table gives ours, and the shapes give the configuration.

A name in a table may have {layer} and {head}, which count from 0. Queries, keys and values that are
separate there are the rows [q], [k] and [v] of our c_attn, in this order, and in each the heads in
theirs.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from gpt2kit.checkpoints.names import BUFFERS, is_transposed
from gpt2kit.checkpoints.stored import (
    Checkpoint,
    StoredTensor,
    check_tensors,
    join,
    transpose_if_conv1d,
)
from gpt2kit.checkpoints.unsaid import Unsaid
from gpt2kit.config import SIZES, GPT2Config
from gpt2kit.errors import CheckpointMismatchError, ConfigError, Gpt2KitWarning

_HEAD_SIZE = 64  # of every published GPT-2
_PUBLISHED = {(config.n_layer, config.n_embd): config.n_head for config in SIZES.values()}
_PART = re.compile(r"\[[qkv]\]")

Shape = tuple[int, ...]


class Target(NamedTuple):
    """Where a tensor of a file belongs."""

    template: str  # our name, with {layer} and a part
    layer: int | None = None
    head: int | None = None


@dataclass(frozen=True)
class Layout:
    """How one program names its tensors, and what all of its models have in common."""

    format: str  # for people: "minGPT"
    names: Mapping[str, str]  # theirs -> ours
    fields: Mapping[str, Any] = field(default_factory=dict)  # of GPT2Config, beside the shapes
    buffers: tuple[str, ...] = BUFFERS  # endings of names that are no parameters
    is_conv1d: bool = False  # whether matrices are (in, out)
    # (n_layer, n_embd) -> n_head of the models that the program itself has
    heads: Mapping[tuple[int, int], int] = field(default_factory=dict)

    @functools.cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], str]]:
        def pattern(theirs: str) -> re.Pattern[str]:
            text = re.escape(theirs)
            for word in ("layer", "head"):
                text = text.replace(rf"\{{{word}\}}", rf"(?P<{word}>0|[1-9]\d{{0,3}})")
            return re.compile(text)

        return [(pattern(theirs), ours) for theirs, ours in self.names.items()]

    def targets(self, names: Iterable[str]) -> dict[str, Target]:
        """Return where the tensors belong whose names are in the table."""
        found = {}
        for name in names:
            for pattern, ours in self._patterns:
                if match := pattern.fullmatch(name):
                    found[name] = Target(
                        ours, **{word: int(text) for word, text in match.groupdict().items()}
                    )
                    break
        return found

    def theirs(self, ours: str) -> str:
        """Return the program's name for a parameter of ours; "" if its models have none."""
        return next((theirs for theirs, target in self.names.items() if target == ours), "")

    def expected(self, config: GPT2Config) -> dict[str, tuple[str, Shape]]:
        """Return the program's names of all tensors, with our name and the shape in the file.

        The tensors of one of our names are its rows, from the first to the last.
        """
        shapes, found = config.shapes(), {}
        for theirs, target in self.names.items():
            template = _PART.sub("", target)
            heads = config.n_head if "{head}" in theirs else 1
            pieces = heads * (1 if template == target else 3)
            for layer in range(config.n_layer if "{layer}" in theirs else 1):
                ours = template.format(layer=layer)
                if ours not in shapes:
                    continue
                shape = (shapes[ours][0] // pieces, *shapes[ours][1:])
                if self.is_conv1d and is_transposed(ours):
                    shape = shape[::-1]
                for head in range(heads):
                    found[theirs.format(layer=layer, head=head)] = (ours, shape)
        return found


def checkpoint_of(
    path: Path,
    layout: Layout,
    stored: Mapping[str, StoredTensor],
    *,
    unsaid: Unsaid,
    is_tied: bool,
    skipped: tuple[str, ...],
) -> Checkpoint:
    """Return the checkpoint of tensors that have a program's own names, without prefixes.

    `is_tied` says whether the head has the numbers of the token embedding. Raises
    CheckpointMismatchError, in the program's names, if tensors are missing, unexpected or of
    another shape, and ConfigError if `unsaid` lacks what cannot be told.
    """
    config = _config(path, layout, stored, unsaid, is_tied)
    expected = layout.expected(config)
    tied_copy = stored.get(layout.theirs("lm_head.weight")) if is_tied else None
    own = {name: tensor for name, tensor in stored.items() if tensor is not tied_copy}
    check_tensors(
        path,
        {name: shape for name, (_, shape) in expected.items()},
        own,
        advice=f"Is it a whole model, saved by {layout.format}?",
    )
    rows: dict[str, list[StoredTensor]] = {}
    for name, (ours, _) in expected.items():
        rows.setdefault(ours, []).append(own[name])
    tensors = {ours: join(parts) for ours, parts in rows.items()}
    if layout.is_conv1d:
        tensors = {ours: transpose_if_conv1d(ours, tensor) for ours, tensor in tensors.items()}
    return Checkpoint(path, layout.format, config, tensors, skipped, tied_copy, is_alone=True)


def _config(
    path: Path, layout: Layout, stored: Mapping[str, StoredTensor], unsaid: Unsaid, is_tied: bool
) -> GPT2Config:
    """Return the configuration that the names and shapes of a file's tensors tell."""
    targets = layout.targets(stored)
    shapes: dict[str, Shape] = {}  # our name with {layer} -> the shape in the file of the first one
    for name, target in targets.items():
        shapes.setdefault(target.template, stored[name].shape)
    tables = [ours for ours in ("wte.weight", "wpe.weight") if ours in layout.names.values()]
    if missing := [layout.theirs(ours) for ours in tables if len(shapes.get(ours, ())) != 2]:
        advice = f"They are the tables of vectors of {layout.format}"
        raise CheckpointMismatchError(path, missing=missing, advice=advice)
    n_vocab, n_embd = shapes["wte.weight"]
    c_fc = shapes.get("h.{layer}.mlp.c_fc.weight", ())
    inner = c_fc[1 if layout.is_conv1d else 0] if len(c_fc) == 2 else 4 * n_embd
    n_layer, heads = _counts(path, targets)
    if heads and unsaid.n_head not in (None, heads):
        raise ConfigError(f"{path}: n_head is {unsaid.n_head}, but the file has {heads} heads")
    values = {
        "n_vocab": n_vocab,
        **({"n_ctx": shapes["wpe.weight"][0]} if "wpe.weight" in tables else {}),
        "n_embd": n_embd,
        "n_head": heads or unsaid.n_head or _guessed_heads(path, layout, n_layer, n_embd),
        "n_layer": n_layer,
        "n_inner": None if inner == 4 * n_embd else inner,
        "qkv_bias": any("attn.c_attn.bias" in name for name in shapes),
        "bias": any(name.endswith(("c_proj.bias", "ln_f.bias")) for name in shapes),
        "head_bias": "lm_head.bias" in shapes,
        "tie_word_embeddings": is_tied or "lm_head.weight" not in shapes,
    }
    try:
        return GPT2Config(**values | dict(layout.fields) | unsaid.given)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _counts(path: Path, targets: Mapping[str, Target]) -> tuple[int, int]:
    """Return how many layers and heads the names have; 0 if none has an index."""
    n_layer = max(
        (1 + target.layer for target in targets.values() if target.layer is not None), default=0
    )
    heads = max(
        (1 + target.head for target in targets.values() if target.head is not None), default=0
    )
    # A name with a huge index must not make us expect that many tensors.
    if n_layer * max(heads, 1) > len(targets):
        last = max(targets, key=lambda name: (targets[name].head or 0, targets[name].layer or 0))
        raise CheckpointMismatchError(
            path, unexpected=[last], advice="The others before it are not there"
        )
    return n_layer, heads


def _guessed_heads(path: Path, layout: Layout, n_layer: int, n_embd: int) -> int:
    """Return the number of heads of a model whose file does not say it."""
    if n_layer == 0:
        return 1
    if known := {**_PUBLISHED, **layout.heads}.get((n_layer, n_embd)):
        return known
    what = f"{path}: the file does not say how many attention heads its model has"
    if n_embd % _HEAD_SIZE:
        raise ConfigError(
            f"{what}, and its width, {n_embd}, is no multiple of {_HEAD_SIZE}; "
            f"add --n_head N, or run: gpt2kit convert {path} --to DIR --n_head N"
        )
    heads = n_embd // _HEAD_SIZE
    message = f"{what}; {heads} of width {_HEAD_SIZE} assumed, --n_head N says otherwise"
    warnings.warn(message, Gpt2KitWarning, stacklevel=4)
    return heads
