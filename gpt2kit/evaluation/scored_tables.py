"""Tables with the surprisal of their words, a batch of rows at a time, in bounded memory.

    meters = {"124M": Meter(model, tokenizer, options)}
    write_batches(out, scored(lambda: read_batches(path), meters, how, options))

A table with a text, or a context and a target, in each row is read once. One with a word in each
row is read twice, since the words of a text may stand anywhere in it: once for the words, which are
kept in memory with their figures, and once for all its columns.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpt2kit.data.streams import ROWS_AT_ONCE
from gpt2kit.data.tables import ABSENT, Table
from gpt2kit.errors import ConfigError, CorpusError, TokenizerError
from gpt2kit.evaluation.word_options import TableOptions, WordOptions, check_together
from gpt2kit.evaluation.word_tables import (
    Added,
    Found,
    Plan,
    lines,
    reason,
    targets_plan,
    text_rows,
    texts_plan,
    words_plan,
)
from gpt2kit.evaluation.words import Measured, Meter

Read = Callable[[], Iterator[Table]]


@dataclass
class Tally:
    """How much was measured."""

    rows: int = 0  # of the input
    texts: int = 0
    units: int = 0
    errors: int = 0  # rows with an error
    first_error: str = ""

    def count_errors(self, rows: Sequence[Sequence[Any]]) -> None:
        """Count the rows whose last cell says what is wrong."""
        found = [row[-1] for row in rows if row[-1] is not None]
        self.errors += len(found)
        self.first_error = self.first_error or (found[0] if found else "")


def scored(
    read: Read,
    meters: Mapping[str, Meter],
    how: TableOptions,
    options: WordOptions,
    *,
    tally: Tally | None = None,
) -> Iterator[Table]:
    """Yield the tables that `read` gives with the columns of `Added`; `tally` is kept up to date.

    Raises CorpusError for a table without the columns that `how` names or with one that is to be
    added, and for two words at one point of a text; with on_error "stop" also for a row that cannot
    be read, and TokenizerError for a text that cannot be spelled.
    """
    check_together(how, options)
    tally = Tally() if tally is None else tally
    rows = _by_word if how.words else _by_row
    return rows(read, meters, how, options, tally)


def _by_row(
    read: Read, meters: Mapping[str, Meter], how: TableOptions, options: WordOptions, tally: Tally
) -> Iterator[Table]:
    """Yield tables whose rows each have a text, or a context and a target."""
    added = _added(how, options, meters, keeps_rows=how.target is not None or how.unit == "text")
    for table in _prepared(read(), how.columns, added):
        errors = dict(table.errors)
        if how.context is not None and how.target is not None:
            plan = targets_plan(table, how.context, how.target, how.sep, errors)
        else:
            texts = table.texts(how.text or "text", errors)
            shown = table if how.is_table or how.unit == "text" else _without_texts(table)
            plan = texts_plan(shown, texts, how.unit, options, errors=errors)
        found = _measured(plan, meters, how, tally)
        tally.rows += len(table.rows)
        result = [[*plan.table.rows[row], *cells] for row, cells in lines(plan, found, added)]
        if added.errors:
            tally.count_errors(result)
        yield _filled(plan.table, result, added)


def _without_texts(table: Table) -> Table:
    """Return lines of text without the text, whose words have rows of their own."""
    return replace(table, columns=table.columns[:1], rows=[row[:1] for row in table.rows])


def _by_word(
    read: Read, meters: Mapping[str, Meter], how: TableOptions, options: WordOptions, tally: Tally
) -> Iterator[Table]:
    """Yield tables whose rows each have a word of a text."""
    added = _added(how, options, meters, keeps_rows=True)
    store = _stored(_prepared(read(), how.columns, added), meters, how, options, added, tally)
    for part in _prepared(read(), how.columns, added):
        tally.rows += len(part.rows)
        rows = [
            [*row, *line]
            for number, row in enumerate(part.rows, part.first - 1)
            for line in store.lines(number)
        ]
        if added.errors:
            tally.count_errors(rows)
        yield _filled(part, rows, added)


def _stored(
    tables: Iterator[Table],
    meters: Mapping[str, Meter],
    how: TableOptions,
    options: WordOptions,
    added: Added,
    tally: Tally,
) -> _Store:
    """Return the cells that the rows of tables with a word in each row get."""
    errors: dict[int, str] = {}
    table = _columns(tables, how.columns, errors)
    cells = table.texts(how.words or "")
    texts = text_rows(table, how.by_columns, how.order, errors)
    # Many subjects read the same texts: equal ones are measured together, and so only once.
    texts.sort(key=lambda rows: [cells[row] for row in rows])
    store = _Store(added, len(table.rows))
    for row, problem in errors.items():
        store.add(row, added.empty(error=problem))
    stop(table, errors, how)
    for some in _chunks(texts):
        plan = words_plan(table, cells, some, how.sep, options)
        for row, line in lines(plan, _measured(plan, meters, how, tally), added):
            store.add(row, line)
    return store


def _added(
    how: TableOptions, options: WordOptions, meters: Mapping[str, Meter], *, keeps_rows: bool
) -> Added:
    return Added.to(
        how.unit,
        options,
        list(meters),
        keeps_rows=keeps_rows,
        numbered=how.is_table,
        errors=how.on_error == "cell",
    )


def _prepared(tables: Iterable[Table], names: Sequence[str], added: Added) -> Iterator[Table]:
    """Yield tables that have the columns; a later part of a JSONL file may lack some."""
    for number, table in enumerate(tables):
        if number == 0:
            for name in names:
                table.column(name)
        added.check(table)
        if missing := [name for name in names if name not in table.columns]:
            yield replace(
                table,
                columns=(*table.columns, *missing),
                rows=[[*row, *[ABSENT] * len(missing)] for row in table.rows],
            )
        else:
            yield table


def _columns(tables: Iterable[Table], names: Sequence[str], errors: dict[int, str]) -> Table:
    """Return the columns of these names alone, with equal cells as one text in memory."""
    found: list[list[str]] = [[] for _ in names]
    for table in tables:
        own = dict(table.errors)
        for cells, name in zip(found, names, strict=True):
            cells += map(sys.intern, table.texts(name, own))
        errors |= {table.first - 1 + row: problem for row, problem in own.items()}
        path = table.path
    return Table(tuple(names), list(zip(*found, strict=True)), path)


def _chunks(texts: Iterable[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Yield some texts at a time, given the rows of each."""
    some: list[Sequence[int]] = []
    n_rows = 0
    for rows in texts:
        some.append(rows)
        n_rows += len(rows)
        if n_rows >= ROWS_AT_ONCE:
            yield some
            some, n_rows = [], 0
    if some:
        yield some


def _measured(plan: Plan, meters: Mapping[str, Meter], how: TableOptions, tally: Tally) -> Found:
    """Return what each model finds in the passages of a plan."""
    stop(plan.table, plan.errors, how)
    found = {name: meter.measure(plan.passages) for name, meter in meters.items()}
    for index, owners in enumerate(plan.owners):
        models = {name: each[index] for name, each in found.items()}
        why = reason(models)
        if why is not None and how.on_error == "stop":
            row = plan.table.first + owners[0]
            raise TokenizerError(f"{plan.table.path}: row {row:,}: {why}")
        _count([each for each in models.values() if each.error is None], owners, how, tally)
    return found


def _count(
    models: Sequence[Measured], owners: Sequence[int], how: TableOptions, tally: Tally
) -> None:
    """Count what at least one model has measured."""
    if not models:
        return
    tally.texts += bool(owners)
    if how.unit != "token":
        tally.units += len(owners)
        return
    tally.units += sum(len(word.tokens) for word in models[0].words)
    _check_same_tokens(models)


def stop(table: Table, errors: Mapping[int, str], how: TableOptions) -> None:
    """Raise the first of some errors of rows as CorpusError, if on_error is "stop"."""
    if errors and how.on_error == "stop":
        row = min(errors)
        raise CorpusError(f"{table.path}: row {table.first + row:,}: {errors[row]}")


def _check_same_tokens(models: Sequence[Measured]) -> None:
    """Refuse models that cut a text into different tokens: they have no common rows."""
    ids = [[[token.id for token in word.tokens] for word in each.words] for each in models]
    if any(each != ids[0] for each in ids[1:]):
        raise ConfigError(
            "--unit token gives a row for each token, but these models split the text into "
            "different ones; run them one after another"
        )


def _filled(table: Table, rows: list[list[Any]], added: Added) -> Table:
    return Table(
        (*table.columns, *added.columns),
        rows,
        table.path,
        first=table.first,
        types={**table.types, **added.types},
    )


class _Store:
    """The cells that are added to the rows of a table, in little memory."""

    def __init__(self, added: Added, n_rows: int) -> None:
        self._kinds = [added.types[name] for name in added.columns]
        self._first = array("q", [-1]) * n_rows  # the first line of each row, or -1
        self._next = array("q")  # the line after each line of the same row, or -1
        self._last: dict[int, int] = {}  # of rows with several lines
        self._columns: list[Any] = [
            list[str | None]() if kind is str else array("d") for kind in self._kinds
        ]

    def add(self, row: int, cells: Sequence[Any]) -> None:
        """Add a line to a row."""
        line = len(self._next)
        self._next.append(-1)
        for column, cell, kind in zip(self._columns, cells, self._kinds, strict=True):
            if kind is str:
                column.append(cell if cell is None else sys.intern(cell))
            else:
                column.append(math.nan if cell is None else cell)
        if self._first[row] < 0:
            self._first[row] = line
        else:
            self._next[self._last.get(row, self._first[row])] = line
            self._last[row] = line

    def lines(self, row: int) -> Iterator[list[Any]]:
        """Yield the lines of a row."""
        line = self._first[row]
        while line >= 0:
            yield [
                _restored(column[line], kind)
                for column, kind in zip(self._columns, self._kinds, strict=True)
            ]
            line = self._next[line]


def _restored(cell: Any, kind: type) -> Any:
    if kind is str:
        return cell
    return None if math.isnan(cell) else kind(cell)
