"""Logits processors: functions of the caller's own that change logits before all options do.

    def no_e(logits: Tensor, rows: Sequence[RowView]) -> Tensor:
        logits[:, 39] = -math.inf
        return logits

    gpt2kit.generate(model, tokenizer, "Nel mezzo", logits_processors=[no_e])

This module imports torch only when a processor is run, so that `--help` is instant.

    B batch, V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from gpt2kit.errors import ConfigError, GenerationError
from gpt2kit.fields import shortened

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RowView:
    """What a processor is told about one row.

    tokens         the row's tokens so far: its prompt, then what was generated
    prompt_length  how many of them are the prompt
    sample         the sample's number among those of its prompt
    memory         a dictionary of the row's own, empty at first, in which a processor may keep what
                   it worked out from the tokens; a draft model's rows begin with a shallow copy, so
                   replace its values and do not change them in place
    """

    tokens: tuple[int, ...]
    prompt_length: int
    sample: int
    memory: dict[Any, Any]

    @property
    def generated(self) -> tuple[int, ...]:
        """The tokens without the prompt."""
        return self.tokens[self.prompt_length :]


class LogitsProcessor(Protocol):
    """Changes the logits of the rows of one step.

    It gets a (B, V) tensor, float32 unless the model computes in float64, which it may change in
    place, and B views of the rows in the same order. It returns logits of the same shape and dtype.
    Minus infinity is a token that must not be chosen; each row needs another token.

    Which rows share a step, and in which order, is not fixed: rows end at different times. So that
    a text is the same alone and in a batch, what becomes of a row may depend on its own logits and
    on its own view only. With a draft a processor also sees rows with tokens that are only proposed
    and may be called several times for one token; it must return the same each time.
    """

    def __call__(self, logits: Tensor, rows: Sequence[RowView], /) -> Tensor: ...


def as_processors(given: Any) -> tuple[LogitsProcessor, ...]:
    """Return one processor, several or None as a tuple; raises ConfigError for anything else."""
    if callable(given):
        return (given,)
    processors = given if given is not None else ()
    if not isinstance(processors, Sequence) or not all(callable(each) for each in processors):
        raise ConfigError(
            f"logits_processors is {shortened(given)}, expected functions of logits and rows"
        )
    return tuple(processors)


def name_of(processor: LogitsProcessor) -> str:
    """Return the name of a processor, or of its class."""
    return str(getattr(processor, "__qualname__", type(processor).__qualname__))


def processed(
    logits: Tensor, processors: Sequence[LogitsProcessor], rows: Sequence[RowView]
) -> Tensor:
    """Run processors one after the other on (B, V) logits, which stay as they are.

    Raises GenerationError, which names the processor, for what is no tensor of the same shape and
    dtype, and for a row with NaN, with infinity, or with nothing but minus infinities.
    """
    for processor in processors:
        changed = processor(logits.clone(), rows)
        _check(changed, logits, processor, rows)
        logits = changed.to(logits.device)
    return logits


def _check(
    changed: Any, logits: Tensor, processor: LogitsProcessor, rows: Sequence[RowView]
) -> None:
    """Raise GenerationError unless a processor returned logits that can be used."""
    from torch import Tensor

    name = name_of(processor)
    expected = f"a {_words(logits)} tensor"
    if not isinstance(changed, Tensor):
        raise GenerationError(
            f"the logits processor {name} returned {shortened(changed)}, expected {expected}"
        )
    if changed.shape != logits.shape or changed.dtype != logits.dtype:
        raise GenerationError(
            f"the logits processor {name} returned a {_words(changed)} tensor, expected {expected}"
        )
    largest = changed.amax(dim=-1).tolist()  # B numbers, NaN for a row that has a NaN
    for row, value in zip(rows, largest, strict=True):
        if value != value or value in (float("inf"), float("-inf")):
            found = {float("inf"): "infinity", float("-inf"): "minus infinity for every token"}
            raise GenerationError(
                f"the logits processor {name} returned {found.get(value, 'NaN')} for sample "
                f"{row.sample}, new token {len(row.generated)}; expected finite numbers, or minus "
                "infinity for some of the tokens"
            )


def _words(tensor: Tensor) -> str:
    """Return shape and dtype of a tensor in words: "(2, 50257) float32"."""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
