"""The picture of the next token's distribution, beside sampling itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from trace_builders import Seen, look, panels

from gpt2kit import plots
from gpt2kit.errors import ConfigError
from gpt2kit.generation.request import Sampling
from gpt2kit.generation.sampling import sample, sample_generator
from gpt2kit.plots.choices import kept
from gpt2kit.tokenizers import BPETokenizer


@pytest.fixture
def seen(small_bpe: BPETokenizer) -> Seen:
    return look(small_bpe)


def test_bars_are_the_probabilities_at_each_temperature_likeliest_first(seen: Seen) -> None:
    logits = seen.trace.logits[0, -1]
    figure = plots.temperature(logits, seen.tokenizer, (0.5, 1, 2))
    curves, *each = panels(figure)
    for axes, curve, temperature in zip(each, curves.lines, (0.5, 1, 2), strict=True):
        weights = [math.exp(value / temperature) for value in logits.double().tolist()]
        expected = sorted((weight / sum(weights) for weight in weights), reverse=True)[:50]
        np.testing.assert_allclose(curve.get_ydata(), expected, rtol=1e-4)
        assert curve.get_label() == f"{temperature:g}"
        np.testing.assert_allclose([bar.get_height() for bar in axes.patches], expected, rtol=1e-4)
        assert axes.get_title(loc="left") == f"temperature {temperature:g}"
    best = plots.readable(seen.tokenizer.token_bytes(int(logits.argmax())))
    assert panels(figure)[-1].get_xticklabels()[0].get_text() == best


def test_what_is_marked_as_kept_is_what_sampling_draws() -> None:
    logits = torch.randn(30, generator=torch.Generator().manual_seed(0)) * 2
    for settings in (
        {"top_k": 7},
        {"top_k": 0, "top_p": 0.8},
        {"top_k": 9, "top_p": 0.9, "temperature": 2.0},
        {"temperature": 0},
    ):
        sampling = Sampling(**{"top_k": 40, **settings})  # type: ignore[arg-type]
        by_k, by_p = kept(logits, sampling)
        generators = [sample_generator(0, row) for row in range(4000)]
        found = set(sample(logits.expand(4000, -1), sampling, generators))
        assert by_p <= by_k <= 30
        assert found == set(logits.topk(by_p).indices.tolist())


def test_lines_and_colors_mark_what_is_kept(seen: Seen) -> None:
    logits = seen.trace.logits[0, -1]
    axes = panels(plots.temperature(logits, seen.tokenizer, (1.0,), top_k=12, top_p=0.7))[1]
    by_k, by_p = kept(logits, Sampling(top_k=12, top_p=0.7))
    assert [line.get_xdata()[0] for line in axes.lines] == [by_k - 0.5, by_p - 0.5]
    colors = [bar.get_facecolor() for bar in axes.patches]
    assert len(set(colors[:by_p])) == len(set(colors[by_p:])) == 1
    assert colors[0] != colors[by_p]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "top-k 12 keeps 12",
        f"top-p 0.7 keeps {by_p}",
    ]


def test_at_temperature_0_the_likeliest_has_all(seen: Seen) -> None:
    axes = panels(plots.temperature(seen.trace.logits[0, -1], seen.tokenizer, (0.0,)))[1]
    assert [bar.get_height() for bar in axes.patches][:2] == [1, 0]


def test_values_that_sampling_refuses_are_refused(seen: Seen) -> None:
    for temperatures, top_p in (((), 0.9), ((-1.0,), 0.9), ((1.0,), 1.5)):
        with pytest.raises(ConfigError):
            plots.temperature(seen.trace.logits[0, -1], seen.tokenizer, temperatures, top_p=top_p)
