"""Parts that become one file, whatever is in them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from bulk_builders import job, write_texts

from gpt2kit.bulk import plan as plans
from gpt2kit.bulk.folder import Folder
from gpt2kit.bulk.job import Job
from gpt2kit.bulk.measures import Filter
from gpt2kit.bulk.merge import merge
from gpt2kit.bulk.run import run
from gpt2kit.data.streams import read_batches


def merge_into(target: Path, wanted: Job) -> int:
    return merge(Folder(wanted.out), plans.read(wanted.out / "plan.json"), target).rows


@pytest.mark.parametrize("name", ["kept.csv", "kept.tsv.gz", "kept.parquet"])
def test_a_table_of_no_rows_has_its_columns(tmp_path: Path, name: str) -> None:
    """A filter that kept nothing gave a file of no bytes, which no program reads."""
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    texts = write_texts(tmp_path / "texts.jsonl", 3)
    wanted = job(texts, out=tmp_path / "out", work=Filter(keep="tokens > 1000"))
    assert run(wanted).is_good
    assert merge_into(tmp_path / name, wanted) == 0
    tables = list(read_batches(tmp_path / name))
    columns = plans.read(wanted.out / "plan.json").columns
    assert [(table.columns, len(table.rows)) for table in tables] == [(columns, 0)]


@pytest.mark.parametrize("name", ["all.jsonl", "all.csv", "all.parquet"])
def test_rows_of_a_file_whose_name_is_not_utf8_are_merged(tmp_path: Path, name: str) -> None:
    """Each part of such a file failed, as no line of its rows could be written with the name."""
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    folder = tmp_path / "in"
    folder.mkdir()
    try:
        write_texts(folder / os.fsdecode(b"caf\xe9.jsonl"), 3)
    except OSError:
        pytest.skip("the file system has no such names")
    write_texts(folder / "a.jsonl", 3)
    wanted = job(folder, out=tmp_path / "out", work=Filter(percentiles="30,60", batch_size=8))
    assert run(wanted).is_good
    assert merge_into(tmp_path / name, wanted) == 6
    tables = list(read_batches(tmp_path / name))
    column = tables[0].column("file")
    found = [row[column] for table in tables for row in table.rows]
    assert found == ["a.jsonl"] * 3 + [r"caf\xe9.jsonl"] * 3
