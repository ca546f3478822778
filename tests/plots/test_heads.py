"""Pictures of attention: every map and bar is the trace's."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from trace_builders import IDS, Seen, look, panels

from gpt2kit import plots
from gpt2kit.errors import ConfigError
from gpt2kit.tokenizers import BPETokenizer

VISIBLE = np.tril(np.ones((len(IDS), len(IDS)), dtype=bool))


@pytest.fixture
def seen(small_bpe: BPETokenizer) -> Seen:
    return look(small_bpe)


def test_one_head_is_drawn_from_scores_to_output(seen: Seen) -> None:
    figure = plots.attention(seen.trace, seen.tokens, layer=2, head=1)
    layer = seen.trace.layers[2]
    scores, masked, weights, output = (axes.images[0].get_array() for axes in panels(figure)[:4])
    np.testing.assert_array_equal(scores, layer.scores[0, 1])
    np.testing.assert_array_equal(masked.mask, ~VISIBLE)
    np.testing.assert_array_equal(masked[VISIBLE], layer.masked_scores[0, 1].numpy()[VISIBLE])
    np.testing.assert_array_equal(weights[VISIBLE], layer.weights[0, 1].numpy()[VISIBLE])
    np.testing.assert_array_equal(output, layer.head_outputs[0, 1])
    assert figure.get_suptitle() == "Attention of layer 2, head 1"


def test_a_layer_has_a_map_for_each_head(seen: Seen) -> None:
    figure = plots.attention(seen.trace, seen.tokens, layer=1)
    maps = [axes for axes in panels(figure) if axes.images]
    assert [axes.get_title() for axes in maps] == ["head 0", "head 1"]
    for head, axes in enumerate(maps):
        np.testing.assert_array_equal(
            axes.images[0].get_array()[VISIBLE],
            seen.trace.layers[1].weights[0, head].numpy()[VISIBLE],
        )


def test_the_model_has_a_map_for_each_head_of_each_layer(seen: Seen) -> None:
    tiles = panels(plots.attention(seen.trace, seen.tokens))[0].images[0].get_array()
    T = len(IDS)
    assert tiles.shape == (3 * (T + 1), 2 * (T + 1))
    for layer, head in np.ndindex(3, 2):
        tile = tiles[layer * (T + 1) :, head * (T + 1) :][:T, :T]
        np.testing.assert_array_equal(tile.mask, ~VISIBLE)
        np.testing.assert_array_equal(
            tile[VISIBLE], seen.trace.layers[layer].weights[0, head].numpy()[VISIBLE]
        )


def test_maps_of_a_long_text_keep_the_largest_weight_of_each_part(small_bpe: BPETokenizer) -> None:
    seen = look(small_bpe, [position % 500 for position in range(256)], n_head=1, n_layer=1)
    tiles = panels(plots.attention(seen.trace, seen.tokens))[0].images[0].get_array()
    weights = seen.trace.layers[0].weights[0, 0].numpy()
    assert tiles.shape == (129, 129)
    for row, column in ((0, 0), (100, 40), (127, 127)):
        assert (
            tiles[row, column] == weights[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].max()
        )


def test_bars_are_what_each_position_looks_at(seen: Seen) -> None:
    figure = plots.attention_bars(seen.trace, seen.tokens, layer=1, head=1)
    assert len(panels(figure)) == len(IDS)
    for position, axes in enumerate(panels(figure)):
        drawn = axes.patches[0].get_data()
        np.testing.assert_array_equal(
            drawn.values, seen.trace.layers[1].weights[0, 1, position, : position + 1]
        )
        assert drawn.edges[0] == -0.5
        assert axes.get_ylabel() == f"{position} {plots.readable(seen.tokens[position])}"


def test_of_a_long_text_some_positions_have_bars(small_bpe: BPETokenizer) -> None:
    seen = look(small_bpe, [position % 500 for position in range(200)])
    figure = plots.attention_bars(seen.trace, seen.tokens)
    assert figure.get_suptitle().endswith("where 12 of 200 tokens look")
    assert [int(axes.get_ylabel().split()[0]) for axes in panels(figure)][:2] == [0, 18]
    assert panels(figure)[-1].get_ylabel().startswith("199 ")


def test_layers_and_heads_that_are_not_there_are_refused(
    seen: Seen, small_bpe: BPETokenizer
) -> None:
    for arguments, message in (
        ((3,), "layer is 3, expected 0 to 2"),
        ((-1,), "layer is -1"),
        ((None, 0), "a layer, too"),
    ):
        with pytest.raises(ConfigError, match=message):
            plots.attention(seen.trace, seen.tokens, *arguments)
    for draw in (plots.attention, plots.attention_bars):
        with pytest.raises(ConfigError, match=re.escape("no head 0.2")):
            draw(seen.trace, seen.tokens, 0, 2)
    empty = look(small_bpe, IDS, n_layer=0)
    of_layers: tuple[Any, ...] = (plots.attention, plots.attention_bars, plots.updates, plots.mlp)
    for draw_layers in of_layers:
        with pytest.raises(ConfigError, match="no layers"):
            draw_layers(empty.trace, empty.tokens)


@pytest.mark.parametrize("fields", [{}, {"scale_attn_weights": False}])
def test_scores_are_drawn_with_and_without_the_division(
    small_bpe: BPETokenizer, fields: dict[str, Any]
) -> None:
    seen = look(small_bpe, **fields)
    figure = plots.scores(seen.trace, seen.tokens)
    variance, largest = panels(figure)
    root = math.sqrt(8)  # of the head size
    for line, factor in zip(variance.lines, (1, 1 / root), strict=True):
        expected = []
        for layer in seen.trace.layers:
            scores = (layer.queries.double() @ layer.keys.double().mT)[0].numpy() * factor
            expected.append(np.median([head[VISIBLE].var() for head in scores]))
        np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-5)
    plain, divided = (np.asarray(line.get_ydata()) for line in largest.lines)
    assert (plain > divided).all()
    assert (plain <= 1).all()
    own = "not divided" if fields else "divided by √8"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert f"{own}, as in this model" in labels
    assert len(labels) == 2


def test_another_factor_of_the_scores_is_a_third_line(small_bpe: BPETokenizer) -> None:
    seen = look(small_bpe, scale_attn_by_inverse_layer_idx=True)
    figure = plots.scores(seen.trace, seen.tokens)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[2] == "with another factor, as in this model"


def test_the_variance_of_a_single_score_is_refused(small_bpe: BPETokenizer) -> None:
    seen = look(small_bpe, IDS[:1])
    with pytest.raises(ConfigError, match="the text has 1 token"):
        plots.scores(seen.trace, seen.tokens)
