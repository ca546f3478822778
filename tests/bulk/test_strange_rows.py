"""Rows of all kinds keep their order, and have the figures that each of them has alone."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
from bulk_builders import Tiny, job, rows_of

from gpt2kit.bulk.measures import Filter
from gpt2kit.bulk.run import run
from gpt2kit.bulk.words import Surprisal
from gpt2kit.data.streams import read_batches
from gpt2kit.evaluation.criteria import measure
from gpt2kit.evaluation.criteria_options import CriteriaOptions
from gpt2kit.evaluation.criteria_tables import figures_of
from gpt2kit.evaluation.word_options import TableOptions, WordOptions
from gpt2kit.evaluation.words import words

STRANGE = [
    "the cat sat on a mat",
    "",
    "   ",
    'she said "no", and left',
    "one\r\ntwo\nthree",
    "cafe\u0301 nai\u0308ve",  # NFD: letters, then their accents
    "caf\u00e9 na\u00efve",
    "\U0001f408\u200d\u2b1b and \U0001f1e9\U0001f1ea",  # emoji of several code points
    "\u732b\u5728\u57ab\u5b50\u4e0a",  # Chinese: words without spaces between them
    "\ufeffa byte order mark",
    "a\u00a0b\u2028c\x0cd",
    "0.5",
    "NA",
    "dogs bark at night " * 12,  # longer than the model's window
]
CRITERIA = CriteriaOptions(criteria="nll,tokens,entropy,top10")
NAMES = ("nll", "entropy", "top10")


def write(path: Path, rows: list[tuple[int, str]]) -> Path:
    """Write numbered texts: CSV with a byte order mark and CRLF, or JSONL."""
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file, lineterminator="\r\n").writerows([("n", "text"), *rows])
    else:
        lines = [json.dumps({"n": n, "text": text}, ensure_ascii=n % 2 == 0) for n, text in rows]
        path.write_text("\r\n".join(lines), encoding="utf-8", newline="")
    return path


def near(value: float | None) -> Any:
    return None if value is None else pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_criteria_are_those_of_each_text_alone(tmp_path: Path, name: str) -> None:
    draw = random.Random(name)
    rows = list(enumerate([*STRANGE, *draw.choices(STRANGE, k=10)]))
    draw.shuffle(rows)
    path = write(tmp_path / name, rows)
    models = Tiny()()

    def figures(texts: list[str]) -> Any:
        return measure(models.model, models.tokenizer, texts, CRITERIA)

    expected = {text: next(figures([text])) for text in STRANGE}
    single = [
        (row, found)
        for table in read_batches(path)
        for row, found in zip(table.rows, figures_of(table, "text", figures), strict=True)
    ]
    assert [(int(n), text) for (n, text), _ in single] == rows
    for (_, text), found in single:
        for each in NAMES:
            assert found[each] == near(expected[text][each]), text
    run(job(path, out=tmp_path / "out", part_rows=7, work=Filter(options=CRITERIA, batch_size=4)))
    parts = sorted((tmp_path / "out" / "parts").glob("*.jsonl"))
    many = [row for part in parts for row in rows_of(part)]
    assert len(parts) == 4
    assert [row["row"] for row in many] == list(range(1, 25))
    for (_, text), row in zip(rows, many, strict=True):
        if not text.strip():
            assert row["error"] == "empty"
            continue
        for each in NAMES:
            assert row[each] == near(expected[text][each]), text


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_words_are_those_of_each_text_alone(tmp_path: Path, name: str) -> None:
    draw = random.Random(name)
    rows = list(enumerate(draw.sample(STRANGE, k=len(STRANGE))))
    path = write(tmp_path / name, rows)
    models = Tiny()()
    how, options = TableOptions(text="text"), WordOptions()
    work = Surprisal(how=how, options=options, batch_size=4)
    run(job(path, out=tmp_path / "out", part_rows=6, work=work))
    parts = sorted((tmp_path / "out" / "parts").glob("*.jsonl"))
    many = [row for part in parts for row in rows_of(part)]
    for number, text in rows:
        own = [row for row in many if row["row"] == number + 1]
        if not text.strip():
            assert [row["error"] for row in own] == ["empty"]
            continue
        (expected,) = words(models.model, models.tokenizer, [text])
        assert [row["word"] for row in own] == [word.text for word in expected]
        assert [text[row["start"] : row["end"]] for row in own] == [row["word"] for row in own]
        for row, word in zip(own, expected, strict=True):
            assert row["surprisal"] == pytest.approx(word.surprisal, rel=1e-4, abs=1e-4)
