"""Criteria as columns: every row and cell stays, and a bad row has an error and no figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gpt2kit.data.tables import ABSENT, Table
from gpt2kit.errors import CorpusError
from gpt2kit.evaluation.criteria_tables import as_mapping, figures_of, with_columns

TYPES = {"nll": float, "tokens": int}


def measure(texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Give each text its length; an empty one has an error."""
    for text in texts:
        error = None if text else "the text is empty"
        yield {"nll": len(text) / 2 or None, "tokens": len(text) or None, "error": error}


def measured(table: Table) -> Table:
    return with_columns(table, figures_of(table, "text", measure), TYPES)


def test_columns_rows_and_cells_stay_and_figures_follow_them() -> None:
    table = Table(("id", "text", "id"), [[2, "abc", "x"], [1, "", None]], Path("t.csv"))
    found = measured(table)
    assert found.columns == ("id", "text", "id", "nll", "tokens", "error")
    assert found.rows == [
        [2, "abc", "x", 1.5, 3, None],
        [1, "", None, None, None, "the text is empty"],
    ]
    assert found.types == {"nll": float, "tokens": int, "error": str}


def test_a_row_that_could_not_be_read_keeps_its_error_and_its_neighbors_their_figures() -> None:
    rows: list[list[Any]] = [["a"], ["b"], [{"no": "text"}], ["d"]]
    found = measured(Table(("text",), rows, Path("t"), errors={1: "line 2 is no JSON"}))
    assert [row[-1] for row in found.rows] == [
        None,
        "line 2 is no JSON",
        '{"no": "text"} is no text',
        None,
    ]
    assert [row[2] for row in found.rows] == [1, None, None, 1]


def test_a_row_without_the_key_error_gets_its_error_though_others_have_it() -> None:
    # The error of such a row was lost, and a row without one counted as a row with an error.
    rows: list[list[Any]] = [["", "before"], ["", ABSENT], ["a", ABSENT]]
    found = measured(Table(("text", "error"), rows, Path("t.jsonl")))
    assert [as_mapping(found, row)["error"] for row in found.rows] == [
        "before",
        "the text is empty",
        None,
    ]


def test_errors_of_an_earlier_command_stay() -> None:
    table = Table(("error", "text"), [["before", ""], [None, "a"], ["", ""]], Path("t.csv"))
    found = measured(table)
    assert found.columns == ("nll", "tokens", "error", "text")
    assert [as_mapping(found, row)["error"] for row in found.rows] == [
        "before",
        None,
        "the text is empty",
    ]


def test_a_column_of_a_new_ones_name_is_refused() -> None:
    with pytest.raises(CorpusError, match="there is a column 'nll' already"):
        measured(Table(("text", "nll"), [["a", 1]], Path("t.csv")))


def test_a_table_without_rows_has_the_columns() -> None:
    assert measured(Table(("text",), [], Path("t.csv"))).columns == (
        "text",
        "nll",
        "tokens",
        "error",
    )
