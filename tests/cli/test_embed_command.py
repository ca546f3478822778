"""embed: vectors beside the texts, as an array or a column; a bad row has a reason instead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import add_vocabulary, write_hub
from conftest import make_model
from typer.testing import CliRunner, Result

from gpt2kit.cli import app
from gpt2kit.config import GPT2Config
from gpt2kit.evaluation.vectors import text_vectors
from gpt2kit.tokenizers import BPETokenizer

CONFIG = GPT2Config(n_vocab=512, n_ctx=32, n_embd=16, n_head=2, n_layer=2)
TEXTS = ["The cat sat.", "", "One two three"]


@pytest.fixture
def desk(weights: Path) -> Path:
    add_vocabulary(write_hub(weights / "tiny", make_model(CONFIG)))
    lines = (json.dumps({"id": number, "text": text}) for number, text in enumerate(TEXTS))
    Path("texts.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return weights.parent


def run(*arguments: str, code: int = 0) -> Result:
    arguments = ("embed", "texts.jsonl", "--model", "tiny", "--device", "cpu", *arguments)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def expected(bpe: BPETokenizer, layer: Any = "ln_f", **how: Any) -> list[Any]:
    return [
        vector[0].numpy()
        for vector, _ in text_vectors(make_model(CONFIG), bpe, TEXTS, [layer], **how)
    ]


def test_an_array_has_a_vector_for_each_row(desk: Path, small_bpe: BPETokenizer) -> None:
    assert "3 vectors of 16 numbers" in run("--out", "out.npz").stderr
    with np.load("out.npz", allow_pickle=False) as found:
        np.testing.assert_allclose(found["vectors"], expected(small_bpe), atol=1e-5)
        assert found["error"].tolist() == ["", "the text is empty", ""]
        assert np.isnan(found["vectors"][1]).all()


def test_a_column_has_them_beside_the_texts(desk: Path, small_bpe: BPETokenizer) -> None:
    run("--out", "out.jsonl", "--layer", "1", "--pool", "last", "--normalize")
    found = read("out.jsonl")
    assert [row["text"] for row in found] == TEXTS
    vectors = expected(small_bpe, 1, pool="last", normalize=True)
    for row, vector in zip(found, vectors, strict=True):
        if row["id"] == 1:
            assert row["vector"] is None
            assert row["error"] == "the text is empty"
        else:
            np.testing.assert_allclose(row["vector"], vector, atol=1e-5)
    parquet = pytest.importorskip("pyarrow.parquet")
    run("--out", "out.parquet")
    column = parquet.read_table("out.parquet")["vector"].to_pylist()
    np.testing.assert_allclose(column[2], expected(small_bpe)[2], atol=1e-5)


def test_every_option_changes_the_vectors(desk: Path) -> None:
    run("--out", "plain.jsonl")
    for option in (["--layer", "0"], ["--pool", "first"], ["--normalize"], ["--first", "none"]):
        run("--out", "other.jsonl", *option)
        assert read("other.jsonl")[0]["vector"] != read("plain.jsonl")[0]["vector"]


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--out", "out.csv"], "expected a name in .npz, .jsonl or .parquet", 2),
        (["--out", "out.npz", "--layer", "0-2"], "--layer is one layer", 1),
        (["--out", "out.npz", "--layer", "3"], "there is no layer 3; expected from 0", 1),
        (["--out", "out.npz", "--text", "body"], "no column 'body'", 1),
    ],
)
def test_what_cannot_be_done_is_refused(
    desk: Path, arguments: list[str], message: str, code: int
) -> None:
    assert message in run(*arguments, code=code).stderr
    assert not Path("out.npz").exists()
