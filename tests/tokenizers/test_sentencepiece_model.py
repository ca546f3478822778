"""Vocabularies that are a SentencePiece model alone: its own ids, and texts that join as written.

The models were trained on a story of 20,000 characters, see tests/golden/README.md.
"""

from __future__ import annotations

import builtins
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from builders import write_hub
from conftest import GOLDEN, make_model
from typer.testing import CliRunner

from gpt2kit.checkpoints.load import load
from gpt2kit.cli import app
from gpt2kit.config import GPT2Config
from gpt2kit.data.ids import encode_documents
from gpt2kit.errors import MissingDependencyError, TokenizerError
from gpt2kit.inspection.vocabulary import summarize_vocabulary
from gpt2kit.tokenizers import (
    SentencePieceTokenizer,
    StreamDecoder,
    Tokenizer,
    identity,
    load_tokenizer,
)

MODELS = GOLDEN / "sentencepiece"
EXPECTED = json.loads((MODELS / "expected.json").read_text(encoding="utf-8"))["models"]
CASES = json.loads((GOLDEN / "bpe" / "expected.json").read_text(encoding="utf-8"))["cases"]
STRINGS = [case["text"] for case in CASES]


def folder_of(folder: Path, model: str, name: str = "spiece.model", **config: Any) -> Path:
    """Put a model into a folder, with a tokenizer_config.json."""
    folder.mkdir(exist_ok=True)
    shutil.copy(MODELS / f"{model}.model", folder / name)
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def loaded(folder: Path) -> SentencePieceTokenizer:
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, SentencePieceTokenizer)
    return tokenizer


@pytest.mark.parametrize("model", EXPECTED)
def test_ids_and_texts_are_sentencepieces_own(tmp_path: Path, model: str) -> None:
    tokenizer = loaded(folder_of(tmp_path, model))
    assert isinstance(tokenizer, Tokenizer)
    for text, ids, shown in zip(
        STRINGS, EXPECTED[model]["ids"], EXPECTED[model]["texts"], strict=True
    ):
        assert tokenizer.encode(text) == ids
        # A text that is decoded from its first token may begin with a space here.
        assert tokenizer.decode(ids).strip(" ") == shown.strip(" ")
        decoder = StreamDecoder(tokenizer.token_bytes)
        assert "".join(map(decoder.feed, ids)) + decoder.finish() == tokenizer.decode(ids)
    with pytest.raises(TokenizerError, match="not in the vocabulary"):
        tokenizer.token_bytes(tokenizer.n_vocab)


@pytest.mark.parametrize("model", EXPECTED)
def test_texts_for_gpt_sw3_are_prepared_as_its_training_text_was(
    tmp_path: Path, model: str
) -> None:
    tokenizer = loaded(folder_of(tmp_path, model, tokenizer_class="GPTSw3Tokenizer"))
    assert [tokenizer.encode(text) for text in STRINGS] == EXPECTED[model]["sw3"]


@pytest.mark.parametrize("config", [{}, {"tokenizer_class": "GPTSw3Tokenizer"}], ids=["", "sw3"])
@pytest.mark.parametrize("model", EXPECTED)
def test_transformers_has_the_same_ids_in_what_is_written(
    tmp_path: Path, model: str, config: dict[str, str]
) -> None:
    transformers = pytest.importorskip("transformers")
    ours = loaded(folder_of(tmp_path / "in", model, **config))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text('{"model_type": "gpt2"}')
    ours.save(tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(theirs) == ours.n_vocab
    end = None if ours.stop_id is None else ours.token_bytes(ours.stop_id).decode()
    assert config or theirs.eos_token == end
    markers = "".join(f"a {marker} b{marker}" for marker in ours.special)
    for text in [*STRINGS, markers]:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, special=True) == ids
        plain = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ours.encode(text) == plain
    again = loaded(tmp_path / "out")
    assert identity(again) == identity(ours)
    assert again.special == ours.special


@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.model", "sentencepiece.bpe.model"])
def test_a_model_with_such_a_vocabulary_writes_scores_and_is_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Such a folder was refused: its vocabulary had to be saved with transformers first."""
    monkeypatch.chdir(tmp_path)
    config = GPT2Config(n_vocab=450, n_ctx=32, n_embd=8, n_head=1, n_layer=1)
    base = write_hub(tmp_path / "model", make_model(config), eos_token_id=None)
    tokenizer = loaded(folder_of(base, "bpe-bytes", name))
    (tmp_path / "text.txt").write_text("the new word\n")

    def run(*words: str) -> str:
        result = CliRunner().invoke(app, [*words])
        assert result.exit_code == 0, result.output
        return result.stdout

    asked = ["--model", "./model", "--device=cpu"]
    text = run("generate", "the new", *asked, "--max_tokens=12", "--seed=1", "--ignore_eos")
    assert text.startswith("the new")
    lines = run("tokenize", "the new word", "--model", "./model", "--json").splitlines()
    ids = tokenizer.encode("the new word")
    assert str(ids[0]) in lines[0]
    assert "the new word" in run("score", "text.txt", *asked)
    run("convert", "./model", "--to", "copy")
    _, copied = load(tmp_path / "copy", device="cpu")
    assert copied is not None
    assert identity(copied) == identity(tokenizer)
    result = CliRunner().invoke(app, ["convert", "./model", "--format", "gguf", "--to", "m.gguf"])
    assert result.exit_code == 1
    assert "the vocabulary is a model of SentencePiece, and" in result.stderr
    summary = summarize_vocabulary(tokenizer)
    assert summary.tokenizer == "model of SentencePiece"
    assert {entry.text for entry in summary.special} == {"<s>", "</s>", "<pad>", " ⁇ "}
    assert summary.kinds["not whole characters"] == 128


def test_the_end_of_text_is_the_one_of_the_configuration_or_else_the_models(
    tmp_path: Path,
) -> None:
    folder = folder_of(tmp_path, "bpe")
    assert loaded(folder).stop_id == 2  # </s>
    for named, expected in ((7, 7), (50256, 2)):
        (folder / "config.json").write_text(json.dumps({"eos_token_id": named}))
        assert loaded(folder).stop_id == expected
    assert loaded(folder_of(tmp_path / "none", "unigram-bytes")).stop_id is None
    ending = loaded(folder_of(tmp_path / "named", "unigram-bytes", eos_token="<|endoftext|>"))
    assert ending.encode("<|endoftext|>", special=True) == [ending.stop_id]


def test_markers_in_a_text_are_plain_unless_they_are_asked_for(tmp_path: Path) -> None:
    tokenizer = loaded(
        folder_of(
            tmp_path,
            "bpe-bytes",
            additional_special_tokens=[{"content": "\u2581the"}, "not in the vocabulary"],
            mask_token="ing",
        )
    )
    assert {"\u2581the", "ing", "</s>", "<pad>"} < tokenizer.special.keys()
    assert tokenizer.encode("</s>", special=True) == [tokenizer.stop_id]
    assert tokenizer.stop_id not in tokenizer.encode("</s>")
    assert tokenizer.decode(tokenizer.encode("a</s>b")).strip() == "a</s>b"


def test_small_letters_if_the_configuration_says_so(tmp_path: Path) -> None:
    small = loaded(folder_of(tmp_path, "bpe", do_lower_case=True))
    plain = loaded(folder_of(tmp_path / "plain", "bpe"))
    assert small.encode("THE Word") == plain.encode("the word") != plain.encode("THE Word")
    assert identity(small) != identity(plain)
    small.save(tmp_path / "plain")
    assert loaded(tmp_path / "plain").encode("THE Word") == small.encode("THE Word")


def test_a_long_text_has_the_tokens_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt2kit.data.ids.CHUNK", 20)
    tokenizer = loaded(folder_of(tmp_path, "unigram"))
    text = "The new word was wider than the old one.\n" * 9
    assert encode_documents([text], tokenizer).tolist() == tokenizer.encode(text)


def test_without_the_library_an_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = folder_of(tmp_path, "bpe"), builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "sentencepiece":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"pip install 'gpt2kit\[tokenizers\]'"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("spiece.model", b"", r"spiece\.model: the file is empty"),
        ("spiece.model", b"x", r"spiece\.model: the sentencepiece library cannot use it"),
        ("spiece.model", b"\x0a\x03\x0a\x01a", r"spiece\.model: the sentencepiece library cannot"),
        ("tokenizer_config.json", b"[]", "expected a JSON object"),
        ("added_tokens.json", b'{"<new>": 200}', r"adds 1 tokens .* spiece\.model, such as '<new>"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (folder_of(tmp_path, "bpe") / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_text_with_half_a_surrogate_pair_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="half of a surrogate pair"):
        loaded(folder_of(tmp_path, "bpe")).encode("a\ud800")
