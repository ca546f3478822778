"""Pictures of the way through the layers, beside plain NumPy on the trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from trace_builders import IDS, Seen, look, panels

from gpt2kit import plots
from gpt2kit.errors import ConfigError
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


def test_updates_of_a_layer_are_drawn_by_position(seen: Seen) -> None:
    norms, variances = panels(plots.updates(seen.trace, seen.tokens, 1))[:2]
    layer = seen.trace.layers[1]
    for label, part in (
        ("residual stream, as it enters", layer.before),
        ("update by attention", layer.attention_update),
        ("update by MLP", layer.mlp_update),
    ):
        x = part[0].double().numpy()  # (T, C)
        np.testing.assert_allclose(drawn(norms)[label], np.linalg.norm(x, axis=1), rtol=1e-5)
        np.testing.assert_allclose(drawn(variances)[label], x.var(axis=1), rtol=1e-5)
    assert len(norms.get_xticklabels()) == T


def test_the_norms_are_written_if_there_is_room(small_bpe: BPETokenizer, seen: Seen) -> None:
    right = panels(plots.residual(seen.trace, seen.tokens))[1]
    values = right.images[0].get_array()
    words = np.array([float(text.get_text()) for text in right.texts]).reshape(values.shape)
    np.testing.assert_allclose(words, values, atol=0.05)
    long = look(small_bpe, [position % 500 for position in range(40)])
    assert not panels(plots.residual(long.trace, long.tokens))[1].texts


def test_the_residual_stream_is_drawn_number_by_number(seen: Seen) -> None:
    points = [seen.trace.embeddings, *(layer.after for layer in seen.trace.layers)]
    at_4 = np.stack([point[0, 4].numpy() for point in points])  # (L + 1, C)
    for options, expected in (
        ({}, points[3][0].numpy()),
        ({"layer": 0}, points[1][0].numpy()),
        ({"position": 4, "dimensions": 5}, at_4),
    ):
        whole, part = panels(plots.stream(seen.trace, seen.tokens, **options))[:2]
        np.testing.assert_array_equal(whole.images[0].get_array(), expected)
        shown = expected[:, : options.get("dimensions", 8)]
        words = np.array([float(text.get_text()) for text in part.texts]).reshape(shown.shape)
        np.testing.assert_allclose(words, shown, atol=0.01)


def test_the_last_positions_of_a_long_text_are_written_as_numbers(small_bpe: BPETokenizer) -> None:
    seen = look(small_bpe, [position % 500 for position in range(300)])
    figure = plots.stream(seen.trace, seen.tokens)
    whole, part = panels(figure)[:2]
    assert whole.images[0].get_array().shape == (300, 16)
    np.testing.assert_array_equal(
        part.images[0].get_array(), seen.trace.layers[2].after[0, -26:, :8]
    )
    assert len(part.texts) == 26 * 8
    assert "the last 26 of 300 positions" in part.get_title()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 3}, "layer is 3, expected 0 to 2"),
        ({"position": 9}, "position is 9, expected 0 to 8"),
        ({"position": 1, "layer": 1}, "not both"),
    ],
)
def test_a_part_of_the_stream_that_is_not_there_is_refused(
    seen: Seen, options: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plots.stream(seen.trace, seen.tokens, **options)


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
    "updates of a layer": lambda trace, tokens: plots.updates(trace, tokens, 0),
    "layernorm": plots.layernorm,
    "mlp": plots.mlp,
    "activation": plots.activation,
    "mlp-in-out": plots.mlp_in_out,
    "neurons": plots.neurons,
    "neurons of a layer": lambda trace, tokens: plots.neurons(trace, tokens, 0),
    "residual": plots.residual,
    "stream": plots.stream,
    "stream at a position": lambda trace, tokens: plots.stream(trace, tokens, position=0),
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


OTHERS: dict[str, dict[str, Any]] = {
    "post-norm, no residual": {"norm_first": False, "residual": False},
    "gated": {"mlp": "swiglu", "positions": "sinusoidal", "norm": "rmsnorm"},
    "attention only": {"mlp": "none", "norm": "none", "positions": "none", "n_head": 1},
}
NOTHING_TO_DRAW = {
    "attention only": {
        "positions": "no position embeddings",
        "layernorm": "does not normalize",
        **dict.fromkeys(
            ("mlp", "activation", "mlp-in-out", "neurons", "neurons of a layer"), "no MLP"
        ),
    }
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("variant", OTHERS)
def test_every_picture_can_be_drawn_of_every_kind_of_model(
    small_bpe: BPETokenizer, variant: str
) -> None:
    seen = look(small_bpe, IDS[:5], **{"n_layer": 2, **OTHERS[variant]})
    refused = NOTHING_TO_DRAW.get(variant, {})
    for name, draw in DRAWINGS.items():
        if name in refused:
            with pytest.raises(ConfigError, match=refused[name]):
                draw(seen.trace, seen.tokens)
        else:
            assert_shows_numbers(draw(seen.trace, seen.tokens))
    assert_shows_numbers(plots.scores(seen.trace, seen.tokens))
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
    draws = plots.tokens, plots.positions, plots.norms, plots.embeddings, plots.residual
    for draw in (*draws, plots.stream):
        assert_drawn(draw(seen.trace, seen.tokens))
    needing_layers: Any = plots.updates, plots.scores, plots.layernorm, plots.activation
    for refused in (*needing_layers, plots.mlp, plots.mlp_in_out, plots.neurons):
        with pytest.raises(ConfigError, match="no layers, so there is nothing to draw"):
            refused(seen.trace, seen.tokens)
    lens = panels(plots.lens(seen.trace, seen.tokens, small_bpe))[0]
    assert lens.images[0].get_array().shape == (1, T)
