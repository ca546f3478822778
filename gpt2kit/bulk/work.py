"""What a command computes by the pile: cells of a batch of rows in, new cells out.

A command declares it once, as a small dataclass whose fields are its options:

    @dataclass(frozen=True, kw_only=True)
    class Lengths(Work):
        text: str = "text"
        command: ClassVar[str] = "lengths"

        def needs(self): return (self.text,)
        def columns(self): return ("characters",)
        def measure(self, models, rows):
            return [[{"characters": len(row.cells[self.text])}] for row in rows]

The rest is here: rows that cannot be measured get an error, and never spoil another one.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from gpt2kit.bulk.options import Reading
from gpt2kit.bulk.sources import SourceRow, length_of, texts_of
from gpt2kit.bulk.threads import Threads
from gpt2kit.errors import (
    ConfigError,
    ContextLengthError,
    CorpusError,
    GenerationError,
    Gpt2KitError,
    Gpt2KitWarning,
    TokenizerError,
)
from gpt2kit.evaluation.conditions import BUCKET, Buckets, Conditions
from gpt2kit.fields import rules
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import Tokenizer

# In memory at a time, whichever is less: rows, and characters of them.
_ROWS_AT_ONCE, _CHARACTERS_AT_ONCE = 4096, 2**23
# In a group, which one thread measures: small enough that many threads have something to do.
_ROWS_OF_A_GROUP, _CHARACTERS_OF_A_GROUP = 128, 2**16
# What a row can be the cause of. Other errors, such as too little memory, are the part's.
_OF_A_ROW = (TokenizerError, ContextLengthError, CorpusError, GenerationError)

# Rows out for each row in: one; one or none, as a filter has it; or several, such as its words.
Gives = Literal["one", "some", "many"]
Cells = Mapping[str, Any]


@dataclass(frozen=True)
class Models:
    """What measures texts: a model with its tokenizer, and for some figures an observer."""

    model: GPT2
    tokenizer: Tokenizer
    observer: GPT2 | None = None  # of the same vocabulary


class Work(ABC):
    """What a command computes: a dataclass whose fields are the options that change results."""

    command: ClassVar[str]

    @property
    def gives(self) -> Gives:
        """How many rows there are for each row in."""
        return "one"

    @property
    def by(self) -> tuple[str, ...]:
        """The columns that are equal in the rows of one text, if a text has several rows."""
        return ()

    @property
    def buckets(self) -> Buckets | None:
        """How the rows of all parts are divided when they are merged, if they are."""
        return None

    @abstractmethod
    def needs(self) -> tuple[str, ...]:
        """Return the columns of the input that hold the texts."""

    def reads(self) -> tuple[str, ...]:
        """Return all columns of the input that are read."""
        return self.needs()

    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """Return the names of the new columns."""

    def check(self, models: Models) -> None:  # noqa: B027  # most works fit any models
        """Raise ConfigError for options that do not fit the models."""

    def problem(self, row: SourceRow) -> str | None:
        """Return why a row cannot be measured, if it cannot."""
        return row.error or _problem(row, self.needs())

    @abstractmethod
    def measure(self, models: Models, rows: Sequence[SourceRow]) -> Iterable[Sequence[Cells]]:
        """Return the rows out for each row in, in order; raises TokenizerError for a bad text.

        The result may not depend on how rows are put into batches, beyond rounding. If there is
        `by`, the rows are those of whole texts.
        """

    def keeps(self, row: SourceRow, found: Cells) -> bool:
        """Whether a row is written, given its new cells."""
        return True

    def tokens(self, found: Cells) -> int:
        """Return how many tokens a row out stands for."""
        return found.get("tokens") or found.get("n_tokens") or 0


@dataclass
class Counts:
    """What was done of a part."""

    rows: int = 0  # in
    written: int = 0  # out
    errors: int = 0  # rows in that have an error in place of figures
    tokens: int = 0


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
        if self.work.buckets and self.work.buckets.keep:
            for name in Conditions.parse(self.work.buckets.keep).columns:
                if name not in (*columns, BUCKET):
                    raise ConfigError(
                        f"--keep names {name!r}; with --percentiles the rows are chosen when the "
                        f"parts are merged, so add {name!r} to --columns"
                    )
        object.__setattr__(self, "columns", columns)

    def cells(self, row: SourceRow, file: str, found: Cells) -> list[Any]:
        """Return the cells of one row of the output, given the new ones."""
        given: list[Any] = [row.number]
        if self.several:
            given.append(file)
        if self.reading.id_field:
            given.append(row.cells.get(self.reading.id_field))
        given += [row.cells.get(name) for name in self.reading.kept]
        return [*given, *(found.get(name) for name in (*self.work.columns(), "error"))]


def options_of(work: Work) -> dict[str, Any]:
    """Return the options of a work by name, those of its dataclasses too.

    A dataclass that is no collection of options, such as a detector, is there as its hash.
    """
    return _options_in(work)


def _options_in(owner: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in fields(owner):
        value = getattr(owner, each.name)
        if not is_dataclass(value) or isinstance(value, type):
            found[each.name] = value
        elif any(rule.help for rule in rules(type(value)).values()):
            found |= _options_in(value)
        else:
            content = json.dumps(asdict(value), sort_keys=True)
            found[each.name] = hashlib.sha256(content.encode()).hexdigest()
    return found


def results(
    output: Output,
    rows: Iterable[SourceRow],
    file: str,
    models: Models,
    counts: Counts,
    pool: Threads,
) -> Iterator[list[Any]]:
    """Yield the cells of each row of the output, in order, and count them.

    Memory holds a batch of rows, whatever the number of rows is. The pool's threads measure groups
    of them at a time, which are the same for any number of threads.
    """
    work = output.work
    for texts in _in_groups(texts_of(rows, work.by), _ROWS_AT_ONCE, _CHARACTERS_AT_ONCE):
        some = [row for text in texts for row in text]
        problems = [work.problem(row) for row in some]
        good = [row for row, problem in zip(some, problems, strict=True) if problem is None]
        groups = _in_groups(texts_of(good, work.by), _ROWS_OF_A_GROUP, _CHARACTERS_OF_A_GROUP)
        with warnings.catch_warnings():  # what a row has to say is in its cells
            warnings.simplefilter("ignore", Gpt2KitWarning)
            measured = pool.map(partial(_measured, work, models), list(groups))
        found = (lines for group in measured for lines in group)
        for row, problem in zip(some, problems, strict=True):
            lines = next(found) if problem is None else [{"error": problem}]
            counts.rows += 1
            counts.errors += any(cells.get("error") is not None for cells in lines)
            for cells in lines:
                if work.keeps(row, cells):
                    counts.written += 1
                    counts.tokens += work.tokens(cells)
                    yield output.cells(row, file, cells)


def _in_groups(
    texts: Iterable[list[SourceRow]], n_rows: int, size: int
) -> Iterator[list[list[SourceRow]]]:
    """Yield groups of texts, each up to the text with which it has enough rows or characters."""
    group: list[list[SourceRow]] = []
    rows = total = 0
    for text in texts:
        group.append(text)
        rows, total = rows + len(text), total + sum(map(length_of, text))
        if rows >= n_rows or total >= size:
            yield group
            group, rows, total = [], 0, 0
    if group:
        yield group


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


def _measured(work: Work, models: Models, texts: list[list[SourceRow]]) -> list[Sequence[Cells]]:
    """Return the rows out for each row of some texts; an error if a text cannot be measured."""
    rows = [row for text in texts for row in text]
    try:
        return list(work.measure(models, rows))
    except _OF_A_ROW as error:
        if len(texts) == 1:
            return [[{"error": _without_its_number(error)}] for _ in rows]
    # In halves, so that each bad text costs a dozen further batches, and not one for each other.
    half = len(texts) // 2
    return [*_measured(work, models, texts[:half]), *_measured(work, models, texts[half:])]


def _without_its_number(error: Gpt2KitError) -> str:
    """Return a message about the first row of a batch of one, whose number is not the plan's."""
    return str(error).removeprefix("line 1: ").removeprefix("text 1: ")
