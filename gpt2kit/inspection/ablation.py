"""Ablation: what a model loses without some of its heads, MLPs or neurons.

A part is not removed but its output is replaced, everywhere in a text, in one of four ways:

- zero: by 0. A head's output is z, its values averaged by its attention, before the projection
- zero-tl: what TransformerLens's zero is for z. TransformerLens moves the values' biases into the
  bias of the projection, so that its zero leaves them: z becomes b_V + W_V beta, where beta is the
  bias of the norm. MLPs and neurons have no such bias, and zero means the same in both programs
- mean: by its mean over all positions of the reference texts
- resample: at each position by its output at a position of the reference texts, drawn at random
  with the seed, each part by itself

    B texts, T tokens of the longest, N positions of the reference texts, D numbers of a part's
    output: the head size, the width, or 1
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2kit.data.window import check_ids
from gpt2kit.engine.torch_engine import precise
from gpt2kit.errors import ConfigError
from gpt2kit.inspection.edits import Edit
from gpt2kit.inspection.explanation import check_head
from gpt2kit.inspection.heads import RandomTokens
from gpt2kit.inspection.measures import check_mlp, has_mlp
from gpt2kit.inspection.running import continued, editing, run
from gpt2kit.model import GPT2

Replacement = Literal["mean", "zero", "zero-tl", "resample"]

_TOKENS_AT_ONCE = 2048
_REFERENCE_TOKENS = 8192  # whose outputs are kept to draw from


# --- parts ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A head, an MLP or a neuron of one layer; `of_part` is the head or the neuron."""

    kind: Literal["head", "mlp", "neuron"]
    layer: int
    index: int | None = None  # of the head or the neuron

    @property
    def name(self) -> str:
        """9.6 for a head, MLP 3, neuron 3.17."""
        if self.kind == "mlp":
            return f"MLP {self.layer}"
        return f"{'' if self.kind == 'head' else 'neuron '}{self.layer}.{self.index}"

    @property
    def place(self) -> str:
        """The name of the activation that its output is a part of."""
        return f"layers.{self.layer}.{_PLACES[self.kind]}"

    def check(self, model: GPT2) -> None:
        """Raise ConfigError unless the model has this part."""
        if self.kind == "head":
            check_head(model, self.layer, self.index or 0)
            return
        check_mlp(model, self.layer)
        size = model.config.inner_size
        if self.kind == "neuron" and not 0 <= (self.index or 0) < size:
            raise ConfigError(
                f"there is no neuron {self.layer}.{self.index}; expected one from {self.layer}.0 "
                f"to {self.layer}.{size - 1}"
            )

    def edit(self, value: Tensor | float | Literal["zero-tl"] | Callable[[Tensor], Tensor]) -> Edit:
        """Return the edit that replaces its output."""
        if self.kind == "head":
            return Edit(self.place, head=self.index, value=value)
        return Edit(self.place, unit=self.index, value=value)

    def generator(self, seed: int) -> torch.Generator:
        """Return the part's own source of random numbers, the same on every machine."""
        key = (tuple(_PLACES).index(self.kind), self.layer, self.index or 0)
        state = np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0]))

    def outputs(self, activation: Tensor) -> Tensor:
        """Return its output in an activation of its place, by position: (N, D)."""
        if self.kind == "head":
            return activation[:, self.index or 0].flatten(0, 1)
        found = activation.flatten(0, 1)  # (N, C) or (N, I)
        return found if self.index is None else found[:, self.index, None]


_PLACES = {"head": "head_outputs", "mlp": "mlp_update", "neuron": "mlp_after"}


def every_head(model: GPT2) -> list[Part]:
    """Return all heads, by layer."""
    config = model.config
    return [
        Part("head", *each)
        for each in itertools.product(range(config.n_layer), range(config.n_head))
    ]


def every_mlp(model: GPT2) -> list[Part]:
    """Return all MLPs, by layer; none for a model of attention alone."""
    return [Part("mlp", layer) for layer in range(model.config.n_layer if has_mlp(model) else 0)]


# --- what is measured -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Texts:
    """Texts, and the number that each of them gives: its loss, or a difference of two logits.

    `first` is the position of the first token whose loss counts. With `compared`, two tokens for
    each text, the number is the difference of their logits at the end of the text.
    """

    ids: tuple[tuple[int, ...], ...]
    first: int = 1
    compared: tuple[tuple[int, int], ...] = ()

    @property
    def what(self) -> str:
        return "logit difference" if self.compared else "loss"

    def batches(self, batch_size: int | None = None) -> Iterator[range]:
        """Yield texts of similar length together, as many as are read at once."""
        longest = max(map(len, self.ids))
        size = batch_size or max(1, _TOKENS_AT_ONCE // longest)
        return (range(at, min(at + size, len(self.ids))) for at in range(0, len(self.ids), size))

    def padded(self, some: range) -> Tensor:
        """Return some texts as (B, T) ids; what follows the end of a text changes nothing in it."""
        longest = max(len(self.ids[number]) for number in some)
        rows = [[*self.ids[number], *[0] * (longest - len(self.ids[number]))] for number in some]
        return torch.tensor(rows)

    @torch.no_grad()
    def values(self, model: GPT2, hidden: Tensor, some: Sequence[int]) -> Tensor:
        """Return the number of each of some texts, (B,) float64.

        `hidden` is what the head reads, (B, T, C); logits are computed only where they count.
        """
        ends = [len(self.ids[number]) for number in some]
        if self.compared:
            last = hidden[range(len(ends)), [end - 1 for end in ends]]  # (B, C)
            both = torch.tensor([self.compared[number] for number in some], device=hidden.device)
            logits = model.head(last).gather(1, both).double()  # (B, 2)
            return (logits[:, 0] - logits[:, 1]).cpu()
        counted = [hidden[row, self.first - 1 : end - 1] for row, end in enumerate(ends)]
        wanted = [token for number in some for token in self.ids[number][self.first :]]
        nats = F.cross_entropy(
            precise(model.head(torch.cat(counted))),  # (n, V)
            torch.tensor(wanted, device=hidden.device),
            reduction="none",
        )
        each = torch.split(nats.double(), [len(part) for part in counted])
        return torch.stack([part.mean() for part in each]).cpu()

    @property
    def weights(self) -> Tensor:
        """How much each text counts, (texts,): the tokens whose loss it gives, or 1."""
        return torch.tensor(
            [1 if self.compared else len(ids) - self.first for ids in self.ids], dtype=torch.float64
        )


def of_windows(ids: Sequence[int], length: int) -> Texts:
    """Return a text cut into windows of `length` tokens, the loss of each but its first token."""
    parts = [tuple(ids[at : at + length]) for at in range(0, len(ids), length)]
    parts = [part for part in parts if len(part) > 1]
    if not parts:
        raise ConfigError(f"the text has {len(ids)} tokens, expected 2 or more")
    return Texts(tuple(parts))


def of_repetition(tokens: RandomTokens) -> Texts:
    """Return random tokens that come twice, and the loss of the second copy.

    The first token of the copy is left out: nothing tells that the repetition begins.
    """
    rows = tokens.ids.tolist()
    return Texts(tuple(map(tuple, rows)), first=len(tokens.first) + tokens.length + 1)


# --- ablation -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effect:
    """What some parts do for a number: its mean over the texts with and without them."""

    parts: tuple[Part, ...]
    what: str  # loss, logit difference, or accuracy
    texts: int
    before: float
    after: float
    standard_error: float | None  # of the change, over the texts; None for a single one

    @property
    def change(self) -> float:
        return self.after - self.before

    @property
    def name(self) -> str:
        return ", ".join(part.name for part in self.parts)


class Ablation:
    """Replacements for parts of a model, made ready from reference texts."""

    def __init__(
        self,
        model: GPT2,
        parts: Sequence[Part],
        replacement: Replacement,
        reference: Texts | None = None,
        *,
        seed: int = 0,
    ) -> None:
        """Read the reference texts, if the replacement needs them.

        Raises ConfigError for parts that the model does not have or that are given twice, and for
        a mean or resampling without reference texts.
        """
        for part in parts:
            part.check(model)
            if parts.count(part) > 1:
                raise ConfigError(f"{part.name} is given twice; leave one out")
        self.model, self.parts, self.replacement = model, tuple(parts), replacement
        self._outputs: Mapping[Part, Tensor] = {}
        self._seed = seed
        if replacement in ("mean", "resample"):
            if reference is None:
                raise ConfigError(
                    f"{replacement} needs reference texts: give --reference FILE, or use zero"
                )
            for ids in reference.ids:
                check_ids(ids, model.config.n_vocab)
            self._outputs = _outputs(model, parts, reference)

    def edits(self, parts: Sequence[Part] | None = None) -> list[Edit]:
        """Return the edits that replace the parts, or some of them."""
        return [self._edit(part) for part in self.parts if parts is None or part in parts]

    def _edit(self, part: Part) -> Edit:
        if self.replacement == "zero" or (self.replacement == "zero-tl" and part.kind != "head"):
            return part.edit(0.0)
        if self.replacement == "zero-tl":
            return part.edit("zero-tl")
        outputs = self._outputs[part]  # (N, D)
        if self.replacement == "mean":
            mean = outputs.double().mean(dim=0).to(outputs.dtype)
            return part.edit(float(mean) if part.kind == "neuron" else mean)
        generator = part.generator(self._seed)

        def drawn(now: Tensor) -> Tensor:
            n = now.numel() // outputs.shape[1]
            rows = torch.randint(len(outputs), (n,), generator=generator)
            return outputs[rows.to(outputs.device)].view(now.shape)

        return part.edit(drawn)

    def effect(self, texts: Texts) -> Effect:
        """Return what the parts, all replaced at once, do for the texts."""
        before, after = values(self.model, texts), values(self.model, texts, self.edits())
        return effect_of(self.parts, texts, before, after)

    def effects(self, texts: Texts) -> Iterator[Effect]:
        """Yield what each part does for the texts, replaced by itself.

        The layers before a part compute the same with and without it, so each ablation starts at
        the layer of its part, and parts of a layer are computed together.
        """
        edits = {part: self._edit(part) for part in self.parts}
        by_layer: dict[int, list[Part]] = {}
        for part in self.parts:
            by_layer.setdefault(part.layer, []).append(part)
        before: list[Tensor] = []
        after: dict[Part, list[Tensor]] = {part: [] for part in self.parts}
        for some in texts.batches():
            streams = [f"layers.{layer}.before" for layer in by_layer]
            found = run(self.model, texts.padded(some), record=[*streams, "normalized"])
            before.append(texts.values(self.model, found["normalized"], some))
            at_once = max(1, _TOKENS_AT_ONCE // found.ids.numel())
            for layer, parts in by_layer.items():
                stream = found["before", layer]
                for start in range(0, len(parts), at_once):
                    few = parts[start : start + at_once]
                    hidden = _without_each(self.model, stream, layer, [edits[part] for part in few])
                    numbers = texts.values(self.model, hidden, [*some] * len(few))
                    for part, own in zip(few, torch.split(numbers, len(some)), strict=True):
                        after[part].append(own)
        for part in self.parts:
            yield effect_of((part,), texts, torch.cat(before), torch.cat(after[part]))


def _without_each(model: GPT2, stream: Tensor, layer: int, edits: Sequence[Edit]) -> Tensor:
    """Return what the head reads after each of N edits of a layer by itself: (N B, T, C).

    `stream` is what enters the layer, (B, T, C).
    """
    B = len(stream)
    own = [replace(edit, row=range(n * B, n * B + B)) for n, edit in enumerate(edits)]
    return continued(model, stream.repeat(len(edits), 1, 1), layer, own)


def values(model: GPT2, texts: Texts, edits: Sequence[Edit] = ()) -> Tensor:
    """Return the number of each text, with some edits made: (texts,) float64."""
    found = []
    for some in texts.batches():
        with torch.no_grad(), editing(model, edits):
            hidden = model.hidden(texts.padded(some).to(model.device))
        found.append(texts.values(model, hidden, some))
    return torch.cat(found)


def effect_of(parts: Sequence[Part], texts: Texts, before: Tensor, after: Tensor) -> Effect:
    """Return an effect from the numbers of each text with and without the parts: (texts,) each."""
    weights = texts.weights / texts.weights.sum()
    return Effect(
        tuple(parts),
        texts.what,
        len(before),
        float(weights @ before),
        float(weights @ after),
        standard_error(after - before, weights),
    )


def standard_error(changes: Tensor, weights: Tensor) -> float | None:
    """Return the standard error of a weighted mean over texts; None for a single text."""
    n = len(changes)
    if n < 2:
        return None
    away = changes - weights @ changes
    return math.sqrt(float((weights.square() * away.square()).sum()) * n / (n - 1))


def _outputs(model: GPT2, parts: Sequence[Part], reference: Texts) -> dict[Part, Tensor]:
    """Return the output of each part at positions of the reference texts, (N, D)."""
    places = list(dict.fromkeys(part.place for part in parts))
    found: dict[Part, list[Tensor]] = {part: [] for part in parts}
    read = 0
    for some in reference.batches():
        seen = run(model, reference.padded(some), record=places)
        inside = torch.cat(
            [torch.arange(seen.ids.shape[1]) < len(reference.ids[number]) for number in some]
        ).to(seen.ids.device)  # (B T,)
        for part in parts:
            found[part].append(part.outputs(seen[part.place])[inside])
        read += int(inside.sum())
        if read >= _REFERENCE_TOKENS:
            break
    return {part: torch.cat(outputs) for part, outputs in found.items()}
