"""gpt2kit diff and blend: what is printed, what is written, and that each option has its effect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import add_vocabulary, write_hub
from conftest import make_model
from typer.testing import CliRunner

from gpt2kit.checkpoints.classifiers import LabelWords, add_class_head
from gpt2kit.checkpoints.load import build_model, load, open_checkpoint, write_model
from gpt2kit.cli import app
from gpt2kit.config import GPT2Config
from gpt2kit.evaluation.perplexity import evaluate

SHAPE = GPT2Config(n_vocab=512, n_ctx=32, n_embd=16, n_head=2, n_layer=2)
TEXT = "Nel mezzo del cammin di nostra vita\nmi ritrovai per una selva oscura\n"


def write(folder: Path, seed: int, config: GPT2Config = SHAPE) -> Path:
    return add_vocabulary(write_hub(folder, make_model(config, seed=seed)))


@pytest.fixture
def a(tmp_path: Path) -> Path:
    return write(tmp_path / "a", 1)


@pytest.fixture
def b(tmp_path: Path) -> Path:
    return write(tmp_path / "b", 2)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)])


def objects(result: Any) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_diff_shows_every_part_of_every_layer(a: Path, b: Path) -> None:
    found = objects(run("diff", a, b, "--json"))
    assert [(part["layer"], part["part"]) for part in found if part["layer"] == 1] == [
        (1, "normalization"),
        (1, "attention"),
        (1, "MLP"),
    ]
    relative = next(
        part["relative"] for part in found if part["part"] == "MLP" and part["layer"] == 1
    )
    lines = run("diff", a, b).stdout.splitlines()
    assert lines[-1].split()[0] == "1"
    assert lines[-1].split()[-1] == f"{relative:.4%}"


def test_diff_shows_what_happens_to_a_text(a: Path, b: Path, book: Path) -> None:
    result = run("diff", a, b, "--corpus", book, "--top", 2, "--stride", 32)
    first, second = (evaluate(*load(model), book, stride=32).loss for model in (a, b))
    assert (
        f"loss {first:.4f} with A, {second:.4f} with B, change {second - first:+.4f} ±"
        in result.stdout
    )
    assert sum(" -> " in line for line in result.stdout.splitlines()) == 4
    change = objects(run("diff", a, b, "--corpus", book, "--json"))[-1]
    assert len(change["changes"]) == 20
    assert change["loss_a"] == pytest.approx(evaluate(*load(a), book).loss)


def test_models_that_do_not_compare_are_refused(a: Path, tmp_path: Path) -> None:
    other = write(
        tmp_path / "other", 3, GPT2Config(n_vocab=512, n_ctx=32, n_embd=16, n_head=2, n_layer=1)
    )
    for command in (
        ["diff", a, other],
        ["blend", a, other, "--alpha", 0.5, "--out", tmp_path / "out"],
    ):
        result = run(*command)
        assert result.exit_code == 1
        assert "have different shapes: n_layer 2 and 1" in result.stderr
    assert not (tmp_path / "out").exists()


def test_blend_writes_a_whole_model(a: Path, b: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("blend", a, b, "--alpha", 0.25, "--out", out)
    assert result.stdout == f"{out}\n"
    written = build_model(open_checkpoint(out)).state_dict()
    ours, theirs = (make_model(SHAPE, seed=seed).state_dict() for seed in (1, 2))
    assert all(
        torch.allclose(tensor, 0.75 * ours[name] + 0.25 * theirs[name], atol=1e-6)
        for name, tensor in written.items()
    )
    assert (out / "merges.txt").read_bytes() == (a / "merges.txt").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "out"}


def test_words_for_labels_are_kept_if_both_models_mean_the_same(
    a: Path, b: Path, tmp_path: Path
) -> None:
    """They were lost: the blend of a model and of one that was tuned to label texts had no labels.

    A head for labels was left out without a word.
    """
    words = LabelWords(("no", "yes"), "\n")
    words.write(b)
    arguments = ["blend", a, b, "--alpha", "0.5", "--out"]
    assert run(*arguments, tmp_path / "one").exit_code == 0
    assert LabelWords.read(tmp_path / "one") == words
    LabelWords(("ham", "spam"), "\n").write(a)
    said = run(*arguments, tmp_path / "two").stderr
    assert f"{a} labels texts with ham, spam, and {b} with no, yes" in said
    assert "expected the same labels and separator" in said
    model = make_model(SHAPE)
    add_class_head(model, ("no", "yes"))
    (tmp_path / "head").mkdir()
    write_model(tmp_path / "head", model)
    said = run("blend", tmp_path / "head", tmp_path / "head", *arguments[3:], tmp_path / "x").stderr
    assert "has a head for labels, and heads are not mixed" in said


def test_a_folder_is_replaced_only_with_force(a: Path, b: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for force, code in (((), 0), ((), 1), (("--force",), 0)):
        assert run("blend", a, b, "--alpha", 1, "--out", out, *force).exit_code == code
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "letter.txt").write_text("x")
    result = run("blend", a, b, "--alpha", 1, "--out", precious, "--force")
    assert result.exit_code == 1
    assert "exists and holds more than a model" in result.stderr
    assert (precious / "letter.txt").exists()


def test_a_text_finds_the_best_share_which_is_written(
    a: Path, b: Path, book: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    found = objects(run("blend", a, b, "--corpus", book, "--json", "--out", out))
    tried = {line["alpha"]: line["loss"] for line in found[:-2]}
    assert list(tried) == [tenth / 10 for tenth in range(11)]
    assert tried[0.0] == pytest.approx(evaluate(*load(a), book).loss)
    assert tried[1.0] == pytest.approx(evaluate(*load(b), book).loss)
    best = found[-2]["best_alpha"]
    assert found[-1] == {"path": str(out), "alpha": best}
    assert tried[best] == min(tried.values())
    assert evaluate(*load(out), book).loss == pytest.approx(tried[best])
    table = run("blend", a, b, "--corpus", book).stdout.splitlines()
    assert len(table) == 13
    assert table[-1] == f"best: alpha {best}"
    chosen = run("blend", a, b, "--corpus", book, "--alpha", 0.3, "--out", out, "--force")
    assert chosen.exit_code == 0
    assert evaluate(*load(out), book).loss == pytest.approx(tried[0.3])


@pytest.mark.parametrize(
    "arguments",
    [[], ["--alpha", "0.5"], ["--out", "x"], ["--alpha", "0.5", "--out", "x", "--stride", "3"]],
)
def test_what_blend_lacks_is_a_mistake_of_usage(arguments: list[str], a: Path, b: Path) -> None:
    assert run("blend", a, b, *arguments).exit_code == 2


OF_A_TEXT = [
    ("--stride", 3),
    ("--batch_size", 8),
    ("--unknown", "skip"),
    ("--encoding", "utf-8"),
    ("--text_field", "x"),
    ("--dtype", "float64"),
]


@pytest.mark.parametrize(
    "option", [*OF_A_TEXT, ("--device", "cpu"), ("--top", 3)], ids=lambda option: option[0]
)
def test_an_option_for_a_text_needs_one(
    option: tuple[str, object], a: Path, b: Path, book: Path, tmp_path: Path
) -> None:
    # Each of them was accepted, and did nothing.
    commands: list[list[object]] = [["diff", a, b]]
    if option[0] != "--top":
        commands.append(["blend", a, b, "--alpha", 0.5, "--out", tmp_path / "out"])
    for command in commands:
        result = run(*command, *option)
        assert (result.exit_code, result.stdout) == (2, "")
        assert f"{option[0]} has no effect here" in result.stderr
        assert run(*command, "--corpus", book, *option).exit_code == 0


@pytest.mark.parametrize("option", [("--alpha", 0.5), ("--force",)], ids=lambda option: option[0])
def test_an_option_for_what_is_written_needs_a_place(
    option: tuple[object, ...], a: Path, b: Path, book: Path
) -> None:
    result = run("blend", a, b, "--corpus", book, *option)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{option[0]} has no effect here" in result.stderr


def test_a_wrong_share_is_refused_before_anything_is_measured(
    a: Path, b: Path, book: Path, tmp_path: Path
) -> None:
    result = run("blend", a, b, "--alpha", 2, "--corpus", book, "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "alpha is 2.0, expected from 0" in result.stderr
