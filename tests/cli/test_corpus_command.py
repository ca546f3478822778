"""corpus, as a user types it: its figures and windows are those of a training."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import add_vocabulary, write_hub
from rich.cells import cell_len
from training_builders import VERSES
from typer.testing import CliRunner, Result

from gpt2kit.cli import app
from gpt2kit.model import GPT2
from gpt2kit.training.setup import set_up


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, ["corpus", *arguments], input=stdin)


def shown(*arguments: str, stdin: str | None = None) -> list[str]:
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.stderr
    return result.stdout.splitlines()


def as_json(*arguments: str, stdin: str | None = None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in shown(*arguments, "--json", stdin=stdin)]


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("verses.txt").write_text(VERSES * 3, encoding="utf-8")
    return "verses.txt"


@pytest.fixture
def model(tmp_path: Path, tiny_model: GPT2) -> str:
    return str(add_vocabulary(write_hub(tmp_path / "model", tiny_model)))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"tokenizer": "word", "seed": 3, "block_size": 12},
        {"shuffle": False, "stride": 3, "block_size": 12},
        {"tokenizer": "bpe", "n_vocab": 300, "val_fraction": 0.2},
        {"val": "other.txt", "block_size": 20},
    ],
)
def test_figures_and_windows_are_those_of_the_training(text: str, given: dict[str, Any]) -> None:
    Path("other.txt").write_text(VERSES, encoding="utf-8")
    options = [
        f"--no_{name}" if value is False else f"--{name}={value}" for name, value in given.items()
    ]
    about, *rest = as_json(text, *options, "--windows", "3")
    setup = set_up("train", text, {**given, "n_layer": 1, "n_embd": 12}, with_weights=False)
    report = setup.corpus.report
    assert about["characters"] == report.characters
    assert (about["train_tokens"], about["val_tokens"]) == (report.train_tokens, report.val_tokens)
    assert about["vocabulary"]["n_vocab"] == setup.tokenizer.n_vocab
    windows = [row for row in rest if "input" in row]
    batch = setup.corpus.batch(
        "train",
        0,
        block_size=setup.config.block_size,
        batch_size=3,
        seed=setup.config.seed,
        shuffle=setup.config.shuffle,
        stride=setup.config.stride,
    ).tolist()
    assert [row["input"] for row in windows] == [ids[:-1] for ids in batch]
    assert [row["target"] for row in windows] == [ids[1:] for ids in batch]
    assert [row["text"] for row in windows] == [setup.tokenizer.decode(ids) for ids in batch]


def test_the_corpus_is_described_as_by_plan(text: str) -> None:
    plan = CliRunner().invoke(app, ["plan", text, "--n_layer", "1", "--n_embd", "12"])
    lines = shown(text)
    assert lines[0] in plan.stderr.splitlines()
    assert lines[1] in plan.stderr.splitlines()
    assert re.search(r"1 document, 36 lines, [\d,]+ bytes in UTF-8", lines[2])
    assert re.search(
        r"^tokens +(\d+) different ones, of \1 in the vocabulary", "\n".join(lines), re.M
    )


def test_the_tokens_to_list_can_be_more_or_all(text: str) -> None:
    listed = [row for row in as_json(text, "--top", "0", "--windows", "0") if "count" in row]
    assert sum(row["count"] for row in listed) == len(VERSES) * 3
    assert {row["token"] for row in listed} == set(VERSES)
    lines = shown(text, "--top", "2")
    assert re.search(r"… and \d+ more, [\d,]+ times in all", "\n".join(lines))
    assert not [line for line in shown(text, "--top", "0") if "more," in line]


@pytest.mark.parametrize("tokenizer", ["char", "word", "bpe"])
def test_each_target_stands_under_its_input_and_everything_fits_a_terminal(
    text: str, tokenizer: str
) -> None:
    lines = shown(text, "--tokenizer", tokenizer, "--block_size", "30", "--windows", "1")
    pairs = [
        (line.removeprefix("input   "), below.removeprefix("target  "))
        for line, below in itertools.pairwise(lines)
        if line.startswith("input")
    ]
    inputs = [cell for above, _ in pairs for cell in above.split()]
    targets = [cell for _, below in pairs for cell in below.split()]
    assert len(inputs) == 30
    assert inputs[1:] == targets[:-1]
    for above, below in pairs:
        columns = [found.start() for found in re.finditer(r"\S+", above)]
        assert columns == [found.start() for found in re.finditer(r"\S+", below)]
    first = next(index for index, line in enumerate(lines) if line.startswith("window 1"))
    assert max(map(cell_len, lines[first:])) <= 80


def test_a_long_window_is_cut_on_a_terminal(text: str) -> None:
    lines = shown(text, "--windows", "1")
    assert sum(line.startswith("input") for line in lines) == 4
    assert any(re.fullmatch(r"… \d+ more tokens; --json has them all", line) for line in lines)


def test_wide_and_very_long_tokens_keep_the_columns() -> None:
    text = ("漢字 " + "x" * 90 + " ab\n") * 20
    lines = shown("-", "--tokenizer", "word", "--block_size", "6", "--windows", "1", stdin=text)
    pair = [line for line in lines if line.startswith(("input", "target"))]
    assert any("x…" in line for line in pair)
    assert max(map(cell_len, pair)) <= 80


def test_one_passage_is_shown_as_letters_words_and_pieces(text: str, model: str) -> None:
    passage = as_json(text, "--model", model)[-1]
    line = "Nel mezzo del cammin di nostra vita"
    assert passage["passage"] == line
    assert passage["letters"] == [*line]
    assert passage["words"] == ["Nel", " mezzo", " del", " cammin", " di", " nostra", " vita"]
    assert "".join(passage["this one"]) == line
    assert passage["GPT-2"] is None
    assert "GPT-2     not on this machine; run: gpt2kit download 124M" in shown(text)


def test_a_text_comes_from_standard_input_as_from_its_file(text: str) -> None:
    whole = Path(text).read_text(encoding="utf-8")
    from_file, from_pipe = as_json(text), as_json("-", stdin=whole)
    assert from_pipe[0].pop("files") == ["standard input"]
    assert from_file[0].pop("files") == ["verses.txt"]
    assert from_pipe == from_file
    assert "standard input: empty, expected a text" in run("-", stdin="").stderr


def test_documents_and_odd_characters_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "odd.txt"
    path.write_bytes("uno due\r\ntre<|endoftext|>quattro \x07 cinqu\u00e8\r\n".encode("cp1252") * 9)
    lines = "\n".join(shown(str(path), "--encoding", "cp1252", "--block_size", "8"))
    assert "10 documents" in lines
    assert "lines end with \\r\\n" in lines
    assert "control characters: U+0007 (9)" in lines
    assert "read as cp1252" in lines
    assert "\\x07" in lines
    assert "is 0xe8, which is not utf-8" in run(str(path)).stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokenizer", "word", "--model", "MODEL"], "tokenizer and model are both given"),
        (["--model", "MODEL", "--block_size", "64"], "block_size is 64, but the model reads at mo"),
        (["--block_size", "5000"], "expected more than a window of 5,000"),
        (["--windows", "-1"], "windows is -1, expected a whole number, 0 or more"),
    ],
)
def test_what_cannot_be_shown_is_one_line_of_error(
    options: list[str], message: str, text: str, model: str
) -> None:
    result = run(text, *[each.replace("MODEL", model) for each in options])
    assert result.exit_code == 1
    assert result.stdout == ""  # half of the report used to be there already
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_file_of_ids_is_read_with_the_vocabulary_of_a_model(text: str, model: str) -> None:
    np.save("ids.npy", np.arange(100, dtype=np.uint16))
    about, *rest = as_json("ids.npy", "--model", model, "--top", "0", "--windows", "0")
    assert about["characters"] is None
    assert about["lines"] is None
    assert [row["id"] for row in rest[:-1]] == [*range(100)]
    assert "ids.npy has token ids; name a model" in run("ids.npy").stderr
