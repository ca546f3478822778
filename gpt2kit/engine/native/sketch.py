"""Sketches of heads, from which the shortlist takes its bounds of all logits.

A sketch is made for the first text that needs it, and kept for the next ones until the head's
weights change or leave memory.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from ctypes import byref

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from gpt2kit.engine.native import library

# A sketch leaves this dictionary when its weights leave memory.
_sketches: MutableMapping[nn.Parameter, Sketch] = WeakTensorKeyDictionary()


class Sketch:
    """A head (V, C) rounded to int8, with bounds of the error; a quarter of float32's memory."""

    def __init__(self, head: library.Matrix, level: str, version: int) -> None:
        self.version = version  # of the weights, as torch counts their changes
        self.checksum = checksum(head)
        # C writes into them: they must not be of torch's default dtype or on its default device.
        self._weight = torch.empty((head.rows, head.columns), dtype=torch.int8, device="cpu")
        # Scales, norms, errors
        self._numbers = torch.empty((3, head.rows), dtype=torch.float32, device="cpu")
        self.struct = library.Sketch(
            self._weight.data_ptr(), *(numbers.data_ptr() for numbers in self._numbers)
        )
        threads = torch.get_num_threads()
        if library.load().make_sketch(byref(head), byref(self.struct), threads, level.encode()):
            raise RuntimeError(f"this processor cannot run {level}")


def sketch_of(weight: nn.Parameter, head: library.Matrix, level: str) -> Sketch:
    """Return the sketch of a head, a new one if its weights have changed since the last call.

    `head` is the native step's view of `weight`. Changes that torch does not count, through
    `weight.data` or NumPy, are seen too: by a checksum, which reads all weights once.
    """
    sketch = _sketches.get(weight)
    if sketch is None or sketch.version != weight._version or sketch.checksum != checksum(head):
        sketch = _sketches[weight] = Sketch(head, level, weight._version)
    return sketch


def checksum(head: library.Matrix) -> int:
    """Return a checksum of a matrix's weights; it changes with any one of them."""
    return int(library.load().checksum(byref(head), torch.get_num_threads()))
