"""gpt2kit evaluate and score: what is printed, and that each option has its effect."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from builders import add_vocabulary
from conftest import GOLDEN
from typer.testing import CliRunner

from gpt2kit.checkpoints.load import load
from gpt2kit.cli import app
from gpt2kit.evaluation.perplexity import evaluate, score
from gpt2kit.tokenizers import CharTokenizer

TEXT = "Nel mezzo del cammin di nostra vita\nmi ritrovai per una selva oscura\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN / "hf/safetensors", tmp_path / "model")
    return add_vocabulary(tmp_path / "model")


@pytest.fixture
def characters(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN / "hf/safetensors", tmp_path / "characters")
    CharTokenizer([chr(code) for code in (10, *range(32, 127), *range(0x400, 0x400 + 416))]).save(
        tmp_path / "characters"
    )
    return tmp_path / "characters"


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def run(*arguments: object, stdin: str | None = None) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)], input=stdin)


def objects(result: Any) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_it_prints_what_the_library_measures(model: Path, book: Path) -> None:
    expected = evaluate(*load(model), book)
    result = run("evaluate", model, "--corpus", book)
    assert result.exit_code == 0
    assert result.stderr == ""
    lines = {line[:21].strip(): line[21:].strip() for line in result.stdout.splitlines()}
    assert lines["loss"] == f"{expected.loss:.4f} ± {expected.standard_error:.4f}"
    assert lines["perplexity"] == f"{expected.perplexity:.4f}"
    assert lines["bits per byte"] == f"{expected.bits_per_byte:.4f}"
    assert (lines["n ctx"], lines["stride"], lines["tokens"]) == ("24", "12", str(expected.tokens))


@pytest.mark.parametrize(
    ("option", "value", "tolerance"),
    [
        ("--stride", "24", 0),
        ("--batch_size", "1", 1e-6),
        ("--dtype", "float64", 1e-5),
        ("--quantize", "int8", 0.1),
    ],
)
def test_each_option_has_its_effect(
    option: str, value: str, tolerance: float, model: Path, book: Path
) -> None:
    (usual,), (changed,) = (
        objects(run("evaluate", model, "--corpus", book, "--json", *more))
        for more in ((), (option, value))
    )
    if option == "--stride":
        assert (usual["stride"], changed["stride"]) == (12, 24)
        assert usual["loss"] != changed["loss"]
    else:
        assert changed["loss"] == pytest.approx(usual["loss"], abs=tolerance)
    if option in ("--dtype", "--quantize"):
        assert usual["loss"] != changed["loss"]


def test_models_stand_side_by_side_and_the_comparable_figure_is_named(
    model: Path, characters: Path, book: Path
) -> None:
    result = run("evaluate", model, characters, "--corpus", book)
    assert result.stdout.splitlines()[0].split() == ["model", "characters"]
    assert (
        len(
            next(
                line for line in result.stdout.splitlines() if line.startswith("bits per byte")
            ).split()
        )
        == 5
    )
    assert "compare their bits per byte" in result.stderr
    assert run("evaluate", model, model, "--corpus", book).stderr == ""


def test_a_folder_of_texts_may_be_called_as_a_file_of_ids(model: Path, tmp_path: Path) -> None:
    """Its --encoding had no effect, since it was taken for a file of token ids by its name."""
    folder = tmp_path / "corpus.bin"
    folder.mkdir()
    (folder / "book.txt").write_text("la città perché " * 9, encoding="latin-1")
    (found,) = objects(
        run("evaluate", model, "--corpus", folder, "--encoding", "latin-1", "--json")
    )
    assert found["tokens"] > 100


def test_encoding_and_field_of_the_text_can_be_named(
    model: Path, book: Path, tmp_path: Path
) -> None:
    (tmp_path / "old.txt").write_bytes("perché è così".encode("cp1252"))
    (tmp_path / "new.txt").write_text("perché è così", encoding="utf-8")
    (tmp_path / "x.jsonl").write_text(json.dumps({"body": "perché è così"}), encoding="utf-8")
    result = run("evaluate", model, "--corpus", tmp_path / "old.txt")
    assert result.exit_code == 1
    assert "add --encoding cp1252" in result.stderr
    old = run("evaluate", model, "--corpus", tmp_path / "old.txt", "--encoding", "cp1252", "--json")
    field = run(
        "evaluate", model, "--corpus", tmp_path / "x.jsonl", "--text_field", "body", "--json"
    )
    assert (
        old.stdout
        == field.stdout
        == run("evaluate", model, "--corpus", tmp_path / "new.txt", "--json").stdout
    )


def test_an_unknown_character_is_an_error_or_left_out(characters: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("piñata", encoding="utf-8")
    result = run("evaluate", characters, "--corpus", tmp_path / "a.txt")
    assert result.exit_code == 1
    assert "error: the character 'ñ' at offset 2" in result.stderr
    assert (
        objects(
            run(
                "evaluate",
                characters,
                "--corpus",
                tmp_path / "a.txt",
                "--unknown",
                "skip",
                "--json",
            )
        )[0]["bytes"]
        == 4
    )


def test_tasks_print_their_figures(model: Path, tmp_path: Path) -> None:
    lambada, hellaswag = tmp_path / "l.jsonl", tmp_path / "h.jsonl"
    lambada.write_text('{"text": "nel mezzo"}\n{"text": "una selva oscura"}\n', encoding="utf-8")
    hellaswag.write_text(
        '{"ctx": "nel", "endings": ["mezzo", "del cammin"], "label": 0}\n' * 2, encoding="utf-8"
    )
    (found,) = objects(run("evaluate", model, "--task", "lambada", lambada, "--json"))
    assert (found["passages"], found["accuracy"]) == (2, 0.0)
    (found,) = objects(run("evaluate", model, "--task", "hellaswag", hellaswag, "--json"))
    assert found["questions"] == 2
    assert "accuracy normalized" in run("evaluate", model, "--task", "hellaswag", hellaswag).stdout
    lambada.write_text('{"text": "nel"}\n', encoding="utf-8")
    result = run("evaluate", model, "--task", "lambada", lambada)
    assert result.exit_code == 1
    assert "line 1: expected" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--task", "chess", "x"],
        ["--corpus", "x", "--task", "lambada", "x"],
        *(
            ["--task", "lambada", "x", *option]
            for option in (["--stride", "3"], ["--encoding", "utf-8"], ["--text_field", "body"])
        ),
    ],
)
def test_what_does_not_go_together_is_a_mistake_of_usage(arguments: list[str], model: Path) -> None:
    assert run("evaluate", model, *arguments).exit_code == 2


def test_a_mistyped_second_model_is_found_out_first(model: Path, book: Path) -> None:
    result = run("evaluate", model, "no/such", "--corpus", book, "--json")
    assert (result.exit_code, result.stdout) == (1, "")


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "empty, expected a text"), ("a", "1 token, expected at least two")],
)
def test_too_little_text_is_one_line_of_error(
    content: str, message: str, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    result = run("evaluate", model, "--corpus", tmp_path / "a.txt")
    assert result.exit_code == 1
    assert message in result.stderr


# --- score ----------------------------------------------------------------------------------------

LINES = ["una selva oscura", "", "vita", "la diritta via era smarrita"]


def test_lines_are_scored_in_their_order_or_sorted(model: Path) -> None:
    found = list(score(*load(model), LINES))
    printed = objects(run("score", "-", "--model", model, "--json", stdin="\r\n".join(LINES)))
    assert [line["line"] for line in printed] == [1, 3, 4]
    assert [line["logprob"] for line in printed] == pytest.approx([line.logprob for line in found])
    for sort, key in (("total", "logprob"), ("per_token", "logprob_per_token")):
        printed = objects(
            run("score", "-", "--model", model, "--json", "--sort", sort, stdin="\n".join(LINES))
        )
        assert [line[key] for line in printed] == sorted(
            (line[key] for line in printed), reverse=True
        )


def test_the_table_has_a_line_for_each(model: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("\n".join(LINES), encoding="utf-8")
    result = run("score", tmp_path / "lines.txt", "--model", model)
    assert [line.split(maxsplit=4)[-1] for line in result.stdout.splitlines()] == [
        line for line in LINES if line
    ]
    assert "per token" in result.stderr


@pytest.mark.filterwarnings("default")
def test_a_long_line_follows_overflow_and_markers_follow_special(model: Path) -> None:
    def tokens(*more: str) -> int:
        return int(
            objects(
                run("score", "-", "--model", model, "--json", *more, stdin="x<|endoftext|> " * 20)
            )[0]["tokens"]
        )

    assert tokens() > tokens("--special") > tokens("--overflow", "stop") == 24
    stopped = run("score", "-", "--model", model, "--overflow", "stop", stdin="x\n" + "x " * 40)
    assert (
        stopped.stderr.count(
            "line 2 has 80 tokens, but the model reads at most 24: the last 56 are left out"
        )
        == 1
    )
    assert "warning: line 2 has" in stopped.stderr
    result = run("score", "-", "--model", model, "--overflow", "error", stdin="x " * 40)
    assert result.exit_code == 1
    assert (
        "line 1 has 40 tokens to predict" in result.stderr
        or "use --overflow slide" in result.stderr
    )


def test_standard_input_is_decoded_as_a_file_is(model: Path) -> None:
    data = "perché\n".encode("latin-1")
    refused = CliRunner().invoke(app, ["score", "-", "--model", str(model)], input=data)
    assert refused.exit_code == 1
    assert "standard input: byte 5 (line 1) is 0xe9, which is not utf-8" in refused.stderr
    found = objects(
        CliRunner().invoke(
            app,
            ["score", "-", "--model", str(model), "--json", "--encoding", "latin-1"],
            input=data,
        )
    )
    assert found[0]["text"] == "perché"


def test_a_line_without_scored_tokens_is_never_the_likeliest(characters: Path) -> None:
    for sort in ("total", "per_token"):
        printed = objects(
            run("score", "-", "--model", characters, "--json", "--sort", sort, stdin="x\nanna")
        )
        assert [line["text"] for line in printed] == ["anna", "x"]
        assert repr(printed[-1]["logprob"]) == "0.0"


def test_nothing_to_score_is_an_error(model: Path) -> None:
    result = run("score", "-", "--model", model, stdin="\n \n")
    assert result.exit_code == 1
    assert "standard input: no text, expected a sentence on each line" in result.stderr


def test_a_table_is_not_scored_line_by_line(tmp_path: Path) -> None:
    # The rows of a .jsonl file were scored as they stand, with keys and quotes.
    (tmp_path / "t.jsonl").write_text('{"text": "vita"}\n')
    result = run("score", tmp_path / "t.jsonl", "--model", "dante")
    assert "t.jsonl is a table (jsonl), expected a text with one sentence on each" in result.stderr
    assert (result.exit_code, result.stdout) == (1, "")


def test_the_name_of_a_file_is_refused_for_the_folder_of_many_scores(tmp_path: Path) -> None:
    # A folder was made that was called s.jsonl, or an error spoke of s.jsonl/parts.
    (tmp_path / "t.jsonl").write_text('{"text": "vita"}\n')
    result = run("score", tmp_path / "t.jsonl", "--out", tmp_path / "s.jsonl", "--model", "dante")
    assert f"such as --out {tmp_path / 's'}; then gpt2kit parts" in result.stderr
    (tmp_path / "s").touch()
    assert run("score", "t.jsonl", "--out", tmp_path / "s", "--model", "dante").exit_code == 2
    assert sorted(each.name for each in tmp_path.iterdir()) == ["s", "t.jsonl"]


@pytest.mark.parametrize("option", ["--text", "--text_field"])
def test_the_column_of_a_table_to_score_is_named_as_for_other_commands(
    option: str, tmp_path: Path
) -> None:
    # `score` alone called it --text_field.
    (tmp_path / "t.jsonl").write_text('{"sentence": "vita"}\n')
    out = tmp_path / "out"
    run("score", tmp_path / "t.jsonl", "--out", out, "--model", "dante", option, "sentence")
    assert json.loads((out / "parts" / "00000.jsonl").read_text())["tokens"] == 3
