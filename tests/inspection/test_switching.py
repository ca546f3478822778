"""Heads switched off one at a time: as if each was ablated in a run of its own."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import make_model

from gpt2kit.config import GPT2Config
from gpt2kit.errors import ConfigError
from gpt2kit.inspection import Edit, run, trace
from gpt2kit.inspection.switching import switch_heads
from gpt2kit.model import GPT2

SHAPE = GPT2Config(n_vocab=64, n_ctx=12, n_embd=16, n_head=2, n_layer=2)


def naive(model: GPT2, ids: list[int], layer: int, head: int) -> torch.Tensor:
    """Return the logits of one run in which a head gives its mean: (T, V)."""
    row = torch.tensor([ids])
    mean = trace(model, row).layers[layer].head_outputs[0, head].mean(dim=0)
    edit = Edit(f"layers.{layer}.head_outputs", head=head, value=mean)
    return run(model, row, [edit]).logits[0]


def test_each_head_is_as_in_a_run_of_its_own() -> None:
    model, ids = make_model(SHAPE), [3, 1, 4, 1, 5, 9, 2, 6]
    found = switch_heads(model, ids, top=3, n_vocab=60)
    assert found.surprisal.shape == (2, 2, 8)
    for layer in range(2):
        for head in range(2):
            logits = naive(model, ids, layer, head)[:, :60]
            wanted = -logits.log_softmax(-1)[range(7), ids[1:]] / math.log(2)
            torch.testing.assert_close(
                found.surprisal[layer, head, 1:], wanted, atol=1e-5, rtol=1e-5
            )
            best = logits[-1].softmax(-1).topk(3)
            assert found.tokens[layer, head].tolist() == best.indices.tolist()
            torch.testing.assert_close(found.probabilities[layer, head], best.values)


@pytest.mark.parametrize("n", [12, 13, 18, 19, 30])
def test_a_text_longer_than_the_window_is_read_as_explain_reads_it(n: int) -> None:
    model, ids, done = make_model(SHAPE), [each * 7 % 64 for each in range(n)], []
    found = switch_heads(model, ids, progress=lambda now, all_: done.append((now, all_)))
    assert found.surprisal.shape == (2, 2, n)
    wanted = -naive(model, ids[:12], 0, 1).log_softmax(-1)[range(11), ids[1:12]] / math.log(2)
    torch.testing.assert_close(found.surprisal[0, 1, 1:12], wanted, atol=1e-5, rtol=1e-5)
    assert done[-1][0] == done[-1][1]


def test_a_model_without_layers_has_nothing_to_switch() -> None:
    model = make_model(GPT2Config(n_vocab=64, n_ctx=12, n_embd=16, n_head=2, n_layer=0))
    with pytest.raises(ConfigError, match="no heads to switch off"):
        switch_heads(model, [1, 2])
