"""Keys and values of the tokens already read.

A cache has slots, each for one text. A slot keeps token j of its text at position j, however long
the texts in the other slots are: nothing is padded on the left, so each text has the positions that
it would have alone. A batch of B rows reads into a cache of B slots, row b into slot b.

    B slots, T new tokens, S cached + new tokens of the longest slot, H heads, D head size
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from gpt2kit.config import GPT2Config
from gpt2kit.errors import ContextLengthError


class Cache(Protocol):
    """What the model needs of a cache, in the order in which it asks."""

    def positions(self, n: int) -> Tensor:
        """Return the positions of the next n tokens: (n,), or (B, n) if the slots differ."""

    def mask(self, n: int) -> Tensor | None:
        """Return which keys each of the next n tokens may look at; None for plain causal ones."""

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values (B, H, n, D) of a layer; return all of them, (B, H, S, D)."""

    def advance(self, n: int) -> None:
        """Count n new tokens as read in every slot, once all layers have appended theirs."""


class KVCache:
    """Preallocated keys and values: `batch_size` slots, each with its own length.

    `GPT2.forward` appends to it and advances it. Between two calls slots can be truncated, copied,
    freed for another text, or dropped. Memory: 2 * n_layer * batch_size * capacity * n_embd
    numbers.
    """

    def __init__(
        self,
        config: GPT2Config,
        batch_size: int = 1,
        *,
        capacity: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        capacity = config.n_ctx if capacity is None else min(capacity, config.n_ctx)
        shape = (config.n_layer, batch_size, config.n_head, capacity, config.head_size)
        # Zeros, not `empty`: masked entries are multiplied by 0, and 0 * NaN is NaN.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)  # (n_layer, B, H, capacity, D)
        self.values = torch.zeros(shape, dtype=dtype, device=device)  # the same shape
        self.lengths = [0] * batch_size  # tokens that each slot holds
        self._are_equal = True  # whether all slots are equally long
        self._starts: Tensor | None = None  # the lengths as a tensor (B,), once it is needed

    @property
    def batch_size(self) -> int:
        """The number of slots."""
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        """The number of tokens that each slot has room for."""
        return self.keys.shape[3]

    def check_room(self, n: int | Sequence[int]) -> None:
        """Raise ContextLengthError if n more tokens, or n[b] more in slot b, do not fit."""
        for length, new in zip(self.lengths, self._each(n), strict=True):
            if length + new > self.capacity:
                raise ContextLengthError(
                    f"{length} tokens are read and {new} more were given, "
                    f"but the cache has room for {self.capacity}",
                    requested=length + new,
                    limit=self.capacity,
                )

    # --- what the model uses ---------------------------------------------------------------------

    def positions(self, n: int) -> Tensor:
        """Return the positions of the next n tokens: (n,), or (B, n) for slots of unequal length.

        Raises ContextLengthError if they do not fit.
        """
        self.check_room(n)
        steps = torch.arange(n, device=self.keys.device)  # (n,)
        if self._are_equal:
            return self._longest + steps
        if self._starts is None:  # made late: copying it to a GPU makes the caller wait
            self._starts = torch.tensor(self.lengths, device=self.keys.device)  # (B,)
        return self._starts[:, None] + steps  # (B, n)

    def mask(self, n: int) -> Tensor | None:
        """Return which of the S keys each of the next n tokens may look at, True for yes.

        The shape is (n, S), or (B, 1, n, S) for slots of unequal length. None if no mask is needed:
        a single new token sees all keys, and the first tokens of a text see what plain causal
        attention shows them.
        """
        if self._are_equal and (n == 1 or self._longest == 0):
            return None
        keys = torch.arange(self._longest + n, device=self.keys.device)  # (S,)
        visible = keys <= self.positions(n)[..., None]  # (n, S) or (B, n, S)
        return visible if self._are_equal else visible[:, None]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values (B, H, T, D) of a layer; return all of them, (B, H, S, D).

        What is returned has the dtype of the new ones. Beyond the length of a shorter slot it holds
        old or zero entries, which `mask` hides.
        """
        T = keys.shape[2]
        end = self._longest + T  # S
        for stored, new in ((self.keys[layer], keys), (self.values[layer], values)):
            if self._are_equal:
                stored[:, :, end - T : end] = new
            else:
                slots = torch.arange(self.batch_size, device=stored.device)[:, None]  # (B, 1)
                # Two index tensors around a slice put the slice last: this is (B, T, H, D).
                stored[slots, :, self.positions(T)] = new.transpose(1, 2).to(stored.dtype)
        return (
            self.keys[layer, :, :, :end].to(keys.dtype),
            self.values[layer, :, :, :end].to(values.dtype),
        )

    def advance(self, n: int | Sequence[int]) -> None:
        """Count n more tokens as read in every slot, or n[b] in slot b."""
        each = self._each(n)
        self._set_lengths([length + new for length, new in zip(self.lengths, each, strict=True)])

    # --- what happens between two calls of the model ---------------------------------------------

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget all but the first `lengths[b]` tokens of each slot."""
        if any(not 0 <= new <= old for new, old in zip(lengths, self.lengths, strict=True)):
            raise ValueError(f"cannot truncate slots of {self.lengths} tokens to {list(lengths)}")
        self._set_lengths(list(lengths))

    def keep(self, slots: Sequence[int]) -> None:
        """Keep these slots only, in this order."""
        index = torch.tensor(slots, dtype=torch.long, device=self.keys.device)
        self.keys = self.keys.index_select(1, index)
        self.values = self.values.index_select(1, index)
        self._set_lengths([self.lengths[slot] for slot in slots])

    def fill(
        self, slots: Sequence[int], other: KVCache, slot: int, length: int | None = None
    ) -> None:
        """Replace what these slots hold by the first `length` tokens of a slot of another cache.

        Without `length` all of its tokens are copied. `other` may be this cache itself.
        """
        length = other.lengths[slot] if length is None else length
        index = torch.tensor(slots, dtype=torch.long, device=self.keys.device)
        for mine, others in ((self.keys, other.keys), (self.values, other.values)):
            copied = others[:, slot : slot + 1, :, :length]
            # torch refuses to read and write the same memory, if it notices.
            mine[:, index, :, :length] = copied.clone() if other is self else copied
        self._set_lengths([length if b in slots else old for b, old in enumerate(self.lengths)])

    def free(self, slots: Sequence[int]) -> None:
        """Empty these slots, so that other texts can use them."""
        for slot in slots:
            # Zeros, because a text with damaged logits leaves NaN: see __init__.
            self.keys[:, slot].zero_()
            self.values[:, slot].zero_()
        self._set_lengths([0 if b in slots else old for b, old in enumerate(self.lengths)])

    def view(self, start: int, stop: int) -> KVCache:
        """Return slots start to stop - 1 as a cache that shares the memory of this one.

        It has its own lengths: what is read into the view must also be counted here, by `advance`.
        """
        part = copy.copy(self)
        part.keys, part.values = self.keys[:, start:stop], self.values[:, start:stop]
        part._set_lengths(self.lengths[start:stop])
        return part

    @property
    def _longest(self) -> int:
        return max(self.lengths)

    def _each(self, n: int | Sequence[int]) -> Sequence[int]:
        return [n] * self.batch_size if isinstance(n, int) else n

    def _set_lengths(self, lengths: list[int]) -> None:
        self.lengths = lengths
        self._are_equal = len(set(lengths)) <= 1
        self._starts = None
