"""Keys and values of the tokens already read.

Row b of a batch keeps its token j at place j, whatever the lengths of the other rows: nothing is padded on the left, so a
row's positions are those it would have alone.

    B batch, T new tokens, S cached + new, H heads, D head size
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gpt2kit.config import GPT2Config
from gpt2kit.errors import ContextLengthError


class KVCache:
    """Preallocated keys and values of one request: a batch of rows, each with its own length.

    `GPT2.forward` appends to it and advances it; between two calls it can be truncated, thinned out and refilled. The memory
    is 2 * n_layer * batch_size * capacity * n_embd numbers.
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
        # Zeros, for a shorter row is masked where a longer one has tokens, and masking multiplies by 0: NaN must not be there.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)  # (n_layer, B, H, capacity, D)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self._set_lengths([0] * batch_size)

    def _set_lengths(self, lengths: list[int]) -> None:
        self.lengths = lengths  # tokens that each row has read
        self._same = len(set(lengths)) <= 1
        self._starts_made: Tensor | None = None

    @property
    def _starts(self) -> Tensor:
        """The lengths as a tensor (B,), made when it is asked for: sending it to a GPU would make every step wait."""
        if self._starts_made is None:
            self._starts_made = torch.tensor(self.lengths, device=self.keys.device)
        return self._starts_made

    @property
    def batch_size(self) -> int:
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        """Tokens that each row has room for."""
        return self.keys.shape[3]

    def check_room(self, n: int | Sequence[int]) -> None:
        """Raise ContextLengthError where n more tokens, or n[b] more in row b, do not fit."""
        for length, new in zip(self.lengths, self._each(n), strict=True):
            if length + new > self.capacity:
                raise ContextLengthError(
                    f"{length} tokens are read and {new} more were given, but the cache has room for {self.capacity}",
                    requested=length + new,
                    limit=self.capacity,
                )

    def _each(self, n: int | Sequence[int]) -> Sequence[int]:
        return [n] * self.batch_size if isinstance(n, int) else n

    def positions(self, n: int) -> Tensor:
        """Positions of the next n tokens: (n,) where all rows are equally long, (B, n) otherwise.

        Raises ContextLengthError where they do not fit.
        """
        self.check_room(n)
        steps = torch.arange(n, device=self.keys.device)
        return max(self.lengths) + steps if self._same else self._starts[:, None] + steps

    def mask(self, n: int) -> Tensor | None:
        """Which of the S keys each of the next n tokens may look at, True for yes: (n, S), or (B, 1, n, S) for unequal rows.

        None where no mask is needed: a single new token sees everything, and tokens at the very beginning see what a plain
        causal attention shows them.
        """
        longest = max(self.lengths)
        if self._same and (n == 1 or longest == 0):
            return None
        keys = torch.arange(longest + n, device=self.keys.device)
        visible = keys <= self.positions(n)[..., None]  # (n, S) or (B, n, S)
        return visible if self._same else visible[:, None]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values (B, H, T, D) and return all of that layer's, (B, H, S, D), in the dtype of the new ones."""
        n, longest = keys.shape[2], max(self.lengths)
        for stored, new in ((self.keys[layer], keys), (self.values[layer], values)):
            if self._same:
                stored[:, :, longest : longest + n] = new
            else:
                rows = torch.arange(self.batch_size, device=stored.device)[:, None]
                stored[rows, :, self.positions(n)] = new.transpose(1, 2).to(
                    stored.dtype
                )  # indexed as (B, T, H, D)
        end = longest + n
        return self.keys[layer, :, :, :end].to(keys.dtype), self.values[layer, :, :, :end].to(
            values.dtype
        )

    def advance(self, n: int | Sequence[int]) -> None:
        """Count n more tokens as read in every row, or n[b] in row b; the model does this once all layers have appended."""
        self._set_lengths(
            [length + new for length, new in zip(self.lengths, self._each(n), strict=True)]
        )

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget all but the first `lengths[b]` tokens of each row."""
        if any(not 0 <= new <= old for new, old in zip(lengths, self.lengths, strict=True)):
            raise ValueError(f"cannot truncate rows of {self.lengths} tokens to {list(lengths)}")
        self._set_lengths(list(lengths))

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, in this order."""
        index = torch.tensor(rows, dtype=torch.long, device=self.keys.device)
        self.keys = self.keys.index_select(1, index)
        self.values = self.values.index_select(1, index)
        self._set_lengths([self.lengths[row] for row in rows])

    def fill(self, rows: Sequence[int], other: KVCache, row: int) -> None:
        """Replace the contents of each of these rows by one row of another cache."""
        length = other.lengths[row]
        index = torch.tensor(rows, dtype=torch.long, device=self.keys.device)
        self.keys[:, index, :, :length] = other.keys[:, row : row + 1, :, :length]
        self.values[:, index, :, :length] = other.values[:, row : row + 1, :, :length]
        self._set_lengths(
            [length if place in rows else old for place, old in enumerate(self.lengths)]
        )
