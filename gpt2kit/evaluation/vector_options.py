"""Which hidden states of a model become the vector of a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpt2kit.fields import check, option


@dataclass(frozen=True, kw_only=True)
class VectorOptions:
    """Which hidden states become the vector of a text."""

    layer: str = option(
        "ln_f",
        "0 is the stream after the embeddings, l the one after block l, ln_f what the head reads.",
        metavar="LAYER",
    )
    pool: Literal["mean", "last", "first"] = option(
        "mean", "The mean over the tokens of a text, or the vector of its last or first token."
    )
    normalize: bool = option(False, "Make the length of each vector 1.")
    first: Literal["bos", "none"] = option(
        "bos",
        "bos reads <|endoftext|> before each text; with none its first token is in no vector.",
    )
    stride: int | None = option(
        None,
        "A text longer than the model's window is read in windows that begin this many tokens "
        "apart. Default: half of n_ctx.",
        at_least=1,
    )

    def __post_init__(self) -> None:
        check(self)
