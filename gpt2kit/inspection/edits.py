"""Edits: which part of which activation is changed, and to what.

B rows, T tokens, S keys, C width, H heads, D head size
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch
from torch import Tensor

from gpt2kit.errors import ConfigError
from gpt2kit.inspection.places import Named, find_place

Indices = int | Sequence[int] | slice | None
Value = float | Tensor | Callable[[Tensor], Tensor] | Literal["mean", "zero-tl"]

# The field of an edit that selects along each dimension
_SELECTORS = {"B": "row", "H": "head", "T": "position", "S": "key"}
_SELECTORS |= dict.fromkeys("CDI1", "unit")
_FIELDS = tuple(dict.fromkeys(_SELECTORS.values()))


@dataclass(frozen=True)
class Edit:
    """A change of a part of an activation, wherever the model computes it.

    `place` is a name from `gpt2kit.inspection.places`; without a layer it means every layer. The
    other fields select along the dimensions that the activation has: one index, several, a slice,
    or all of them (None). Positions count in the text, negative ones from its end.

    `value` is what the selected part becomes:

    - a number,
    - a tensor that broadcasts to the part, or a whole activation, whose same part is taken. An
      index that is a single number removes its dimension: head=9, position=-1 of z is (B, D),
    - a function of the part, with the same dimensions, that returns a tensor as above,
    - "mean": the mean over the rows of the batch, at each position by itself,
    - "zero-tl": what TransformerLens's zero is for z: the values' bias, and what the bias of the
      norm adds to it. (TransformerLens moves both elsewhere, so that they are not zeroed.)

    With `add` the value is added to the part instead. Edits may be given in any order: two that set
    the same numbers are refused, and additions follow what is set.
    """

    place: str
    _: KW_ONLY
    value: Value
    head: Indices = None
    position: Indices = None
    row: Indices = None
    key: Indices = None  # the position that is looked at, of attention weights and scores
    unit: Indices = None  # of the last dimension: a neuron, or a dimension of a vector
    add: bool = False

    def __post_init__(self) -> None:
        named = self.named
        for field in _FIELDS:
            if getattr(self, field) is not None and field not in map(_SELECTORS.get, named.dims):
                shape = ", ".join(named.dims)
                raise ConfigError(f"{self.place} has no {field}; its shape is ({shape})")
        if isinstance(self.value, str):
            if self.value not in ("mean", "zero-tl"):
                raise ConfigError(
                    f"value is {self.value!r}, expected a number, a tensor, a function, "
                    "'mean' or 'zero-tl'"
                )
            if self.value == "zero-tl" and named.place.name != "head_outputs":
                raise ConfigError(f"'zero-tl' is a value of z alone, not of {self.place}")

    @property
    def named(self) -> Named:
        """What the name of the place stands for."""
        return find_place(self.place)

    @property
    def is_mean(self) -> bool:
        """Whether the value is the mean over the rows of a batch."""
        return isinstance(self.value, str) and self.value == "mean"

    def selected(self, letter: str) -> Indices:
        """Return what is selected along a dimension."""
        return getattr(self, _SELECTORS[letter])  # type: ignore[no-any-return]

    def __str__(self) -> str:
        chosen = {field: getattr(self, field) for field in _FIELDS}
        return ", ".join([self.place, *(f"{k}={v}" for k, v in chosen.items() if v is not None)])


def check_edits(edits: Sequence[Edit], sizes: Mapping[str, int]) -> None:
    """Raise ConfigError for an index that is not there, and for edits that set the same numbers.

    The edits are those of one spot; `sizes` has the size of each dimension that is known.
    """
    chosen = [
        {letter: _resolved(edit, letter, sizes.get(letter)) for letter in edit.named.place.dims}
        for edit in edits
    ]
    setting = [(edit, where) for edit, where in zip(edits, chosen, strict=True) if not edit.add]
    for (one, first), (other, second) in itertools.combinations(setting, 2):
        if all(_overlap(first[letter], second[letter]) for letter in first):
            raise ConfigError(
                f"two edits set the same numbers, and there is no order among edits: "
                f"({one}) and ({other}); leave one out, or select different parts"
            )


def _overlap(one: Sequence[int] | None, other: Sequence[int] | None) -> bool:
    return one is None or other is None or not set(one).isdisjoint(other)


def _resolved(edit: Edit, letter: str, size: int | None) -> Sequence[int] | None:
    """Return the indices that an edit selects along a dimension; None are all of them."""
    chosen = edit.selected(letter)
    if chosen is None:
        return None
    if isinstance(chosen, slice):
        if size is None:
            _from_the_beginning(edit, [each for each in (chosen.start, chosen.stop) if each])
            if chosen.stop is None:
                return None
            size = chosen.stop
        return range(*chosen.indices(size))
    indices = [chosen] if isinstance(chosen, int) else list(chosen)
    if size is None:  # the length of a text that is still being written
        return _from_the_beginning(edit, indices)
    for index in indices:
        if not -size <= index < size:
            field = _SELECTORS[letter]
            expected = f"0 to {size - 1}" if size > 1 else "0 alone"
            raise ConfigError(f"{edit.place}: there is no {field} {index}, expected {expected}")
    return [index % size for index in indices]


def _from_the_beginning(edit: Edit, indices: Sequence[int]) -> Sequence[int]:
    if any(index < 0 for index in indices):
        raise ConfigError(
            f"({edit}): expected positions from the beginning of the text, 0 or more, because "
            "its length is not known yet"
        )
    return indices


# --- applying -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Region:
    """Where an edit meets an activation that is being computed, along one dimension."""

    here: Sequence[int]  # indices into the activation
    of_selected: Sequence[int]  # which of the selected indices these are
    of_whole: Sequence[int]  # where they are in the whole text or batch
    n_selected: int
    n_whole: int | None  # None for a text whose length is not known
    is_single: bool


def edited(
    x: Tensor,
    edits: Sequence[Edit],
    starts: Sequence[int],
    length: int | None,
    zero: Callable[[], Tensor],
) -> Tensor:
    """Return an activation with the edits of its spot made; x itself stays as it is.

    `x` has TransformerLens's order of dimensions. `starts` has the position in the text of each
    row's first token, or one number for all rows; `length` is that of the text, if it is known.
    `zero` gives the value "zero-tl".
    """
    changed = x.clone()
    for edit in sorted(edits, key=lambda edit: edit.add):
        for start in sorted(set(starts)):
            rows = range(len(x)) if len(starts) == 1 else [*_indices_of(start, starts)]
            _apply(edit, x, changed, start, length, rows, zero)
    return changed


def _indices_of(value: int, among: Sequence[int]) -> list[int]:
    return [index for index, each in enumerate(among) if each == value]


def _apply(
    edit: Edit,
    x: Tensor,
    changed: Tensor,
    start: int,
    length: int | None,
    rows: Sequence[int],
    zero: Callable[[], Tensor],
) -> None:
    """Make one edit in rows whose first token here has position `start` in the text."""
    named = edit.named
    dims = named.place.dims
    regions = {
        letter: _region(edit, letter, size, start if letter == "T" else 0, length, rows)
        for letter, size in zip(dims, x.shape, strict=True)
    }
    if not all(region.here for region in regions.values()):
        return
    index = _index([regions[letter].here for letter in dims], x.device)
    part = changed[index]
    value = _value(edit, x, part, regions, index, zero)
    value = value.to(x.device, x.dtype) if isinstance(value, Tensor) else value
    changed[index] = part + value if edit.add else value


def _region(
    edit: Edit, letter: str, size: int, offset: int, length: int | None, rows: Sequence[int]
) -> Region:
    """Return where an edit meets the `size` indices from `offset` on that are computed now."""
    whole = length if letter in "TS" else size
    if edit.selected(letter) is None and (letter != "B" or len(rows) == size):
        span = range(offset, offset + size)
        return Region(range(size), span, span, offset + size, whole, is_single=False)
    chosen = _resolved(edit, letter, whole)
    if chosen is None:
        picked, end = edit.selected(letter), offset + size
        chosen = range(*picked.indices(end)) if isinstance(picked, slice) else range(end)
    present = rows if letter == "B" else range(offset, offset + size)
    kept = [(n, index) for n, index in enumerate(chosen) if index in present]
    return Region(
        here=[index - offset for _, index in kept],
        of_selected=[n for n, _ in kept],
        of_whole=[index for _, index in kept],
        n_selected=len(chosen),
        n_whole=whole,
        is_single=isinstance(edit.selected(letter), int),
    )


def _index(lists: Sequence[Sequence[int]], device: torch.device) -> tuple[slice | Tensor, ...]:
    """Return what selects the given indices along each dimension, as slices if that is possible."""
    spans = [range(each[0], each[-1] + 1) for each in lists]
    if all(map(_equal, spans, lists)):
        return tuple(slice(span.start, span.stop) for span in spans)
    tensors = [torch.tensor(list(each), device=device) for each in lists]
    return tuple(torch.meshgrid(*tensors, indexing="ij"))


def _equal(span: range, indices: Sequence[int]) -> bool:
    return span == indices if isinstance(indices, range) else [*span] == [*indices]


def _value(
    edit: Edit,
    x: Tensor,
    part: Tensor,
    regions: Mapping[str, Region],
    index: tuple[slice | Tensor, ...],
    zero: Callable[[], Tensor],
) -> Tensor | float:
    """Return what the part becomes, or what is added to it, with the part's dimensions."""
    named, value = edit.named, edit.value
    dims = named.place.dims
    if isinstance(value, str):
        if value == "mean":
            return x.mean(dim=0, keepdim=True).expand_as(x)[index]
        return zero().expand_as(x)[index]
    if isinstance(value, Tensor):
        return _aligned(edit, value, regions, tuple(part.shape))
    if not callable(value):
        return float(value)
    order = [dims.index(letter) for letter in named.dims]
    singles = [n for n, letter in enumerate(named.dims) if regions[letter].is_single]
    shown = part.permute(order).clone()
    shown = shown.squeeze(tuple(singles)) if singles else shown
    found = value(shown)
    if not isinstance(found, Tensor):
        return float(found)
    whole = {
        letter: Region(range(n), range(n), range(n), n, n, is_single=regions[letter].is_single)
        for letter, n in zip(dims, part.shape, strict=True)
    }
    return _aligned(edit, found, whole, tuple(part.shape))


def _aligned(
    edit: Edit, value: Tensor, regions: Mapping[str, Region], shape: tuple[int, ...]
) -> Tensor:
    """Return a value with the dimensions of the part, cut to it: each of its size or 1."""
    names, dims = edit.named.dims, edit.named.place.dims
    several = [letter for letter in names if not regions[letter].is_single]
    given = tuple(value.shape)
    if value.dim() != len(names):
        if value.dim() > len(several):
            raise _misfit(edit, given, regions)
        value = value.view(*[1] * (len(several) - value.dim()), *given)
        for n, letter in enumerate(names):
            if regions[letter].is_single:
                value = value.unsqueeze(n)
    value = value.permute([names.index(letter) for letter in dims])
    for n, letter in enumerate(dims):
        region, size = regions[letter], value.shape[n]
        if size == 1:
            continue
        if size == region.n_selected:
            wanted = region.of_selected
        elif size == region.n_whole or (region.n_whole is None and size > max(region.of_whole)):
            wanted = region.of_whole
        else:
            raise _misfit(edit, given, regions)
        if not _equal(range(size), wanted):
            value = value.index_select(n, torch.tensor(list(wanted), device=value.device))
    return value


def _misfit(edit: Edit, given: tuple[int, ...], regions: Mapping[str, Region]) -> ConfigError:
    several = [letter for letter in edit.named.dims if not regions[letter].is_single]
    sizes = ", ".join(str(regions[letter].n_selected) for letter in several)
    return ConfigError(
        f"the value for ({edit}) has the shape {given}; expected ({', '.join(several)}) = "
        f"({sizes}), or what broadcasts to it"
    )
