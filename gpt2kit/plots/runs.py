"""A picture of the losses of training runs, with moving averages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from gpt2kit.errors import ConfigError
from gpt2kit.plots.canvas import COLOURS, ORANGE, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLES = ("-", ":", "-.")  # of the averages


@dataclass(frozen=True)
class Average:
    """A moving average: simple, of some steps, or exponential, where a value counts so many times less with every step.

    Raises ConfigError for one that cannot be.
    """

    kind: Literal["simple", "exponential"]
    amount: float  # steps, or the factor

    def __post_init__(self) -> None:
        if self.kind == "simple" and not (self.amount >= 1 and float(self.amount).is_integer()):
            raise ConfigError(
                f"a simple average of {self.amount:g} steps; expected a whole number from 1, as in simple:20"
            )
        if self.kind == "exponential" and not 0 <= self.amount < 1:
            raise ConfigError(
                f"an exponential average with {self.amount:g}; expected a factor from 0 up to, not including, 1"
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
                f"average {text!r}, expected simple:STEPS or exponential:FACTOR, as simple:20 or exponential:0.9"
            ) from None

    def of(self, values: Sequence[float]) -> list[float]:
        """Return the average at each value, of it and those before it."""
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
    """Draw training and validation losses by step of one run or several, given by name as the lines of their metrics.jsonl.

    Training losses are pale as they are, and strong where they are averaged. Raises ConfigError for a run without losses.
    """
    figure = new_figure("Losses" if len(runs) != 1 else f"Losses of {next(iter(runs))}", 5)
    axes = figure.add_subplot()
    handles: dict[
        str, Any
    ] = {}  # label -> what it names; a legend made by matplotlib leaves out names that begin with _
    for number, (name, metrics) in enumerate(runs.items()):
        colour = COLOURS[number % len(COLOURS)]
        train, val = curve(metrics, "train_loss"), curve(metrics, "val_loss")
        if not train[0] and not val[0]:
            raise ConfigError(
                f"{name}: no losses; expected lines with step and train_loss or val_loss"
            )
        prefix = f"{name}: " if len(runs) > 1 else ""
        if train[0]:
            handles[f"{prefix}training"] = axes.plot(
                *train, color=colour, alpha=0.25 if averages else 1, linewidth=1
            )[0]
        for average, style in zip(averages, _STYLES * len(averages), strict=False):
            if train[0]:
                handles[f"{prefix}training, {average}"] = axes.plot(
                    train[0], average.of(train[1]), color=colour, linestyle=style
                )[0]
        if val[0]:
            is_alone = len(runs) == 1
            handles[f"{prefix}validation"] = axes.plot(
                *val,
                color=ORANGE if is_alone else colour,
                linestyle="-" if is_alone else "--",
                marker="o",
                markersize=3,
            )[0]
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend(handles.values(), handles.keys(), fontsize=8)
    return figure


def curve(metrics: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Return the steps at which a run reported a number, and the numbers; what is no finite number is left out."""
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
    """Return the running mean in which a value counts `decay` times less with every step."""
    averages: list[float] = []
    weighted, weights = 0.0, 0.0
    for value in values:
        weighted, weights = decay * weighted + value, decay * weights + 1
        averages.append(weighted / weights)
    return averages
