"""The bundled model: found from anywhere, small, and as good as its card says."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from gpt2kit import store
from gpt2kit.checkpoints.load import load, open_checkpoint
from gpt2kit.cli import app
from gpt2kit.data.corpus import load_corpus
from gpt2kit.training.config import TrainConfig
from gpt2kit.training.loop import evaluate_loss
from gpt2kit.training.loss import NextTokenLoss

DEMO = store.BUNDLED / "dante"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPT2KIT_WEIGHTS", str(tmp_path / "empty"))


def test_it_is_found_by_its_name_from_any_folder() -> None:
    assert store.find("dante") == DEMO


def test_a_model_of_the_users_own_with_its_name_wins(tmp_path: Path) -> None:
    own = tmp_path / "empty" / "dante"
    own.mkdir(parents=True)
    (own / "config.json").write_text("{}")
    assert store.find("dante") == own


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in DEMO.iterdir()) <= 10_000_000
    assert {tensor.dtype for tensor in open_checkpoint(DEMO).tensors.values()} == {torch.bfloat16}


def test_it_continues_the_first_line_of_the_comedy_in_lines() -> None:
    arguments = [
        "generate",
        "Nel mezzo del cammin di nostra vita",
        "--model",
        "dante",
        "--seed",
        "1",
        "--max_tokens",
        "300",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    lines = result.stdout.rstrip("\n").split("\n")
    assert lines[0].startswith("Nel mezzo del cammin di nostra vita")
    assert 6 <= len(lines) <= 14
    assert all(20 <= len(line) <= 60 for line in lines[1:-1] if line)


def test_its_card_states_its_loss() -> None:
    corpus = (
        Path(os.environ.get("GPT2KIT_TEST_DATA", "/nowhere")) / "corpora" / "dante-commedia.txt"
    )
    if not corpus.exists():
        pytest.skip("needs the Comedy; set GPT2KIT_TEST_DATA")
    model, tokenizer = load("dante", device="cpu", dtype="float32")
    assert tokenizer is not None
    loss = evaluate_loss(
        NextTokenLoss(model),
        load_corpus(corpus, tokenizer),
        TrainConfig(max_steps=100, block_size=256),
    )
    assert loss is not None
    card = (DEMO / "README.md").read_text(encoding="utf-8")
    stated = re.search(r"\| loss \| ([\d.]+) nats", card)
    assert stated is not None
    assert loss == pytest.approx(float(stated[1]), abs=2e-4)
    assert loss / math.log(2) <= 1.98
