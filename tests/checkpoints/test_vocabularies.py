"""The vocabulary of weights that come without one: meta.pkl, a corpus, a list, GPT-2's own."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import add_vocabulary, write_hub, write_nanogpt
from conftest import make_model

from gpt2kit import store
from gpt2kit.checkpoints.load import load, load_vocabulary, open_checkpoint
from gpt2kit.checkpoints.vocabularies import gpt2_vocabulary, read_vocabulary
from gpt2kit.config import GPT2Config
from gpt2kit.errors import Gpt2KitWarning, TokenizerError
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import CharTokenizer

TEXT = "What's in a name?\nThat which we call a rose"
CHARACTERS = sorted(set(TEXT))
STOI = {character: index for index, character in enumerate(CHARACTERS)}
META = {
    "vocab_size": len(CHARACTERS),
    "itos": {index: character for character, index in STOI.items()},
    "stoi": STOI,
}


def write_meta(path: Path, content: Any = META, protocol: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint of nanoGPT for the characters of TEXT."""
    config = GPT2Config(
        n_vocab=len(CHARACTERS), n_ctx=8, n_embd=16, n_head=2, n_layer=1, activation_function="gelu"
    )
    path = tmp_path / "out-poem" / "ckpt.pt"
    return write_nanogpt(path, make_model(config), config={"dataset": "poem"})


# --- nanoGPT's meta.pkl ---------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("where", ["out-poem/meta.pkl", "data/poem/meta.pkl"])
def test_nanogpts_characters_are_found_where_nanogpt_keeps_them(
    tmp_path: Path, checkpoint: Path, where: str, protocol: int
) -> None:
    write_meta(tmp_path / where, protocol=protocol)
    for path in (checkpoint, checkpoint.parent):
        _, tokenizer = load(path, device="cpu")
        assert isinstance(tokenizer, CharTokenizer)
        assert tokenizer.tokens == CHARACTERS
        assert tokenizer.decode(tokenizer.encode("a rose")) == "a rose"


def test_without_them_a_warning_says_where_nanogpt_keeps_them(checkpoint: Path) -> None:
    with pytest.warns(Gpt2KitWarning, match=r"data/poem/meta\.pkl.*--vocabulary FILE"):
        assert load(checkpoint, device="cpu")[1] is None


@pytest.mark.parametrize("dataset", ["../poem", "/etc", ".", 7, None])
def test_a_dataset_that_is_no_plain_name_is_not_looked_for(
    tmp_path: Path, checkpoint: Path, dataset: Any
) -> None:
    model = make_model(GPT2Config(n_vocab=19, n_ctx=8, n_embd=16, n_head=2, n_layer=1))
    write_nanogpt(checkpoint, model, config={"dataset": dataset})
    write_meta(tmp_path / "poem" / "meta.pkl")
    assert open_checkpoint(checkpoint).dataset is None


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("called"),))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (Evil(), "it refers to"),
        ({"itos": {0: "a"}, "stoi": {"a": 0, "b": Evil()}}, "it refers to"),
        ({"vocab_size": 3}, 'with "itos" and "stoi"'),
        ([1, 2], 'with "itos" and "stoi"'),
        ({"itos": {0: "a"}, "stoi": {"b": 0}}, "disagree"),
        ({"itos": {0: "a"}, "stoi": {"a": 1}}, "ids 0, 1, 2"),
        ({"itos": {0: "a"}, "stoi": {"a": "0"}}, "ids 0, 1, 2"),
        ({"itos": {0: "ab"}, "stoi": {"ab": 0}}, "'ab' is not one character"),
    ],
)
def test_any_other_pickle_is_refused_and_calls_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_meta(tmp_path / "meta.pkl", content)
    with pytest.raises(TokenizerError, match=reason):
        read_vocabulary(path, 2)
    assert not Path("called").exists()


def test_a_pickle_that_is_cut_short_or_too_large_is_refused(tmp_path: Path) -> None:
    path = write_meta(tmp_path / "meta.pkl")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TokenizerError, match="damaged"):
        read_vocabulary(path, 2)
    with path.open("ab") as file:
        file.truncate(2**30)
    with pytest.raises(TokenizerError, match="expected at most"):
        read_vocabulary(path, 2)


# --- other files ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        TEXT,
        TEXT.replace("\n", "\r\n"),
        "".join(CHARACTERS),
        json.dumps(CHARACTERS),
        json.dumps(STOI),
        json.dumps({"stoi": STOI, "itos": dict(enumerate(CHARACTERS))}),
    ],
    ids=["corpus", "corpus of Windows", "alphabet", "list", "ids", "both"],
)
def test_characters_are_read_from(tmp_path: Path, checkpoint: Path, content: str) -> None:
    path = tmp_path / "vocabulary"
    path.write_text(content, newline="")
    _, tokenizer = load(checkpoint, device="cpu", vocabulary=path)
    assert isinstance(tokenizer, CharTokenizer)
    assert tokenizer.tokens == CHARACTERS


@pytest.mark.parametrize("content", ['{"stoi": ["a"]}', '{"stoi": null}', '{"stoi": 5}'])
def test_json_whose_stoi_is_no_object_is_refused(tmp_path: Path, content: str) -> None:
    """It ended in a TypeError."""
    (tmp_path / "vocabulary").write_text(content)
    with pytest.raises(TokenizerError, match="ids 0, 1, 2"):
        read_vocabulary(tmp_path / "vocabulary", 1)


def test_a_text_that_is_no_json_may_begin_like_it(tmp_path: Path) -> None:
    path = tmp_path / "play.txt"
    path.write_text("[Enter Romeo]")
    tokenizer = read_vocabulary(path, 11)
    assert tokenizer.n_vocab == 11


def test_another_text_than_the_models_own_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    path = tmp_path / "other.txt"
    path.write_text("abc")
    with pytest.raises(TokenizerError, match=r"3 different characters, and the model 19 tokens"):
        load(checkpoint, device="cpu", vocabulary=path)


def test_a_vocabulary_that_is_not_there_is_not_called_a_model(checkpoint: Path) -> None:
    with pytest.raises(TokenizerError, match=r"there is no vocabulary nope\.txt; expected a file"):
        load(checkpoint, device="cpu", vocabulary="nope.txt")


@pytest.mark.parametrize("given", ["folder", "vocab.json", "model.safetensors"])
def test_the_vocabulary_of_another_model_is_taken(
    tmp_path: Path, tiny_model: GPT2, given: str
) -> None:
    other = add_vocabulary(write_hub(tmp_path / "other", tiny_model))
    shutil.copytree(other, tmp_path / "mine", ignore=shutil.ignore_patterns("vocab*", "merges*"))
    path = other if given == "folder" else other / given
    _, tokenizer = load(tmp_path / "mine", device="cpu", vocabulary=path)
    assert tokenizer is not None
    assert tokenizer.n_vocab == 512


def test_a_vocabulary_with_more_tokens_than_the_model_is_refused(
    tmp_path: Path, checkpoint: Path, tiny_model: GPT2
) -> None:
    other = add_vocabulary(write_hub(tmp_path / "other", tiny_model))
    with pytest.raises(TokenizerError, match="512 tokens, but the model only 19"):
        load(checkpoint, device="cpu", vocabulary=other)


# --- GPT-2's own ----------------------------------------------------------------------------------


def gpt2_sized(path: Path, n_vocab: int) -> Path:
    config = GPT2Config(n_vocab=n_vocab, n_ctx=4, n_embd=2, n_head=1, n_layer=0)
    return write_nanogpt(path, GPT2(replace(config, activation_function="gelu")))


@pytest.mark.parametrize("n_vocab", [50257, 50304])
def test_a_model_of_that_many_tokens_gets_gpt2s_vocabulary(
    tmp_path: Path, test_data: Path, n_vocab: int
) -> None:
    path = gpt2_sized(tmp_path / "ckpt.pt", n_vocab)
    assert load_vocabulary(open_checkpoint(path)) is None
    with pytest.warns(Gpt2KitWarning, match="run: gpt2kit download 124M"):
        assert load(path, device="cpu")[1] is None
    tokenizer = load_vocabulary(open_checkpoint(path), fetch=lambda: test_data / "bpe")
    assert tokenizer is not None
    assert tokenizer.n_vocab == 50257
    folder = store.weights_dir() / "mine"
    shutil.copytree(test_data / "bpe", folder)
    (folder / "config.json").write_text("{}")
    found = load_vocabulary(open_checkpoint(path))
    assert found is not None
    assert found.files() == tokenizer.files()


def test_another_vocabulary_of_gpt2s_size_is_not_taken_for_it(
    tmp_path: Path, test_data: Path
) -> None:
    folder = store.weights_dir() / "portuguese"
    shutil.copytree(test_data / "bpe", folder)
    (folder / "config.json").write_text("{}")
    lines = (folder / "vocab.bpe").read_text().split("\n")
    lines[-3], lines[-2] = lines[-2], lines[-3]
    (folder / "vocab.bpe").chmod(0o644)
    (folder / "vocab.bpe").write_text("\n".join(lines))
    assert gpt2_vocabulary() is None


def test_a_hub_folder_without_a_vocabulary_gets_none(tmp_path: Path) -> None:
    # Models of other languages have 50,257 tokens, too.
    config = GPT2Config(n_vocab=50257, n_ctx=4, n_embd=2, n_head=1, n_layer=0)
    folder = write_hub(tmp_path / "hub", GPT2(config))

    def fetch() -> Path:
        raise AssertionError("the vocabulary was fetched")

    assert load_vocabulary(open_checkpoint(folder), fetch=fetch) is None
