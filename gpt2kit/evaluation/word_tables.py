"""Surprisal for the rows of a table: which text each row is read in, and the columns it gets.

A `Plan` says what is read and which row each measured unit belongs to. It is made once, and
measured with each model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from gpt2kit.data.tables import Table
from gpt2kit.errors import ConfigError, CorpusError
from gpt2kit.evaluation.passages import Passage, joined, split, target, whole
from gpt2kit.evaluation.word_options import UnitName, WordOptions
from gpt2kit.evaluation.words import Word


@dataclass(frozen=True)
class Plan:
    """What is read for a table.

    `owners` has, for each passage, the row of the table that each wanted unit of it belongs to.
    With `keeps_rows` every row appears once, also one without a unit; else once for each unit.
    """

    table: Table
    passages: Sequence[Passage]
    owners: Sequence[Sequence[int]]
    keeps_rows: bool
    numbered: bool = True  # whether rows that are repeated get the number of their text
    notes: dict[int, str] = field(default_factory=dict)  # flags of rows without a unit


def texts_plan(
    table: Table,
    texts: Sequence[str],
    unit: UnitName,
    options: WordOptions,
    *,
    numbered: bool = True,
) -> Plan:
    """Plan a table with a text in each row: a row for each word or token of it, or one for it."""
    passages = [_passage(text, unit, options) for text in texts]
    owners = [[row] * _wanted(passage) for row, passage in enumerate(passages)]
    notes = {row: "empty" for row, units in enumerate(owners) if not units}
    return Plan(table, passages, owners, unit == "text", numbered, notes)


def _passage(text: str, unit: UnitName, options: WordOptions) -> Passage:
    if unit == "text":
        return whole(text)
    found = split(text, options.punctuation)
    if unit == "word" or not found.units:
        return found
    # White space at the end belongs to no word, but each token has a row.
    *others, last = found.units
    return Passage(text, (*others, replace(last, end=len(text))))


def words_plan(
    table: Table,
    column: str,
    by: Sequence[str],
    order: str | None,
    separator: str,
    options: WordOptions,
) -> Plan:
    """Plan a table with a word in each row: rows that agree in `by` are one text, in any order.

    Raises CorpusError for an order that is no number, and for two words at one point of a text.
    """
    if options.punctuation == "split":
        raise ConfigError(
            "punctuation is split, but a row holds one word; expected keep or drop with --words"
        )
    cells = table.texts(column)
    keys = list(zip(*(table.texts(name) for name in by), strict=True))
    groups: dict[tuple[str, ...], list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    if order is not None:
        places = _numbers(table, order)
        for key, rows in groups.items():
            rows.sort(key=places.__getitem__)
            _check_order(table, key, rows, places, order)
    passages, owners = [], []
    for rows in groups.values():
        passage, indices = joined([cells[row] for row in rows], separator, options.punctuation)
        passages.append(passage)
        owners.append([rows[index] for index in indices])
    present = {row for units in owners for row in units}
    notes = {
        row: "punctuation" if cells[row].strip() else "empty"
        for row in range(len(cells))
        if row not in present
    }
    return Plan(table, passages, owners, True, notes=notes)


def targets_plan(table: Table, context: str, column: str, separator: str) -> Plan:
    """Plan a table with a context and a target in each row: the target alone is measured."""
    passages = [
        target(before, after, separator)
        for before, after in zip(table.texts(context), table.texts(column), strict=True)
    ]
    owners = [[row] * _wanted(passage) for row, passage in enumerate(passages)]
    notes = {row: "empty" for row, units in enumerate(owners) if not units}
    return Plan(table, passages, owners, True, notes=notes)


def _wanted(passage: Passage) -> int:
    return sum(unit.wanted for unit in passage.units)


def _numbers(table: Table, column: str) -> list[float]:
    found = []
    for row, cell in enumerate(table.texts(column), 1):
        try:
            found.append(float(cell))
        except ValueError:
            raise CorpusError(
                f"{table.path}: row {row:,}: {column} is {cell!r}, expected a number"
            ) from None
    return found


def _check_order(
    table: Table, key: Sequence[str], rows: Sequence[int], places: Sequence[float], order: str
) -> None:
    for one, other in pairwise(rows):
        if not places[one] < places[other]:
            raise CorpusError(
                f"{table.path}: rows {one + 1:,} and {other + 1:,} have the same {order}, "
                f"{places[one]:g}, in the text {', '.join(key)}; add a column to --by"
            )


# --- columns --------------------------------------------------------------------------------------

_OF_TEXTS = ("surprisal", "surprisal_corrected", "n_tokens", "n_context", "flag")
_OF_WORDS = (
    "surprisal",
    "surprisal_corrected",
    "entropy",
    "entropy_word",
    "rank",
    "n_tokens",
    "n_context",
    "flag",
)
_OF_TOKENS = ("surprisal", "entropy", "rank", "n_context")
_WHERE = {
    "word": ("text_n", "word_n", "word", "start", "end"),
    "text": (),
    "token": ("text_n", "word_n", "token_n", "token", "token_id", "start", "end"),
}


def filled(
    plan: Plan,
    found: Mapping[str, Sequence[Sequence[Word]]],
    unit: UnitName,
    options: WordOptions,
) -> Table:
    """Return the table with the figures of every model, whose names end the columns if several.

    `found` has the words of every passage by the model's name. Raises CorpusError if the table has
    a column of a new one's name already.
    """
    suffixes = {name: f"_{name}" if len(found) > 1 else "" for name in found}
    names = _figure_names(unit, options)
    where = _WHERE[unit] if not plan.keeps_rows or unit == "token" else ()
    skipped = 0 if plan.numbered else 1
    where = where[skipped:]
    added = (*where, *(f"{each}{suffix}" for suffix in suffixes.values() for each in names))
    if taken := [name for name in added if name in plan.table.columns]:
        raise CorpusError(
            f"{plan.table.path}: there is a column {taken[0]!r} already; rename it, since "
            "the result has one of that name"
        )
    lines = _token_lines if unit == "token" else _unit_lines
    rows = [
        [*plan.table.rows[row], *place[skipped : skipped + len(where)], *figures]
        for row, place, figures in lines(plan, list(found.values()), names)
    ]
    return Table((*plan.table.columns, *added), rows, plan.table.path)


def _figure_names(unit: UnitName, options: WordOptions) -> tuple[str, ...]:
    if unit == "token":
        return _OF_TOKENS
    names = _OF_WORDS if unit == "word" else _OF_TEXTS
    if options.renyi is None or unit == "text":
        return names
    return (*names[:4], "renyi", *names[4:])


_Line = tuple[int, tuple[Any, ...], list[Any]]  # row of the input, where in it, figures


def _unit_lines(
    plan: Plan, found: Sequence[Sequence[Sequence[Word]]], names: Sequence[str]
) -> Iterator[_Line]:
    """Yield a line for each unit, in the order of the rows, and for each row without one."""
    lines: list[_Line] = []
    for passage, owners in enumerate(plan.owners):
        for index, row in enumerate(owners):
            same = [model[passage][index] for model in found]
            word = same[0]
            place = (row + 1, index + 1, word.text, word.start, word.end)
            lines.append((row, place, [_figure(each, name) for each in same for name in names]))
    if plan.keeps_rows:
        for row, note in plan.notes.items():
            empty = [note if name == "flag" else None for name in names]
            lines.append((row, (), empty * len(found)))
    return iter(sorted(lines, key=lambda line: line[0]))


def _token_lines(
    plan: Plan, found: Sequence[Sequence[Sequence[Word]]], names: Sequence[str]
) -> Iterator[_Line]:
    """Yield a line for each token of each unit, in the order of the rows."""
    lines: list[_Line] = []
    for passage, owners in enumerate(plan.owners):
        for index, row in enumerate(owners):
            same = [model[passage][index].tokens for model in found]
            for number, tokens in enumerate(zip(*same, strict=True), 1):
                first = tokens[0]
                place = (row + 1, index + 1, number, first.text, first.id, first.start, first.end)
                figures = [getattr(each, name) for each in tokens for name in names]
                lines.append((row, place, figures))
    return iter(sorted(lines, key=lambda line: line[0]))


def _figure(word: Word, name: str) -> Any:
    if name == "n_tokens":
        return len(word.tokens)
    if name == "flag":
        return " ".join(word.flags) or None
    return getattr(word, name)


def lines_table(text: str, path: Path, unit: UnitName) -> tuple[Table, list[str]]:
    """Return a table with a row for each line that is not blank, and the texts of these lines."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise CorpusError(f"{path}: no text, expected a text on each line")
    texts = [line for _, line in numbered]
    if unit == "text":
        return Table(("line", "text"), numbered, path), texts
    return Table(("line",), [[number] for number, _ in numbered], path), texts
