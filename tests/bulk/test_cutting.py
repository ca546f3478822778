"""Files cut into parts at the ends of rows, and read again."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from gpt2kit.bulk import cutting, sources
from gpt2kit.bulk.options import Reading
from gpt2kit.data.streams import write_batches
from gpt2kit.data.tables import Table
from gpt2kit.errors import CorpusError


def cut_and_read(path: Path, part_rows: int, **options: Any) -> list[sources.SourceRow]:
    inputs, parts = cutting.cut([(path.name, path)], part_rows)
    assert inputs[0].size == path.stat().st_size
    reading = Reading(part_rows=part_rows, **options)
    found = [list(sources.read(part, path, reading)) for part in parts]
    assert [len(rows) for rows in found] == [part.rows for part in parts]
    assert all(len(rows) == part_rows for rows in found[:-1])
    return [row for rows in found for row in rows]


@pytest.mark.parametrize("part_rows", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_every_line_is_read_once_with_its_number(tmp_path: Path, part_rows: int, end: str) -> None:
    lines = [f"line {index} \u2028\x0c é" * (index % 3) for index in range(20)] + ["last"]
    path = tmp_path / "a.txt"
    path.write_text("\ufeff" + (end or "\n").join(lines) + end, newline="")
    rows = cut_and_read(path, part_rows)
    assert [row.number for row in rows] == list(range(1, 22))
    assert [row.cells["text"] for row in rows] == lines


def test_parts_are_cut_right_wherever_the_blocks_end_that_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(0)
    path = tmp_path / "a.txt"
    for block in (1, 2, 3, 5, 64):
        monkeypatch.setattr(cutting, "_CHUNK", block)
        lines = ["x" * draw.randint(0, 9) for _ in range(40)]
        path.write_text("\n".join(lines) + draw.choice(["", "\n"]) + "")
        expected = path.read_text().removesuffix("\n").split("\n")
        assert [row.cells["text"] for row in cut_and_read(path, 6)] == expected


def test_a_part_ends_after_the_row_that_makes_it_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "PART_BYTES", 10)
    path = tmp_path / "a.txt"
    path.write_text("123\n567\n9\n2\n" + "x" * 30 + "\ny\n")
    _, parts = cutting.cut([("a.txt", path)], 100)
    assert [(part.start, part.end, part.rows) for part in parts] == [
        (0, 10, 3),
        (10, 43, 2),
        (43, 45, 1),
    ]


def test_a_bad_row_says_what_is_wrong_and_leaves_the_others_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [
        b'{"text": "good"}',
        b"",
        b"[1]",
        b'{"text": "\\ud800"}',
        b'{"text": "\xff"}',
        b"{",
        b"[" * 9000,
        b'{"text": "' + b"x" * 200 + b'"}',
        b'{"text": "also good"}',
    ]
    path.write_bytes(b"\n".join(lines) + b"\n")
    rows = cut_and_read(path, 4, max_bytes=100)
    assert [row.number for row in rows if row.error is None] == [1, 9]
    problems = [row.error or "" for row in rows[1:8]]
    expected = ["empty", "no JSON object", "half a surrogate", "not UTF-8: byte 11 of the row"]
    for problem, start in zip(problems, expected, strict=False):
        assert problem.startswith(start)
    assert problems[4].startswith("not valid JSON")
    assert problems[5] == "9,001 bytes, expected at most 100"
    assert problems[6] == "213 bytes, expected at most 100"


def test_bytes_that_changed_since_the_plan_are_refused_when_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\nthree\n")
    _, parts = cutting.cut([("a.txt", path)], 2)
    path.write_text("one\ntoo\nthree\n")
    assert len(list(sources.read(parts[1], path, Reading()))) == 1
    with pytest.raises(CorpusError, match=r"a\.txt: it has changed since the plan was made"):
        list(sources.read(parts[0], path, Reading()))


def test_names_are_relative_to_the_folder_that_all_inputs_are_in(tmp_path: Path) -> None:
    for name in ("x/b.jsonl", "x/deep/a.jsonl", "y/c.txt", "x/other.pdf"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": "a"}))
    found = sources.find([tmp_path / "x", tmp_path / "y" / "*.txt", tmp_path / "x" / "b.jsonl"])
    assert [name for name, _ in found] == ["x/b.jsonl", "x/deep/a.jsonl", "y/c.txt"]
    assert [name for name, _ in sources.find([tmp_path / "x" / "b.jsonl"])] == ["b.jsonl"]
    with pytest.raises(CorpusError, match="no file matches"):
        sources.find([tmp_path / "*.nothing"])
    with pytest.raises(CorpusError, match="expected a name that ends in"):
        sources.find([tmp_path / "x" / "other.pdf"])


def test_a_file_that_is_named_twice_is_read_once(tmp_path: Path) -> None:
    """A path with .. in it was another file, whose rows were counted twice."""
    (tmp_path / "x").mkdir()
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "a"}))
    found = sources.find([path, tmp_path / "x" / ".." / "a.jsonl", tmp_path / "x" / ".."])
    assert found == [("a.jsonl", path)]


def test_what_follows_a_link_to_a_folder_is_beside_its_target(tmp_path: Path) -> None:
    for name in ("here/a.txt", "there/a.txt", "there/deep/b.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a\n")
    (tmp_path / "here" / "link").symlink_to(tmp_path / "there" / "deep")
    typed = tmp_path / "here" / "link" / ".." / "a.txt"
    assert sources.find([typed]) == [("a.txt", (tmp_path / "there" / "a.txt").resolve())]


ROWS = [["the cat", "1"], ["a dog, or\ntwo", "2"], ["", "3"], ["rain", "4"], ["é", "5"]]


@pytest.mark.parametrize(
    "name", ["a.csv", "a.tsv", "a.csv.gz", "a.jsonl.gz", "a.jsonl", "a.parquet"]
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    write_batches(path, [Table(("text", "id"), ROWS, path)])
    _, parts = cutting.cut([(name, path)], 2)
    rows = [row for part in parts for row in sources.read(part, path, Reading())]
    assert [row.number for row in rows] == [1, 2, 3, 4, 5]
    assert [[row.cells["text"], row.cells["id"]] for row in rows] == ROWS
    assert sum(part.rows for part in parts) == 5


def test_lines_that_are_compressed_are_read_as_those_that_are_not(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbfone\r\n\n" + b"x" * 3_000_000 + b"\ntwo"
    (tmp_path / "a.txt").write_bytes(data)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(data))
    found = []
    for path in (tmp_path / "a.txt", tmp_path / "a.txt.gz"):
        _, parts = cutting.cut([(path.name, path)], 100)
        found.append(list(sources.read(parts[0], path, Reading(max_bytes=1000))))
    assert found[0] == found[1]
    assert [row.cells.get("text") for row in found[0]] == ["one", "", None, "two"]
    assert found[0][2].error == "3,000,001 bytes, expected at most 1,000"


def test_parquet_is_cut_between_its_row_groups(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": [f"text {n}" for n in range(25)]})
    parquet.write_table(table, path, row_group_size=4)
    _, parts = cutting.cut([("a.parquet", path)], 10)
    assert [(part.start, part.end, part.first_row, part.rows) for part in parts] == [
        (0, 2, 1, 8),
        (2, 4, 9, 8),
        (4, 7, 17, 9),
    ]
    rows = [row for part in parts for row in sources.read(part, path, Reading())]
    assert [(row.number, row.cells["text"]) for row in rows] == [
        (n + 1, f"text {n}") for n in range(25)
    ]


def test_a_ragged_row_of_csv_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,id\nthe cat,1\nno id\nthe dog,3\n")
    _, parts = cutting.cut([("a.csv", path)], 10)
    rows = list(sources.read(parts[0], path, Reading()))
    assert [row.error is None for row in rows] == [True, False, True]
    assert (rows[1].error or "").startswith("line 3 has 1 cells, expected 2; a cell with a comma")
