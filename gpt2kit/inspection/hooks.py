"""Hooks on a model's own modules that record activations and make edits, and are removed again.

Nothing here repeats the model's arithmetic, with three exceptions, which no module returns: the
scale of a norm, attention weights, and the update of each head.

    B rows, T tokens, S keys, C width, H heads, D head size
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gpt2kit.inspection.edits import Edit, check_edits, edited
from gpt2kit.inspection.places import PLACES, Spot, find_place
from gpt2kit.model import GPT2, Attention

_ORDER = {place: number for number, place in enumerate(PLACES)}


class Observer:
    """Sees every activation that is asked for as it is computed, edits it, and records it.

    `recorded` has the activations after all edits, in TransformerLens's order of dimensions; none
    of them keeps more memory than its own. With `gradients` they are a part of the graph, so that
    gradients with respect to them can be computed.
    """

    def __init__(
        self,
        model: GPT2,
        edits: Mapping[Spot, Sequence[Edit]],
        wanted: Collection[Spot] = (),
        *,
        length: int | None = None,
        gradients: bool = False,
    ) -> None:
        self.model = model
        self.edits = edits
        self.wanted = frozenset(wanted)
        self.length = length  # of the text, if it is known
        self.gradients = gradients
        self.starts: Sequence[int] = (0,)  # position of the first token: of each row, or of all
        self.rows = 1
        self.recorded: dict[Spot, Tensor] = {}

    def sees(self, spot: Spot, x: Tensor) -> Tensor:
        """Edit and record an activation; return what takes its place, or the same object."""
        if edits := self.edits.get(spot):
            x = edited(
                x, edits, self.starts, self.length, lambda: zero_of_z(self.model, spot.layer or 0)
            )
        if spot in self.wanted:
            if self.gradients:  # a node of the graph, from which all that follows is computed
                x = x.clone()
                x = x if x.requires_grad else x.requires_grad_()
            is_part = x.numel() * x.itemsize < x.untyped_storage().nbytes()
            self.recorded[spot] = x.clone() if is_part and not self.gradients else x
        return x

    def sees_part(self, spot: Spot, whole: Tensor) -> Tensor | None:
        """See a part of what a module reads or returns; return the new whole, if it changed."""
        config = self.model.config
        part = spot.place.part or (lambda x, _: x)
        before = part(whole, config)
        after = self.sees(spot, before)
        if after is before:
            return None
        if spot.place.part is None:
            return after
        whole = whole.clone()
        part(whole, config).copy_(after)
        return whole


def zero_of_z(model: GPT2, layer: int) -> Tensor:
    """Return the z that TransformerLens calls zero, (H, D): the values of the norm's bias."""
    config, block = model.config, f"h.{layer}"
    bias = getattr(model.get_submodule(f"{block}.ln_1"), "bias", None)  # (C,)
    if bias is None:
        bias = torch.zeros(config.n_embd, dtype=model.dtype, device=model.device)
    with torch.no_grad():
        both = model.get_submodule(f"{block}.attn.c_attn").forward(bias[None])  # (1, 3 C)
    values: Tensor = both[0, -config.n_embd :]
    return values.view(config.n_head, config.head_size)


def check(
    model: GPT2, edits: Mapping[Spot, Sequence[Edit]], *, rows: int | None, length: int | None
) -> None:
    """Raise ConfigError for edits whose indices are not there, or that contradict each other."""
    config = model.config
    sizes = {"H": config.n_head, "D": config.head_size, "C": config.n_embd, "1": 1}
    sizes["I"] = config.inner_size
    sizes |= {} if rows is None else {"B": rows}
    sizes |= {} if length is None else {"T": length, "S": length}
    for each in edits.values():
        check_edits(each, sizes)


@contextlib.contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Meanwhile let the observer see what it has edits for or wants to record; dropout is off."""
    model = observer.model
    was_training = model.training
    spots = sorted({*observer.edits, *observer.wanted}, key=lambda spot: _ORDER[spot.place])
    with contextlib.ExitStack() as stack:
        stack.callback(model.train, was_training)
        model.eval()

        def rows(module: nn.Module, args: tuple[Any, ...]) -> None:
            observer.rows = len(args[0])

        def starts(module: nn.Module, args: tuple[Any, ...]) -> None:
            observer.starts = args[0][..., 0].flatten().tolist()  # of (T,) or (B, T) positions

        stack.callback(model.wte.register_forward_pre_hook(rows).remove)
        stack.callback(model.wpe.register_forward_pre_hook(starts).remove)
        watched = set()
        for spot in spots:
            watch = _KINDS[spot.place.kind]
            once = (watch, spot.module if watch in (_watch_norm, _watch_attention) else spot)
            if once not in watched:
                watched.add(once)
                watch(observer, spot, model.get_submodule(spot.module), stack)
        yield


def _watch(observer: Observer, spot: Spot, module: nn.Module, stack: contextlib.ExitStack) -> None:
    """See what a module reads or returns."""

    def reads(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        after = observer.sees_part(spot, args[0])
        return None if after is None else (after, *args[1:])

    def returns(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if output.dim() < 3:  # positions that are the same in each row: (T, C)
            output = output.expand(observer.rows, *output.shape)
        return observer.sees_part(spot, output)

    if spot.place.is_input:
        stack.callback(module.register_forward_pre_hook(reads).remove)
    else:
        stack.callback(module.register_forward_hook(returns).remove)


def _watch_middle(
    observer: Observer, spot: Spot, module: nn.Module, stack: contextlib.ExitStack
) -> None:
    """See the stream between attention and MLP, which is both normalized and added to."""
    config = observer.model.config

    def reads(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor] | None:
        after = observer.sees(spot, args[0])
        if after is args[0]:
            return None
        if config.residual:
            args[0].copy_(after)  # in place: the block adds the MLP's update to the same tensor
            return None
        return (after,)

    def returns(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return observer.sees(spot, output)

    if config.norm_first:
        stack.callback(module.register_forward_pre_hook(reads).remove)
    else:
        norm = observer.model.get_submodule(f"h.{spot.layer}.ln_1")
        stack.callback(norm.register_forward_hook(returns).remove)


def _watch_norm(
    observer: Observer, spot: Spot, module: nn.Module, stack: contextlib.ExitStack
) -> None:
    """See the scale that a norm divides by, and what it makes before its weight and bias."""
    spots = _together(spot)

    def returns(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        weight, epsilon = module.get_parameter("weight"), module.eps
        x = args[0].to(torch.promote_types(args[0].dtype, torch.float32))
        if isinstance(module, nn.LayerNorm):
            x = x - x.mean(dim=-1, keepdim=True)  # (B, T, C)
        scale = (x.square().mean(dim=-1, keepdim=True) + epsilon).sqrt()  # (B, T, 1)
        before = x / scale  # (B, T, C)
        new = observer.sees(spots["scale"], scale)
        after = observer.sees(spots["standardized"], before if new is scale else x / new)
        return None if after is before else output + ((after - before) * weight).to(output.dtype)

    stack.callback(module.register_forward_hook(returns).remove)


def _watch_updates(
    observer: Observer, spot: Spot, module: nn.Module, stack: contextlib.ExitStack
) -> None:
    """See what each head adds to the residual stream, without the bias."""

    def returns(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        updates = head_updates(observer.model, module, args[0])  # (B, T, H, C)
        after = observer.sees(spot, updates)
        return None if after is updates else output + (after - updates).sum(dim=2)

    stack.callback(module.register_forward_hook(returns).remove)


def head_updates(model: GPT2, c_proj: nn.Module, z: Tensor) -> Tensor:
    """Return what each head adds to the stream, of all heads' outputs: (B, T, C) -> (B, T, H, C).

    `c_proj` is the projection that reads them; its bias belongs to no head.
    """
    H, D = model.config.n_head, model.config.head_size
    own = torch.eye(H, dtype=z.dtype, device=z.device)[:, :, None]  # (H, H, 1)
    alone = own * z.view(*z.shape[:2], 1, H, D)  # (B, T, H, H, D): in row h only head h
    updates: Tensor = c_proj.forward(alone.flatten(-2))
    bias: Tensor = c_proj.forward(torch.zeros_like(z[:1, :1]))
    return updates - bias


def _watch_attention(
    observer: Observer, spot: Spot, module: nn.Module, stack: contextlib.ExitStack
) -> None:
    """See the masked scores and the weights of a layer's attention."""
    assert isinstance(module, Attention)
    spots = _together(spot)
    before = vars(module).get("attend")
    attend: Callable[..., Tensor] = module.attend

    def restore() -> None:
        del module.attend
        if before is not None:
            module.attend = before

    def seen(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        scores = masked_scores(q, k, options["attn_mask"], options["scale"])  # (B, H, T, S)
        weights = scores.softmax(dim=-1)
        new = observer.sees(spots["scores"], scores)
        after = observer.sees(spots["weights"], weights if new is scores else new.softmax(dim=-1))
        y = attend(q, k, v, **options)  # (B, H, T, D)
        return y if after is weights else y + ((after - weights) @ v.to(weights.dtype)).to(y.dtype)

    module.attend = seen  # type: ignore[assignment]
    stack.callback(restore)


def masked_scores(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Return the scaled scores, -inf for keys that a query may not look at: (B, H, T, S).

    (B, H, T, D) queries and (B, H, S, D) keys; without a mask each token sees no later one.
    """
    precise = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(precise) @ k.to(precise).mT * scale
    if mask is None:
        T, S = scores.shape[-2:]
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    return scores.masked_fill(~mask, -torch.inf)


def _together(spot: Spot) -> dict[str, Spot]:
    """Return the spots of a module that are computed together, by their kind."""
    module = spot.place.module
    places = [place for place in PLACES if place.module == module and place.kind]
    return {place.kind: Spot(place, spot.layer) for place in places}


_KINDS: Mapping[str, Callable[[Observer, Spot, Any, contextlib.ExitStack], None]] = {
    "": _watch,
    "middle": _watch_middle,
    "scale": _watch_norm,
    "standardized": _watch_norm,
    "updates": _watch_updates,
    "scores": _watch_attention,
    "weights": _watch_attention,
}


def spots_of(model: GPT2, names: Iterable[str]) -> list[Spot]:
    """Return the spots that names stand for; raises ConfigError for what the model lacks."""
    return [spot for name in names for spot in find_place(name).spots(model.config, name)]


def by_spot(model: GPT2, edits: Iterable[Edit]) -> dict[Spot, list[Edit]]:
    """Return edits by the spots at which they are made; raises ConfigError for unknown places."""
    found: dict[Spot, list[Edit]] = {}
    for edit in edits:
        for spot in edit.named.spots(model.config, edit.place):
            found.setdefault(spot, []).append(edit)
    return found
