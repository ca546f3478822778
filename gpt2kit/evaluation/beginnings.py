"""Surprisal of many short texts that begin alike: what they share is read once.

The texts become trees of tokens, each of which belongs to all texts that begin with it and with the
tokens before it.

    N nodes of some trees, V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from gpt2kit.engine.decoder import Decoder
from gpt2kit.engine.protocol import Nodes
from gpt2kit.errors import ContextLengthError
from gpt2kit.evaluation.surprisal import BATCH_SIZE, Progress, check_finite, ignore
from gpt2kit.model import GPT2

# Nodes of a tree, if no text is longer. Larger trees share more, but for torch attention costs
# their square, and the native step keeps more texts in its cache.
TREE_SIZE = 256
# Trees that the native step reads one after the other into the same cache.
NATIVE_TREES = 8


def text_surprisals(
    model: GPT2,
    texts: Sequence[Sequence[int]],
    *,
    batch_size: int = BATCH_SIZE,
    progress: Progress = ignore,
) -> list[Tensor]:
    """Return the surprisals of every token but the first of each text, in nats: n ids -> (n - 1,).

    The results are float64, on the CPU, and those of `surprisal.surprisals` but for rounding. A
    text has at least two and at most n_ctx + 1 ids. `batch_size` is about the number of texts that
    are read at once.
    """
    for text in texts:
        if len(text) > model.config.n_ctx + 1:
            limit = model.config.n_ctx
            message = f"a text has {len(text):,} tokens; expected at most {limit + 1:,}"
            raise ContextLengthError(message, requested=len(text) - 1, limit=limit)
    decoder = Decoder(model)
    rows = NATIVE_TREES if decoder.scores_natively() else max(1, batch_size // BATCH_SIZE)
    found: dict[int, Tensor] = {}
    trees = _trees(texts, model.config.n_ctx, batch_size)
    while some := list(islice(trees, rows)):
        with torch.inference_mode():
            nats = _surprisals(decoder, some)
        check_finite(nats)
        indices = [index for tree in some for index in tree.texts]
        lengths = [len(texts[index]) - 1 for index in indices]
        found.update(zip(indices, torch.split(nats, lengths), strict=True))
        progress(len(found), len(texts))
    return [found[index] for index in range(len(texts))]


@dataclass
class _Tree:
    """Texts that begin alike. Their last tokens are only scored, never read: they have no node."""

    texts: list[int] = field(default_factory=list)  # the index of each
    tokens: list[int] = field(default_factory=list)  # of each node
    slots: list[int] = field(default_factory=list)  # the first text of each node, counted from 0
    positions: list[int] = field(default_factory=list)  # of each node in its texts
    # Of each scored token, text after text: the node before it, and the token itself.
    before: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    last: int = 0  # nodes of the text added last

    def add(self, index: int, text: Sequence[int], shared: int) -> None:
        """Add a text that shares its first nodes with the text added before it."""
        start, n = len(self.before) - self.last, len(self.tokens)
        self.before += self.before[start : start + shared]
        self.before += range(n, n + len(text) - 1 - shared)
        self.targets += text[1:]
        self.tokens += text[shared:-1]
        self.positions += range(shared, len(text) - 1)
        self.slots += [len(self.texts)] * (len(self.tokens) - n)
        self.texts.append(index)
        self.last = len(text) - 1

    def nodes(self) -> Nodes:
        """Return the nodes. Sorted texts that share one are adjacent."""
        return Nodes(self.tokens, self.slots, self.positions, np.bincount(self.before).tolist())


def _trees(texts: Sequence[Sequence[int]], n_ctx: int, batch_size: int) -> Iterator[_Tree]:
    """Put texts into trees of about TREE_SIZE nodes, sorted, so that neighbors begin alike.

    The native step keeps each text of a tree in a slot as long as the longest of them: together no
    longer than `batch_size` of the longest texts.
    """
    size = min(n_ctx, max(TREE_SIZE, max(map(len, texts), default=1) - 1))
    tree, before, longest = _Tree(), list[int](), 0
    for index in sorted(range(len(texts)), key=lambda index: list(texts[index])):
        text = list(texts[index])
        n = len(text) - 1
        shared = _shared(before, text)
        room = max(longest, n) * (len(tree.texts) + 1)
        if tree.texts and (len(tree.tokens) + n - shared > size or room > batch_size * n_ctx):
            yield tree
            tree, shared, longest = _Tree(), 0, 0
        tree.add(index, text, shared)
        before, longest = text, max(longest, n)
    if tree.texts:
        yield tree


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many first tokens two texts share, without the last token of either."""
    most = min(len(one), len(other)) - 1
    return next((n for n in range(most) if one[n] != other[n]), max(0, most))


def _surprisals(decoder: Decoder, trees: Sequence[_Tree]) -> Tensor:
    """Return the surprisals of all scored tokens of some trees, text after text, (n,) float64."""
    starts = np.cumsum([0, *(len(tree.tokens) for tree in trees)])
    before = np.concatenate(
        [start + np.array(tree.before) for start, tree in zip(starts, trees, strict=False)]
    )  # (n,) nodes
    order = np.argsort(before, kind="stable")  # the logits come node after node
    targets = np.concatenate([tree.targets for tree in trees])[order]
    before = before[order]
    nats = torch.empty(len(order), dtype=torch.float64)
    start = 0
    for logits in decoder.score_nodes([tree.nodes() for tree in trees]):
        first, last = np.searchsorted(before, [start, start + len(logits)])
        rows, columns = before[first:last] - start, targets[first:last]
        # The logits of a node are normalized once, however many tokens follow it.
        some = -logits.log_softmax(-1)[rows, columns]
        nats[order[first:last]] = some.double().cpu()
        start += len(logits)
    return nats
