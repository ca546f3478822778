"""What is patched by activation patching, and in which direction: the options of `patch`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpt2kit.errors import ConfigError
from gpt2kit.fields import check, option
from gpt2kit.inspection.places import Place, find_place

At = Literal[
    "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern"
]
By = Literal["position", "head", "both"]
Direction = Literal["denoise", "noise"]
_GROUP = "Patches"


@dataclass(frozen=True, kw_only=True)
class PatchOptions:
    """What is patched, and in which direction."""

    at: At = option(
        "resid_pre",
        "The activation: the residual stream before, between and after the parts of a layer; what "
        "attention or MLP add to it; outputs, queries, keys, values or attention weights of heads.",
        group=_GROUP,
    )
    by: By | None = option(
        None,
        "Patch a position at a time, a head (at all positions), or both.",
        group=_GROUP,
        default="a head if there are heads, else a position",
    )
    direction: Direction = option(
        "denoise",
        "denoise puts clean activations into the run of the corrupted prompt; noise puts corrupted "
        "ones into that of the clean prompt.",
        group=_GROUP,
    )
    attribution: bool = option(
        False,
        "Estimate each number by the gradient, too, and say how far both agree.",
        group=_GROUP,
    )

    def __post_init__(self) -> None:
        check(self)
        if self.by in ("head", "both") and "H" not in self.place.dims:
            raise ConfigError(f"{self.at} has no heads; patch it by position")

    @property
    def place(self) -> Place:
        return find_place(self.at).place

    @property
    def by_head(self) -> bool:
        """Whether each head is patched by itself."""
        return "H" in self.place.dims if self.by is None else self.by != "position"

    @property
    def by_position(self) -> bool:
        """Whether each position is patched by itself."""
        return not self.by_head or self.by == "both"
