"""The picture of a run's losses, and the averages in it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gpt2kit.errors import MissingDependencyError
from gpt2kit.loss_curve import draw, exponential_average, simple_average

METRICS = [{"step": 0, "val_loss": 4.0}, *({"step": step, "train_loss": 4 / step} for step in range(1, 30)), {"step": 30, "val_loss": 1.0}]


def test_averages_begin_with_the_first_value_and_follow_the_rest() -> None:
    assert simple_average([2.0, 4.0, 6.0, 8.0], 2) == [2.0, 3.0, 5.0, 7.0]
    assert exponential_average([2.0, 4.0], 0.5) == pytest.approx([2.0, 10 / 3])
    assert exponential_average([3.0] * 9, 0.9) == pytest.approx([3.0] * 9)


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(METRICS, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"gpt2kit\[plots\]"):
        draw(METRICS, tmp_path / "loss.png")
