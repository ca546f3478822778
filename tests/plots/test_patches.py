"""Pictures of patching."""

from __future__ import annotations

from gpt2kit import plots
from gpt2kit.inspection.patching import Cell, Patching


def test_positions_of_several_pairs_are_numbered() -> None:
    """They have no common tokens, so the axis had labels without any text."""
    cells = [Cell(layer, None, position, 0.5, 0.5) for layer in (0, 1) for position in range(4)]
    figure = plots.patching(Patching(1.0, 0.0, "denoise", tuple(cells)), [b""] * 4, "resid_pre")
    figure.canvas.draw()
    axes = figure.axes[0]
    assert axes.get_xlabel() == "position"
    assert {"0", "1", "2", "3"} <= {label.get_text() for label in axes.get_xticklabels()}
