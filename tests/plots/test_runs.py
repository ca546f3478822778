"""The picture of runs' losses, and the averages in it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from trace_builders import panels

from gpt2kit import plots
from gpt2kit.errors import ConfigError
from gpt2kit.plots import Average, losses
from gpt2kit.plots.runs import exponential_average, simple_average

METRICS = [
    {"step": 0, "val_loss": 4.0},
    *({"step": step, "train_loss": 4 / step} for step in range(1, 30)),
    {"step": 30, "val_loss": 1.0},
]


def test_averages_begin_with_the_first_value_and_follow_the_rest() -> None:
    assert simple_average([2.0, 4.0, 6.0, 8.0], 2) == [2.0, 3.0, 5.0, 7.0]
    assert exponential_average([2.0, 4.0], 0.5) == pytest.approx([2.0, 10 / 3])
    assert exponential_average([3.0] * 9, 0.9) == pytest.approx([3.0] * 9)
    assert exponential_average([2.0, 4.0], 0.0) == [2.0, 4.0]


def test_averages_equal_their_definitions() -> None:
    generator = random.Random(0)
    values = [generator.random() for _ in range(60)]
    for position, average in enumerate(Average.parse("simple:7").of(values)):
        window = [values[other] for other in range(60) if 0 <= position - other < 7]
        assert average == pytest.approx(sum(window) / len(window))
    for position, average in enumerate(Average.parse("exponential:0.9").of(values)):
        weights = [0.9 ** (position - other) for other in range(position + 1)]
        assert average == pytest.approx(
            sum(weight * value for weight, value in zip(weights, values, strict=False))
            / sum(weights)
        )


@pytest.mark.parametrize(
    "text",
    [
        "simple",
        "simple:0",
        "simple:2.5",
        "exponential:1",
        "exponential:-1",
        "median:3",
        "simple:x",
        "simple:nan",
        "",
    ],
)
def test_an_average_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="average"):
        Average.parse(text)


def test_losses_are_drawn_by_tokens_seen() -> None:
    """Steps of runs with batches of different sizes are not alike; tokens are."""
    seen = [{**line, "tokens_seen": 512 * int(line["step"])} for line in METRICS]
    (axes,) = panels(losses({"names": seen}, by="tokens"))
    raw, _, validation = axes.lines
    assert list(raw.get_xdata()) == [512 * step for step in range(1, 30)]
    assert list(validation.get_xdata()) == [0, 512 * 30]
    assert axes.get_xlabel() == "tokens seen"
    (axes,) = panels(losses({"names": seen}))
    assert axes.get_xlabel() == "step"
    with pytest.raises(ConfigError, match="names: no losses; expected lines with tokens_seen and"):
        losses({"names": METRICS}, by="tokens")


def test_a_run_is_drawn_raw_averaged_and_validated() -> None:
    figure = losses({"names": METRICS}, [Average("simple", 20), Average("exponential", 0.95)])
    (axes,) = panels(figure)
    raw, simple, exponential, validation = axes.lines
    values = [4 / step for step in range(1, 30)]
    assert list(raw.get_xdata()) == list(range(1, 30))
    assert list(raw.get_ydata()) == values
    assert list(simple.get_ydata()) == simple_average(values, 20)
    assert list(exponential.get_ydata()) == exponential_average(values, 0.95)
    assert (list(validation.get_xdata()), list(validation.get_ydata())) == ([0, 30], [4, 1])
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == [
        "training",
        "training, mean of 20 steps",
        "training, exponential mean (0.95)",
        "validation",
    ]
    assert figure.get_suptitle() == "Losses of names"


def test_several_runs_are_told_apart() -> None:
    # A name that begins with _ was left out of the legend.
    (axes,) = panels(losses({"first": METRICS, "_second": METRICS[:-1]}, []))
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == [
        "first: training",
        "first: validation",
        "_second: training",
        "_second: validation",
    ]
    colors = [line.get_color() for line in axes.lines]
    assert colors[0] == colors[1] != colors[2] == colors[3]


def test_training_and_validation_can_be_drawn_apart() -> None:
    figure = losses({"first": METRICS, "second": METRICS[:-1]}, apart=True)
    training, validation = panels(figure)
    assert (training.get_title(), validation.get_title()) == ("training", "validation")
    assert training.get_ylim() == validation.get_ylim()
    assert [list(line.get_ydata()) for line in validation.lines] == [[4, 1], [4]]
    assert len(training.lines) == 4  # of each run the losses and their average
    names = [text.get_text() for text in training.get_legend().get_texts()]
    assert names[:2] == ["first: training", "first: training, mean of 20 steps"]


def test_the_training_loss_is_drawn_as_it_was_measured_at_validations() -> None:
    lines = [
        {**METRICS[0], "eval_train_loss": 4.1},
        *METRICS[1:-1],
        {"step": 30, "eval_train_loss": 0.9},
    ]
    (axes,) = panels(losses({"run": lines}, []))
    measured = next(line for line in axes.lines if line.get_marker() == "o")
    assert list(measured.get_ydata()) == [4.1, 0.9]
    assert "training, measured" in [text.get_text() for text in axes.get_legend().get_texts()]


def test_what_is_no_number_is_left_out_and_nothing_at_all_is_refused() -> None:
    lines: list[dict[str, Any]] = [
        {"step": 1, "train_loss": None},
        {"step": 2, "train_loss": float("nan")},
        {"step": 3, "train_loss": 2.0},
        {"train_loss": 9.0},
    ]
    (axes,) = panels(losses({"run": lines}))
    assert list(axes.lines[0].get_xdata()) == [3]
    with pytest.raises(ConfigError, match="run: no losses"):
        losses({"run": lines[:2]})


def test_a_picture_is_written(tmp_path: Path) -> None:
    plots.save(losses({"names": METRICS}), tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
