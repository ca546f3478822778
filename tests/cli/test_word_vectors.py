"""surprisal --hidden: a vector for each word of a table, in the order of its rows."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import add_vocabulary, write_hub
from conftest import make_model
from typer.testing import CliRunner, Result

from gpt2kit.cli import app
from gpt2kit.config import GPT2Config
from gpt2kit.evaluation.passages import split
from gpt2kit.evaluation.vectors import word_vectors
from gpt2kit.tokenizers import BPETokenizer, CharTokenizer

CONFIG = GPT2Config(n_vocab=512, n_ctx=64, n_embd=16, n_head=2, n_layer=2)


@pytest.fixture
def desk(weights: Path) -> Path:
    add_vocabulary(write_hub(weights / "tiny", make_model(CONFIG)))
    Path("lines.txt").write_text("The cat sat.\nOne two\n")
    Path("words.csv").write_text(
        "item,n,word\n1,2,cat\n2,1,One\n1,1,The\n1,3,sat.\n2,2,\n2,3,two\n"
    )
    return weights.parent


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(
        app, ["surprisal", *arguments, "--model", "tiny", "--device", "cpu"]
    )
    assert result.exit_code == code, result.output
    return result


def arrays(name: str) -> dict[str, Any]:
    with np.load(name, allow_pickle=False) as found:
        return dict(found)


def expected(bpe: BPETokenizer, text: str, layers: list[Any], **how: Any) -> Any:
    (found,) = word_vectors(make_model(CONFIG), bpe, [split(text)], layers, **how)
    return found.numpy()


def test_lines_have_a_vector_for_each_word(desk: Path, small_bpe: BPETokenizer) -> None:
    result = run("lines.txt", "--hidden", "0-1,ln_f", "--out", "out.npz")
    found = arrays("out.npz")
    assert found["layers"].tolist() == ["0", "1", "ln_f"]
    assert found["word"].tolist() == ["The", "cat", "sat.", "One", "two"]
    assert found["row"].tolist() == [1, 1, 1, 2, 2]
    np.testing.assert_allclose(
        found["hidden"][:3], expected(small_bpe, "The cat sat.", [0, 1, "ln_f"]), atol=1e-5
    )
    assert "hidden states 5 x 3 x 16" in result.stderr
    plain = csv.DictReader(io.StringIO(run("lines.txt").stdout))
    figures = [(row["word"], float(row["surprisal"])) for row in plain]
    assert [word for word, _ in figures] == found["word"].tolist()
    np.testing.assert_allclose(found["surprisal"], [bits for _, bits in figures], rtol=1e-6)


def test_rows_of_words_in_any_order_get_the_vectors_of_their_texts(
    desk: Path, small_bpe: BPETokenizer
) -> None:
    table = ("words.csv", "--words", "word", "--by", "item", "--order", "n")
    run(*table, "--hidden", "2", "--pool", "last", "--out", "out.npz")
    found = arrays("out.npz")
    assert found["row"].tolist() == [1, 2, 3, 4, 6]
    assert found["word"].tolist() == ["cat", "One", "The", "sat.", "two"]
    text = expected(small_bpe, "The cat sat.", [2], pool="last")
    np.testing.assert_allclose(found["hidden"][[2, 0, 3]], text, atol=1e-5)


def test_the_first_word_has_no_vector_if_nothing_is_read_before_it(desk: Path) -> None:
    Path("a.txt").write_text("a b\n")
    run("a.txt", "--hidden", "1", "--first", "none", "--out", "out.npz")
    found = arrays("out.npz")
    assert np.isnan(found["hidden"][0]).all()
    assert found["flag"].tolist() == ["no-context", ""]


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--hidden", "1"], "--hidden needs --out, a .npz file", 2),
        (["--hidden", "1", "--out", "a.csv"], "--hidden needs --out, a .npz file", 2),
        (["--out", "a.npz"], "add --hidden LAYERS", 2),
        (["--hidden", "1", "--out", "a.npz", "--unit", "token"], "--hidden is for --unit word", 2),
        (["--hidden", "9", "--out", "a.npz"], "there is no layer 9", 1),
    ],
)
def test_what_does_not_go_together_is_refused(
    desk: Path, arguments: list[str], message: str, code: int
) -> None:
    assert message in run("lines.txt", *arguments, code=code).stderr
    assert not Path("a.npz").exists()


def test_rows_without_hidden_states_are_counted_in_a_warning(desk: Path) -> None:
    # They were left out without a word.
    words = ["words.csv", "--words", "word", "--by", "item", "--order", "n"]
    result = run(*words, "--hidden", "1", "--out", "h.npz")
    assert "warning: 1 row without hidden states" in result.stderr
    assert len(arrays("h.npz")["hidden"]) == 5


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ('{"text": ["x"]}', r'row 2: ["x"] is no text'),
        ('{"text": "?"}', "row 2: the character '?'"),
    ],
)
def test_on_error_stop_stops_at_a_text_that_cannot_be_read(
    weights: Path, second: str, message: str
) -> None:
    # The option had no effect here: such rows were left out, with a warning.
    config = GPT2Config(n_vocab=3, n_ctx=16, n_embd=8, n_head=1, n_layer=1)
    write_hub(weights / "tiny", make_model(config))
    CharTokenizer(["a", "b", " "]).save(weights / "tiny")
    Path("t.jsonl").write_text('{"text": "ab a"}\n' + second + "\n")
    how = ["t.jsonl", "--text", "text", "--hidden", "1", "--out", "out.npz"]
    run(*how)
    assert arrays("out.npz")["row"].tolist() == [1, 1]
    assert message in run(*how, "--on_error", "stop", code=1).stderr
