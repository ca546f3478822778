"""A cache keeps the keys and values of each slot apart, and says what the model may look at."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gpt2kit.cache import KVCache
from gpt2kit.config import GPT2Config
from gpt2kit.errors import ContextLengthError
from gpt2kit.model import GPT2

CONFIG = GPT2Config(n_vocab=50, n_ctx=12, n_embd=8, n_head=2, n_layer=2)


def entries(batch_size: int, n: int, *, first: float = 1.0) -> Tensor:
    """Return (B, H, n, D) numbers that all differ."""
    shape = (batch_size, CONFIG.n_head, n, CONFIG.head_size)
    return torch.arange(first, first + math.prod(shape)).view(shape)


def filled(lengths: list[int]) -> KVCache:
    """Return a cache with slots of these lengths, each entry its own number in both layers."""
    cache = KVCache(CONFIG, len(lengths))
    for layer in range(CONFIG.n_layer):
        new = entries(len(lengths), max(lengths), first=1 + 1000 * layer)
        cache.append(layer, new, -new)
    cache.advance(max(lengths))
    cache.truncate(lengths)
    return cache


def test_an_empty_cache_has_room_for_what_was_asked_for_or_for_the_whole_window() -> None:
    assert KVCache(CONFIG, 3, capacity=5).capacity == 5
    assert KVCache(CONFIG).capacity == KVCache(CONFIG, capacity=99).capacity == CONFIG.n_ctx
    cache = KVCache(CONFIG, 3, dtype=torch.bfloat16)
    assert cache.keys.shape == cache.values.shape == (2, 3, 2, 12, 4)
    assert cache.keys.dtype == torch.bfloat16
    assert cache.batch_size == 3
    assert cache.lengths == [0, 0, 0]


def test_appending_stores_new_entries_behind_the_old_and_returns_all() -> None:
    cache = KVCache(CONFIG, 2)
    new = entries(2, 5)
    keys, values = cache.append(1, new[:, :, :3], -new[:, :, :3])
    assert torch.equal(keys, new[:, :, :3])
    cache.advance(3)
    keys, values = cache.append(1, new[:, :, 3:], -new[:, :, 3:])
    assert torch.equal(keys, new)
    assert torch.equal(values, -new)
    assert not cache.keys[0].any()  # the other layer


def test_slots_of_unequal_length_append_each_at_its_own_end() -> None:
    cache = filled([4, 1])
    before = cache.keys[0].clone()
    new = entries(2, 2, first=500)
    keys, values = cache.append(0, new, 2 * new)
    assert keys.shape == (2, 2, 6, 4)
    for slot, length in enumerate([4, 1]):
        assert torch.equal(keys[slot, :, :length], before[slot, :, :length])
        assert torch.equal(keys[slot, :, length : length + 2], new[slot])
        assert torch.equal(values[slot, :, length : length + 2], 2 * new[slot])
    cache.advance([2, 2])
    assert cache.lengths == [6, 3]


def test_what_is_appended_comes_back_in_its_own_dtype() -> None:
    for lengths in ([3, 3], [3, 1]):
        cache = KVCache(CONFIG, 2, dtype=torch.bfloat16)
        cache.advance(lengths)
        keys, values = cache.append(0, entries(2, 1), entries(2, 1))
        assert keys.dtype == values.dtype == torch.float32


@pytest.mark.parametrize(
    ("lengths", "n", "positions"),
    [([0, 0], 3, [0, 1, 2]), ([4, 4], 2, [4, 5]), ([4, 1], 2, [[4, 5], [1, 2]])],
)
def test_positions_follow_those_of_each_slot(
    lengths: list[int], n: int, positions: list[object]
) -> None:
    cache = KVCache(CONFIG, 2)
    cache.advance(lengths)
    assert cache.positions(n).tolist() == positions


@pytest.mark.parametrize(("lengths", "n"), [([0, 0], 4), ([5, 5], 1), ([0, 0], 1)])
def test_no_mask_is_needed_for_the_first_tokens_and_for_a_single_one(
    lengths: list[int], n: int
) -> None:
    cache = KVCache(CONFIG, 2)
    cache.advance(lengths)
    assert cache.mask(n) is None


def test_the_mask_of_equal_slots_shows_each_token_the_keys_up_to_its_own() -> None:
    cache = KVCache(CONFIG, 2)
    cache.advance(2)
    mask = cache.mask(3)
    assert mask is not None
    assert mask.tolist() == [
        [True, True, True, False, False],
        [True, True, True, True, False],
        [True, True, True, True, True],
    ]


def test_the_mask_of_unequal_slots_hides_what_lies_beyond_each() -> None:
    cache = KVCache(CONFIG, 2)
    cache.advance([3, 1])
    mask = cache.mask(2)
    assert mask is not None
    assert mask.shape == (2, 1, 2, 5)
    assert mask[0, 0].tolist() == [[True] * 4 + [False], [True] * 5]
    assert mask[1, 0].tolist() == [[True] * 2 + [False] * 3, [True] * 3 + [False] * 2]


def test_what_does_not_fit_is_refused() -> None:
    cache = KVCache(CONFIG, 2, capacity=6)
    cache.advance([5, 2])
    cache.check_room(1)
    cache.check_room([1, 4])
    message = "5 tokens are read and 2 more were given, but the cache has room for 6"
    for n in (2, [2, 0]):
        with pytest.raises(ContextLengthError, match=message) as caught:
            cache.check_room(n)
        assert (caught.value.requested, caught.value.limit) == (7, 6)
    with pytest.raises(ContextLengthError):
        cache.positions(2)


def test_slots_are_truncated_and_never_lengthened() -> None:
    cache = filled([4, 3])
    cache.truncate([1, 3])
    assert cache.lengths == [1, 3]
    with pytest.raises(ValueError, match=r"cannot truncate slots of \[1, 3\] tokens to \[2, 3\]"):
        cache.truncate([2, 3])
    with pytest.raises(ValueError, match="cannot truncate"):
        cache.truncate([-1, 3])


def test_slots_are_kept_in_the_order_given() -> None:
    cache = filled([4, 3, 2])
    keys, values = cache.keys.clone(), cache.values.clone()
    cache.keep([2, 0])
    assert cache.lengths == [2, 4]
    assert cache.batch_size == 2
    assert torch.equal(cache.keys, keys[:, [2, 0]])
    assert torch.equal(cache.values, values[:, [2, 0]])


def test_slots_are_filled_with_the_beginning_of_another() -> None:
    cache, other = filled([4, 3, 2]), filled([5, 6])
    untouched = cache.keys[:, 1].clone()
    cache.fill([2, 0], other, 1)
    assert cache.lengths == [6, 3, 6]
    cache.fill([0], other, 1, 2)
    assert cache.lengths == [2, 3, 6]
    assert torch.equal(cache.keys[:, 2, :, :6], other.keys[:, 1, :, :6])
    assert torch.equal(cache.values[:, 0, :, :2], other.values[:, 1, :, :2])
    assert torch.equal(cache.keys[:, 1], untouched)


def test_a_slot_is_filled_from_another_of_the_same_cache() -> None:
    cache = filled([4, 0])
    cache.fill([1], cache, 0, 3)
    assert cache.lengths == [4, 3]
    assert torch.equal(cache.keys[:, 1, :, :3], cache.keys[:, 0, :, :3])


def test_what_is_read_into_a_view_lies_in_the_cache() -> None:
    cache = filled([4, 3, 2])
    view = cache.view(1, 2)
    assert view.lengths == [3]
    new = entries(1, 2, first=700)
    keys, _ = view.append(0, new, new)
    view.advance(2)
    assert torch.equal(keys, cache.keys[0, 1:2, :, :5])
    assert torch.equal(cache.keys[0, 1, :, 3:5], new[0])
    assert (view.lengths, cache.lengths) == ([5], [4, 3, 2])


def test_a_slot_that_held_damaged_numbers_can_be_used_by_another_text(tiny_model: GPT2) -> None:
    """NaN beyond the end of a shorter text would reach its logits: 0 * NaN is NaN."""
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    cache = tiny_model.new_cache(2)
    tiny_model(ids, cache)
    cache.keys[:, 1], cache.values[:, 1] = math.nan, math.nan
    cache.free([1])
    assert cache.lengths == [3, 0]
    logits = tiny_model(ids[:, :1], cache)
    alone = tiny_model(ids[1:, :1])
    assert (logits[1] - alone[0]).abs().max() < 1e-5


@pytest.mark.parametrize("slots", [1, 3])
def test_a_full_slot_of_a_model_with_one_layer_is_filled_from_the_same_cache(slots: int) -> None:
    """torch refused it with RuntimeError: source and target were one piece of memory."""
    one_layer = GPT2Config(n_vocab=5, n_ctx=4, n_embd=2, n_head=1, n_layer=1)
    cache = KVCache(one_layer, slots)
    new = torch.arange(slots * 8.0).view(slots, 1, 4, 2)
    cache.append(0, new, -new)
    cache.advance(4)
    cache.fill([slots - 1], cache, 0)
    assert torch.equal(cache.keys[0, slots - 1], new[0])
    assert torch.equal(cache.values[0, slots - 1], -new[0])
