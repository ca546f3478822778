"""TensorBoard: its own reader finds the figures of a run's record, each step once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from training_builders import VERSES
from typer.testing import CliRunner

from gpt2kit.cli import app
from gpt2kit.errors import MissingDependencyError
from gpt2kit.training.records import read_metrics
from gpt2kit.training.tensorboard import FIGURES, EventWriter

SHAPE = "--n_layer=1 --n_head=2 --n_embd=16 --block_size=16 --batch_size=4"
OPTIONS = f"{SHAPE} --max_steps=6 --warmup=1 --eval_every=3 --save_every=2 --sample_every=0".split()


def train(folder: Path, *arguments: str) -> str:
    book = folder.parent / "book.txt"
    book.write_text(VERSES * 3, encoding="utf-8")
    result = CliRunner().invoke(app, ["train", str(book), "--out", str(folder), *arguments])
    assert result.exit_code in (0, 1), result.output
    return result.output if result.exit_code else ""


def test_a_resumed_run_has_every_figure_of_every_step_once(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    plain, run = tmp_path / "plain", tmp_path / "run"
    train(plain, *OPTIONS)
    train(run, *OPTIONS, "--tensorboard")
    newest = run / "states" / "step-00000006"
    expected = (newest / "weights.safetensors").read_bytes()
    assert expected == (plain / "states" / newest.name / "weights.safetensors").read_bytes()
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()  # as if the run had been cut after step 4
    train(run, "--resume", "--tensorboard")
    assert (newest / "weights.safetensors").read_bytes() == expected
    found = reader.EventAccumulator(str(run / "tensorboard")).Reload()
    record = read_metrics(run)
    assert [line["step"] for line in record] == list(range(7))
    norms = {f"gradient_norms/{part}" for part in ("wte", "wpe", "h.0", "ln_f")}
    assert set(found.Tags()["scalars"]) == {*FIGURES, *norms}
    last = {name: found.Scalars(f"gradient_norms/{name}")[-1].value for name in ("wte", "h.0")}
    assert {name: record[-1]["gradient_norms"][name] for name in last} == pytest.approx(last)
    for name in FIGURES:
        events = [(event.step, event.value) for event in found.Scalars(name)]
        assert [step for step, _ in events] == [line["step"] for line in record if name in line]
        assert [value for _, value in events] == pytest.approx(
            [line[name] for line in record if name in line]
        )


def test_without_tensorboard_the_extra_is_named_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingDependencyError, match=r"gpt2kit\[tensorboard\]"):
        EventWriter(tmp_path)
    said = train(tmp_path / "run", *OPTIONS, "--tensorboard")
    assert said.startswith(
        "error: this needs tensorboard, which is not installed; run: pip install "
    )
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()
