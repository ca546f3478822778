"""explain, as a user types it: aligned tables, colors on request, and each option's effect."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import add_vocabulary, write_hub
from rich.cells import cell_len
from typer.testing import CliRunner

import gpt2kit
from gpt2kit.cli import app, color
from gpt2kit.config import GPT2Config
from gpt2kit.evaluation.word_options import WordOptions
from gpt2kit.inspection import ExplainOptions, explain
from gpt2kit.model import GPT2

TEXT = "the end\nof 日本 🙂 is near"


@pytest.fixture
def model(tmp_path: Path, tiny_model: GPT2) -> str:
    return str(add_vocabulary(write_hub(tmp_path / "model", tiny_model)))


def run(model: str, *arguments: str, stdin: str | None = None) -> Any:
    return CliRunner().invoke(app, ["explain", model, *arguments, "--device", "cpu"], input=stdin)


def objects(model: str, *arguments: str) -> list[dict[str, Any]]:
    result = run(model, *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_the_table_has_a_row_for_every_token_and_one_for_what_comes_next(model: str) -> None:
    loaded, tokenizer = gpt2kit.load(model, device="cpu")
    assert tokenizer is not None
    ids = tokenizer.encode(TEXT)
    found = explain(loaded, ids, ExplainOptions(top=2))
    result = run(model, TEXT, "--top", "2")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    rows = [line.split() for line in result.stdout.splitlines() if re.match(r" *\d+  ", line)]
    assert [int(row[0]) for row in rows] == list(range(len(ids)))
    for row, expected in list(zip(rows, found.expectations, strict=False))[1:]:
        assert float(row[2]) == pytest.approx(expected.surprisal, abs=0.006)
        assert int(row[4]) == expected.rank
        assert row[5] == color.visible(tokenizer.token_bytes(expected.alternatives[0].token))
    assert sum(line.startswith("next  ") for line in result.stdout.splitlines()) == 1
    assert (
        f"{found.surprisal:.2f} bits per token, perplexity {2 ** (found.surprisal or 0):,.2f}"
        in result.stdout
    )


@pytest.mark.parametrize("columns", [64, 80, 120])
def test_no_line_is_wider_than_the_terminal(
    model: str, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    result = run(model, TEXT, "--top", "9", "--lens", "--attention", "1.0", "--attribution")
    assert max(map(cell_len, result.stdout.splitlines())) <= columns
    assert "\\xf0" in result.stdout  # half of the emoji
    assert "⏎" in result.stdout
    assert "␣" in result.stdout


def test_numbers_stand_in_columns_whatever_the_tokens_are(model: str) -> None:
    lines = [
        line
        for line in run(model, TEXT, "--top", "1").stdout.splitlines()
        if re.match(r" *\d+  ", line)
    ]
    ends = {cell_len(re.match(r" *\d+  .*?\d+\.\d\d(?= )", line).group()) for line in lines[1:]}  # type: ignore[union-attr]
    assert len(ends) == 1


def test_the_text_comes_from_standard_input(model: str) -> None:
    assert run(model, "-", stdin=TEXT + "\n").stdout == run(model, TEXT).stdout


def test_colors_are_for_terminals_and_for_those_who_ask(model: str) -> None:
    plain = run(model, "the end").stdout
    assert "\x1b" not in plain
    colored = run(model, "the end", "--color", "always").stdout
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored).endswith(plain)
    assert colored.startswith("the" if "the" in colored[:3] else colored[:1])
    assert "bits" in colored.split("\n\n")[1]  # the legend
    assert colored != plain
    assert run(model, "the end", "--color", "never").stdout == plain
    for other in (["--json"], ["--html", "page.html"]):
        assert run(model, "the end", "--color", "always", *other).exit_code == 2


def test_color_is_wanted_on_terminals_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert color.wanted()
    assert not color.wanted("never")
    monkeypatch.setenv("TERM", "dumb")
    assert not color.wanted()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not color.wanted()
    assert color.wanted("always")


def test_a_more_surprising_token_has_another_color() -> None:
    shades = {color.paint("x", bits) for bits in (0, 0.5, 1, 3, 5, 7, 10, 20)}
    assert len(shades) == 7
    assert color.paint("x", None) == "x"


def test_nothing_in_a_text_reaches_the_terminal_as_a_command(model: str) -> None:
    assert "\x1b]0;title" not in run(model, "the \x1b]0;title\x07 end", "--color", "always").stdout
    assert color.visible(b"a b\n\t\x1b\xc2\xa0\xf0\x9f") == "a␣b⏎⇥\\x1b\\xa0\\xf0\\x9f"


def test_tokens_are_padded_and_cut_to_columns() -> None:
    assert color.fit("ab", 4) == "ab  "
    assert color.fit("日本", 5) == "日本 "
    assert cell_len(color.fit("日本語日本語", 6)) == 6
    assert color.fit("abcdef", 4) == "abc…"


def test_json_tells_everything_token_by_token(model: str) -> None:
    loaded, tokenizer = gpt2kit.load(model, device="cpu")
    assert tokenizer is not None
    ids = tokenizer.encode("the end is near")
    found = explain(loaded, ids, ExplainOptions(top=3, lens=True, head=(1, 1), attribution=True))
    *tokens, last = objects(
        model, "the end is near", "--top", "3", "--lens", "--attention", "1.1", "--attribution"
    )
    assert [each["token"] for each in tokens] == [*ids, None]
    assert "".join(each["text"] or "" for each in tokens) == "the end is near"
    for position, (line, expected) in enumerate(zip(tokens, found.expectations, strict=True)):
        assert (line["position"], line["surprisal"], line["rank"]) == (
            position,
            expected.surprisal,
            expected.rank,
        )
        assert [each["token"] for each in line["alternatives"]] == [
            each.token for each in expected.alternatives
        ]
        if position:
            assert line["lens"][-1]["token"] == line["alternatives"][0]["token"]
        if position < len(ids):
            assert line["attention"]["from"] == 0
            assert sum(line["attention"]["weights"]) == pytest.approx(1)
            assert len(line["attention"]["weights"]) == position + 1
    attribution = last["attribution"]
    assert attribution["target"]["token"] == tokens[-1]["alternatives"][0]["token"]
    assert sum(each["value"] for each in attribution["contributions"]) == pytest.approx(
        attribution["total"], abs=1e-4
    )


def test_words_stand_beside_tokens_as_surprisal_measures_them(model: str, tmp_path: Path) -> None:
    loaded, tokenizer = gpt2kit.load(model, device="cpu")
    text = "The horse raced past the barn"
    cases: list[tuple[str, Any]] = [(text, "none"), (f"<|endoftext|>{text}", "bos")]
    for typed, first in cases:
        (expected,) = gpt2kit.words(loaded, tokenizer, text, options=WordOptions(first=first))
        lines = objects(model, typed, *(["--special"] if first == "bos" else []))
        found = [line["word"] for line in lines if "word" in line]
        assert [each["word"] for each in found] == text.split()
        for each, word in zip(found, expected, strict=True):
            if word.surprisal is None:
                assert each["surprisal"] is None
                continue
            assert each["surprisal"] == pytest.approx(word.surprisal, rel=1e-5)
            assert each["surprisal_corrected"] == pytest.approx(word.surprisal_corrected, rel=1e-5)
            total = sum(line["surprisal"] for line in lines[each["first"] : each["end"]])
            assert total == pytest.approx(word.surprisal, rel=1e-4)
    shown = run(model, text).stdout.partition("words:")[2]
    assert [line.split()[-1] for line in shown.splitlines()[2:]] == text.split()
    page = tmp_path / "page.html"
    assert run(model, text, "--html", str(page)).exit_code == 0
    assert '"word":"raced"' in page.read_text()


def test_the_token_to_attribute_can_be_named(model: str) -> None:
    named = objects(model, "the end", "--attribution", "--target", "a", "--against", "b")[-1][
        "attribution"
    ]
    assert (named["target"]["text"], named["against"]["text"]) == ("a", "b")
    result = run(model, "the end", "--attribution", "--target", "near")
    assert result.exit_code == 1
    assert "'near' is not one token but" in result.stderr
    assert run(model, "the end", "--target", "a").exit_code == 2


def test_a_marker_can_stand_before_the_first_token(model: str) -> None:
    plain, marked = objects(model, "the end"), objects(model, "<|endoftext|>the end", "--special")
    assert len(marked) == len(plain) + 1
    assert plain[0]["surprisal"] is None
    assert marked[1]["surprisal"] > 0


@pytest.mark.filterwarnings("default")
def test_long_texts_slide_or_stop_or_are_refused(model: str) -> None:
    text = "the end is near " * 10
    whole = objects(model, text)
    assert len(whole) > 40
    assert all(each["surprisal"] is not None for each in whole[1:-1])
    assert "read in 3 windows" in run(model, text).stdout
    assert "windows" not in run(model, "the end").stdout
    result = run(model, text, "--overflow", "stop", "--json")
    assert len(result.stdout.splitlines()) == 33
    assert "the model reads at most 32: the last" in result.stderr
    result = run(model, text, "--overflow", "error")
    assert result.exit_code == 1
    assert "use --overflow slide" in result.stderr


def test_numbers_can_be_computed_in_another_dtype(model: str) -> None:
    single, double = objects(model, "the end"), objects(model, "the end", "--dtype", "float64")
    assert (
        single[1]["surprisal"]
        != double[1]["surprisal"]
        == pytest.approx(single[1]["surprisal"], abs=1e-4)
    )
    result = run(model, "the end", "--dtype", "bfloat16", "--attribution")
    assert result.exit_code == 1
    assert "use --dtype float32" in result.stderr


def test_the_page_is_written_whole_and_stdout_stays_empty(model: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = run(model, TEXT, "--html", str(page), "--attention", "1.1", "--lens", "--top", "3")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    assert str(page) in result.stderr
    data = json.loads(
        page.read_text(encoding="utf-8").split('type="application/json">')[1].split("</script>")[0]
    )
    assert "".join(data["pieces"]) == TEXT
    assert data["attention"]["first"] == [1, 1]
    assert len(data["alternatives"][1]) == 3
    assert len(data["lens"]["tokens"][0]) == 3
    assert "switched" not in data
    assert run(model, TEXT, "--html", str(tmp_path / "no" / "page.html")).exit_code == 2


def test_a_page_can_switch_heads_off(model: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = run(model, TEXT, "--html", str(page), "--switch_heads", "--top", "3")
    assert result.exit_code == 0, result.stderr
    data = json.loads(
        page.read_text(encoding="utf-8").split('type="application/json">')[1].split("</script>")[0]
    )
    switched = data["switched"]
    size = switched["layers"] * switched["heads"] * len(data["ids"])
    assert len(base64.b64decode(switched["bits"])) == 2 * size
    likely = [each for layer in switched["next"] for head in layer for each in head]
    assert len(likely) == 3 * switched["layers"] * switched["heads"]
    assert {str(token) for token, _ in likely} <= data["names"].keys()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([""], 1, "the text has no tokens"),
        (["a", "--attention", "5.0"], 1, "there is no head 5.0; expected a layer from 0 to 1"),
        (["a", "--attention", "5"], 2, "such as 0.1"),
        (["a", "--attention", "1.x"], 2, "such as 0.1"),
        (["a", "--json", "--html", "x.html"], 2, "not both"),
        (["a", "--top", "0"], 2, "top"),
        (["a", "--switch_heads"], 2, "give --html FILE"),
        (["a", "--dtype", "int3"], 1, "int3"),
    ],
)
def test_what_cannot_be_is_refused(model: str, arguments: list[str], code: int, says: str) -> None:
    result = run(model, *arguments)
    assert result.exit_code == code
    assert result.stdout == ""
    assert says in result.stderr


def test_a_model_without_a_vocabulary_cannot_be_explained(tmp_path: Path) -> None:
    bare = GPT2(GPT2Config(n_vocab=16, n_ctx=8, n_embd=4, n_head=1, n_layer=1))
    result = run(str(write_hub(tmp_path / "bare", bare)), "a")
    assert result.exit_code == 1
    assert "no vocabulary" in result.stderr


def test_ids_beyond_the_vocabulary_are_no_alternatives(tmp_path: Path, small_bpe: Any) -> None:
    padded = GPT2(GPT2Config(n_vocab=520, n_ctx=32, n_embd=16, n_head=2, n_layer=1))
    with torch.no_grad():
        padded.wte.weight[512:] *= 100  # padding that would win
    model = str(add_vocabulary(write_hub(tmp_path / "padded", padded)))
    tokens = [
        each["token"]
        for line in objects(model, "the end", "--top", "600")
        for each in line["alternatives"]
    ]
    assert max(tokens) < 512


@pytest.mark.parametrize("name", ["", "."])
def test_a_page_that_would_be_a_folder_is_a_mistake_of_usage(name: str, model: str) -> None:
    result = run(model, TEXT, "--html", name)
    assert result.exit_code == 2
    assert "which is a folder" in result.stderr
