"""Recipes trained in turn: their table, what is skipped and continued, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gpt2kit.cli import app
from gpt2kit.errors import ConfigError
from gpt2kit.training import recipes
from gpt2kit.training.records import read_metrics

SHAPE = "n_head = 1\nblock_size = 8\nbatch_size = 2\nmax_steps = 4\neval_every = 2\n"
FILES = {
    "pair": "# A text, step 1 of 2: the table.\n"
    + 'n_layer = 0\nhead = "none"\nnorm = "none"\npositions = "none"\n'
    + SHAPE,
    "block": "# A text, step 2 of 2: a block.\nn_layer = 1\nn_embd = 8\n" + SHAPE,
    "series": '# Two steps.\nsteps = ["pair", "block"]\n',
}


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a text, and let there be no recipes but a series of two steps and these."""
    for name, content in FILES.items():
        (tmp_path / f"{name}.toml").write_text(content)
    monkeypatch.setattr(recipes, "FOLDER", tmp_path)
    (tmp_path / "text.txt").write_text("what is learned is learned in steps. " * 20)
    return tmp_path / "text.txt"


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == code, result.output
    return result


def test_steps_are_trained_in_turn_and_what_was_done_before_is_kept(text: Path) -> None:
    out = text.parent / "out"
    given = ["--sample_every", 0]
    run("train", text, "--recipe", "pair", *given, "--max_steps", 2, "--out", out / "pair")
    given = ["--recipe", "series", *given, "--out", out]
    table = run("train", text, *given).stdout.splitlines()
    assert [line.split()[0] for line in table] == ["step", "pair", "block"]
    assert table[1].endswith("the table.")
    records = read_metrics(out / "pair")
    assert [line["step"] for line in records] == [0, 1, 2, 3, 4]  # continued after step 2
    losses = [
        min(line["val_loss"] for line in read_metrics(out / step) if "val_loss" in line)
        for step in ("pair", "block")
    ]
    assert [float(line.split()[2]) for line in table[1:]] == pytest.approx(losses, abs=1e-3)

    again = run("train", text, *given, "--json")
    assert again.stderr.count("this run has ended already") == 2
    assert read_metrics(out / "pair") == records
    rows = [json.loads(line) for line in again.stdout.splitlines()]
    assert [row["step"] for row in rows] == ["pair", "block"]
    assert [row["val_loss"] for row in rows] == pytest.approx(losses)
    assert rows[0]["parameters"] == 14**2  # 14 characters, each with the logits of the next


def test_steps_can_be_trained_for_a_number_of_passes(text: Path) -> None:
    out = text.parent / "passes"
    run("train", text, "--recipe", "series", "--sample_every", 0, "--epochs", 0.5, "--out", out)
    # Their recipes have 4 steps.
    assert [read_metrics(out / step)[-1]["step"] for step in ("pair", "block")] == [21, 21]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--n_layer", 2], "--n_layer is for one recipe: .* --recipe pair"),
        (["--tokenizer", "word"], "--tokenizer is for one recipe"),
        (["--resume"], "--resume has no effect with series: .*--force"),
    ],
)
def test_options_that_are_about_one_recipe_are_refused(
    text: Path, given: list[object], says: str
) -> None:
    out = text.parent / "out"
    refused = run("train", text, "--recipe", "series", *given, "--out", out, code=1)
    assert re.search(says, refused.stderr)
    assert not out.exists()


def test_a_plan_is_of_one_recipe_and_not_of_a_series(text: Path) -> None:
    refused = run("plan", text, "--recipe", "series", code=1).stderr
    assert "expected one of its recipes: pair, block" in refused


def test_a_series_has_no_options_and_is_shown_with_its_steps(text: Path) -> None:
    assert run("recipes", "series").stdout.split()[-2:] == ["pair", "block"]
    assert json.loads(run("recipes", "series", "--json").stdout)["steps"] == ["pair", "block"]
    with pytest.raises(ConfigError, match="mine has steps, so it cannot have n_layer, too"):
        recipes.parse("mine", '# A.\nn_layer = 1\nsteps = ["pair"]\n')


def test_every_step_of_the_series_is_a_recipe_that_says_what_it_adds() -> None:
    series = [recipe for recipe in map(recipes.read, recipes.names()) if recipe.steps]
    assert [recipe.name for recipe in series] == ["shakespeare-steps"]
    for number, step in enumerate(series[0].steps, start=1):
        recipe = recipes.read(step)
        assert f"step {number} of {len(series[0].steps)}: " in recipe.about
        assert recipe.adds
        assert "Measured: " in recipe.about
