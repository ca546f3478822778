"""Pictures of one feature of a sparse autoencoder."""

from __future__ import annotations

import pytest

from gpt2kit import plots
from gpt2kit.errors import ConfigError


def test_a_feature_is_a_bar_for_each_token_and_for_each_token_that_it_promotes() -> None:
    figure = plots.feature([0.0, 2.5], ["a", " b"], [(b" cat", 0.7), (b"$", 0.2)], first=1)
    figure.canvas.draw()
    left, right = figure.axes
    assert [bar.get_height() for bar in left.patches] == [0.0, 2.5]  # type: ignore[attr-defined]
    assert [label.get_text() for label in left.get_xticklabels()] == ["1 a", "2 ␣b"]
    assert [bar.get_width() for bar in right.patches] == [0.7, 0.2]  # type: ignore[attr-defined]
    assert [label.get_text() for label in right.get_yticklabels()] == ["␣cat", "$"]
    assert len(plots.feature([1.0], ["a"]).axes) == 1


def test_a_text_without_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="no tokens to draw"):
        plots.feature([], [])
