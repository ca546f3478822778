"""Whatever a table looks like, each word has the figures that its text has alone."""

from __future__ import annotations

import csv
import io
import json
import math
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from conftest import make_model

from gpt2kit.checkpoints.load import write_model
from gpt2kit.config import GPT2Config
from gpt2kit.data.streams import read_batches, write_to
from gpt2kit.data.tables import Format, Table
from gpt2kit.evaluation.scored_tables import scored
from gpt2kit.evaluation.word_options import TableOptions, WordOptions
from gpt2kit.evaluation.words import Meter, Word, words
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import BPETokenizer

PIECES = [
    "The",
    "old",
    '"man"',
    "boat,",
    "fell;",
    "a|b",
    "e\u0301s",
    "é",
    "中文",
    "文",
    "👩‍🚀",
    "10\xa0km",
]
PIECES += ["=1+1", "''", "...", "\u3000", "\ufeff", "ﬁ", "don't", "<|endoftext|>", "\u200b", "ß"]
BLANK = ["", " ", "   "]
FIGURES = ("surprisal", "surprisal_corrected", "entropy", "entropy_word", "n_context")


@pytest.fixture(scope="module")
def model() -> GPT2:
    return make_model(GPT2Config(n_vocab=512, n_ctx=48, n_embd=16, n_head=2, n_layer=2))


def in_some_dialect(draw: random.Random, columns: list[str], rows: list[list[str]]) -> Any:
    """Return a table as the bytes of a file, and its format."""
    if draw.random() < 0.25:
        objects = [dict(zip(columns, row, strict=True)) for row in rows]
        lines = [json.dumps(each, ensure_ascii=draw.random() < 0.5) for each in objects]
        return "\n".join(lines).encode(), "jsonl"
    format, delimiter = draw.choice([("csv", ","), ("csv", ";"), ("tsv", "\t")])
    text = io.StringIO(newline="")
    ends = draw.choice(["\n", "\r\n"])
    quoting: Literal[0, 1] = csv.QUOTE_ALL if draw.random() < 0.5 else csv.QUOTE_MINIMAL
    writer = csv.writer(text, delimiter=delimiter, lineterminator=ends, quoting=quoting)
    writer.writerows([columns, *rows])
    return text.getvalue().encode(draw.choice(["utf-8", "utf-8-sig"])), format


def run(model: GPT2, tokenizer: Any, data: bytes, format: Format, how: TableOptions) -> Table:
    """Return the table with its figures, written to a file and read again."""
    options = WordOptions()
    meters = {"m": Meter(model, tokenizer, options, batch_size=3)}

    def read() -> Iterator[Table]:
        return read_batches(Path(f"t.{format}"), file=io.BytesIO(data), format=format, rows=7)

    out = io.BytesIO()
    write_to(out, scored(read, meters, how, options), "csv")
    (header, found) = read_batches(Path("t.csv"), file=io.BytesIO(out.getvalue()))
    return Table(header.columns, found.rows, found.path)


def check(row: dict[str, str], word: Word) -> None:
    for name in FIGURES:
        assert float(row[name]) == pytest.approx(getattr(word, name), abs=1e-4)
    assert int(row["n_tokens"]) == len(word.tokens)
    assert row["flag"] == " ".join(word.flags)


@pytest.mark.parametrize("seed", range(6))
def test_words_in_rows_have_the_figures_of_their_text_alone(
    seed: int, model: GPT2, small_bpe: BPETokenizer
) -> None:
    draw = random.Random(seed)
    texts = {
        (draw.choice("abc"), f"{item}"): draw.choices([*PIECES, *BLANK], k=draw.randint(1, 12))
        for item in range(9)
    }
    rows = [
        [subject, item, f"{n}", word, draw.choice(["", 'a,"b"', "x\r\ny", "é"])]
        for (subject, item), cells in texts.items()
        for n, word in enumerate(cells)
    ]
    draw.shuffle(rows)
    columns = ["subject", "item", "n", "word", "note of mine"]
    data, format = in_some_dialect(draw, columns, rows)
    how = TableOptions(words="word", by="subject,item", order="n")
    found = run(model, small_bpe, data, format, how)
    assert [list(row[:5]) for row in found.rows] == rows
    alone = {
        key: iter(words(model, small_bpe, " ".join(cell for cell in cells if cell.strip(" ")))[0])
        for key, cells in texts.items()
    }
    ordered = sorted(found.rows, key=lambda row: (row[0], row[1], int(row[2])))
    for row in (dict(zip(found.columns, each, strict=True)) for each in ordered):
        assert row["error"] == ""
        if not row["word"].strip(" "):
            assert row["flag"] == "empty"
            assert row["surprisal"] == row["n_tokens"] == ""
            continue
        word = next(alone[row["subject"], row["item"]])
        assert word.text == row["word"]
        check(row, word)
    assert all(next(rest, None) is None for rest in alone.values())


@pytest.mark.parametrize("seed", range(6))
def test_texts_in_rows_have_their_own_figures_and_tokens_spell_them(
    seed: int, model: GPT2, small_bpe: BPETokenizer
) -> None:
    draw = random.Random(100 + seed)
    spaces = [" ", " ", " ", "  ", "\n", "\t", " \r\n"]
    texts = [
        "".join(draw.choice(PIECES) + draw.choice(spaces) for _ in range(draw.randint(0, 12)))
        for _ in range(9)
    ] + BLANK
    data, format = in_some_dialect(draw, ["text"], [[text] for text in texts])
    rows = [
        dict(zip(found.columns, row, strict=True))
        for found in [run(model, small_bpe, data, format, TableOptions(text="text"))]
        for row in found.rows
    ]
    expected = [
        (str(number), text, word)
        for number, text in enumerate(texts, 1)
        for word in words(model, small_bpe, text)[0]
    ]
    for row, (number, text, word) in zip(rows, expected, strict=True):
        assert (row["text_n"], row["text"], row["word"]) == (number, text, word.text)
        assert text[int(row["start"]) : int(row["end"])] == word.text
        check(row, word)
    tokens = run(model, small_bpe, data, format, TableOptions(text="text", unit="token"))
    spelled: dict[str, str] = {}
    for each in (dict(zip(tokens.columns, row, strict=True)) for row in tokens.rows):
        spelled[each["text_n"]] = spelled.get(each["text_n"], "") + each["token"]
    wanted = {f"{n}": text for n, text in enumerate(texts, 1) if text.strip(" \t\r\n")}
    assert spelled == wanted


def test_a_text_of_5000_words_is_what_a_plain_loop_over_windows_gives(
    model: GPT2, small_bpe: BPETokenizer
) -> None:
    draw = random.Random(1)
    text = " ".join(draw.choices([*PIECES, "so", "it", "goes"], k=5000))
    (found,) = words(model, small_bpe, text, options=WordOptions(base="e", stride=20))
    assert len(found) == 5000
    ids = [511, *small_bpe.encode(text)]
    n = len(ids)
    spaces = [token for token in range(512) if small_bpe.token_bytes(token)[:1] in b" \t\n\r\v\f"]
    begins = torch.tensor([*spaces, 511])
    nats, ends = [math.nan] * n, [math.nan] * (n + 1)  # of each token; before each and at the end
    with torch.no_grad():
        for start in range(0, n, 20):
            logs = model(torch.tensor([ids[start : start + 48]]))[0].double().log_softmax(-1)
            for index, row in enumerate(logs, start + 1):
                if math.isnan(ends[index]):  # no window before this one has predicted it
                    ends[index] = -float(row[begins].logsumexp(0))
                    if index < n:
                        nats[index] = -float(row[ids[index]])
            if start + 48 >= n:
                break
    at = 1
    for number, word in enumerate(found):
        end = at + len(word.tokens)
        total = sum(nats[at:end])
        assert word.surprisal == pytest.approx(total, abs=1e-3)
        corrected = total + ends[end] - (ends[at] if number else 0)
        assert word.surprisal_corrected == pytest.approx(corrected, abs=1e-3)
        at = end
    assert at == n


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neither_threads_nor_batches_change_a_figure(
    dtype: torch.dtype, small_bpe: BPETokenizer
) -> None:
    config = GPT2Config(n_vocab=512, n_ctx=48, n_embd=16, n_head=2, n_layer=2)
    model = make_model(config, dtype=dtype)
    draw = random.Random(2)
    texts = [" ".join(draw.choices(PIECES, k=draw.randint(1, 30))) for _ in range(12)]
    before = torch.get_num_threads()
    found = []
    try:
        for threads, batch_size in ((1, 1), (2, 5), (3, 64)):
            torch.set_num_threads(threads)
            measured = words(model, small_bpe, texts, batch_size=batch_size)
            found.append([getattr(w, name) for text in measured for w in text for name in FIGURES])
    finally:
        torch.set_num_threads(before)
    assert found[1] == pytest.approx(found[0], abs=1e-4 if dtype == torch.float32 else 1e-11)
    assert found[2] == pytest.approx(found[0], abs=1e-4 if dtype == torch.float32 else 1e-11)


PEAK = """
import resource, sys
from gpt2kit.cli import app
from typer.testing import CliRunner
assert CliRunner().invoke(app, sys.argv[1:]).exit_code == 0
print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["words", "texts"])
def test_a_table_of_100000_rows_needs_little_memory(
    kind: str, model: GPT2, small_bpe: BPETokenizer, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    write_model(tmp_path / "model", model, small_bpe)
    draw = random.Random(4)
    how = {
        "words": ["--words", "word", "--by", "item", "--order", "n"],
        "texts": ["--text", "word", "--unit", "text"],
    }[kind]
    peaks = {}
    for n in (10_000, 100_000):
        path, out = tmp_path / f"{n}.csv", tmp_path / f"{n}-out.csv"
        rows = [[i // 8, i % 8, f"{draw.choice(PIECES)}{i}", "x" * 100] for i in range(n)]
        draw.shuffle(rows)
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["item", "n", "word", "note"], *rows])
        options = [*how, "--model", str(tmp_path / "model"), "--out", str(out)]
        done = subprocess.run(
            [sys.executable, "-c", PEAK, "surprisal", path, *options],
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        peaks[n] = int(done.stdout.rpartition("PEAK")[2])
        with out.open(newline="", encoding="utf-8") as file:
            found = list(csv.DictReader(file))
        assert [row["word"] for row in found] == [row[2] for row in rows]
        assert all(math.isfinite(float(row["surprisal"])) for row in found)
    # The words and figures of --words are in memory: some 200 bytes a row.
    assert peaks[100_000] - peaks[10_000] < 60e6
