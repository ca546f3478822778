"""neighbors, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from builders import add_vocabulary, write_hub
from conftest import make_model
from typer.testing import CliRunner, Result

from gpt2kit.cli import app
from gpt2kit.config import GPT2Config
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import CharTokenizer


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["neighbors", *arguments])


def lines(*arguments: str) -> list[str]:
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout.splitlines()


@pytest.fixture
def letters(tmp_path: Path) -> str:
    """A model of the letters a to f and the dash, padded to 64 rows."""
    model = make_model(GPT2Config(n_vocab=64, n_ctx=8, n_embd=4, n_head=1, n_layer=0))
    with torch.no_grad():
        model.wte.weight[0] = torch.tensor([1.0, 0, 0, 0])  # a
        model.wte.weight[1] = torch.tensor([5.0, 1, 0, 0])  # b, near a
        model.wte.weight[2] = torch.tensor([0, 1.0, 0, 0])  # c
        model.wte.weight[3] = torch.tensor([0, 9.0, 1, 0])  # d, near c
        model.wte.weight[4] = torch.tensor([2.0, 2, 0, 0])  # e, a and c
        model.wte.weight[5] = torch.tensor([1.0, -1, 0, 0])  # f, a without c
        model.wte.weight[6] = torch.tensor([0, 0, 0, 1.0])  # -
        model.wte.weight[7:] = torch.tensor([1.0, 0, 0, 0])  # padding, equal to a
    folder = write_hub(tmp_path / "letters", model)
    CharTokenizer([*"abcdef-"]).save(folder)
    return str(folder)


def test_the_nearest_tokens_of_a_word_are_shown_without_padding(letters: str) -> None:
    shown = [line.split() for line in lines("a", "--model", letters)]
    assert shown[0] == ["0.9806", "1", "b"]
    assert sorted(row[2] for row in shown) == [*"-bcdef"]
    assert "a: token 0" in run("a", "--model", letters).stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["a", "-c", "--top", "1", "--model", "MODEL"],
        ["--top", "1", "a", "--model", "MODEL", "-c"],
        ["-c", "--model=MODEL", "+a", "--top", "1"],
        ["--model", "MODEL", "--top", "1", "--", "a", "-c"],
    ],
)
def test_a_dash_before_a_word_subtracts_it_wherever_options_stand(
    arguments: list[str], letters: str
) -> None:
    typed = [each.replace("MODEL", letters) for each in arguments]
    (line,) = lines(*typed)
    assert line.split()[2] == "f"
    assert "minus c: token 2" in run(*typed).stderr


def test_words_are_added(letters: str) -> None:
    assert lines("a", "+c", "--model", letters, "--top", "1")[0].split()[:3] == [
        "1.0000",
        "4",
        "e",
    ]


def test_a_sign_alone_is_a_word_and_so_is_h(letters: str) -> None:
    assert "-: token 6" in run("-", "--model", letters).stderr
    assert "Usage" in run("-h").stdout
    assert "the character 'h'" in run("--model", letters, "--", "a", "-h").stderr


def test_words_without_signs_are_compared(letters: str) -> None:
    assert [line.split() for line in lines("a", "b", "c", "--model", letters)] == [
        ["0.9806", "a", "b"],
        ["0.0000", "a", "c"],
        ["0.1961", "b", "c"],
    ]
    found = [json.loads(line) for line in lines("a", "b", "--model", letters, "--json")]
    assert found == [{"first": "a", "second": "b", "similarity": pytest.approx(0.98058, abs=1e-5)}]


def test_a_word_of_several_tokens_is_their_average(letters: str) -> None:
    result = run("ac", "--model", letters, "--top", "1")
    assert "ac: the average of 2 tokens: a c" in result.stderr
    assert result.stdout.split() == ["1.0000", "4", "e"]


def test_neighbors_as_json(tmp_path: Path, tiny_model: GPT2) -> None:
    model = str(add_vocabulary(write_hub(tmp_path / "model", tiny_model)))
    words, *found = [
        json.loads(line)
        for line in lines("the", "-in", "--model", model, "--json", "--top", "3", "--no-verify")
    ]
    assert [(word["text"], word["sign"]) for word in words["words"]] == [(" the", 1), (" in", -1)]
    assert len(found) == 3
    assert found[0].keys() == {"id", "token", "similarity"}
    plain = json.loads(lines("the", "--model", model, "--json", "--no_space")[0])
    assert plain["words"][0]["text"] == "the"


def test_a_model_without_a_vocabulary_has_no_words(tmp_path: Path, tiny_model: GPT2) -> None:
    result = run("a", "--model", str(write_hub(tmp_path, tiny_model)))
    assert result.exit_code == 1
    assert "no vocabulary beside the weights" in result.stderr
