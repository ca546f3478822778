"""Slots are given to texts and back, and what a free one holds is found again."""

from __future__ import annotations

from gpt2kit.generation.slots import Slots


def test_the_slot_that_was_free_for_the_longest_time_is_taken_first() -> None:
    slots = Slots(3, cut=4)
    assert [slots.take() for _ in range(3)] == [(0, 0), (1, 0), (2, 0)]
    assert slots.free == 0
    for slot in (2, 0):
        slots.give_back(slot)
    assert [slots.take()[0] for _ in range(2)] == [2, 0]


def test_a_free_slot_that_holds_the_longest_beginning_is_taken() -> None:
    slots = Slots(4, cut=2, least=1)
    for slot, ids in enumerate([[1, 2, 3, 4], [1, 2, 3, 4, 5, 6], [1, 2], []]):
        assert slots.take()[0] == slot
        slots.note(slot, ids)
    for slot in (3, 2, 0):
        slots.give_back(slot)
    assert slots.find([1, 2, 3, 4, 5, 6, 7], 0) == (1, 6)
    assert slots.find([1, 2, 3, 4, 5, 6, 7], 6) is None
    assert slots.take([1, 2, 3, 4, 5, 6, 7]) == (0, 4)
    assert slots.take([1, 2, 9]) == (2, 2)
    assert slots.take([1, 2, 9]) == (3, 0)


def test_the_last_token_of_a_prompt_is_never_held() -> None:
    slots = Slots(1, cut=2, least=1)
    slots.note(slots.take()[0], [1, 2, 3, 4, 5])
    assert slots.find([1, 2, 3, 4], 0) == (0, 2)
    assert slots.find([1, 2, 3, 4, 5], 0) == (0, 4)
    assert slots.find([1, 2], 0) is None


def test_what_was_overwritten_is_not_found() -> None:
    slots = Slots(2, cut=2, least=1)
    slots.note(slots.take()[0], [1, 2, 3, 4])
    slots.forget(0, 3)
    assert slots.find([1, 2, 3, 4, 5], 0) == (0, 2)
    slots.give_back(0)
    slots.take()
    assert slots.take([1, 2, 3]) == (0, 2)
    slots.give_back(0)
    assert slots.take([3, 2, 3]) == (0, 0)
    assert slots.find([1, 2, 3, 4, 5], 0) is None
