"""A picture of how the next token is chosen: probabilities by temperature, and top-k and top-p."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from gpt2kit.errors import ConfigError
from gpt2kit.generation.request import Sampling
from gpt2kit.generation.sampling import candidates, keep_top_p
from gpt2kit.plots.canvas import (
    BLUE,
    ORANGE,
    RED,
    SEQUENTIAL,
    WIDTH,
    Array,
    name_positions,
    new_figure,
    numbers,
    plain_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from gpt2kit.tokenizers import Tokenizer

_SHOWN = 50  # of the most likely tokens
_LEAST = 1e-5  # probability that the curves show


def temperature(
    logits: Tensor,
    tokenizer: Tokenizer,
    temperatures: Sequence[float] = (0.5, 1.0, 1.5),
    *,
    top_k: int = 40,
    top_p: float = 0.9,
) -> Figure:
    """Draw the next token's distribution at each temperature, and where top-k and top-p cut it.

    `logits` are those of one position, (V,). As in sampling, top-k comes first, and top-p counts
    within what top-k keeps. Raises ConfigError for the same values as Sampling.
    """
    if not temperatures:
        raise ConfigError("no temperatures; expected at least one")
    samplings = [Sampling(temperature=value, top_k=top_k, top_p=top_p) for value in temperatures]
    logits = logits[: tokenizer.n_vocab].detach().float().cpu()
    n = min(_SHOWN, len(logits))
    words = [
        tokenizer.token_bytes(token)
        for token in logits.sort(descending=True, stable=True).indices[:n].tolist()
    ]
    figure = new_figure("How likely each next token is", 4.3 + 1.6 * len(samplings))
    ratios = [2.5, *(1.6 for _ in samplings)]
    above, *panels = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios)
    _draw_curves(above, logits, temperatures, n)
    for axes, sampling in zip(panels, samplings, strict=True):
        axes.sharey(panels[0])
        probabilities = distribution(logits, sampling.temperature)  # (V,), descending
        by_k, by_p = kept(logits, sampling)
        axes.bar(
            np.arange(n),
            probabilities[:n],
            color=[BLUE if rank < by_p else "0.75" for rank in range(n)],
        )
        for count, color, style, what in (
            (by_k, RED, "--", f"top-k {top_k}"),
            (by_p, ORANGE, "-", f"top-p {top_p:g}"),
        ):
            beyond = " (beyond the picture)" if count > n else ""
            label = f"{what} keeps {count:,}{beyond}"
            axes.axvline(count - 0.5, color=color, linestyle=style, label=label)
        axes.set(ylabel="probability", xlim=(-0.7, n - 0.3))
        axes.set_title(f"temperature {sampling.temperature:g}", fontsize=10, loc="left")
        axes.legend(fontsize=8, title="gray: never drawn", title_fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    name_positions(panels[-1], "x", words, WIDTH - 1)
    panels[-1].set_xlabel(
        f"the {n} most likely of {len(logits):,} tokens" if n < len(logits) else f"the {n} tokens"
    )
    return figure


def _draw_curves(axes: Axes, logits: Tensor, temperatures: Sequence[float], n: int) -> None:
    """Draw the probabilities of the n most likely tokens, a curve for each temperature."""
    import matplotlib

    colors = matplotlib.colormaps[SEQUENTIAL](np.linspace(0, 0.85, len(temperatures)))
    for temperature, color in zip(temperatures, colors, strict=True):
        probabilities = distribution(logits, temperature)[:n]  # (n,)
        drawn = np.where(probabilities > 0, probabilities, np.nan)
        axes.plot(drawn, color=color, marker="o", markersize=3, label=f"{temperature:g}")
    axes.set(yscale="log", ylim=(_LEAST, 1.5), ylabel="probability (logarithmic)")
    axes.set_title("all temperatures", fontsize=10, loc="left")
    axes.legend(fontsize=8, title="temperature", title_fontsize=8, loc="upper right")
    axes.grid(alpha=0.3)
    plain_numbers(axes.yaxis)


def distribution(logits: Tensor, temperature: float) -> Array:
    """Return the probabilities at a temperature, in descending order: (V,) -> (V,)."""
    logits = logits.sort(descending=True, stable=True).values
    return numbers(((logits - logits[0]) / max(temperature, 1e-30)).softmax(dim=-1))


def kept(logits: Tensor, sampling: Sampling) -> tuple[int, int]:
    """Return how many tokens top-k keeps, and how many of those top-p keeps."""
    values, _ = candidates(logits[None], sampling.top_k, sorted_=True)  # (1, K)
    scaled = (values - values[:, :1]) / max(sampling.temperature, 1e-30)
    return values.shape[1], int(keep_top_p(scaled.softmax(dim=-1), sampling.top_p).count_nonzero())
