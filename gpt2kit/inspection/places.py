"""The activations of a model by name, ours and TransformerLens's, with their shapes.

A name stands for one layer ("layers.9.head_outputs", "blocks.9.attn.hook_z") or, without the layer,
for all of them ("head_outputs", "z"). TransformerLens's names stand for TransformerLens's shapes.

    B rows, T tokens, S keys, C width, H heads, D head size, I width of the MLP's hidden layer
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpt2kit.config import GPT2Config
from gpt2kit.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Place:
    """One kind of activation: its names, its shape, and the module at which it is met."""

    name: str  # ours; of a layer the field of LayerTrace, if it is there
    lens_name: str  # TransformerLens's, without "blocks.9."; empty if it has none
    dims: str  # its shape as TransformerLens has it, a letter for each dimension
    module: str = ""  # without "h.9."; the block itself has no more name
    is_input: bool = False  # of the module, rather than its output
    in_layer: bool = True
    # What is computed at the module, for what is neither its input nor its output as a whole
    kind: str = ""
    # The part of the module's input or output that this is, as a view
    part: Callable[[Tensor, GPT2Config], Tensor] | None = None
    shorts: tuple[str, ...] = ()  # more names

    @property
    def own_dims(self) -> str:
        """The dimensions in our order: heads before tokens."""
        return {"BTHD": "BHTD", "BTHC": "BHTC"}.get(self.dims, self.dims)

    def in_our_order(self, x: Tensor) -> Tensor:
        """Return an activation in TransformerLens's order of dimensions in ours, or the reverse."""
        return x.transpose(1, 2) if self.own_dims != self.dims else x

    def missing_in(self, config: GPT2Config) -> str | None:
        """Say what a model lacks to have this place, or return None if it has it."""
        if self.in_layer and not config.n_layer:
            return "this model has no layers"
        if config.mlp == "none" and (
            self.module.startswith(("mlp", "ln_2")) or self.name == "middle"
        ):
            return "this model has no MLP"
        if self.module == "wpe" and config.positions == "none":
            return "this model has no position embeddings"
        if self.kind in ("scale", "standardized") and config.norm == "none":
            return "this model does not normalize"
        return None


def _part_of_heads(number: int) -> Callable[[Tensor, GPT2Config], Tensor]:
    """Return what cuts queries (0), keys (1) or values (2) out of the output of c_attn."""

    def part(x: Tensor, config: GPT2Config) -> Tensor:
        return x.view(*x.shape[:2], 3, config.n_head, config.head_size)[:, :, number]

    return part


def _heads(x: Tensor, config: GPT2Config) -> Tensor:
    return x.view(*x.shape[:2], config.n_head, config.head_size)  # (B, T, H, D)


def _gate(x: Tensor, config: GPT2Config) -> Tensor:
    """Return what goes into the activation function: of SwiGLU's first matrix, the first half."""
    return x.chunk(2, dim=-1)[0] if config.mlp == "swiglu" else x


# In the order in which a model computes them.
PLACES: tuple[Place, ...] = (
    Place("token_embeddings", "hook_embed", "BTC", "wte", in_layer=False),
    Place("position_embeddings", "hook_pos_embed", "BTC", "wpe", in_layer=False),
    Place("before", "hook_resid_pre", "BTC", "", True, shorts=("resid_pre",)),
    Place("norm_1_scale", "ln1.hook_scale", "BT1", "ln_1", kind="scale"),
    Place("norm_1_standardized", "ln1.hook_normalized", "BTC", "ln_1", kind="standardized"),
    Place("queries", "attn.hook_q", "BTHD", "attn.c_attn", part=_part_of_heads(0), shorts=("q",)),
    Place("keys", "attn.hook_k", "BTHD", "attn.c_attn", part=_part_of_heads(1), shorts=("k",)),
    Place("values", "attn.hook_v", "BTHD", "attn.c_attn", part=_part_of_heads(2), shorts=("v",)),
    Place("masked_scores", "attn.hook_attn_scores", "BHTS", "attn", kind="scores"),
    Place("weights", "attn.hook_pattern", "BHTS", "attn", kind="weights"),
    Place("head_outputs", "attn.hook_z", "BTHD", "attn.c_proj", True, part=_heads),
    Place("head_updates", "attn.hook_result", "BTHC", "attn.c_proj", kind="updates"),
    Place("attention_update", "hook_attn_out", "BTC", "attn"),
    Place("middle", "hook_resid_mid", "BTC", "ln_2", True, kind="middle"),
    Place("norm_2_scale", "ln2.hook_scale", "BT1", "ln_2", kind="scale"),
    Place("norm_2_standardized", "ln2.hook_normalized", "BTC", "ln_2", kind="standardized"),
    Place("mlp_before", "mlp.hook_pre", "BTI", "mlp.c_fc", part=_gate, shorts=("mlp_pre",)),
    Place("mlp_after", "mlp.hook_post", "BTI", "mlp.c_proj", True, shorts=("mlp_post",)),
    Place("mlp_update", "hook_mlp_out", "BTC", "mlp"),
    Place("after", "hook_resid_post", "BTC", "", shorts=("resid_post",)),
    Place("final", "", "BTC", "ln_f", True, in_layer=False),
    Place("final_scale", "ln_final.hook_scale", "BT1", "ln_f", in_layer=False, kind="scale"),
    Place(
        "final_standardized", "ln_final.hook_normalized", "BTC", "ln_f", in_layer=False,
        kind="standardized",
    ),
    Place("normalized", "", "BTC", "ln_f", in_layer=False),
)  # fmt: skip


@dataclass(frozen=True)
class Spot:
    """A place in one layer, or outside of the layers."""

    place: Place
    layer: int | None

    @property
    def name(self) -> str:
        """TransformerLens's name, or ours if it has none."""
        place = self.place
        if not place.lens_name:
            return place.name
        return place.lens_name if self.layer is None else f"blocks.{self.layer}.{place.lens_name}"

    @property
    def module(self) -> str:
        """The name of the module at which it is met."""
        inner = self.place.module
        return inner if self.layer is None else f"h.{self.layer}.{inner}".rstrip(".")


@dataclass(frozen=True)
class Named:
    """What a name stands for: a place, its layer if the name says one, and whose shape it has."""

    place: Place
    layer: int | None
    is_ours: bool

    @property
    def dims(self) -> str:
        """The letters of the dimensions in the order of the name."""
        return self.place.own_dims if self.is_ours else self.place.dims

    def spots(self, config: GPT2Config, text: str) -> list[Spot]:
        """Return where this is in a model: one spot, or one in each layer.

        Raises ConfigError for a place or layer that the model does not have; `text` is the name.
        """
        if lack := self.place.missing_in(config):
            raise ConfigError(f"{text}: {lack}; it has {', '.join(_short_names(config))}")
        if not self.place.in_layer:
            return [Spot(self.place, None)]
        if self.layer is None:
            return [Spot(self.place, layer) for layer in range(config.n_layer)]
        if self.layer >= config.n_layer:
            count = config.n_layer
            raise ConfigError(
                f"{text}: there is no layer {self.layer}, expected "
                f"{f'0 to {count - 1}' if count > 1 else '0 alone'}"
            )
        return [Spot(self.place, self.layer)]


@functools.cache
def find_place(name: str) -> Named:
    """Return what a name stands for; raises ConfigError, with a similar name, for an unknown one.

    >>> find_place("blocks.9.attn.hook_z").place.name
    'head_outputs'
    >>> find_place("z").layer is None
    True
    """
    found = re.fullmatch(r"(layers|blocks)\.(\d{1,4})\.(.+)", name)
    owner, layer, rest = (found[1], int(found[2]), found[3]) if found else ("", None, name)
    known = {"layers": _OURS, "blocks": _THEIRS, "": {**_THEIRS, **_OURS}}[owner]
    place = known.get(rest)
    if place is None or (layer is not None and not place.in_layer):
        near = difflib.get_close_matches(rest, known, 1, 0.5)
        beginning = name[: len(name) - len(rest)]
        advice = f"did you mean {beginning}{near[0]}?" if near else f"there are {_all_names()}"
        raise ConfigError(f"no activation is called {name!r}; {advice}")
    return Named(place, layer, rest in _OURS)


def present_in(config: GPT2Config) -> Iterator[Place]:
    """Yield the places that a model has, in the order in which it computes them."""
    return (place for place in PLACES if place.missing_in(config) is None)


def _lens_names(place: Place) -> Iterator[str]:
    """Yield the ways to write TransformerLens's name of a place."""
    if not place.lens_name:
        return
    yield place.lens_name
    yield from place.shorts
    if "ln" not in place.lens_name:  # each norm has a scale
        last = place.lens_name.rpartition(".")[2]
        yield last
        yield last.removeprefix("hook_")


def _short_names(config: GPT2Config) -> Iterator[str]:
    for place in present_in(config):
        last = place.lens_name.rpartition(".")[2].removeprefix("hook_")
        yield place.name if not last or "ln" in place.lens_name else last


def _all_names() -> str:
    return ", ".join(place.name for place in PLACES)


_OURS: Mapping[str, Place] = {place.name: place for place in PLACES}
_THEIRS: Mapping[str, Place] = {name: place for place in PLACES for name in _lens_names(place)}
