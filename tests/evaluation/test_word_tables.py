"""Which text each row of a table is read in, and the columns that it gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2kit.data.tables import Table
from gpt2kit.errors import CorpusError
from gpt2kit.evaluation.word_options import WordOptions
from gpt2kit.evaluation.word_tables import filled, lines_table, texts_plan, words_plan
from gpt2kit.evaluation.words import words

TABLE = Table(
    ("subject", "item", "n", "word"),
    [["a", "1", "10", "cat"], ["b", "1", "1", "No"], ["a", "1", "9", "The"], ["a", "2", "1", "So"]],
    Path("words.csv"),
)


def test_rows_are_one_text_if_they_agree_in_all_columns_of_by() -> None:
    plan = words_plan(TABLE, "word", ["subject", "item"], "n", " ", WordOptions())
    # 9 stands before 10, which it would not among texts.
    assert [passage.text for passage in plan.passages] == ["The cat", "No", "So"]
    assert plan.owners == [[2, 0], [1], [3]]
    plan = words_plan(TABLE, "word", ["item"], None, "_", WordOptions())
    assert [passage.text for passage in plan.passages] == ["cat_No_The", "So"]


def test_many_rows_come_back_in_their_order(tiny_model, small_bpe) -> None:  # type: ignore[no-untyped-def]
    rows = [[str(number % 7), "abc"[number % 3]] for number in range(100)]
    table = Table(("item", "word"), rows, Path("words.csv"))
    options = WordOptions()
    plan = words_plan(table, "word", ["item"], None, " ", options)
    found = [words(tiny_model, small_bpe, passage.text)[0] for passage in plan.passages]
    done = filled(plan, {"m": found}, "word", options)
    assert [row[:2] for row in done.rows] == rows
    assert done.columns[:3] == ("item", "word", "surprisal")


def test_lines_are_numbered_as_in_the_file() -> None:
    table, texts = lines_table("a\r\n\n \nb c", Path("x"), "word")
    assert (table.rows, texts) == ([[1], [4]], ["a", "b c"])
    assert [len(each) for each in texts_plan(table, texts, "word", WordOptions()).owners] == [1, 2]
    with pytest.raises(CorpusError, match="no text"):
        lines_table(" \n\t\n", Path("x"), "word")
