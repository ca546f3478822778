"""Surprisal for the rows of a table: which text each row is read in, and the columns it gets.

A `Plan` says what is read and which row each measured unit belongs to. It is made once for some
rows, and measured with each model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any

from gpt2kit.data.tables import Table
from gpt2kit.errors import CorpusError
from gpt2kit.evaluation.passages import Passage, joined, split, target, whole
from gpt2kit.evaluation.word_options import UnitName, WordOptions
from gpt2kit.evaluation.words import Measured, Word, WordToken


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
    errors: Mapping[int, str] = field(default_factory=dict)  # rows that cannot be read, and why


def texts_plan(
    table: Table,
    texts: Sequence[str],
    unit: UnitName,
    options: WordOptions,
    *,
    numbered: bool = True,
    errors: Mapping[int, str] = MappingProxyType({}),
) -> Plan:
    """Plan a table with a text in each row: a row for each word or token of it, or one for it.

    `errors` says of rows that cannot be read why; they keep one row in any case.
    """
    passages = [_passage(text, unit, options) for text in texts]
    owners = [[row] * _wanted(passage) for row, passage in enumerate(passages)]
    notes = {row: "empty" for row, units in enumerate(owners) if not units and row not in errors}
    return Plan(table, passages, owners, unit == "text", numbered, notes, errors)


def _passage(text: str, unit: UnitName, options: WordOptions) -> Passage:
    if unit == "text":
        return whole(text)
    found = split(text, options.punctuation)
    if unit == "word" or not found.units:
        return found
    # White space at the end belongs to no word, but each token has a row.
    *others, last = found.units
    return Passage(text, (*others, replace(last, end=len(text))))


def text_rows(
    table: Table, by: Sequence[str], order: str | None, errors: dict[int, str]
) -> list[list[int]]:
    """Return the rows of each text of a table with a word in each row, in the order of the words.

    Rows that agree in `by` are one text. A row whose order is no number is put into `errors` with
    the reason. So are all other rows of a text with a row in `errors`, because without its word
    they would be read in another context. Two words with one order raise CorpusError.
    """
    keys = zip(*(table.texts(name, errors) for name in by), strict=True)
    numbers = _numbers(table, order, errors) if order is not None else None
    groups: dict[tuple[str, ...], list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    for key, rows in list(groups.items()):
        if bad := [row for row in rows if row in errors]:
            problem = f"row {table.first + bad[0]:,}, of the same text, has an error"
            for row in groups.pop(key):
                errors.setdefault(row, problem)
    if numbers is not None and order is not None:
        for key, rows in groups.items():
            rows.sort(key=numbers.__getitem__)
            _check_order(table, key, rows, numbers, order)
    return list(groups.values())


def words_plan(
    table: Table,
    cells: Sequence[str],
    texts: Iterable[Sequence[int]],
    separator: str,
    options: WordOptions,
) -> Plan:
    """Plan some texts of a table with a word in each row, given all words and the texts' rows."""
    passages, owners, notes = [], [], {}
    for rows in texts:
        passage, indices = joined([cells[row] for row in rows], separator, options.punctuation)
        passages.append(passage)
        owners.append([rows[index] for index in indices])
        for row in set(rows).difference(owners[-1]):
            notes[row] = "punctuation" if cells[row].strip() else "empty"
    return Plan(table, passages, owners, True, notes=notes)


def targets_plan(
    table: Table, context: str, column: str, separator: str, errors: dict[int, str]
) -> Plan:
    """Plan a table with a context and a target in each row: the target alone is measured.

    Cells that are no text are put into `errors`.
    """
    cells = zip(table.texts(context, errors), table.texts(column, errors), strict=True)
    passages = [target(before, after, separator) for before, after in cells]
    owners = [[row] * _wanted(passage) for row, passage in enumerate(passages)]
    notes = {row: "empty" for row, units in enumerate(owners) if not units and row not in errors}
    return Plan(table, passages, owners, True, notes=notes, errors=errors)


def _wanted(passage: Passage) -> int:
    return sum(unit.wanted for unit in passage.units)


def _numbers(table: Table, column: str, errors: dict[int, str]) -> list[float]:
    found = []
    for row, cell in enumerate(table.texts(column, errors)):
        try:
            number = float(cell)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            errors.setdefault(row, f"{column} is {cell!r}, expected a number")
        found.append(number)
    return found


def _check_order(
    table: Table, key: Sequence[str], rows: Sequence[int], numbers: Sequence[float], order: str
) -> None:
    for one, other in pairwise(rows):
        if not numbers[one] < numbers[other]:
            both = f"rows {table.first + one:,} and {table.first + other:,}"
            raise CorpusError(
                f"{table.path}: {both} have the same {order}, {numbers[one]:g}, in the text "
                f"{', '.join(key)}; add a column to --by"
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
_COUNTS = (
    "rank",
    "n_tokens",
    "n_context",
    "text_n",
    "word_n",
    "token_n",
    "token_id",
    "start",
    "end",
)
_TEXTS = ("flag", "word", "token")

Found = Mapping[str, Sequence[Measured]]  # of each passage, by model
# A row of the input, and the cells that are added to it.
Line = tuple[int, list[Any]]


@dataclass(frozen=True)
class Added:
    """The columns that a table gets: where a unit is, the figures of every model, and errors."""

    where: tuple[str, ...]
    figures: tuple[str, ...]  # of one model
    models: tuple[str, ...]
    top: int  # pairs of columns for the likeliest next tokens
    unit: UnitName
    errors: bool  # whether there is a column for them

    @classmethod
    def to(
        cls,
        unit: UnitName,
        options: WordOptions,
        models: Sequence[str],
        *,
        keeps_rows: bool,
        numbered: bool = True,
        errors: bool = True,
    ) -> Added:
        """Return what is added for these options."""
        where = _WHERE[unit] if not keeps_rows or unit == "token" else ()
        return cls(
            where=where[0 if numbered else 1 :],
            figures=_figure_names(unit, options),
            models=tuple(models),
            top=options.top,
            unit=unit,
            errors=errors,
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """Their names; those of figures end with the model's if there are several."""
        pairs = [name for k in range(1, self.top + 1) for name in (f"top_{k}", f"top_{k}_p")]
        figures = [
            name + (f"_{model}" if len(self.models) > 1 else "")
            for model in self.models
            for name in (*self.figures, *pairs)
        ]
        return (*self.where, *figures, *(["error"] if self.errors else []))

    @property
    def types(self) -> dict[str, type]:
        """The type of each of them, for formats that have types."""
        pairs = [("top", str), ("top_p", float)] * self.top
        kinds = [_kind(name) for name in self.figures] + [kind for _, kind in pairs]
        all_kinds = [*map(_kind, self.where), *kinds * len(self.models), str]
        return dict(zip(self.columns, all_kinds, strict=False))

    def check(self, table: Table) -> None:
        """Raise CorpusError if the table has a column of one of these names already."""
        if taken := [name for name in self.columns if name in table.columns]:
            raise CorpusError(
                f"{table.path}: there is a column {taken[0]!r} already; rename it, since "
                "the result has one of that name"
            )

    def cells(
        self, where: Sequence[Any], models: Iterable[Sequence[Any]], error: str | None = None
    ) -> list[Any]:
        """Return the cells of a row: where its unit is, what each model found, and its error.

        Of `where` the last ones are taken, as many as there are columns.
        """
        cells = [
            *where[len(where) - len(self.where) :],
            *(cell for each in models for cell in each),
        ]
        return [*cells, error] if self.errors else cells

    def measured(self, unit: Word | WordToken) -> list[Any]:
        """Return the cells of what one model found about a unit."""
        tokens = unit.tokens if isinstance(unit, Word) else (unit,)
        pairs = [cell for pair in (tokens[0].top if tokens else ()) for cell in pair]
        figures = [_figure(unit, name) for name in self.figures]
        return [*figures, *pairs, *[None] * (2 * self.top - len(pairs))]

    def nothing(self, flag: str | None = None) -> list[Any]:
        """Return the cells of one model for a unit without figures."""
        figures = [flag if name == "flag" else None for name in self.figures]
        return [*figures, *[None] * 2 * self.top]

    def empty(self, flag: str | None = None, error: str | None = None) -> list[Any]:
        """Return the cells of a row without a unit."""
        models = [self.nothing(flag)] * len(self.models)
        return self.cells([None] * len(self.where), models, error)


def _kind(name: str) -> type:
    return int if name in _COUNTS else str if name in _TEXTS else float


def _figure_names(unit: UnitName, options: WordOptions) -> tuple[str, ...]:
    if unit == "token":
        return _OF_TOKENS
    names = _OF_WORDS if unit == "word" else _OF_TEXTS
    if options.renyi is None or unit != "word":
        return names
    return (*names[:4], "renyi", *names[4:])


def lines(plan: Plan, found: Found, added: Added) -> list[Line]:
    """Return the cells for each unit, in the order of the rows, and for each row without one."""
    result: list[Line] = [(row, added.empty(error=why)) for row, why in plan.errors.items()]
    if plan.keeps_rows:
        result += [(row, added.empty(note)) for row, note in plan.notes.items()]
    for passage, owners in enumerate(plan.owners):
        models = {name: each[passage] for name, each in found.items()}
        error = reason(models)
        for index, row in enumerate(owners):
            text_n = plan.table.first + row
            if added.unit == "token":
                some = _token_cells(text_n, index, [*models.values()], added, error)
            else:
                some = iter([_word_cells(text_n, index, [*models.values()], added, error)])
            result += ((row, cells) for cells in some)
    return sorted(result, key=lambda line: line[0])


def reason(models: Mapping[str, Measured]) -> str | None:
    """Return why models could not spell a text, and which, if there are several models."""
    errors = [
        f"{name}: {each.error}" if len(models) > 1 else str(each.error)
        for name, each in models.items()
        if each.error is not None
    ]
    return "; ".join(errors) or None


def _word_cells(
    text_n: int, index: int, models: Sequence[Measured], added: Added, error: str | None
) -> list[Any]:
    """Return the cells of a word, a target or a text."""
    word = models[0].words[index]
    where = (text_n, index + 1, word.text, word.start, word.end)
    units = [each.words[index] for each in models]
    cells = [
        added.nothing(_figure(unit, "flag")) if each.error else added.measured(unit)
        for each, unit in zip(models, units, strict=True)
    ]
    return added.cells(where, cells, error)


def _token_cells(
    text_n: int, index: int, models: Sequence[Measured], added: Added, error: str | None
) -> Iterator[list[Any]]:
    """Yield the cells of each token of a word; if no model could spell the text, of the word."""
    tokens = [each.words[index].tokens for each in models if each.error is None]
    if not tokens:
        where = (text_n, index + 1, *[None] * 5)
        yield added.cells(where, [added.nothing()] * len(models), error)
    for number, same in enumerate(zip(*tokens, strict=True), 1):
        token, rest = same[0], iter(same)
        where = (text_n, index + 1, number, token.text, token.id, token.start, token.end)
        cells = [added.nothing() if each.error else added.measured(next(rest)) for each in models]
        yield added.cells(where, cells, error)


def _figure(unit: Any, name: str) -> Any:
    if name == "n_tokens":
        return len(unit.tokens)
    if name == "flag":
        return " ".join(unit.flags) or None
    return getattr(unit, name)
