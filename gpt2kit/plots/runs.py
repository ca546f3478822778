"""A picture of the losses of training runs, with moving averages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from gpt2kit.errors import ConfigError
from gpt2kit.plots.canvas import COLORS, ORANGE, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
) -> Figure:
    """Draw training and validation losses by step.

    `runs` gives the lines of a run's metrics.jsonl by the run's name. Training losses are pale,
    their averages strong. Raises ConfigError for a run without losses.
    """
    figure = new_figure("Losses" if len(runs) != 1 else f"Losses of {next(iter(runs))}", 5)
    axes = figure.add_subplot()
    # Lines by label: matplotlib's own legend leaves out labels that begin with "_".
    handles: dict[str, Any] = {}
    for number, (name, metrics) in enumerate(runs.items()):
        color = COLORS[number % len(COLORS)]
        train, val = curve(metrics, "train_loss"), curve(metrics, "val_loss")
        if not train[0] and not val[0]:
            raise ConfigError(
                f"{name}: no losses; expected lines with step and train_loss or val_loss"
            )
        prefix = f"{name}: " if len(runs) > 1 else ""
        if train[0]:
            handles[f"{prefix}training"] = axes.plot(
                *train, color=color, alpha=0.25 if averages else 1, linewidth=1
            )[0]
        for average, style in zip(averages, _STYLES * len(averages), strict=False):
            if train[0]:
                handles[f"{prefix}training, {average}"] = axes.plot(
                    train[0], average.of(train[1]), color=color, linestyle=style
                )[0]
        if val[0]:
            is_alone = len(runs) == 1
            handles[f"{prefix}validation"] = axes.plot(
                *val,
                color=ORANGE if is_alone else color,
                linestyle="-" if is_alone else "--",
                marker="o",
                markersize=3,
            )[0]
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend(handles.values(), handles.keys(), fontsize=8)
    return figure


def curve(metrics: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Return the steps and values of a figure that a run reported, without NaN and infinities."""
    points = [
        (line["step"], line[name])
        for line in metrics
        if isinstance(line, Mapping) and _is_number(line, "step", name)
    ]
    return [step for step, _ in points], [value for _, value in points]


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
