"""Hidden states: transformers' but for their last name, and never the one at position 0."""

from __future__ import annotations

import pytest
import torch
from conftest import make_model

from gpt2kit.config import GPT2Config
from gpt2kit.errors import ConfigError, ContextLengthError
from gpt2kit.inspection import trace
from gpt2kit.inspection.hidden import Reading, hidden_states, parse_layers, pooled

CONFIG = GPT2Config(n_vocab=512, n_ctx=32, n_embd=16, n_head=2, n_layer=3)


def test_layers_are_the_stream_after_so_many_blocks_and_ln_f_what_the_head_reads() -> None:
    model, ids = make_model(CONFIG), [5, 6, 7, 8]
    (found,) = hidden_states(model, [Reading(ids, 3)], [0, 1, 3, "ln_f"])
    seen = trace(model, torch.tensor([ids]))
    expected = [seen.embeddings, seen.layers[0].after, seen.final, seen.normalized]
    assert found.shape == (3, 4, 16)
    for layer, each in enumerate(expected):
        torch.testing.assert_close(found[:, layer], each[0, 1:])


def test_company_of_other_lengths_changes_no_vector() -> None:
    model = make_model(CONFIG)
    readings = [Reading([1, 2, 3], 2), Reading([4, 5, 6, 7, 8], 4), Reading([9, 9], 1)]
    together = list(hidden_states(model, readings, [1, "ln_f"]))
    for reading, found in zip(readings, together, strict=True):
        (alone,) = hidden_states(model, [reading], [1, "ln_f"], batch_size=1)
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)


def test_the_token_at_position_0_has_no_vector_and_is_in_no_mean() -> None:
    model = make_model(CONFIG)
    (found,) = hidden_states(model, [Reading([1, 2, 3], 3)], [2])
    assert found[0].isnan().all()
    assert not found[1:].isnan().any()
    torch.testing.assert_close(pooled(found, 0, 3, "mean"), found[1:].mean(dim=0))
    assert torch.equal(pooled(found, 0, 3, "first"), found[1])
    assert torch.equal(pooled(found, 0, 3, "last"), found[2])
    assert pooled(found, 0, 1, "mean").isnan().all()
    assert pooled(found, 2, 2, "mean").shape == (1, 16)


@pytest.mark.parametrize(
    ("text", "layers"),
    [("0-3", [0, 1, 2, 3]), ("3, 1", [3, 1]), ("ln_f", ["ln_f"]), ("1-2,2,ln_f", [1, 2, "ln_f"])],
)
def test_layers_as_they_are_typed(text: str, layers: list[object]) -> None:
    assert parse_layers(text, 3) == layers


@pytest.mark.parametrize("text", ["", "4", "0-4", "-1", "a", "1-", "2-1", "1.5"])
def test_layers_that_are_not_there_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected (such as|from 0)|names none"):
        parse_layers(text, 3)


def test_more_tokens_than_the_model_reads_are_refused() -> None:
    with pytest.raises(ContextLengthError):
        list(hidden_states(make_model(CONFIG), [Reading([1] * 33, 1)], [0]))
