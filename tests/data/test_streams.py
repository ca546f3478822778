"""Files of rows in every format: read and written a batch at a time, with no cell changed."""

from __future__ import annotations

import codecs
import gzip
import io
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt2kit.data.parquet import read_parquet
from gpt2kit.data.streams import read_batches, read_table, write_batches
from gpt2kit.data.tables import ABSENT, Format, Table
from gpt2kit.errors import CorpusError, MissingDependencyError

PATH = Path("t.csv")
ALPHABET = [
    "a",
    "é",
    "e\u0301",
    "中",
    "👩‍🚀",
    '"',
    ",",
    "\t",
    "\r\n",
    "\n",
    "\r",
    " ",
    "\u2028",
    "",
]


def random_rows(n: int) -> list[list[str]]:
    draw = random.Random(0)
    return [["".join(draw.choices(ALPHABET, k=5)) for _ in range(3)] for _ in range(n)]


@pytest.mark.parametrize(
    "name",
    [
        "t.csv",
        "t.tsv",
        "t.jsonl",
        "t.csv.gz",
        "t.jsonl.gz",
        "t.jsonl.zst",
        "t.tsv.zst",
        "t.parquet",
    ],
)
def test_what_is_written_in_batches_is_read_in_batches(name: str, tmp_path: Path) -> None:
    rows = random_rows(250)
    columns = ("a", "the word", 'b "c"')
    path = tmp_path / name
    tables = [Table(columns, rows[start : start + 60], path) for start in range(0, 250, 60)]
    assert write_batches(path, tables) == 250
    batches = list(read_batches(path, rows=32))
    assert [list(row) for batch in batches for row in batch.rows] == rows
    assert {batch.columns for batch in batches} == {columns}
    assert max(len(batch.rows) for batch in batches) == 32
    numbers = [batch.first + i for batch in batches for i in range(len(batch.rows))]
    assert numbers == list(range(1, 251))


def test_blocks_that_end_anywhere_give_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2kit.data.packed._BLOCK", 3)
    text = '\ufeffa,b\r\n1,"x\r\ny ""é"""\r\n\r\n👩‍🚀,\r\n2,z'
    for encoding in ("utf-8", "utf-16"):
        data = text.removeprefix("\ufeff" * (encoding == "utf-16")).encode(encoding)
        table = read_table(data, PATH, "csv", encoding=encoding)
        assert table.columns == ("a", "b")
        assert table.rows == [["1", 'x\r\ny "é"'], ["👩‍🚀", ""], ["2", "z"]]
    lines = read_table("é\r\n \n中 b".encode(), Path("t.txt"), "txt")
    assert (lines.columns, lines.rows) == (("line", "text"), [[1, "é"], [3, "中 b"]])
    with pytest.raises(CorpusError, match=r"byte 10 \(line 3\) is 0xe9.*add --encoding cp1252"):
        read_table("a,b\nc,d\ngré,f\n".encode("cp1252"), PATH, "csv")


def test_a_reader_takes_no_more_of_a_file_than_it_was_asked_for() -> None:
    # The whole table and all results were in memory: 100,000 rows took minutes and gigabytes.
    class Endless(io.RawIOBase):
        given = 0

        def readable(self) -> bool:
            return True

        def read(self, n: int = -1) -> bytes:
            self.given += n
            return (b"one,two\n" * (n // 8 + 1))[:n]

    file: Any = Endless()
    batches = read_batches(PATH, file=file, rows=1000)
    found = [len(next(batches).rows) for _ in range(6)]
    assert found == [0, *[1000] * 5]
    assert file.given < 2**22


def test_damaged_rows_are_kept_with_their_errors_unless_the_reader_is_strict() -> None:
    def read(text: bytes, format: Format, strict: bool) -> list[Table]:
        return list(read_batches(PATH, file=io.BytesIO(text), format=format, strict=strict))

    text = b'a,b\n1,2\n3\n4,5,6\n7,"8"9\n10,11\n'
    with pytest.raises(CorpusError, match="line 3 has 1 cells, expected 2"):
        read(text, "csv", True)
    _, table = read(text, "csv", False)
    assert table.rows == [["1", "2"], ["3", ""], ["4", "5"], ["", ""], ["10", "11"]]
    assert [*table.errors] == [1, 2, 3]
    assert table.errors[2].startswith("line 4 has 3 cells")

    text = b'{"a": 1}\nnothing\n[2]\n{"a": "gr\xe9"}\n{"b": null}\n'
    with pytest.raises(CorpusError, match="line 2 is not valid JSON"):
        read(b'{"a": 1}\nnothing\n', "jsonl", True)
    (table,) = read(text, "jsonl", False)
    assert table.columns == ("a", "b")
    assert table.rows == [[1, ABSENT], *[[ABSENT, ABSENT]] * 3, [ABSENT, None]]
    assert [*table.errors] == [1, 2, 3]
    assert "line 4 has bytes that are not valid" in table.errors[3]


def test_the_columns_of_csv_are_those_of_its_first_batch(tmp_path: Path) -> None:
    tables = [Table(("a", "b"), [[1, 2]], PATH), Table(("b",), [[3]], PATH, first=2)]
    write_batches(tmp_path / "t.csv", tables)
    assert (tmp_path / "t.csv").read_text() == "a,b\n1,2\n,3\n"
    with pytest.raises(CorpusError, match=r"from row 7 on there is a column 'c'.*\.jsonl"):
        write_batches(tmp_path / "u.csv", [*tables, Table(("c",), [[3]], PATH, first=7)])
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]  # nothing half written


def test_packed_files_are_the_same_bytes_each_time_and_damage_is_found(tmp_path: Path) -> None:
    table = Table(("a",), [["x" * 100]] * 100, PATH)
    for name in ("t.csv.gz", "u.csv.gz"):
        write_batches(tmp_path / name, [table])
    data = (tmp_path / "t.csv.gz").read_bytes()
    assert data == (tmp_path / "u.csv.gz").read_bytes()
    (tmp_path / "t.csv.gz").write_bytes(data[:-20])
    with pytest.raises(CorpusError, match=r"t.csv.gz: damaged or not .gz"):
        list(read_batches(tmp_path / "t.csv.gz"))
    (tmp_path / "t.csv.zst").write_bytes(data)
    with pytest.raises(CorpusError, match=r"t.csv.zst: damaged or not .zst"):
        list(read_batches(tmp_path / "t.csv.zst"))
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(CorpusError, match=r"compressed with gzip; give it a name in .gz"):
        list(read_batches(tmp_path / "t.csv"))
    pyarrow = pytest.importorskip("pyarrow")
    frames = [pyarrow.compress(part, "zstd", asbytes=True) for part in (b"a\n1\n", b"2\n")]
    assert read_table(b"".join(frames), Path("t.csv.zst"), "csv").rows == [["1"], ["2"]]
    two = gzip.compress(b"a\n1\n") + gzip.compress(b"2\n")
    assert read_table(two, Path("t.csv.gz"), "csv").rows == [["1"], ["2"]]


def test_parquet_keeps_the_types_of_its_columns(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    columns = {
        "item": pyarrow.array([1, None], pyarrow.int16()),
        "text": ["ein", None],
        "tags": [["a"], []],
        "when": pyarrow.array([0, 1], pyarrow.timestamp("us")),
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")

    def scored() -> Iterator[Table]:
        for table in read_batches(tmp_path / "t.parquet"):
            rows = [[*row, None, 1] for row in table.rows]
            types = {**table.types, "surprisal": float, "n": int}
            yield Table((*table.columns, "surprisal", "n"), rows, PATH, types=types)

    write_batches(tmp_path / "u.parquet", scored())
    found = parquet.read_table(tmp_path / "u.parquet")
    assert found.select(list(columns)) == parquet.read_table(tmp_path / "t.parquet")
    assert str(found.schema.field("surprisal").type) == "double"
    assert found.column("n").to_pylist() == [1, 1]
    write_batches(tmp_path / "u.csv", scored())
    assert (tmp_path / "u.csv").read_text().splitlines()[
        1
    ] == '1,ein,"[""a""]",1970-01-01 00:00:00,,1'
    with pytest.raises(CorpusError, match=r"another type than those above it.*\.jsonl"):
        write_batches(
            tmp_path / "v.parquet", [Table(("a",), [[1]], PATH), Table(("a",), [["x"]], PATH)]
        )
    (tmp_path / "w.parquet").write_bytes(b"a,b\n")
    with pytest.raises(CorpusError, match=r"w.parquet: not a Parquet file"):
        list(read_batches(tmp_path / "w.parquet"))


@pytest.mark.parametrize("name", ["t.parquet", "t.jsonl.zst"])
def test_without_pyarrow_one_line_says_what_to_install(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / name).write_bytes(b"PAR1")
    with pytest.raises(MissingDependencyError, match=r"pip install 'gpt2kit\[tables\]'"):
        list(read_batches(tmp_path / name))
    with pytest.raises(MissingDependencyError):
        write_batches(tmp_path / name, [Table(("a",), [["1"]], PATH)])


def test_a_byte_order_mark_is_written_for_excel_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    write_batches(path, [Table(("a",), [["é"]], PATH)], bom=True)
    assert path.read_bytes() == codecs.BOM_UTF8 + "a\né\n".encode()
    assert [batch.columns for batch in read_batches(path)] == [("a",), ("a",)]


def test_a_name_without_a_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.xls").touch()
    with pytest.raises(CorpusError, match=r"the name tells no format; expected one of .csv"):
        list(read_batches(tmp_path / "t.xls"))


@pytest.mark.skipif(sys.platform != "linux", reason="looks at memory as Linux shows it")
def test_damaged_files_leave_no_memory_behind(tmp_path: Path) -> None:
    """Each damaged .zst file took a megabyte of addresses for ever: pyarrow loses its buffer."""
    pytest.importorskip("pyarrow")
    path = tmp_path / "t.jsonl.zst"
    write_batches(path, [Table(("a",), [[number] for number in range(1000)], path)])
    path.write_bytes(path.read_bytes()[:-30])

    def megabytes() -> int:
        with pytest.raises(CorpusError):
            list(read_batches(path))
        return int(Path("/proc/self/statm").read_text().split()[0]) * 4096 // 2**20

    before = megabytes()
    assert max(megabytes() for _ in range(60)) < before + 30


def packed(data: bytes, name: str) -> bytes:
    """Return data in the compression that a name tells; the sum of two such is one of both."""
    if name.endswith(".gz"):
        return gzip.compress(data)
    return bytes(pytest.importorskip("pyarrow").compress(data, "zstd", asbytes=True))


@pytest.mark.parametrize(
    ("name", "before", "problem"),
    [
        ("t.csv.gz", b"a,b\n1,2\n3,", "the row that begins in line 3 has more than 16,777,216"),
        ("t.tsv.zst", b'a\tb\n1\t2\n3\t"', "the row that begins in line 3 has more than"),
        ("t.jsonl.gz", b'{"a": 1}\n{"a": "', "line 2 has more than 16,777,216 characters"),
        ("t.txt.zst", b"a\nb\n", "line 3 has more than 16,777,216 characters"),
    ],
)
def test_a_row_that_unpacks_to_gigabytes_is_refused_by_its_number(
    name: str, before: bytes, problem: str
) -> None:
    # The whole row was read first, and each megabyte of it copied everything before.
    million = b"x" * 2**20
    bomb = io.BytesIO(packed(before, name) + packed(million, name) * 10_000)
    with pytest.raises(CorpusError, match=f"^{name}: {problem}"):
        list(read_batches(Path(name), file=bomb))
    assert bomb.tell() < bomb.getbuffer().nbytes / 4  # the rest is not even looked at


def test_the_quotes_of_a_row_of_csv_hold_no_more_than_a_row_may_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A quotation mark that nobody closes made all lines after it one cell.
    monkeypatch.setattr("gpt2kit.data.streams.LARGEST_ROW", 2**12)
    lines = b'a,b\n1,"' + b"x,y\n" * 2**11
    with pytest.raises(CorpusError, match=r"begins in line 2 has more .*is a quotation mark miss"):
        list(read_batches(PATH, file=io.BytesIO(lines), strict=False))


def test_a_line_that_is_too_long_spoils_no_other_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2kit.data.streams.LARGEST_ROW", 20)
    monkeypatch.setattr("gpt2kit.data.packed._BLOCK", 7)
    text = b'{"a": 1}\n{"a": "%s"}\n{"a": 2}\n{"a": "%s"}' % (b"x" * 60, b"y" * 21)
    tables = read_batches(Path("t.jsonl"), file=io.BytesIO(text), strict=False)
    rows = [(list(row), t.errors.get(i)) for t in tables for i, row in enumerate(t.rows)]
    assert [row for row, _ in rows] == [[1], [ABSENT], [2], [ABSENT]]
    assert [(error or "")[:20] for _, error in rows] == ["", "line 2 has more than", "",
                                                         "line 4 has more than"]  # fmt: skip
    text = b"%s\n%s\n\n%s\n" % (b"a" * 20, b"b" * 21, b"c" * 3)
    (table,) = read_batches(Path("t.txt"), file=io.BytesIO(text), strict=False)
    assert table.rows == [[1, "a" * 20], [2, ""], [4, "ccc"]]
    assert [*table.errors] == [1]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (b"[" * 100_000, "too deep"),
        (b"9" * 5000, "4300 digits"),
        (b"[" + b'{"":0},' * 10**6 + b"0]", "1,000,002 brackets and braces, expected at most"),
    ],
)
def test_json_that_would_take_more_than_it_is_worth_is_a_damaged_row(
    value: bytes, problem: str
) -> None:
    # A million empty objects in one row took a quarter of a gigabyte, and sixteen took four.
    file = io.BytesIO(b'{"a": 1}\n{"a": %s}\n{"a": 2}' % value)
    (table,) = read_batches(Path("t.jsonl"), file=file, strict=False)
    assert [list(row) for row in table.rows] == [[1], [ABSENT], [2]]
    assert problem in table.errors[1]


def test_texts_that_many_rows_of_parquet_share_are_unpacked_a_few_rows_at_a_time() -> None:
    # A file of 500 bytes gave a text of a megabyte to each of 1,000 rows: all were made at once.
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    def written(text: str, rows: int) -> io.BytesIO:
        table = pyarrow.table({"text": [text] * rows, "list": [[text, "b"]] * rows})
        file = io.BytesIO()
        parquet.write_table(table, file, compression="zstd")
        return file

    tables = list(read_parquet(written("x" * 2**20, 32), PATH, 4096))
    assert max(len(table.rows) for table in tables) == 4
    assert [table.first for table in tables] == [1, *range(1, 33, 4)]
    assert tables[-1].rows[-1] == ("x" * 2**20, ["x" * 2**20, "b"])
    with pytest.raises(CorpusError, match=r"t.parquet: row 1 has .* bytes, expected at most 16,77"):
        list(read_batches(Path("t.parquet"), file=written("x" * 2**24, 1)))


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\xd0\xcf\x11\xe0"], ids=["xlsx", "xls"])
@pytest.mark.parametrize("format", ["csv", "txt", "jsonl"])
def test_a_workbook_of_excel_is_named_as_one(start: bytes, format: Format, tmp_path: Path) -> None:
    # It was taken for text in cp1251, or its bytes for the names of columns.
    (tmp_path / "stimuli.xlsx").write_bytes(start + bytes(range(256)))
    with pytest.raises(CorpusError, match=r"workbook of Excel.*save the table as \.csv first"):
        list(read_batches(tmp_path / "stimuli.xlsx", format=format))
