"""Pictures of gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from trace_builders import look, panels

from gpt2kit import plots
from gpt2kit.errors import ConfigError
from gpt2kit.inspection.gradients import gradient_norms
from gpt2kit.tokenizers import BPETokenizer

STEPS: list[dict[str, Any]] = [
    {"step": 0, "val_loss": 4.0},
    {"step": 1, "gradient_norm": 5.0, "gradient_norms": {"wte": 3.0, "h.0": 4.0}},
    {"step": 2, "gradient_norm": 1.3, "gradient_norms": {"wte": 0.5, "h.0": 1.2}},
]


@pytest.mark.parametrize("residual", [True, False])
def test_gradients_of_a_text_are_drawn_with_and_without_residual_connections(
    small_bpe: BPETokenizer, residual: bool
) -> None:
    seen = look(small_bpe, residual=residual)
    figure = plots.gradients(seen.trace, seen.tokens)
    stream, weights = panels(figure)
    found = gradient_norms(seen.trace.model, seen.trace.ids)
    for number, each in enumerate((found[True], found[False])):
        np.testing.assert_allclose(stream.lines[number].get_ydata(), each.stream, rtol=1e-6)
        np.testing.assert_allclose(weights.lines[number].get_ydata(), each.weights, rtol=1e-6)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [", as in this model" in label for label in labels] == [residual, not residual]


def test_norms_over_the_steps_are_drawn_by_part() -> None:
    axes, other = panels(plots.gradients_of_runs({"run": STEPS, "other": STEPS[:2]}))
    found = {line.get_label(): list(line.get_xydata().T.tolist()) for line in axes.lines}
    assert found == {
        "layer 0": [[1, 2], [4.0, 1.2]],
        "token embedding": [[1, 2], [3.0, 0.5]],
        "all weights": [[1, 2], [5.0, 1.3]],
    }
    assert (axes.get_title(), other.get_title()) == ("run", "other")
    assert axes.get_yscale() == "log"


def test_of_many_layers_the_first_and_the_last_are_in_the_legend() -> None:
    norms = {f"h.{layer}": 1.0 + layer for layer in range(48)}
    lines = [{"step": 1, "gradient_norms": norms}, {"step": 2, "gradient_norms": norms}]
    (axes,) = panels(plots.gradients_of_runs({"run": lines}))
    assert len(axes.lines) == 49
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["layer 0", "layer 47", "all weights"]


def test_a_run_without_norms_is_refused_and_damaged_ones_are_left_out() -> None:
    damaged: list[dict[str, Any]] = [
        {"step": 1, "gradient_norm": 2.0, "gradient_norms": {"h.0": "x", "$\\x$": 1.0, "wte": 1.0}},
        {"step": 2, "gradient_norm": None, "gradient_norms": 7},
    ]
    (axes,) = panels(plots.gradients_of_runs({"run": damaged}))
    assert [line.get_label() for line in axes.lines] == ["token embedding", "all weights"]
    with pytest.raises(ConfigError, match="run: no norms of gradients"):
        plots.gradients_of_runs({"run": STEPS[:1]})
