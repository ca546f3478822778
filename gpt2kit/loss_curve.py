"""A picture of a run's losses (needs gpt2kit[plots])."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt2kit.errors import MissingDependencyError

_WINDOW = 20  # steps of the simple average
_DECAY = 0.95  # of the exponential one


def draw(metrics: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw training and validation losses by step, the former with a simple and an exponential moving average."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError("matplotlib", extra="plots") from None
    train = [(line["step"], line["train_loss"]) for line in metrics if "train_loss" in line]
    val = [(line["step"], line["val_loss"]) for line in metrics if "val_loss" in line]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    if train:
        steps, losses = zip(*train, strict=True)
        axes.plot(steps, losses, color="tab:blue", alpha=0.25, label="training")
        axes.plot(steps, simple_average(losses, _WINDOW), color="tab:blue", label=f"training, mean of {_WINDOW} steps")
        axes.plot(steps, exponential_average(losses, _DECAY), color="tab:green", label=f"training, exponential mean ({_DECAY})")
    if val:
        axes.plot(*zip(*val, strict=True), color="tab:orange", marker="o", markersize=3, label="validation")
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=path.parent.name)
    axes.legend()
    figure.savefig(path, dpi=120)


def simple_average(values: Sequence[float], window: int) -> list[float]:
    """Return the mean of each value and up to window - 1 before it."""
    return [sum(values[max(0, end - window) : end]) / min(end, window) for end in range(1, len(values) + 1)]


def exponential_average(values: Sequence[float], decay: float) -> list[float]:
    """Return the running mean in which a value counts `decay` times less with every step."""
    averages: list[float] = []
    weighted, weights = 0.0, 0.0
    for value in values:
        weighted, weights = decay * weighted + value, decay * weights + 1
        averages.append(weighted / weights)
    return averages
