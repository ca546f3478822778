"""Pictures of the MLPs, beside plain NumPy on the trace."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from trace_builders import IDS, Seen, look, panels

from gpt2kit import plots
from gpt2kit.errors import ConfigError
from gpt2kit.inspection.measures import mlp_input
from gpt2kit.plots.mlps import bins_of_shares, histogram
from gpt2kit.tokenizers import BPETokenizer

T = len(IDS)


@pytest.fixture
def seen(small_bpe: BPETokenizer) -> Seen:
    return look(small_bpe)


def drawn(axes: Any) -> dict[str, Any]:
    return {line.get_label(): np.asarray(line.get_ydata()) for line in axes.lines}


def test_histograms_count_every_activation(seen: Seen) -> None:
    for layer in (None, 1):
        before, after = panels(plots.mlp(seen.trace, seen.tokens, layer))[:2]
        chosen = seen.trace.layers if layer is None else [seen.trace.layers[layer]]
        for axes, part in ((before, "mlp_before"), (after, "mlp_after")):
            values = np.concatenate([getattr(each, part)[0].numpy().ravel() for each in chosen])
            shares, edges, _ = axes.patches[0].get_data()
            assert (edges[0], edges[-1]) == (values.min(), values.max())
            np.testing.assert_allclose(shares, np.histogram(values, bins=edges)[0] / values.size)
            assert shares.sum() == pytest.approx(1)


def test_a_histogram_of_one_value_has_it() -> None:
    assert histogram([np.zeros((2, 3))])[0].sum() == 1


def test_dots_of_the_activation_lie_on_the_function(seen: Seen) -> None:
    dots, function = panels(plots.mlp(seen.trace, seen.tokens))[2].lines
    x, y = (torch.tensor(np.asarray(values)) for values in (dots.get_xdata(), dots.get_ydata()))
    torch.testing.assert_close(y, torch.nn.functional.gelu(x, approximate="tanh"))
    x, y = (
        torch.tensor(np.asarray(values)) for values in (function.get_xdata(), function.get_ydata())
    )
    torch.testing.assert_close(y, torch.nn.functional.gelu(x, approximate="tanh"))


def test_the_share_of_active_neurons_is_by_layer(seen: Seen) -> None:
    lines = drawn(panels(plots.mlp(seen.trace, seen.tokens))[3])
    active = np.stack([layer.mlp_before[0].numpy() > 0 for layer in seen.trace.layers])  # (L, T, I)
    np.testing.assert_allclose(
        lines["active, of one token"], np.median(active.mean(axis=2), axis=1)
    )
    np.testing.assert_allclose(
        lines["never active in this text"], (~active.any(axis=1)).mean(axis=1)
    )


def test_the_activation_function_is_beside_relu_and_gelu(small_bpe: BPETokenizer) -> None:
    seen = look(small_bpe, activation_function="quick_gelu")
    curves, slopes, values = panels(plots.activation(seen.trace, seen.tokens, 1))
    x = np.asarray(curves.lines[0].get_xdata(), dtype=np.float64)
    sigmoid = 1 / (1 + np.exp(-1.702 * x))
    below = 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))  # of a normal distribution
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    expected = {
        "quick GELU, as in this model": (
            x * sigmoid,
            sigmoid + 1.702 * x * sigmoid * (1 - sigmoid),
        ),
        "ReLU": (np.maximum(x, 0), (x > 0).astype(float)),
        "GELU": (x * below, below + x * density),
    }
    assert drawn(curves).keys() == expected.keys()
    for label, (outputs, slope) in expected.items():
        np.testing.assert_allclose(drawn(curves)[label], outputs, atol=1e-6)
        np.testing.assert_allclose(drawn(slopes)[label], slope, atol=1e-5)
    inputs = seen.trace.layers[1].mlp_before[0].numpy()
    shares, edges, _ = values.patches[0].get_data()
    np.testing.assert_allclose(shares, np.histogram(inputs, bins=edges)[0] / inputs.size)
    assert f"{(inputs <= 0).mean():.0%} not above 0" in values.get_title()


def test_what_an_mlp_reads_and_adds_is_drawn_by_dimension(seen: Seen) -> None:
    read, added = mlp_input(seen.trace, 2)[0], seen.trace.layers[2].mlp_update[0]  # (T, C) each
    for position, at in ((None, T - 1), (3, 3)):
        figure = plots.mlp_in_out(seen.trace, seen.tokens, 2, position)
        along, dots, every = panels(figure)
        lines = drawn(along)
        np.testing.assert_array_equal(lines["input: what the MLP reads"], read[at])
        np.testing.assert_array_equal(
            lines["output: what it adds to the residual stream"], added[at]
        )
        np.testing.assert_array_equal(
            dots.lines[0].get_xydata(), np.stack([read[at], added[at]], 1)
        )
        correlation = np.corrcoef(read[at].double(), added[at].double())[0, 1]
        assert f"correlation {correlation:.2f}" in dots.get_title()
        assert len(every.lines[0].get_xdata()) == read.numel()
        largest = str(int(added[at].abs().argmax()))
        assert largest in [text.get_text().strip() for text in dots.texts]
    with pytest.raises(ConfigError, match="position is 9, expected 0 to 8"):
        plots.mlp_in_out(seen.trace, seen.tokens, 0, T)


def test_neurons_are_drawn_with_the_share_of_positions_at_which_they_are_active(seen: Seen) -> None:
    active = np.stack([layer.mlp_before[0].numpy() > 0 for layer in seen.trace.layers])  # (L, T, I)
    shares = active.mean(axis=1)  # (L, I)
    left, right = panels(plots.neurons(seen.trace, seen.tokens))[:2]
    np.testing.assert_allclose(left.images[0].get_array(), np.sort(shares)[:, ::-1], rtol=1e-6)
    counted, _, _ = right.patches[0].get_data()
    assert len(counted) == T + 1  # a bin for each share that nine positions can give
    np.testing.assert_allclose(counted, [(active.sum(axis=1) == n).mean() for n in range(T + 1)])
    assert right.get_title() == (
        f"never active: {(shares == 0).mean():.0%}; always: {(shares == 1).mean():.0%}"
    )
    left, right = panels(plots.neurons(seen.trace, seen.tokens, 1))[:2]
    np.testing.assert_allclose(left.lines[0].get_ydata(), shares[1], rtol=1e-6)
    with pytest.raises(ConfigError, match="layer is 3"):
        plots.neurons(seen.trace, seen.tokens, 3)


def testbins_of_shares_hold_equally_many_of_those_that_are_possible() -> None:
    # 35 positions in 20 bins gave bins for one share beside bins for two, and false gaps.
    for T in (1, 9, 24, 35, 500):
        edges = bins_of_shares(T)
        counts, _ = np.histogram(np.arange(T + 1) / T, bins=edges)
        assert counts.sum() == T + 1
        assert len(set(counts[:-1])) <= 1
        assert len(counts) <= 26
