"""Tables: every cell comes back as it was, and a damaged table is refused in one line."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest

from gpt2kit.data.streams import read_table
from gpt2kit.data.tables import ABSENT, Format, Table, written
from gpt2kit.errors import CorpusError

PATH = Path("stimuli.csv")


def read(text: str, format: Format = "csv", encoding: str = "utf-8") -> Table:
    return read_table(text.encode(encoding), PATH, format, encoding=encoding)


def test_quotes_line_ends_and_a_byte_order_mark_are_read() -> None:
    table = read('\ufeffitem,word\r\n1,"a ""b"", c"\r\n2,"d\r\ne"\r\n\r\n3,\r\n')
    assert table.columns == ("item", "word")
    assert table.rows == [["1", 'a "b", c'], ["2", "d\r\ne"], ["3", ""]]


@pytest.mark.parametrize("format", ["csv", "tsv", "jsonl"])
def test_any_cells_come_back_in_the_same_order(format: Format) -> None:
    draw = random.Random(0)
    alphabet = ["a", "é", "e\u0301", "中", "👩‍🚀", '"', ",", "\t", "\r\n", "\n", " ", "'", "\\", ""]
    columns = ("", "the word", 'a "b"', "the word")[: 3 if format == "jsonl" else 4]
    rows = [["".join(draw.choices(alphabet, k=5)) for _ in columns] for _ in range(200)]
    text = "".join(written(Table(columns, rows, PATH), format))
    again = read(text, format)
    assert (again.columns, again.rows) == (columns, rows)
    if format == "csv":
        assert list(csv.reader(io.StringIO(text, newline="")))[1:] == rows


def test_numbers_have_nine_digits_and_missing_ones_are_empty() -> None:
    rows: list[list[Any]] = [[1 / 3, None, float("nan")], [2, "x", ABSENT]]
    table = Table(("a", "b", "c"), rows, PATH, types={"a": float})
    assert "".join(written(table, "csv")) == "a,b,c\n0.333333333,,\n2,x,\n"
    assert [json.loads(line) for line in written(table, "jsonl")] == [
        {"a": 0.333333333, "b": None, "c": None},
        {"a": 2, "b": "x"},
    ]


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_numbers_of_a_table_that_was_read_keep_all_their_digits(format: Format) -> None:
    # A time of 1700000000.123456 seconds came back as 1700000000.0.
    table = read('{"time": 1700000000.123456, "share": 0.1234567890123456}\n', "jsonl")
    text = "".join(written(table, format))
    assert read(text, format).texts("time") == ["1700000000.123456"]
    assert read(text, format).texts("share") == ["0.1234567890123456"]


def test_two_columns_of_one_name_are_refused_where_one_would_be_lost() -> None:
    # JSONL silently had the second of them alone.
    table = read("id,id\n1,2\n")
    assert "".join(written(table, "csv")) == "id,id\n1,2\n"
    with pytest.raises(CorpusError, match="two columns are called 'id'.*; rename one"):
        list(written(table, "jsonl"))


def test_objects_keep_their_values_and_what_they_lack() -> None:
    table = read('{"a": [1], "b": null}\n{"b": 2, "c": "x"}\n', "jsonl")
    assert [json.loads(line) for line in written(table, "jsonl")] == [
        {"a": [1], "b": None},
        {"b": 2, "c": "x"},
    ]
    assert table.texts("b") == ["", "2"]
    assert table.texts("c") == ["", "x"]
    with pytest.raises(CorpusError, match=r"row 1: \[1\] is no text"):
        table.texts("a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty, expected a table"),
        ("a,b\n1\n", "line 2 has 1 cells, expected 2; a cell with a comma"),
        # write.table of R names the rows, but not the column of their names.
        ('"a","b"\n"1","x","y"\n', "line 2 has 3 cells, expected 2; a cell with a comma"),
        ('a,b\n1,"x"y\n', "line 2: .* expected after .*; a quotation mark inside"),
        ('a,b\n1,"x\n', "line 2: unexpected end of data"),
    ],
)
def test_a_damaged_table_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        read(text)


def test_a_column_is_found_once_or_the_others_are_named() -> None:
    with pytest.raises(CorpusError, match="no column 'word'; its columns are 'Word', 'item'$"):
        read("Word,item\na,1\n").column("word")
    with pytest.raises(CorpusError, match="2 columns are called 'a'"):
        read("a,a\n1,2\n").column("a")


def test_a_table_with_semicolons_as_excel_writes_it_is_read() -> None:
    # It was refused, though Excel writes no other CSV in half of Europe.
    table = read('\ufeffitem;"word, or ""sign""";rt\r\n1;"a;b";3,5\r\n')
    assert table.columns == ("item", 'word, or "sign"', "rt")
    assert table.rows == [["1", "a;b", "3,5"]]
    assert read('"a;b",c\n1;2,3\n').rows == [["1;2", "3"]]
    assert read("text\na;b\n").columns == ("text",)


def test_the_table_of_r_is_read_with_its_row_names() -> None:
    table = read('"","item","word"\n"1",1,"The"\n"2",1,NA\n')
    assert table.columns == ("", "item", "word")
    assert table.texts("word") == ["The", "NA"]


def test_a_cell_of_a_million_characters_and_another_encoding() -> None:
    assert read(f"a\n{'x' * 10**6}\n").rows == [["x" * 10**6]]
    assert read("a\nGrüße\n", encoding="cp1252").rows == [["Grüße"]]
    with pytest.raises(CorpusError, match="add --encoding cp1252"):
        read_table("a\nGrüße\n".encode("cp1252"), PATH, "csv")


def test_the_limit_of_other_readers_of_csv_stays_as_it_was() -> None:
    # It belongs to the process: one table made every later reader take cells of any length.
    before = csv.field_size_limit()
    read("word\nthe\n")
    assert csv.field_size_limit() == before
