"""What a command computes by the pile: cells of a batch of rows in, new cells out.

A command declares it once, as a small dataclass whose fields are its options:

    @dataclass(frozen=True, kw_only=True)
    class Lengths:
        text_field: str = "text"
        command: ClassVar[str] = "lengths"
        gives: ClassVar[Gives] = "one"

        def needs(self): return (self.text_field,)
        def columns(self): return ("characters",)
        def check(self, model, tokenizer): ...
        def measure(self, model, tokenizer, rows):
            return [[{"characters": len(text)}] for (text,) in rows]

The rest is here: rows that cannot be measured get an error, and never spoil another one.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from gpt2kit.bulk.options import Reading
from gpt2kit.bulk.sources import SourceRow
from gpt2kit.bulk.threads import Threads
from gpt2kit.errors import (
    ConfigError,
    ContextLengthError,
    CorpusError,
    Gpt2KitError,
    Gpt2KitWarning,
    TokenizerError,
)
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import Tokenizer

# In memory at a time, whichever is less: rows, and characters of them.
_ROWS_AT_ONCE, _CHARACTERS_AT_ONCE = 4096, 2**23
# In a group, which one thread measures: small enough that many threads have something to do.
_ROWS_OF_A_GROUP, _CHARACTERS_OF_A_GROUP = 128, 2**16
T = TypeVar("T")
# What a row can be the cause of. Other errors, such as too little memory, are the part's.
_OF_A_ROW = (TokenizerError, ContextLengthError, CorpusError)

# Rows out for each row in: one; one or none, as a filter has it; or several, such as its words.
Gives = Literal["one", "some", "many"]
Cells = Mapping[str, Any]


class Work(Protocol):
    """What a command computes: a dataclass whose fields are the options that change results."""

    command: ClassVar[str]

    @property
    def gives(self) -> Gives:
        """How many rows there are for each row in."""
        ...

    def needs(self) -> tuple[str, ...]:
        """Return the columns whose texts are read."""
        ...

    def columns(self) -> tuple[str, ...]:
        """Return the names of the new columns."""
        ...

    def check(self, model: GPT2, tokenizer: Tokenizer | None) -> None:
        """Raise ConfigError or TokenizerError if the work cannot be done with this model."""
        ...

    def measure(
        self, model: GPT2, tokenizer: Tokenizer | None, rows: Sequence[tuple[str, ...]]
    ) -> Iterable[Sequence[Cells]]:
        """Return the rows out for each row in, in order; raises TokenizerError for a bad text.

        The result may not depend on how rows are put into batches, beyond rounding.
        """
        ...


@dataclass
class Counts:
    """What was done of a part."""

    rows: int = 0  # in
    written: int = 0  # out
    errors: int = 0  # rows in that have an error in place of figures
    tokens: int = 0  # the sum of the column `tokens` or `n_tokens`, if there is one


@dataclass(frozen=True)
class Output:
    """The columns of an output: which come from the input, and which are new."""

    work: Work
    reading: Reading
    several: bool  # whether the plan has several files, so that each row names its own
    columns: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        given = (
            "row",
            *(("file",) if self.several else ()),
            *(("id",) if self.reading.id_field else ()),
            *self.reading.kept,
        )
        columns = (*given, *self.work.columns(), "error")
        if twice := [name for name in columns if columns.count(name) > 1]:
            raise ConfigError(
                f"the output would have two columns {twice[0]!r}; leave it out of --columns"
            )
        object.__setattr__(self, "columns", columns)

    def cells(self, row: SourceRow, file: str, found: Cells, error: str | None) -> list[Any]:
        """Return the cells of one row of the output."""
        given: list[Any] = [row.number]
        if self.several:
            given.append(file)
        if self.reading.id_field:
            given.append(row.cells.get(self.reading.id_field))
        given += [row.cells.get(name) for name in self.reading.kept]
        return [*given, *(found.get(name) for name in self.work.columns()), error]


def options_of(work: Work) -> dict[str, Any]:
    """Return the options of a work by name; other dataclasses in it as their hashes."""
    found: dict[str, Any] = {}
    for each in fields(work):  # type: ignore[arg-type]
        value = getattr(work, each.name)
        if each.name == "options":
            found |= asdict(value)
        elif is_dataclass(value) and not isinstance(value, type):
            content = json.dumps(asdict(value), sort_keys=True)
            found[each.name] = hashlib.sha256(content.encode()).hexdigest()
        else:
            found[each.name] = value
    return found


def results(
    output: Output,
    rows: Iterable[SourceRow],
    file: str,
    model: GPT2,
    tokenizer: Tokenizer | None,
    counts: Counts,
    pool: Threads,
) -> Iterator[list[Any]]:
    """Yield the cells of each row of the output, in order, and count them.

    Memory holds a batch of rows, whatever the number of rows is. The pool's threads measure groups
    of them at a time, which are the same for any number of threads.
    """
    for some in _in_groups(rows, _ROWS_AT_ONCE, _CHARACTERS_AT_ONCE, _length_of_row):
        problems = [row.error or _problem(row, output.work.needs()) for row in some]
        good = [index for index, problem in enumerate(problems) if problem is None]
        texts = [tuple(some[index].cells[name] for name in output.work.needs()) for index in good]
        groups = list(_in_groups(texts, _ROWS_OF_A_GROUP, _CHARACTERS_OF_A_GROUP, _length))
        with warnings.catch_warnings():  # what a row has to say is in its cells
            warnings.simplefilter("ignore", Gpt2KitWarning)
            measured = [
                each
                for group in pool.map(partial(_measured, output.work, model, tokenizer), groups)
                for each in group
            ]
        found = dict(zip(good, measured, strict=True))
        for index, row in enumerate(some):
            counts.rows += 1
            each = found.get(index, problems[index])
            if isinstance(each, str) or each is None:
                counts.errors += 1
                if output.work.gives == "some":  # a filter drops what has no figures
                    continue
                counts.written += 1
                yield output.cells(row, file, {}, each)
                continue
            for cells in each:
                counts.written += 1
                counts.tokens += cells.get("tokens") or cells.get("n_tokens") or 0
                problem = cells.get("error")
                counts.errors += problem is not None
                yield output.cells(row, file, cells, problem)


def _in_groups(
    items: Iterable[T], n: int, size: int, size_of: Callable[[T], int]
) -> Iterator[list[T]]:
    """Yield groups of at most n items; a group ends after the item with which it reaches a size."""
    group: list[T] = []
    total = 0
    for item in items:
        group.append(item)
        total += size_of(item)
        if len(group) >= n or total >= size:
            yield group
            group, total = [], 0
    if group:
        yield group


def _length(texts: Sequence[str]) -> int:
    return sum(map(len, texts))


def _length_of_row(row: SourceRow) -> int:
    return _length([cell for cell in row.cells.values() if isinstance(cell, str)])


def _problem(row: SourceRow, needs: Sequence[str]) -> str | None:
    """Return what is wrong with the texts of a row, if anything."""
    for name in needs:
        if name not in row.cells:
            keys = ", ".join(map(repr, row.cells))[:80]
            return f"no {name!r}; there is {keys}" if keys else f"no {name!r}"
        cell = row.cells[name]
        if cell is None:
            return f"{name!r} is null"
        if not isinstance(cell, str):
            return f"{name!r} is no text but {_KINDS.get(type(cell), 'an object')}"
    if not any(row.cells[name].strip() for name in needs):
        return "empty"
    return None


_KINDS = {bool: "true or false", int: "a number", float: "a number", list: "a list"}


def _measured(
    work: Work, model: GPT2, tokenizer: Tokenizer | None, texts: list[tuple[str, ...]]
) -> list[Sequence[Cells] | str]:
    """Return the rows out for each row in, or what is wrong with it."""
    if not texts:
        return []
    try:
        return list(work.measure(model, tokenizer, texts))
    except _OF_A_ROW as error:
        if len(texts) == 1:
            return [_without_its_number(error)]
    # In halves, so that each bad row costs a dozen further batches, and not one for each other row.
    half = len(texts) // 2
    return [
        *_measured(work, model, tokenizer, texts[:half]),
        *_measured(work, model, tokenizer, texts[half:]),
    ]


def _without_its_number(error: Gpt2KitError) -> str:
    """Return a message about the first row of a batch of one, whose number is not the plan's."""
    return str(error).removeprefix("line 1: ").removeprefix("text 1: ")
