"""A picture of one feature of a sparse autoencoder: where it fires, and what it promotes.

T tokens, N promoted tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpt2kit.errors import ConfigError
from gpt2kit.plots.canvas import (
    BLUE,
    FONT,
    ORANGE,
    WIDTH,
    Token,
    check_tokens,
    name_positions,
    new_figure,
    readable,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BARS = 0.68  # share of the width for the activations, if promoted tokens stand beside them
_MARGIN = 0.9  # inches beside an axis
_ROW = 0.24  # inches, height of a promoted token


def feature(
    activations: Sequence[float],
    tokens: Sequence[Token],
    promoted: Sequence[tuple[Token, float]] = (),
    *,
    title: str = "",
    first: int = 0,
) -> Figure:
    """Draw how strongly a feature fires at each token of a text, and the logits that it raises.

    `activations` has a number for each of the T tokens, whose positions count from `first`.
    `promoted` has N tokens with the change of their logits for one unit of the feature. Raises
    ConfigError for a text without tokens.
    """
    if not tokens:
        raise ConfigError("the text has no tokens to draw")
    check_tokens(tokens, len(activations))
    figure = new_figure(title, max(3.2, 1.2 + _ROW * len(promoted)))
    share = _BARS if promoted else 1.0
    panels = figure.subplots(
        1,
        2 if promoted else 1,
        squeeze=False,
        width_ratios=[share, 1 - share][: 1 + bool(promoted)],
    )[0]
    panels[0].bar(np.arange(len(tokens)), activations, color=BLUE, width=0.8)
    panels[0].set(ylabel="activation", xlim=(-0.6, len(tokens) - 0.4))
    panels[0].axhline(0, color="black", linewidth=0.8)
    name_positions(panels[0], "x", tokens, WIDTH * share - _MARGIN, first, numbered=True)
    if promoted:
        names = [readable(token) for token, _ in promoted]
        rows = np.arange(len(promoted))
        panels[1].barh(rows, [value for _, value in promoted], color=ORANGE)
        panels[1].set_yticks(rows, names, fontfamily=FONT, fontsize=8, parse_math=False)
        panels[1].invert_yaxis()  # the first on top
        panels[1].set(xlabel="logit for one unit")
        panels[1].set_title("tokens that it promotes", fontsize=10)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure
