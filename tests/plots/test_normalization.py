"""The picture of a layer's norms, beside plain NumPy on the trace."""

from __future__ import annotations

import numpy as np
import pytest
from trace_builders import look, panels

from gpt2kit import plots
from gpt2kit.errors import ConfigError
from gpt2kit.tokenizers import BPETokenizer


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_numbers_before_and_after_a_norm_are_drawn(small_bpe: BPETokenizer, norm: str) -> None:
    seen = look(small_bpe, norm=norm)
    figure = plots.layernorm(seen.trace, seen.tokens, 1)
    grid = np.array(panels(figure)).reshape(2, 3)
    model, layer = seen.trace.model, seen.trace.layers[1]
    for row, name, x in ((0, "ln_1", layer.before), (1, "ln_2", layer.middle)):
        before = x[0].double().numpy()
        centered = before - (before.mean(axis=1, keepdims=True) if norm == "layernorm" else 0)
        normalized = centered / np.sqrt((centered**2).mean(axis=1, keepdims=True) + 1e-5)
        after = model.get_submodule(f"h.1.{name}")(x)[0].detach().double().numpy()
        steps = (normalized, before, after)
        values, means, deviations = grid[row]
        for line, expected in zip(means.lines, steps, strict=True):
            np.testing.assert_allclose(line.get_ydata(), expected.mean(axis=1), atol=1e-5)
        for line, expected in zip(deviations.lines, steps, strict=True):
            np.testing.assert_allclose(line.get_ydata(), expected.std(axis=1), rtol=1e-4)
        for patch, expected in zip(values.patches, steps, strict=True):
            shares, edges, _ = patch.get_data()
            assert shares.sum() == pytest.approx(1)
            np.testing.assert_allclose(edges[[0, -1]], [expected.min(), expected.max()], atol=1e-5)
        assert values.get_title().startswith(f"{name}, before")
    kind = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}[norm]
    assert figure.get_suptitle() == f"{kind} in layer 1"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    learned = "weight and bias" if norm == "layernorm" else "weight"
    assert labels == ["before", "normalized", f"after its {learned}"]


def test_a_layer_that_is_not_there_is_refused(small_bpe: BPETokenizer) -> None:
    seen = look(small_bpe)
    with pytest.raises(ConfigError, match="layer is 3, expected 0 to 2"):
        plots.layernorm(seen.trace, seen.tokens, 3)
