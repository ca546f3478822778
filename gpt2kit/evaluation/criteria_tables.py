"""Tables of texts: each row gets the criteria of its text as columns, or an error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gpt2kit.data.tables import ABSENT, Table
from gpt2kit.errors import CorpusError
from gpt2kit.evaluation.rewritings import parse_rewritings

ERROR = "error"  # the column that says why a row has no figures

Figures = Mapping[str, Any]
# Called with texts, and with their rewritings if there are some; returns the figures of each by
# name, and under "error" why there are none.
Measured = Callable[..., Iterable[Figures]]


def figures_of(
    table: Table, column: str, measure: Measured, rewritings: str | None = None
) -> list[Figures]:
    """Return the figures of the text in each row; a row that cannot be read has its error alone.

    With `rewritings`, a column of lists of texts, `measure` gets these lists too.
    """
    errors = dict(table.errors)
    texts = table.texts(column, errors) if table.rows else []
    lists: list[list[str]] = [[] for _ in texts]
    if rewritings is not None and table.rows:
        index = table.column(rewritings)
        for row, cells in enumerate(table.rows):
            try:
                lists[row] = parse_rewritings(cells[index])
            except CorpusError as error:
                errors.setdefault(row, str(error))
    good = [row for row in range(len(texts)) if row not in errors]
    more = () if rewritings is None else ([lists[row] for row in good],)
    found = iter(measure([texts[row] for row in good], *more))
    return [{ERROR: errors[row]} if row in errors else next(found) for row in range(len(texts))]


def with_columns(table: Table, figures: Sequence[Figures], types: Mapping[str, type]) -> Table:
    """Return a table with more columns: the figures that `types` names, in this order, and "error".

    Rows and their order stay. A column "error" that the table has already keeps its cells, and gets
    what is new in the empty ones. Raises CorpusError for another column of a new one's name.
    """
    if taken := [name for name in types if name in table.columns]:
        raise CorpusError(
            f"{table.path}: there is a column {taken[0]!r} already; rename it, since the result "
            "has one of that name"
        )
    has_errors = ERROR in table.columns
    end = table.column(ERROR) if has_errors else len(table.columns)
    rows = []
    for row, found in zip(table.rows, figures, strict=True):
        given = row[end] if has_errors else ABSENT
        error = found[ERROR] if given is ABSENT or not given else given
        new = [found.get(name) for name in types]
        rows.append([*row[:end], *new, error, *row[end + 1 :]])
    columns = (*table.columns[:end], *types, ERROR, *table.columns[end + 1 :])
    return replace(
        table, columns=columns, rows=rows, types={**table.types, **types, ERROR: str}, errors={}
    )


def as_mapping(table: Table, row: Sequence[Any]) -> dict[str, Any]:
    """Return a row's cells by the names of their columns."""
    return dict(zip(table.columns, row, strict=True))
