"""Surprisal of many short texts that begin alike: what they share is read once.

The texts become trees of tokens. A tree is one row for the model: every token has the position that
it has in its text, and attends to the tokens before it in its text alone.

    R rows (trees), T tokens of the largest tree, C width, V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from gpt2kit.engine.decoder import Decoder
from gpt2kit.engine.torch_engine import precise
from gpt2kit.errors import ContextLengthError
from gpt2kit.evaluation.surprisal import (
    BATCH_SIZE,
    LOGITS_AT_ONCE,
    Progress,
    Window,
    by_length,
    check_finite,
    ignore,
)
from gpt2kit.model import GPT2

# Tokens of a tree, if no text is longer. Larger trees share more, but attention costs their square.
TREE_SIZE = 256


def text_surprisals(
    model: GPT2,
    texts: Sequence[Sequence[int]],
    *,
    batch_size: int = BATCH_SIZE,
    progress: Progress = ignore,
) -> list[Tensor]:
    """Return the surprisals of every token but the first of each text, in nats: n ids -> (n - 1,).

    The results are float64, on the CPU, and those of `surprisal.surprisals` but for rounding. A
    text has at least two and at most n_ctx + 1 ids. Models in int8 read each text by itself, as
    they do when they generate. `batch_size` is about the number of texts that are read at once.
    """
    for text in texts:
        if len(text) > model.config.n_ctx + 1:
            limit = model.config.n_ctx
            message = f"a text has {len(text):,} tokens; expected at most {limit + 1:,}"
            raise ContextLengthError(message, requested=len(text) - 1, limit=limit)
    if model.is_quantized and Decoder(model).scores_natively():
        work = [Window(text, len(text) - 1) for text in texts]
        found = by_length(model, work, batch_size=batch_size, progress=progress)
        return [surprisal.nats.double() for surprisal in found]
    return _read_trees(model, texts, max(1, batch_size // BATCH_SIZE), progress)


def _read_trees(
    model: GPT2, texts: Sequence[Sequence[int]], rows: int, progress: Progress
) -> list[Tensor]:
    """Return the surprisals of texts, reading this many trees at once."""
    found: dict[int, Tensor] = {}
    longest = max(map(len, texts), default=1) - 1
    trees = _trees(texts, min(model.config.n_ctx, max(TREE_SIZE, longest)))
    while some := list(islice(trees, rows)):
        with torch.inference_mode():
            nats = _edge_surprisals(model, some)
        check_finite(nats)
        for tree in some:
            for index, edges in tree.texts:
                found[index] = nats[edges]
            nats = nats[len(tree.edges) :]
        progress(len(found), len(texts))
    return [found[index] for index in range(len(texts))]


@dataclass
class _Tree:
    """Tokens of texts that begin alike, each after the one before it in its text.

    An edge is a node and a token that follows it in a text: what is scored. The last tokens of
    texts are only scored, never read, so that they need no node.
    """

    tokens: list[int] = field(default_factory=list)  # of each node
    parents: list[int] = field(default_factory=list)  # the node before each; -1 for a first one
    depths: list[int] = field(default_factory=list)  # the position of each node in its texts
    edges: dict[tuple[int, int], int] = field(default_factory=dict)  # (node, token) -> number
    texts: list[tuple[int, list[int]]] = field(default_factory=list)  # index of a text, its edges

    def add(self, index: int, text: Sequence[int], path: list[int]) -> list[int]:
        """Add a text whose first tokens are the nodes `path`; return the nodes of all it reads."""
        for position in range(len(path), len(text) - 1):
            self.parents.append(path[-1] if path else -1)
            self.tokens.append(text[position])
            self.depths.append(position)
            path = [*path, len(self.tokens) - 1]
        numbers = [
            self.edges.setdefault(edge, len(self.edges))
            for edge in zip(path, text[1:], strict=True)
        ]
        self.texts.append((index, numbers))
        return path

    def visible(self) -> np.ndarray:
        """Return which nodes each node attends to, (n, n) bool: those before it, and itself."""
        visible = np.eye(len(self.tokens), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                visible[node] |= visible[parent]
        return visible


def _trees(texts: Sequence[Sequence[int]], size: int) -> Iterator[_Tree]:
    """Put texts into trees of at most `size` nodes, sorted, so that neighbors begin alike."""
    tree, path, before = _Tree(), list[int](), list[int]()
    for index in sorted(range(len(texts)), key=lambda index: list(texts[index])):
        text = list(texts[index])
        shared = _shared(before, text, min(len(path), len(text) - 1))
        if tree.texts and len(tree.tokens) + len(text) - 1 - shared > size:
            yield tree
            tree, path, shared = _Tree(), [], 0
        path, before = tree.add(index, text, path[:shared]), text
    if tree.texts:
        yield tree


def _shared(one: Sequence[int], other: Sequence[int], most: int) -> int:
    """Return how many first tokens two texts share, at most `most`."""
    return next((n for n in range(most) if one[n] != other[n]), most)


class _TreeCache:
    """What a model needs to read trees as rows: see gpt2kit.cache.Cache. It keeps no tokens."""

    def __init__(self, trees: Sequence[_Tree], device: torch.device) -> None:
        R, T = len(trees), max(len(tree.tokens) for tree in trees)
        depths = np.zeros((R, T), dtype=np.int64)
        visible = np.zeros((R, 1, T, T), dtype=bool)
        visible[:, 0] = np.eye(T, dtype=bool)  # padding sees itself, for softmax needs a key
        for row, tree in enumerate(trees):
            n = len(tree.tokens)
            depths[row, :n] = tree.depths
            visible[row, 0, :n, :n] = tree.visible()
        self._depths = torch.from_numpy(depths).to(device)  # (R, T)
        self._visible = torch.from_numpy(visible).to(device)  # (R, 1, T, T)

    def positions(self, n: int) -> Tensor:
        """Return the position of each token in its text, (R, T)."""
        return self._depths

    def mask(self, n: int) -> Tensor:
        """Return which tokens each token attends to, (R, 1, T, T)."""
        return self._visible

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the new keys and values, which are all there are."""
        return keys, values

    def advance(self, n: int) -> None:
        """Keep nothing."""


def _edge_surprisals(model: GPT2, trees: Sequence[_Tree]) -> Tensor:
    """Return the surprisals of all edges of some trees, tree after tree, (edges,) float64."""
    cache = _TreeCache(trees, model.device)
    T = cache.positions(0).shape[1]
    ids = torch.tensor(
        [tree.tokens + [0] * (T - len(tree.tokens)) for tree in trees], device=model.device
    )  # (R, T)
    hidden = model.hidden(ids, cache).flatten(0, 1)  # (R * T, C)
    nodes, tokens = torch.tensor(
        [(row * T + node, token) for row, tree in enumerate(trees) for node, token in tree.edges],
        device=model.device,
    ).T  # (edges,) each
    nats = torch.empty(len(nodes), dtype=torch.float64, device=model.device)
    read, index = nodes.unique(return_inverse=True)  # nodes with edges: all but the padding
    n = max(1, LOGITS_AT_ONCE // model.config.n_vocab)
    for start in range(0, len(read), n):
        logits = precise(model.head(hidden[read[start : start + n]]))  # (n, V)
        here = ((index >= start) & (index < start + n)).nonzero()[:, 0]
        # The logits of a node are normalized once, however many tokens follow it.
        nats[here] = -logits.log_softmax(-1)[index[here] - start, tokens[here]].double()
    return nats.cpu()
