"""Prompts are read as they would be alone, and what they share is read once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import make_model
from torch import Tensor

from gpt2kit.cache import KVCache
from gpt2kit.config import GPT2Config
from gpt2kit.engine.decoder import Decoder
from gpt2kit.generation.prompts import WORTH_SHARING, common_length, read_prompts, refill
from gpt2kit.generation.request import Sampling
from gpt2kit.generation.text import generate_tokens
from gpt2kit.model import GPT2

LONG = list(range(100, 100 + WORTH_SHARING + 8))
OTHER = list(range(300, 300 + WORTH_SHARING))
PROMPTS = [
    [*LONG, 1, 2],
    [*OTHER, 7],
    [*LONG, 3],
    [5, 6],
    [*LONG, 4, 5],
    LONG,
    [*OTHER, 8, 9, 10],
    [*LONG, 3],
    [5, 7],
]


@pytest.fixture
def model(tiny_config: GPT2Config) -> GPT2:
    return make_model(replace(tiny_config, n_ctx=128))


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of all ids that decoders read."""
    found: list[tuple[int, ...]] = []
    read = Decoder.read

    def counted(self: Decoder, ids: Tensor, cache: KVCache) -> Tensor:
        found.append(tuple(ids.shape))
        return read(self, ids, cache)

    monkeypatch.setattr(Decoder, "read", counted)
    return found


def alone(model: GPT2, prompt: list[int]) -> tuple[Tensor, KVCache]:
    cache = model.new_cache(1)
    return model(torch.tensor([prompt]), cache)[0, -1], cache


@pytest.mark.parametrize("native", ["0", "1"])
def test_a_prompt_read_beside_others_has_the_logits_and_cache_it_has_alone(
    model: GPT2, native: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if native == "0":
        monkeypatch.setenv("GPT2KIT_NATIVE", native)
    cache = model.new_cache(len(PROMPTS))
    logits = read_prompts(Decoder(model), PROMPTS, cache, range(len(PROMPTS)))
    assert cache.lengths == [len(prompt) for prompt in PROMPTS]
    for row, prompt in enumerate(PROMPTS):
        expected, own = alone(model, prompt)
        assert (logits[row] - expected).abs().max() < 1e-5
        n = len(prompt)
        assert (cache.keys[:, row, :, :n] - own.keys[:, 0, :, :n]).abs().max() < 1e-5
        assert (cache.values[:, row, :, :n] - own.values[:, 0, :, :n]).abs().max() < 1e-5


def test_a_long_beginning_that_several_share_is_read_once(
    model: GPT2, shapes: list[tuple[int, ...]]
) -> None:
    read_prompts(Decoder(model), PROMPTS, model.new_cache(len(PROMPTS)), range(len(PROMPTS)))
    n = len(LONG)
    # LONG is itself a prompt, so its last token is read after what is shared, not with it.
    # [*LONG, 3] is there twice, and read once.
    assert sorted(shapes) == sorted(
        [(1, n - 1), (2, 3), (1, 2), (1, 1), (1, WORTH_SHARING), (1, 1), (1, 3), (2, 2)]
    )


def test_prompts_together_get_the_texts_that_they_get_one_by_one(model: GPT2) -> None:
    options: Any = {"max_tokens": 20, "sampling": Sampling(temperature=0)}
    together = list(zip(*generate_tokens(model, PROMPTS, **options), strict=True))
    assert together == [
        tuple(step[0] for step in generate_tokens(model, [prompt], **options)) for prompt in PROMPTS
    ]


@pytest.mark.parametrize("shared", [0, 1, WORTH_SHARING - 1])
def test_a_short_shared_beginning_is_read_with_each_prompt(
    model: GPT2, shapes: list[tuple[int, ...]], shared: int
) -> None:
    prompts = [[*LONG[:shared], row, *OTHER] for row in range(3)]
    read_prompts(Decoder(model), prompts, model.new_cache(3), range(3))
    assert shapes == [(3, shared + 1 + len(OTHER))]


def test_some_rows_of_a_cache_are_refilled_and_the_others_stay(model: GPT2) -> None:
    cache = model.new_cache(3)
    read_prompts(Decoder(model), [[1, 2], [3], [4, 5, 6]], cache, range(3))
    before = cache.keys.clone()
    refill(Decoder(model), cache, {2: [9, 8, 7, 6, 5], 0: []})
    assert cache.lengths == [0, 1, 5]
    assert torch.equal(cache.keys[:, 1], before[:, 1])
    assert (
        cache.keys[:, 2, :, :5] - alone(model, [9, 8, 7, 6, 5])[1].keys[:, 0, :, :5]
    ).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("some", "others", "n"),
    [([], [1], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2], 2), ([1, 5, 3], [1, 2, 3], 1)],
)
def test_the_common_length_ends_at_the_first_difference(
    some: list[int], others: list[int], n: int
) -> None:
    assert common_length(some, others) == n
