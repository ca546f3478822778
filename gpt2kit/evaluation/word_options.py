"""How words are found and measured: the options of `words` and of the command surprisal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpt2kit.errors import ConfigError
from gpt2kit.fields import check, option

Boundary = Literal["whitespace", "space"]
Punctuation = Literal["keep", "split", "drop"]
UnitName = Literal["token", "word", "text"]


@dataclass(frozen=True, kw_only=True)
class WordOptions:
    """How words are found and measured."""

    base: Literal["2", "e", "10"] = option(
        "2", "Of the logarithms: 2 gives bits, e nats.", group="Output"
    )
    first: Literal["bos", "none"] = option(
        "bos",
        "bos predicts the first token of a text from <|endoftext|>; none leaves it out.",
    )
    stride: int | None = option(
        None,
        "A text longer than the model's window is read in windows that begin this many tokens "
        "apart. Default: half of n_ctx.",
        at_least=1,
    )
    punctuation: Punctuation = option(
        "keep",
        "At the edges of a word: keep it as a part, split it off as a word, or drop its tokens "
        "from the sums.",
    )
    boundary: Boundary = option(
        "whitespace",
        "What ends a word in the corrected surprisal: white space and the end of the text, or only "
        "a space, as in minicons.",
    )
    renyi: float | None = option(
        None, "Add the Rényi entropy of this order, such as 0.5.", above=0.0, metavar="ORDER"
    )

    def __post_init__(self) -> None:
        check(self)
        if self.renyi == 1:
            raise ConfigError("renyi is 1, where it is the plain entropy; expected another order")
