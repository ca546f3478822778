"""The recipe in which induction heads form, from the text to what its heads are good for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gpt2kit.cli import app


def rows(*arguments: str) -> list[dict[str, float | str]]:
    """Run a command and return its JSON objects."""
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.slow
def test_induction_heads_form_and_the_second_copy_needs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (
        "synthetic repeats --out repeats.txt",
        "train repeats.txt --recipe induction --device cpu --out induction",
    ):
        result = CliRunner().invoke(app, command.split())
        assert result.exit_code == 0, result.output
    scores = {f"{each['layer']}.{each['head']}": each for each in rows("heads", "induction")}
    best = max(scores, key=lambda name: float(scores[name]["induction"]))
    assert best.startswith("1.")
    assert float(scores[best]["induction"]) > 0.8
    assert max(float(scores[f"0.{head}"]["previous"]) for head in (0, 1)) > 0.25
    (effect,) = rows("ablate", "induction", "--heads", best, "--over", "random")
    assert float(effect["before"]) < 1
    assert float(effect["change"]) > 0.5
