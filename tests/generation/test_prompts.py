"""Prompts are read as they would be alone, and what they share is read once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import compiled, make_model
from engine_builders import read_prompts
from torch import Tensor

from gpt2kit.cache import KVCache
from gpt2kit.config import GPT2Config
from gpt2kit.engine.decoder import PIECE, Decoder
from gpt2kit.generation.prompts import refill
from gpt2kit.generation.request import Sampling
from gpt2kit.generation.slots import common_length
from gpt2kit.generation.text import generate_tokens
from gpt2kit.model import GPT2

LONG = [i % 100 for i in range(PIECE + 8)]
LONGER = [*LONG, *[i % 90 for i in range(PIECE)]]
OTHER = [i % 50 for i in range(PIECE)]
PROMPTS = [
    [*LONG, 1, 2],
    [*OTHER, 7],
    [*LONGER, 3],
    [*LONG, 3],
    [5, 6],
    [*LONGER, 4, 5],
    LONG,
    [*OTHER, 8, 9, 10],
    OTHER,
    [*LONG, 3],
    [5, 7],
]


@pytest.fixture
def model(tiny_config: GPT2Config) -> GPT2:
    return make_model(replace(tiny_config, n_ctx=2 * PIECE + 30))


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def alone(model: GPT2, prompt: list[int]) -> tuple[Tensor, KVCache]:
    cache = model.new_cache(1)
    return model(torch.tensor([prompt]), cache)[0, -1], cache


@pytest.mark.parametrize("native", ["0", "1"])
def test_a_prompt_read_beside_others_has_the_logits_and_cache_it_has_alone(
    model: GPT2, native: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if native == "0":
        monkeypatch.setenv("GPT2KIT_NATIVE", native)
    cache = model.new_cache(len(PROMPTS) + 1)
    logits, slots = read_prompts(Decoder(model), PROMPTS, cache)
    assert [cache.lengths[slot] for slot in slots] == [len(prompt) for prompt in PROMPTS]
    for found, prompt, slot in zip(logits, PROMPTS, slots, strict=True):
        expected, own = alone(model, prompt)
        n = len(prompt)
        assert (found - expected).abs().max() < 1e-5
        assert (cache.keys[:, slot, :, :n] - own.keys[:, 0, :, :n]).abs().max() < 1e-5
        assert (cache.values[:, slot, :, :n] - own.values[:, 0, :, :n]).abs().max() < 1e-5


def tokens_read(model: GPT2, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Read the prompts together, and return the lengths of the rows that the decoder got."""
    lengths: list[int] = []
    read = Decoder.read

    def counted(self: Decoder, rows: Any, cache: KVCache, **options: Any) -> Tensor:
        lengths.extend(len(row) for row in rows)
        return read(self, rows, cache, **options)

    monkeypatch.setattr(Decoder, "read", counted)
    read_prompts(Decoder(model), PROMPTS, model.new_cache(len(PROMPTS)))
    return sorted(lengths)


def test_pieces_that_prompts_share_are_read_once(
    model: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPT2KIT_NATIVE", "0")
    # The first pieces of OTHER and LONG, twice those of which the end is a whole piece, because its
    # last token has to be read for its logits; the second of LONGER; and all ends.
    expected = [1, 2, 2, 3, 8, 9, 9, 10, 10, *[PIECE] * 4]
    assert tokens_read(model, monkeypatch) == expected


@compiled
def test_the_native_step_reads_all_that_prompts_share_once(
    model: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only whole pieces of 64 tokens were shared."""
    # What is read first is OTHER with one token, LONG with two and the two short ones; of the
    # others only what is new, and at least the last token.
    assert sum(tokens_read(model, monkeypatch)) <= len(LONGER) + len(OTHER) + 30


def test_prompts_together_get_the_texts_that_they_get_one_by_one(model: GPT2) -> None:
    options: Any = {"max_tokens": 20, "sampling": Sampling(temperature=0)}
    together = list(zip(*generate_tokens(model, PROMPTS, **options), strict=True))
    assert together == [
        tuple(step[0] for step in generate_tokens(model, [prompt], **options)) for prompt in PROMPTS
    ]


def test_some_slots_of_a_cache_are_refilled_and_the_others_stay(model: GPT2) -> None:
    cache = model.new_cache(3)
    read_prompts(Decoder(model), [[1, 2], [3], [4, 5, 6]], cache)
    before = cache.keys.clone()
    refill(Decoder(model), cache, {2: [9, 8, 7, 6, 5], 0: []})
    assert cache.lengths == [0, 1, 5]
    assert torch.equal(cache.keys[:, 1], before[:, 1])
    expected = alone(model, [9, 8, 7, 6, 5])[1].keys[:, 0, :, :5]
    assert (cache.keys[:, 2, :, :5] - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("some", "others", "n"),
    [([], [1], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2], 2), ([1, 5, 3], [1, 2, 3], 1)],
)
def test_the_common_length_ends_at_the_first_difference(
    some: list[int], others: list[int], n: int
) -> None:
    assert common_length(some, others) == n
