"""Pictures of a number for each head: the numbers, the axes and the colors."""

from __future__ import annotations

import numpy as np
import pytest
from trace_builders import panels

from gpt2kit import plots
from gpt2kit.errors import ConfigError
from gpt2kit.inspection import HeadScores


def some_scores(copying: float | None) -> list[HeadScores]:
    return [
        HeadScores(layer, head, 0.1 * layer, 0.2, 0.5 + 0.1 * head, 0, 0, 0, copying)
        for layer in range(2)
        for head in range(3)
    ]


def test_each_score_is_written_at_its_layer_and_head() -> None:
    figure = plots.head_kinds(some_scores(-0.5))
    previous, duplicate, induction, copying = panels(figure)[:4]
    drawn = previous.images[0].get_array()
    np.testing.assert_allclose(drawn, np.array([[0.0, 0.0, 0.0], [0.1, 0.1, 0.1]]))
    texts = {each.get_position(): each.get_text() for each in induction.texts}
    assert texts[(2, 0)] == "0.70"
    assert (induction.get_xlabel(), induction.get_ylabel()) == ("head", "layer")
    assert [each.get_text() for each in induction.get_xticklabels()] == ["0", "1", "2"]
    assert duplicate.images[0].get_clim() == (0, 1)
    assert copying.images[0].get_clim() == (-0.5, 0.5)


def test_a_score_that_a_model_does_not_have_is_no_panel() -> None:
    titles = [axes.get_title() for axes in panels(plots.head_kinds(some_scores(None)))]
    assert [title for title in titles if title] == [
        "previous token",
        "duplicate token",
        "induction",
    ]


def test_no_heads_are_refused() -> None:
    with pytest.raises(ConfigError, match="no heads"):
        plots.head_kinds([])
