"""The pool of threads: answers in order, the first error, and its end."""

from __future__ import annotations

import threading
import time

import pytest

from gpt2kit.bulk.threads import Threads


def _double(number: int) -> int:
    if number < 0:
        raise ValueError(f"{number} is negative")
    return 2 * number


@pytest.mark.parametrize("n", [1, 3])
def test_answers_are_in_the_order_of_the_items(n: int) -> None:
    assert Threads(n).map(_double, range(10)) == list(range(0, 20, 2))


@pytest.mark.parametrize("n", [1, 3])
def test_the_error_of_an_item_is_raised_and_the_pool_goes_on(n: int) -> None:
    pool = Threads(n)
    with pytest.raises(ValueError, match="-1 is negative"):
        pool.map(_double, [1, -1])
    assert pool.map(_double, [4]) == [8]


def test_the_threads_end_with_their_pool() -> None:
    """They waited for tasks for ever: every command over a file left two, with their memory."""
    before = threading.active_count()
    pool = Threads(3)
    pool.map(_double, [1, 2])
    assert threading.active_count() == before + 3
    del pool
    end = time.monotonic() + 30
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == before
