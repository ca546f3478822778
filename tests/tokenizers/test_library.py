"""Vocabularies of the tokenizers library: the ids of transformers, and texts that join as written.

The vocabularies are trained here by the library itself.
"""

from __future__ import annotations

import builtins
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from builders import write_hub
from campaigns.damage import mutate
from conftest import GOLDEN, make_model
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from typer.testing import CliRunner

from gpt2kit.checkpoints.load import load
from gpt2kit.cli import app
from gpt2kit.config import GPT2Config
from gpt2kit.data.ids import encode_documents
from gpt2kit.errors import Gpt2KitError, MissingDependencyError, TokenizerError
from gpt2kit.evaluation.passages import token_pieces
from gpt2kit.inspection.vocabulary import summarize_vocabulary
from gpt2kit.tokenizers import (
    BPETokenizer,
    LibraryTokenizer,
    StreamDecoder,
    Tokenizer,
    identity,
    load_tokenizer,
)

TEXTS = [
    "Nel mezzo del cammin di nostra vita mi ritrovai per una selva oscura.",
    "the lowest of the low, the newest of the new; widest and wider, 1321!",
    "In the beginning was the word, and the word was new.",
]
CASES = json.loads((GOLDEN / "bpe" / "expected.json").read_text(encoding="utf-8"))["cases"]
STRINGS = [case["text"] for case in CASES]


def unigram() -> Any:
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def fallback() -> Any:
    """A BPE with the bytes of what it does not know, as Llama's."""
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=names, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    described = json.loads(tokenizer.to_str())
    described["added_tokens"] = described["added_tokens"][:3]
    return tokenizers.Tokenizer.from_str(json.dumps(described))


def wordpiece() -> Any:
    tokenizer = tokenizers.BertWordPieceTokenizer()
    tokenizer.train_from_iterator(TEXTS, vocab_size=120, show_progress=False)
    return tokenizer


def word_ends() -> Any:
    """A BPE that marks the ends of words, as OpenAI's first GPT."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(
        vocab_size=120,
        special_tokens=["<unk>"],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def spaced_bytes() -> Any:
    """A byte-level BPE that puts a space before every text, as some do."""
    tokenizer = tokenizers.ByteLevelBPETokenizer(add_prefix_space=True)
    tokenizer.train_from_iterator(TEXTS, 300, special_tokens=["</s>"], show_progress=False)
    return tokenizer


def uncut_bytes() -> Any:
    """A byte-level BPE that does not cut texts into words; it was once read as GPT-2's."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


KINDS: dict[str, Callable[[], Any]] = {
    made.__name__: made
    for made in (unigram, fallback, wordpiece, word_ends, spaced_bytes, uncut_bytes)
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer.json of each kind."""
    folder = tmp_path_factory.mktemp(request.param)
    KINDS[request.param]().save(str(folder / "tokenizer.json"))
    return folder


def loaded(folder: Path) -> LibraryTokenizer:
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, LibraryTokenizer)
    return tokenizer


def test_ids_and_texts_are_those_of_transformers(folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = loaded(folder)
    assert isinstance(ours, Tokenizer)
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in STRINGS:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, special=True) == ids
        plain = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ours.encode(text) == plain
        expected = theirs.decode(plain, clean_up_tokenization_spaces=False)
        assert ours.decode(plain).strip(" ") == expected.strip(" ")
    again = loaded(tmp_path)
    assert identity(again) == identity(ours)


def test_a_text_is_shown_as_it_is_written(folder: Path) -> None:
    tokenizer = loaded(folder)
    for text in STRINGS:
        ids = tokenizer.encode(text)
        decoder = StreamDecoder(tokenizer.token_bytes)
        shown = "".join(map(decoder.feed, ids)) + decoder.finish()
        assert shown == tokenizer.decode(ids)
    ids = tokenizer.encode("the new word was wider")
    assert tokenizer.decode(ids).strip() == "the new word was wider"
    with pytest.raises(TokenizerError, match="not in the vocabulary"):
        tokenizer.token_bytes(tokenizer.n_vocab)


def test_words_are_found_among_tokens_or_their_lack_is_said(folder: Path) -> None:
    tokenizer = loaded(folder)
    text = "the new word"
    pieces = token_pieces(tokenizer, text, tokenizer.encode(text)) if not is_ended(folder) else []
    assert b"".join(pieces) == (b"" if is_ended(folder) else text.encode())
    text = "ﬁne  WORD"  # a ligature, two spaces and capitals, which most of these normalize
    spelled = b"".join(map(tokenizer.token_bytes, tokenizer.encode(text)))
    if spelled not in (text.encode(), f" {text}".encode()):
        with pytest.raises(TokenizerError, match="the tokens of the text do not spell it"):
            token_pieces(tokenizer, text, tokenizer.encode(text))


def is_ended(folder: Path) -> bool:
    """Whether a vocabulary has a space after each word."""
    return folder.name.startswith("word_ends")


def test_a_model_with_such_a_vocabulary_writes_and_is_described(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = loaded(folder)
    config = GPT2Config(n_vocab=tokenizer.n_vocab, n_ctx=32, n_embd=8, n_head=1, n_layer=1)
    base = write_hub(tmp_path / "model", make_model(config), eos_token_id=None)
    (base / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    asked = ["--max_tokens=12", "--seed=1", "--device=cpu", "--ignore_eos"]
    result = CliRunner().invoke(app, ["generate", "the new", "--model", "./model", *asked])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("the new")
    result = CliRunner().invoke(app, ["convert", "./model", "--to", "copy"])
    assert result.exit_code == 0, result.output
    _, copied = load(tmp_path / "copy", device="cpu")
    assert copied is not None
    assert identity(copied) == identity(tokenizer)
    result = CliRunner().invoke(app, ["convert", "./model", "--format", "gguf", "--to", "m.gguf"])
    assert result.exit_code == 1
    assert f"the vocabulary is a {tokenizer.description}, and" in result.stderr
    summary = summarize_vocabulary(tokenizer)
    assert summary.tokenizer.endswith("of the tokenizers library")
    assert sum(summary.kinds.values()) > 0


def test_a_long_text_has_the_tokens_of_the_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A space before every text became a space before every piece of a long one."""
    monkeypatch.setattr("gpt2kit.data.ids.CHUNK", 20)
    tokenizer = loaded(folder)
    text = "\n".join(TEXTS * 3)
    assert encode_documents([text], tokenizer).tolist() == tokenizer.encode(text)


def test_berts_vocabulary_is_read_from_its_lines(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    wordpiece().save_model(str(tmp_path))
    for lower in (True, False):
        config = {"do_lower_case": lower, "tokenizer_class": "BertTokenizer"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        ours = loaded(tmp_path)
        theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
        for text in STRINGS:
            ids = theirs(text, add_special_tokens=False)["input_ids"]
            assert ours.encode(text, special=True) == ids
    assert ours.stop_id == ours.encode("[SEP]", special=True)[0]


def test_the_end_of_text_is_the_one_that_the_configuration_names(tmp_path: Path) -> None:
    unigram().save(str(tmp_path / "tokenizer.json"))
    assert loaded(tmp_path).stop_id == 1  # </s>
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    assert loaded(tmp_path).stop_id == 7


def test_gpt2s_own_vocabulary_does_not_need_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unigram().save(str(tmp_path / "tokenizer.json"))
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "tokenizers":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"pip install 'gpt2kit\[tokenizers\]'"):
        load_tokenizer(tmp_path)
    assert isinstance(load_tokenizer(GOLDEN / "bpe" / "small"), BPETokenizer)


FAR = '{"model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", \
"max_input_chars_per_word": 100, "vocab": {"[UNK]": 0, "a": 4000000000}}}'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", '{"model": {"type": "Unigram", "vocab": 3}}', "cannot use it"),
        ("tokenizer.json", '{"model": {"type": "WordPiece"}}', "cannot use it"),
        ("tokenizer.json", "[]", "expected a JSON object"),
        ("tokenizer.json", FAR, "an id is 4,000,000,000, expected less than 1,000,000"),
        ("vocab.txt", "a\nb\n", r"BERT's WordPiece.*\[UNK\]"),
        ("vocab.txt", "[UNK]\na\na\n", "each token once"),
        ("vocab.txt", "[UNK]\n\udcff\n", "not UTF-8"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_random_damage_is_refused_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    unigram().save(str(path), pretty=False)
    content, generator = path.read_bytes(), random.Random(1)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(200):
        path.write_bytes(mutate(content, generator))
        try:
            tokenizer = load_tokenizer(tmp_path)
            assert tokenizer is not None
            tokenizer.decode(tokenizer.encode("the new word"))
            outcomes["read"] += 1
        except Gpt2KitError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 10
