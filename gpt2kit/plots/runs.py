"""A picture of the losses of training runs, with moving averages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from gpt2kit.errors import ConfigError
from gpt2kit.plots.canvas import COLORS, ORANGE, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

By = Literal["step", "tokens"]

_X = {"step": "step", "tokens": "tokens_seen"}  # the field of a line of metrics
_LABELS = {"step": "step", "tokens": "tokens seen"}
_STYLES = ("-", ":", "-.")  # of the averages


@dataclass(frozen=True)
class Average:
    """A moving average: a simple mean of some steps, or an exponential one with a decay factor.

    Raises ConfigError for an unknown kind or an invalid amount.
    """

    kind: Literal["simple", "exponential"]
    amount: float  # number of steps, or decay per step

    def __post_init__(self) -> None:
        if self.kind == "simple" and not (self.amount >= 1 and float(self.amount).is_integer()):
            raise ConfigError(
                f"a simple average of {self.amount:g} steps; expected 1 or more, as in simple:20"
            )
        if self.kind == "exponential" and not 0 <= self.amount < 1:
            raise ConfigError(
                f"an exponential average with {self.amount:g}; expected 0 or more, less than 1"
            )
        if self.kind not in ("simple", "exponential"):
            raise ConfigError(f"average {self.kind!r}, expected simple:STEPS or exponential:FACTOR")

    @classmethod
    def parse(cls, text: str) -> Average:
        """Read an average as it is typed: simple:20 or exponential:0.9."""
        kind, _, amount = text.partition(":")
        try:
            return cls(kind, float(amount))  # type: ignore[arg-type]  # checked there
        except ValueError as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"average {text!r}, expected simple:STEPS or exponential:FACTOR, such as simple:20"
            ) from None

    def of(self, values: Sequence[float]) -> list[float]:
        """Return the average up to and including each value."""
        return (
            simple_average(values, int(self.amount))
            if self.kind == "simple"
            else exponential_average(values, self.amount)
        )

    def __str__(self) -> str:
        return (
            f"mean of {self.amount:g} steps"
            if self.kind == "simple"
            else f"exponential mean ({self.amount:g})"
        )


def losses(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    averages: Sequence[Average] = (Average("simple", 20),),
    *,
    apart: bool = False,
    by: By = "step",
) -> Figure:
    """Draw training and validation losses by step or by tokens seen, in one panel or apart in two.

    `runs` gives the lines of a run's metrics.jsonl by the run's name. Training losses are pale,
    their averages strong. By tokens, runs with batches of different sizes can be compared. Raises
    ConfigError for a run without losses, or without what they are drawn by.
    """
    figure = new_figure("Losses" if len(runs) != 1 else f"Losses of {next(iter(runs))}", 5)
    panels = figure.subplots(1, 2 if apart else 1, squeeze=False, sharex=True, sharey=True)[0]
    # Lines by label: matplotlib's own legend leaves out labels that begin with "_".
    handles: list[dict[str, Any]] = [{} for _ in panels]
    for number, (name, metrics) in enumerate(runs.items()):
        color = COLORS[number % len(COLORS)]
        train, val, alike = (
            curve(metrics, loss, by) for loss in ("train_loss", "val_loss", "eval_train_loss")
        )
        if not train[0] and not val[0]:
            raise ConfigError(
                f"{name}: no losses; expected lines with {_X[by]} and train_loss or val_loss"
            )
        prefix = f"{name}: " if len(runs) > 1 else ""
        handles[0] |= _draw_training(panels[0], train, averages, f"{prefix}training", color)
        # The loss of training text, measured as the validation loss is.
        handles[0] |= _draw_measured(panels[0], alike, f"{prefix}training, measured", color, "-")
        is_told_apart = len(runs) > 1 and not apart
        handles[-1] |= _draw_measured(
            panels[-1],
            val,
            f"{prefix}validation",
            ORANGE if len(runs) == 1 else color,
            "--" if is_told_apart else "-",
        )
    for axes, lines, title in zip(panels, handles, ("training", "validation"), strict=False):
        axes.set(xlabel=_LABELS[by])
        axes.grid(alpha=0.3)
        axes.legend(lines.values(), lines.keys(), fontsize=8)
        if apart:
            axes.set_title(title, fontsize=10)
    panels[0].set_ylabel("loss (nats per token)")
    return figure


_Curve = tuple[list[float], list[float]]  # steps or tokens seen, and values


def _draw_training(
    axes: Axes, train: _Curve, averages: Sequence[Average], label: str, color: str
) -> dict[str, Any]:
    """Draw training losses and their averages; return the lines by label."""
    if not train[0]:
        return {}
    lines = {label: axes.plot(*train, color=color, alpha=0.25 if averages else 1, linewidth=1)[0]}
    for average, style in zip(averages, _STYLES * len(averages), strict=False):
        values = average.of(train[1])
        lines[f"{label}, {average}"] = axes.plot(train[0], values, color=color, linestyle=style)[0]
    return lines


def _draw_measured(
    axes: Axes, measured: _Curve, label: str, color: str, style: str
) -> dict[str, Any]:
    """Draw losses that were measured at some steps; return the line by its label."""
    if not measured[0]:
        return {}
    return {label: axes.plot(*measured, color=color, linestyle=style, marker="o", markersize=3)[0]}


def curve(metrics: Sequence[Mapping[str, Any]], name: str, by: By = "step") -> _Curve:
    """Return the values of a figure that a run reported, without NaN and infinities.

    The first list has the steps at which they were reported, or the tokens seen until then.
    """
    points = [
        (line[_X[by]], line[name])
        for line in metrics
        if isinstance(line, Mapping) and _is_number(line, _X[by], name)
    ]
    return [x for x, _ in points], [value for _, value in points]


def _is_number(line: Mapping[str, Any], *names: str) -> bool:
    return all(type(line.get(name)) in (int, float) and math.isfinite(line[name]) for name in names)


def simple_average(values: Sequence[float], window: int) -> list[float]:
    """Return the mean of each value and up to window - 1 before it."""
    return [
        sum(values[max(0, end - window) : end]) / min(end, window)
        for end in range(1, len(values) + 1)
    ]


def exponential_average(values: Sequence[float], decay: float) -> list[float]:
    """Return the running mean in which a value's weight is multiplied by `decay` at every step."""
    averages: list[float] = []
    weighted, weights = 0.0, 0.0
    for value in values:
        weighted, weights = decay * weighted + value, decay * weights + 1
        averages.append(weighted / weights)
    return averages
