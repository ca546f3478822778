"""Tables of prompts and completions, instructions, or texts and labels, read as examples."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gpt2kit.data.examples import Columns, Example, Examples, alpaca_prompt, read_examples
from gpt2kit.errors import CorpusError

ROWS = [{"prompt": "2+2?", "completion": "4"}, {"prompt": "1+1?", "completion": "2"}]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.parquet", "a.json"])
def test_every_kind_of_table_with_prompt_and_completion_holds_examples(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    sign = "\t" if name.endswith("tsv") else ","
    if name.endswith("parquet"):
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif name.endswith(("csv", "tsv")):
        path.write_text(f"prompt{sign}completion\n2+2?{sign}4\n1+1?{sign}2\n")
    elif name.endswith("jsonl"):
        write_lines(path, ROWS)
    else:
        path.write_text(json.dumps(ROWS))
    found = read_examples(path)
    assert found is not None
    assert found.examples == (Example("2+2?\n\n", "4"), Example("1+1?\n\n", "2"))
    assert (found.separator, found.labels, found.left_out) == ("\n\n", (), 0)


def test_other_columns_and_another_separator_can_be_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"q": "who?", "a": "me", "text": "not read"}])
    found = read_examples(path, Columns(prompt="q", completion="a", separator=" ->"))
    assert found is not None
    assert found.examples == (Example("who? ->", "me"),)


def test_a_text_stays_a_text_unless_the_user_names_a_label(tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "a.jsonl", [{"text": "good", "label": 1}] * 2)
    poem = tmp_path / "poem.csv"
    poem.write_text('roses, red\n"violets, blue\n')
    (tmp_path / "numbers.json").write_text("[1, 2]")
    for path in (lines, poem, tmp_path / "numbers.json"):
        assert read_examples(path) is None
    write_lines(lines, [{"text": "good", "label": 1}, {"text": "bad", "label": 0}])
    found = read_examples(lines, Columns(label="label"))
    assert found is not None
    assert found.labels == ("0", "1")
    assert found.examples[0] == Example("good\n\n", "1")


def test_instructions_get_the_template_of_alpaca(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Name a color.", "input": "", "output": "Red."},
        {"instruction": "Translate.", "input": "cane", "output": "dog"},
    ]
    found = read_examples(write_lines(tmp_path / "a.jsonl", rows))
    assert found is not None
    assert [each.prompt for each in found.examples] == [
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nName a color.\n\n### Response:\n",
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nTranslate.\n\n### Input:\ncane"
        "\n\n### Response:\n",
    ]
    assert found.examples[1].prompt == alpaca_prompt("Translate.", "cane")


def test_rows_without_a_completion_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [*ROWS, {"prompt": "x", "completion": ""}, {"prompt": "y"}]
    found = read_examples(write_lines(tmp_path / "a.jsonl", rows))
    assert found is not None
    assert (len(found.examples), found.left_out) == (2, 2)


@pytest.mark.parametrize(
    ("rows", "columns", "problem"),
    [
        ([{"messages": []}], Columns(), "chats, in the column 'messages', are not read"),
        ([{"prompt": "x", "completion": ""}], Columns(), "no row with a completion"),
        ([{"prompt": "x", "completion": [1]}], Columns(), r"row 1: \[1\] is no text"),
        (
            [{"a": "x", "b": "y"}],
            Columns(prompt="a"),
            "no column 'completion'; its columns are 'a', 'b'",
        ),
        ([{"text": "x", "label": "y"}], Columns(label="label"), "has 1 different labels, expected"),
        (
            [{"text": "x", "label": str(n)} for n in range(1001)],
            Columns(label="label"),
            "1,001 different labels, expected from 2 to 1,000",
        ),
    ],
)
def test_what_holds_no_examples_is_refused(
    tmp_path: Path, rows: list[dict[str, Any]], columns: Columns, problem: str
) -> None:
    path = write_lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(CorpusError, match=problem):
        read_examples(path, columns)


def test_a_parquet_file_without_known_columns_is_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{"a": "x"}]), path)
    with pytest.raises(CorpusError, match="columns 'a'; expected prompt and completion"):
        read_examples(path)


def test_the_same_prompts_are_held_out_whatever_their_order(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n // 2}?", "completion": str(n)} for n in range(40)]  # each prompt twice
    held_out = []
    for some in (rows, rows[::-1]):
        found = read_examples(write_lines(tmp_path / "a.jsonl", some))
        assert found is not None
        train, val = found.split(0.1)
        assert len(train) + len(val) == 40
        assert {each.prompt for each in train}.isdisjoint(each.prompt for each in val)
        held_out.append(val)
    assert held_out[0] == held_out[1]
    assert 4 <= len(held_out[0]) <= 5


def test_nothing_is_held_out_if_nothing_shall_be(tmp_path: Path) -> None:
    found = read_examples(write_lines(tmp_path / "a.jsonl", ROWS))
    assert found is not None
    assert [len(part) for part in found.split(0.0)] == [2, 0]


def test_one_prompt_alone_is_not_held_out(tmp_path: Path) -> None:
    found = read_examples(write_lines(tmp_path / "a.jsonl", ROWS[:1]))
    assert found is not None
    assert found.split(0.5) == ([*found.examples], [])


def labeled(*rows: tuple[str, str]) -> Examples:
    """Return the examples of some texts and their labels."""
    labels = tuple(sorted({label for _, label in rows}))
    return Examples(tuple(Example(*row) for row in rows), "", labels, (Path("a.csv"),), 0)


@pytest.mark.parametrize(("rare", "held"), [(2, 1), (9, 1), (30, 3)])
def test_of_each_label_the_same_share_is_held_out(rare: int, held: int) -> None:
    # The held-out texts of a small or unbalanced table could all have the same label.
    rows = [(f"text {n}", "no") for n in range(100)] + [(f"{n}", "yes") for n in range(rare)]
    train, val = labeled(*rows).split(0.1)
    assert Counter(each.completion for each in val) == {"no": 10, "yes": held}
    assert len(train) == 90 + rare - held
    assert labeled(*rows[::-1]).split(0.1) == (train, val)


def test_equal_texts_stay_together_whatever_their_labels() -> None:
    rows = [(f"text {n % 20}", "no" if n < 38 else "yes") for n in range(60)]
    train, val = labeled(*rows).split(0.2)
    assert {each.prompt for each in train}.isdisjoint(each.prompt for each in val)
    assert {each.completion for each in val} == {each.completion for each in train}


def test_a_label_with_a_single_text_is_trained_with() -> None:
    train, val = labeled(("a", "no"), ("b", "no"), ("c", "yes"), ("c", "yes")).split(0.5)
    assert [each.completion for each in val] == ["no"]
    assert len(train) == 3


def test_a_prompt_that_most_examples_have_is_not_held_out(tmp_path: Path) -> None:
    # If its hash was the smallest, nearly all examples were held out.
    for first in "abcdef":
        rows = [(first, str(n)) for n in range(30)] + [("x", "1"), ("y", "2")]
        found = Examples(tuple(Example(*row) for row in rows), "", (), (Path("a.csv"),), 0)
        train, val = found.split(0.05)
        assert (len(train), len(val)) == (30, 2)
        assert {each.prompt for each in train} == {first}
