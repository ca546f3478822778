"""Pictures of the way through the layers, beside plain NumPy on the trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from test_model import VARIANTS
from trace_builders import IDS, Seen, look, panels

from gpt2kit import plots
from gpt2kit.errors import ConfigError
from gpt2kit.plots.layers import histogram
from gpt2kit.tokenizers import BPETokenizer

T = len(IDS)


@pytest.fixture
def seen(small_bpe: BPETokenizer) -> Seen:
    return look(small_bpe)


def drawn(axes: Any) -> dict[str, Any]:
    return {line.get_label(): np.asarray(line.get_ydata()) for line in axes.lines}


def test_updates_are_medians_of_norm_and_variance(seen: Seen) -> None:
    norms, variances = panels(plots.updates(seen.trace, seen.tokens))[:2]
    parts = {
        "residual stream, as it enters": "before",
        "update by attention": "attention_update",
        "update by MLP": "mlp_update",
    }
    for label, part in parts.items():
        values = np.stack(
            [getattr(layer, part)[0].double().numpy() for layer in seen.trace.layers]
        )  # (L, T, C)
        np.testing.assert_allclose(
            drawn(norms)[label], np.median(np.sqrt((values**2).sum(axis=-1)), axis=1), rtol=1e-5
        )
        centered = values - values.mean(axis=-1, keepdims=True)
        np.testing.assert_allclose(
            drawn(variances)[label], np.median((centered**2).mean(axis=-1), axis=1), rtol=1e-5
        )


def test_bands_hold_the_middle_half(seen: Seen) -> None:
    axes = panels(plots.updates(seen.trace, seen.tokens))[0]
    norms = seen.trace.layers[0].before[0].norm(dim=-1).numpy()
    at_start = axes.collections[0].get_paths()[0].vertices
    low, high = (extreme(at_start[at_start[:, 0] == 0][:, 1]) for extreme in (min, max))
    assert (low, high) == (
        pytest.approx(np.percentile(norms, 25), rel=1e-5),
        pytest.approx(np.percentile(norms, 75), rel=1e-5),
    )


def test_the_residual_stream_is_drawn_by_layer_and_position(seen: Seen) -> None:
    left, right = panels(plots.residual(seen.trace, seen.tokens))[:2]
    points = [seen.trace.embeddings, *(layer.after for layer in seen.trace.layers)]
    expected = np.stack(
        [stream[0].double().norm(dim=-1).numpy() for stream in points]
    )  # (L + 1, T)
    np.testing.assert_allclose(right.images[0].get_array(), expected, rtol=1e-5)
    np.testing.assert_allclose(drawn(left)["the first position"], expected[:, 0], rtol=1e-5)
    np.testing.assert_allclose(
        drawn(left)["the other positions"], np.median(expected[:, 1:], axis=1), rtol=1e-5
    )
    assert [label.get_text() for label in right.get_yticklabels()] == ["start", "0", "1", "2"]


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


def test_the_lens_shows_the_likeliest_word_and_its_probability(seen: Seen) -> None:
    axes = panels(plots.lens(seen.trace, seen.tokens, seen.tokenizer))[0]
    image, words = (
        axes.images[0].get_array(),
        np.array([text.get_text() for text in axes.texts]).reshape(4, T),
    )
    for row, stream in enumerate(
        [seen.trace.embeddings, *(layer.after for layer in seen.trace.layers)]
    ):
        logits = seen.trace.model.head(seen.trace.model.ln_f(stream))[0].detach().double()
        logits = logits[:, : seen.tokenizer.n_vocab]
        np.testing.assert_allclose(image[row], logits.softmax(dim=-1).amax(dim=-1), rtol=1e-4)
        expected = [
            plots.readable(seen.tokenizer.token_bytes(int(token)))
            for token in logits.argmax(dim=-1)
        ]
        assert words[row].tolist() == expected
    np.testing.assert_allclose(
        image[3],
        seen.trace.logits[0, :, : seen.tokenizer.n_vocab].softmax(dim=-1).amax(dim=-1),
        rtol=1e-4,
    )


def test_the_lens_is_bold_where_its_word_is_the_next_of_the_text(small_bpe: BPETokenizer) -> None:
    first = look(small_bpe, IDS)
    said = int(first.trace.logits[0, 0].argmax())
    seen = look(small_bpe, [IDS[0], said, IDS[1]])
    axes = panels(plots.lens(seen.trace, seen.tokens, small_bpe))[0]
    bold = {
        (text.get_position()[1], text.get_position()[0])
        for text in axes.texts
        if text.get_fontweight() == "bold"
    }
    assert (3, 0) in bold
    assert all(position < 2 for _, position in bold)  # what follows the last token is not known


def test_the_lens_can_show_the_end_alone(seen: Seen) -> None:
    whole, end = (
        panels(plots.lens(seen.trace, seen.tokens, seen.tokenizer, last))[0].images[0].get_array()
        for last in (0, 4)
    )
    np.testing.assert_allclose(end, whole[:, -4:], rtol=1e-6)


def test_the_lens_of_a_long_text_has_colors_and_no_words(small_bpe: BPETokenizer) -> None:
    seen = look(small_bpe, [position % 500 for position in range(300)])
    axes = panels(plots.lens(seen.trace, seen.tokens, small_bpe))[0]
    assert axes.images[0].get_array().shape == (4, 300)
    assert not axes.texts
    assert "--last" in axes.get_title()


DRAWINGS: dict[str, Any] = {
    "tokens": plots.tokens,
    "positions": plots.positions,
    "norms": plots.norms,
    "embeddings": plots.embeddings,
    "attention": plots.attention,
    "one layer": lambda trace, tokens: plots.attention(trace, tokens, layer=0),
    "one head": lambda trace, tokens: plots.attention(trace, tokens, layer=0, head=0),
    "attention bars": plots.attention_bars,
    "updates": plots.updates,
    "mlp": plots.mlp,
    "residual": plots.residual,
}


def assert_shows_numbers(figure: Figure) -> None:
    """Check that each panel of a figure shows numbers, all of them finite."""
    shown = [axes for axes in panels(figure) if axes.axison]
    assert shown
    for axes in shown:
        values = [
            *(line.get_ydata() for line in axes.lines),
            *(image.get_array() for image in axes.images),
            *(patch.get_path().vertices for patch in axes.patches),
            *(collection.get_offsets() for collection in axes.collections),
            *(path.vertices for each in axes.collections for path in each.get_paths()),
        ]
        assert values, axes.get_title()
        assert all(np.isfinite(np.ma.compressed(np.ma.asarray(v))).all() for v in values)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "variant", ["post-norm", "swiglu", "sinusoidal", "one head", "attention only"]
)
def test_every_picture_can_be_drawn_of_every_kind_of_model(
    small_bpe: BPETokenizer, variant: str
) -> None:
    seen = look(small_bpe, IDS[:5], **{"n_layer": 2, **VARIANTS[variant]})
    for name, draw in DRAWINGS.items():
        if name == "mlp" and variant == "attention only":
            with pytest.raises(ConfigError, match="no MLP"):
                draw(seen.trace, seen.tokens)
        else:
            assert_shows_numbers(draw(seen.trace, seen.tokens))
    assert_shows_numbers(plots.lens(seen.trace, seen.tokens, small_bpe))


def assert_drawn(figure: Figure) -> None:
    """Lay out a figure that shows numbers, which warns of what cannot be drawn."""
    assert_shows_numbers(figure)
    figure.draw_without_rendering()


@pytest.mark.filterwarnings("error")
def test_every_picture_can_be_drawn_of_one_token(small_bpe: BPETokenizer) -> None:
    seen = look(small_bpe, IDS[:1], n_layer=1)
    for draw in DRAWINGS.values():
        assert_drawn(draw(seen.trace, seen.tokens))
    assert_drawn(plots.lens(seen.trace, seen.tokens, small_bpe))


@pytest.mark.filterwarnings("error")
def test_a_model_without_layers_has_inputs_a_stream_and_a_lens(small_bpe: BPETokenizer) -> None:
    seen = look(small_bpe, IDS, n_layer=0)
    for draw in (plots.tokens, plots.positions, plots.norms, plots.embeddings, plots.residual):
        assert_drawn(draw(seen.trace, seen.tokens))
    lens = panels(plots.lens(seen.trace, seen.tokens, small_bpe))[0]
    assert lens.images[0].get_array().shape == (1, T)
