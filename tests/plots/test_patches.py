"""Pictures of patching."""

from __future__ import annotations

from gpt2kit import plots
from gpt2kit.inspection.patching import Cell, Patching
from gpt2kit.inspection.paths import Path, PathPatching, Receiver, Sender


def test_positions_of_several_pairs_are_numbered() -> None:
    """They have no common tokens, so the axis had labels without any text."""
    cells = [Cell(layer, None, position, 0.5, 0.5) for layer in (0, 1) for position in range(4)]
    figure = plots.patching(Patching(1.0, 0.0, "denoise", tuple(cells)), [b""] * 4, "resid_pre")
    figure.canvas.draw()
    axes = figure.axes[0]
    assert axes.get_xlabel() == "position"
    assert {"0", "1", "2", "3"} <= {label.get_text() for label in axes.get_xticklabels()}


def test_a_sweep_names_positions_and_tokens() -> None:
    """The axis had the tokens alone, whose positions one had to count."""
    cells = [Cell(layer, None, position, 0.5, 0.5) for layer in (0, 1) for position in range(3)]
    figure = plots.patching(Patching(1.0, 0.0, "denoise", tuple(cells)), ["a", " b", "a"], "z")
    figure.canvas.draw()
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0 a", "1 ␣b", "2 a"]
    assert axes.get_xlabel() == "position and token"


def test_a_model_without_mlps_has_no_column_for_them_and_short_numbers() -> None:
    """Such a column was drawn, and many small numbers gave all of them seven digits."""
    found = [Path(Sender(layer, head), 0.0, 5e-5) for layer in (0, 1) for head in range(3)]
    found[0] = Path(Sender(0, 0), 0.0, 0.98)
    figure = plots.paths(PathPatching(Receiver(None), 1.0, 0.0, "denoise", tuple(found)))
    figure.canvas.draw()
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "2"]
    assert {text.get_text() for text in axes.texts} == {"0.980", "0.000"}


def test_a_part_that_was_not_a_sender_has_an_empty_cell() -> None:
    """It was given the number 0, as if its path had been patched without effect."""
    found = [Path(Sender(0, 0), 0.0, 0.25), Path(Sender(0), 0.0, 0.5), Path(Sender(1, 0), 0.0, 1)]
    figure = plots.paths(PathPatching(Receiver(None), 1.0, 0.0, "denoise", tuple(found)))
    assert len(figure.axes[0].texts) == 3
