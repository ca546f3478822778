"""Pictures of ids and embeddings: what is drawn is what the trace holds."""

from __future__ import annotations

import numpy as np
import pytest
from trace_builders import IDS, Seen, look, panels

from gpt2kit import plots
from gpt2kit.errors import ConfigError
from gpt2kit.plots.inputs import cosines, principal_components
from gpt2kit.tokenizers import BPETokenizer


@pytest.fixture
def seen(small_bpe: BPETokenizer) -> Seen:
    return look(small_bpe)


def test_tokens_are_drawn_at_their_ids(seen: Seen) -> None:
    (axes,) = panels(plots.tokens(seen.trace, seen.tokens))
    assert axes.lines[0].get_ydata().tolist() == IDS
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        plots.readable(token) for token in seen.tokens
    ]


def test_positions_are_their_embeddings_and_cosines(seen: Seen) -> None:
    left, right = (
        axes.images[0].get_array() for axes in panels(plots.positions(seen.trace, seen.tokens))[:2]
    )
    expected = seen.trace.position_embeddings.double().numpy()
    np.testing.assert_array_equal(left, seen.trace.position_embeddings.numpy())
    unit = expected / np.sqrt((expected**2).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(right, unit @ unit.T, atol=1e-5)


def test_the_cosine_of_nothing_is_no_warning() -> None:
    assert cosines(np.zeros((2, 3))).tolist() == [[0, 0], [0, 0]]


def test_norms_are_those_of_tokens_positions_and_sums(seen: Seen) -> None:
    (axes,) = panels(plots.norms(seen.trace, seen.tokens))
    drawn = {line.get_label(): line.get_ydata() for line in axes.lines}
    expected = {
        "token": seen.trace.token_embeddings[0],
        "position": seen.trace.position_embeddings,
        "token + position": seen.trace.embeddings[0],
    }
    assert drawn.keys() == expected.keys()
    for name, vectors in expected.items():
        np.testing.assert_allclose(drawn[name], vectors.double().norm(dim=-1), rtol=1e-5)


def test_principal_components_are_those_of_the_covariance_up_to_sign() -> None:
    vectors = np.random.default_rng(0).normal(size=(30, 6)) * [5, 3, 1, 1, 1, 1]
    points, shares = principal_components(vectors)
    variances, directions = np.linalg.eigh(np.cov(vectors.T))  # ascending
    expected = (vectors - vectors.mean(axis=0)) @ directions[:, [-1, -2]]
    np.testing.assert_allclose(np.abs(points), np.abs(expected), atol=1e-9)
    np.testing.assert_allclose(shares, variances[[-1, -2]] / variances.sum(), rtol=1e-9)


@pytest.mark.parametrize("shape", [(1, 4), (2, 4), (5, 1)])
def test_directions_that_do_not_exist_are_zero(shape: tuple[int, int]) -> None:
    points, shares = principal_components(np.random.default_rng(0).normal(size=shape))
    assert points.shape == (shape[0], 2)
    np.testing.assert_allclose(points[:, 1], 0, atol=1e-12)
    assert np.isfinite(shares).all()


def test_embeddings_are_drawn_in_their_plane(seen: Seen) -> None:
    figure = plots.embeddings(seen.trace, seen.tokens)
    groups = (
        seen.trace.token_embeddings[0],
        seen.trace.position_embeddings,
        seen.trace.embeddings[0],
    )
    for axes, vectors in zip(panels(figure)[:3], groups, strict=True):
        expected, shares = principal_components(vectors.numpy())
        np.testing.assert_allclose(axes.collections[0].get_offsets(), expected, atol=1e-6)
        assert f"{shares[0]:.0%}" in axes.get_xlabel()


def test_labels_of_points_name_them_and_cover_nothing(small_bpe: BPETokenizer) -> None:
    seen = look(small_bpe, [position % 500 for position in range(300)])
    figure = plots.embeddings(seen.trace, seen.tokens)
    figure.draw_without_rendering()
    for axes, expected in zip(panels(figure)[:3], (seen.tokens, None, seen.tokens), strict=True):
        offsets = np.asarray(axes.collections[0].get_offsets())
        boxes = [text.get_window_extent() for text in axes.texts]
        assert len(boxes) >= 5
        assert not any(a.overlaps(b) for position, a in enumerate(boxes) for b in boxes[:position])
        for text in axes.texts:
            (number,) = np.flatnonzero((offsets == text.xy).all(axis=1))[:1]
            assert text.get_text() == (
                plots.readable(expected[number]) if expected else str(number)
            )


def test_tokens_of_another_text_are_refused(seen: Seen) -> None:
    for draw in (
        plots.tokens,
        plots.positions,
        plots.norms,
        plots.embeddings,
        plots.attention,
        plots.updates,
        plots.mlp,
        plots.residual,
    ):
        with pytest.raises(ConfigError, match="8 tokens for 9 positions"):
            draw(seen.trace, seen.tokens[1:])
