"""Run a model with edits, and record what is asked for: one way to look, one way to change.

    found = run(model, ids, edits=[Edit("z", layer…)], record=["resid_post"])

B rows, T tokens, V vocabulary
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2kit.cache import KVCache
from gpt2kit.errors import ConfigError
from gpt2kit.inspection.edits import Edit
from gpt2kit.inspection.hooks import Observer, by_spot, check, observing, spots_of
from gpt2kit.inspection.places import Spot, find_place
from gpt2kit.model import GPT2


@dataclass(frozen=True)
class Recorded:
    """Activations that were recorded, under either name.

    `found["resid_post", 3]`, `found["blocks.3.hook_resid_post"]` and `found["after", 3]` are one
    activation; its shape is that of the name (see docs/interventions.md).
    """

    activations: Mapping[Spot, Tensor]  # in TransformerLens's order of dimensions

    def __getitem__(self, name: str | tuple[str, int]) -> Tensor:
        text, layer = (name, None) if isinstance(name, str) else name
        named = find_place(text)
        place = named.place
        layer = named.layer if layer is None else layer
        here = [spot for spot in self.activations if spot.place is place]
        if layer is None and place.in_layer and len(here) == 1:
            layer = here[0].layer
        found = self.activations.get(Spot(place, layer))
        if found is None:
            raise ConfigError(self._missing(text, layer, here))
        return place.in_our_order(found) if named.is_ours else found

    def __contains__(self, name: object) -> bool:
        try:
            return isinstance(name, str | tuple) and self[name] is not None
        except ConfigError:
            return False

    def _missing(self, text: str, layer: int | None, here: Sequence[Spot]) -> str:
        if here and layer is None:
            return f"{text} was recorded in {len(here)} layers; expected a layer: [{text!r}, 3]"
        others = ", ".join(dict.fromkeys(self.names)) or "nothing"
        where = text if layer is None else f"{text} of layer {layer}"
        return f"{where} was not recorded; recorded: {others[:300]}"

    @property
    def names(self) -> list[str]:
        """The full names of what was recorded, TransformerLens's if it has one."""
        return [spot.name for spot in self.activations]


@dataclass(frozen=True)
class Run(Recorded):
    """What a model computed with some edits: its logits, and the activations that were recorded."""

    model: GPT2
    ids: Tensor  # (B, T)
    logits: Tensor  # (B, T, V)

    def gradients(self, metric: Tensor) -> Recorded:
        """Return the gradient of a number, (), with respect to everything that was recorded.

        The number is computed from the logits of `run(…, gradients=True)`.
        """
        found = torch.autograd.grad(metric, [*self.activations.values()], retain_graph=True)
        return Recorded(dict(zip(self.activations, found, strict=True)))


def run(
    model: GPT2,
    ids: Tensor,
    edits: Sequence[Edit] = (),
    record: Sequence[str] = (),
    *,
    cache: KVCache | None = None,
    gradients: bool = False,
) -> Run:
    """Read (B, T) ids with some activations changed, and record others, after all edits.

    The model itself is as before at the end; dropout is off. `record` takes names as in
    `gpt2kit.inspection.places`: of one layer, or of all. With a cache the text that it holds is
    continued; positions then count from the beginning of that text, and none from its end. With
    `gradients`, `Run.gradients` can tell how a number depends on what was recorded.

    Raises ConfigError for ids of another shape, for what the model does not have, and for edits
    that set the same numbers; ContextLengthError for more tokens than the model has positions.
    """
    check_ids(ids)
    B, T = ids.shape
    grouped, wanted = by_spot(model, edits), spots_of(model, record)
    length = None if cache else T  # with a cache the text may continue after these tokens
    check(model, grouped, rows=B, length=length)
    if B == 1 and (mean := next((edit for edit in edits if edit.is_mean), None)):
        raise ConfigError(
            f"({mean}): a mean over the rows of the batch needs several rows, found 1; "
            "give the mean itself as a tensor"
        )
    observer = Observer(model, grouped, wanted, length=length, gradients=gradients)
    with torch.set_grad_enabled(gradients), observing(observer):
        ids = ids.to(model.device)
        logits = model(ids, cache)
    recorded = {spot: observer.recorded[spot] for spot in dict.fromkeys(wanted)}
    return Run(recorded, model, ids, logits)


def continued(model: GPT2, stream: Tensor, layer: int, edits: Sequence[Edit]) -> Tensor:
    """Return what the head reads if a residual stream enters a layer: (B, T, C) -> (B, T, C).

    The edits are made on the way; they are not checked.
    """
    observer = Observer(model, by_spot(model, edits), length=stream.shape[1])
    with torch.no_grad(), observing(observer):
        for block in model.h[layer:]:
            stream = block(stream, None, None)
        return model.ln_f(stream)  # type: ignore[no-any-return]


@contextlib.contextmanager
def editing(model: GPT2, edits: Sequence[Edit]) -> Iterator[None]:
    """Make edits in everything that the model reads meanwhile, also while it generates.

        with editing(model, [Edit("blocks.9.attn.hook_z", head=9, value=0)]):
            print(gpt2kit.generate(model, tokenizer, "When Mary and John"))

    Positions count from the beginning of each text; since it is still being written, none counts
    from its end. Every text is edited alike. Texts are read by torch meanwhile, not by the native
    step. Raises ConfigError for what `run` would refuse, and for edits of single rows.
    """
    for edit in edits:
        if edit.row is not None or edit.is_mean:
            raise ConfigError(f"({edit}): while texts are generated, no rows are told apart")
    grouped = by_spot(model, edits)
    check(model, grouped, rows=None, length=None)
    with observing(Observer(model, grouped)):
        yield


def check_ids(ids: Tensor) -> None:
    """Raise ConfigError unless ids are (B, T)."""
    if ids.dim() != 2:
        raise ConfigError(
            f"expected (B, T) ids, found the shape {tuple(ids.shape)}; "
            "for one text: torch.tensor([ids])"
        )
