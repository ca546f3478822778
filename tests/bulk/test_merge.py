"""Parts that become one file, whatever is in them."""

from __future__ import annotations

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
