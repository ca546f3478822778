"""Which text each row of a table is read in, and the columns that it gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2kit.data.tables import Table
from gpt2kit.errors import CorpusError
from gpt2kit.evaluation.word_options import WordOptions
from gpt2kit.evaluation.word_tables import text_rows, words_plan

TABLE = Table(
    ("subject", "item", "n", "word"),
    [["a", "1", "10", "cat"], ["b", "1", "1", "No"], ["a", "1", "9", "The"], ["a", "2", "1", "So"]],
    Path("words.csv"),
)


def test_rows_are_one_text_if_they_agree_in_all_columns_of_by() -> None:
    errors: dict[int, str] = {}
    texts = text_rows(TABLE, ["subject", "item"], "n", errors)
    # 9 stands before 10, which it would not among texts.
    assert texts == [[2, 0], [1], [3]]
    plan = words_plan(TABLE, TABLE.texts("word"), texts, " ", WordOptions())
    assert [passage.text for passage in plan.passages] == ["The cat", "No", "So"]
    assert plan.owners == [[2, 0], [1], [3]]
    texts = text_rows(TABLE, ["item"], None, errors)
    plan = words_plan(TABLE, TABLE.texts("word"), texts, "_", WordOptions())
    assert [passage.text for passage in plan.passages] == ["cat_No_The", "So"]
    assert not errors


def test_two_words_at_one_point_of_a_text_are_an_error() -> None:
    with pytest.raises(CorpusError, match=r"rows 2 and 4 have the same n, 1, in the text 1"):
        text_rows(
            Table(TABLE.columns, [*TABLE.rows[:3], ["c", "1", "1", "x"]], TABLE.path),
            ["item"],
            "n",
            {},
        )


def test_an_order_that_is_not_a_number_is_an_error_of_its_row() -> None:
    # All of the table was refused: two rows had "the same n, nan".
    errors: dict[int, str] = {}
    table = Table(("item", "n"), [["1", "nan"], ["1", "2"], ["2", "inf"], ["3", "1"]], Path("t"))
    assert text_rows(table, ["item"], "n", errors) == [[3]]
    assert errors[0] == "n is 'nan', expected a number"
    assert errors[2] == "n is 'inf', expected a number"


def test_a_text_with_a_row_that_cannot_be_read_has_no_figures_in_its_other_rows() -> None:
    # They were read without the word of that row, and their figures were those of another text.
    table = Table(
        ("item", "n", "word"),
        [["1", "first", "The"], ["1", "2", "cat"], ["2", "1", "So"], ["1", "3", "sat"]],
        Path("words.csv"),
    )
    errors: dict[int, str] = {}
    assert text_rows(table, ["item"], "n", errors) == [[2]]
    assert errors == {
        0: "n is 'first', expected a number",
        1: "row 1, of the same text, has an error",
        3: "row 1, of the same text, has an error",
    }
