"""A heap grows as glibc's does: a tensor gets the smallest hole that suffices."""

from __future__ import annotations

import random

from gpt2kit.training.heap import Heap

OVERHEAD = 112  # bytes that malloc needs around an aligned tensor


def test_a_heap_begins_with_what_is_in_use() -> None:
    heap = Heap()
    heap.allocate(1, 1000)
    assert heap.size == 1000 + OVERHEAD


def test_a_smaller_tensor_fits_into_a_hole() -> None:
    heap = Heap()
    heap.allocate(1, 1000)
    heap.allocate(2, 1000)
    size = heap.size
    heap.free(1)
    heap.allocate(3, 800)
    assert heap.size == size


def test_a_tensor_of_the_same_size_does_not_fit_while_the_graph_grows() -> None:
    # This is what makes the heap of a training larger than its tensors.
    heap = Heap()
    heap.allocate(1, 1000)  # a temporary one
    heap.allocate(2, 1000)  # one that the backward pass needs
    size = heap.size
    heap.free(1)
    heap.allocate(3, 1000)
    assert heap.size > size + 1000


def test_the_same_size_fits_again_when_the_graph_is_smaller_than_before() -> None:
    heap = Heap()
    for key in range(4):
        heap.allocate(key, 1000)
    size = heap.size
    for key in (3, 2, 1):
        heap.free(key)
    heap.allocate(4, 1000)
    heap.allocate(5, 1000)
    assert heap.size == size


def test_holes_beside_each_other_become_one() -> None:
    heap = Heap()
    for key in range(4):
        heap.allocate(key, 1000)
    size = heap.size
    for key in (3, 2, 1):
        heap.free(key)
    heap.allocate(5, 2000)
    assert heap.size == size


def test_the_hole_at_the_end_grows_with_the_heap() -> None:
    heap = Heap()
    for key in range(3):
        heap.allocate(key, 1000)
    size = heap.size
    heap.free(2)
    heap.free(1)
    heap.allocate(3, 5000)
    assert heap.size <= size + 5000 - 1000


def test_steps_that_are_repeated_need_hardly_more() -> None:
    heap, order = Heap(), random.Random(0)
    sizes = [order.randrange(40_000, 4_000_000) for _ in range(50)]
    grown = []
    for _ in range(4):
        for key, n_bytes in enumerate(sizes):
            heap.allocate(key, n_bytes)
        for key in reversed(range(len(sizes))):
            heap.free(key)
        grown.append(heap.size)
    assert grown[0] == sum(sizes) + 50 * OVERHEAD
    assert grown[3] < 1.1 * grown[0]
