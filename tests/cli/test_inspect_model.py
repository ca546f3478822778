"""inspect --modules and --vocabulary, as a user types them."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
from builders import add_vocabulary, write_hub
from conftest import make_model
from typer.testing import CliRunner

import gpt2kit
from gpt2kit.cli import app
from gpt2kit.config import GPT2Config
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import WordTokenizer


def lines(*arguments: str) -> list[str]:
    result = CliRunner().invoke(app, ["inspect", *arguments])
    assert result.exit_code == 0, result.stderr
    return result.stdout.splitlines()


@pytest.fixture
def model(tmp_path: Path, tiny_model: GPT2) -> str:
    return str(add_vocabulary(write_hub(tmp_path / "model", tiny_model)))


def test_the_tree_of_modules_shows_equal_blocks_once(model: str, tiny_model: GPT2) -> None:
    shown = lines(model, "--modules")
    names = [line.split()[0] for line in shown]
    assert names[:5] == ["GPT2", "wte", "wpe", "h.0-1", "ln_1"]
    assert names.count("c_attn") == 1
    assert re.fullmatch(r"GPT2 +([\d,]+)", shown[0])
    assert shown[0].split()[1] == f"{tiny_model.config.n_params:,}"
    assert re.search(r"h\.0-1 +Block +2 x 3,280", "\n".join(shown))
    assert re.search(r"c_attn +Linear +weight 48 x 16, bias 48 +float32 +816", "\n".join(shown))
    assert max(map(len, shown)) <= 80
    assert "the head is wte" in shown[-1]


def test_the_tree_as_json_is_whole(model: str, tiny_model: GPT2) -> None:
    rows = [json.loads(line) for line in lines(model, "--modules", "--json")]
    modules = [name for name, _ in GPT2(tiny_model.config).named_modules() if name]
    assert [row["name"] for row in rows] == modules
    by_name = {row["name"]: row for row in rows}
    assert by_name["h.1.mlp.c_fc"]["parameters"] == [
        {"name": "weight", "shape": [64, 16], "dtype": "float32"},
        {"name": "bias", "shape": [64], "dtype": "float32"},
    ]


def test_a_head_of_its_own_is_a_module(tmp_path: Path) -> None:
    config = GPT2Config(
        n_vocab=512, n_ctx=8, n_embd=8, n_head=2, n_layer=1, tie_word_embeddings=False
    )
    folder = write_hub(tmp_path / "model", make_model(config), tie_word_embeddings=False)
    shown = lines(str(folder), "--modules")
    assert re.search(r"^  lm_head +Linear +weight 512 x 8 +float32 +4,096$", shown[-1])


def test_a_vocabulary_is_summarized(model: str) -> None:
    shown = "\n".join(lines(model, "--vocabulary"))
    assert re.search(r"^tokens +512 +byte-level BPE$", shown, re.MULTILINE)
    assert re.search(r"^  single bytes +256$", shown, re.MULTILINE)
    assert re.search(r"^special +511 <\|endoftext\|>$", shown, re.MULTILINE)
    assert "padding" not in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_padding_and_very_long_words_are_shown_as_such(tmp_path: Path) -> None:
    config = GPT2Config(n_vocab=512, n_ctx=8, n_embd=8, n_head=2, n_layer=1)
    folder = write_hub(tmp_path / "model", make_model(config))
    WordTokenizer(["\n", "a" * 500, " b"]).save(folder)
    shown = "\n".join(lines(str(folder), "--vocabulary"))
    assert re.search(r"^padding +509 +rows of the model that stand for no token$", shown, re.M)
    assert re.search(r"^longest +1 a{39}…", shown, re.M)
    assert "⏎" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_vocabulary_as_json_is_every_token_with_its_bytes(model: str) -> None:
    rows = [json.loads(line) for line in lines(model, "--vocabulary", "--json")]
    _, tokenizer = gpt2kit.load(model, device="cpu")
    assert tokenizer is not None
    assert [row["id"] for row in rows] == [*range(512)]
    for row in rows:
        piece = base64.b64decode(row["base64"])
        assert piece == tokenizer.token_bytes(row["id"])
        assert row["token"] is None or row["token"].encode() == piece
        assert (row["token"] is None) == (piece.decode("utf-8", "ignore").encode() != piece)
    assert [row["id"] for row in rows if row["special"]] == [511]


def test_nothing_is_shown_of_a_vocabulary_that_is_not_there(
    tmp_path: Path, tiny_model: GPT2
) -> None:
    result = CliRunner().invoke(
        app, ["inspect", str(write_hub(tmp_path, tiny_model)), "--vocabulary"]
    )
    assert result.exit_code == 1
    assert "no vocabulary beside the weights" in result.stderr
