"""GPT-2's tokenizer: OpenAI's ids, and a clear message for every damaged vocabulary."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
from conftest import GOLDEN

from gpt2kit.errors import Gpt2KitWarning, TokenizerError
from gpt2kit.tokenizers import BPETokenizer, StreamDecoder, identity, load_tokenizer
from gpt2kit.tokenizers.bpe import PATTERN

SMALL = GOLDEN / "bpe" / "small"
EXPECTED = json.loads((GOLDEN / "bpe" / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def gpt2(test_data: Path) -> BPETokenizer:
    tokenizer = BPETokenizer.from_folder(test_data / "bpe")
    assert tokenizer is not None
    return tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(SMALL, tmp_path, dirs_exist_ok=True)
    return tmp_path


# --- with GPT-2's own vocabulary ------------------------------------------------------------------


@pytest.mark.parametrize("case", EXPECTED["cases"], ids=lambda case: repr(case["text"])[:30])
def test_texts_encode_to_openais_ids_and_back(gpt2: BPETokenizer, case: dict[str, Any]) -> None:
    assert gpt2.encode(case["text"]) == case["ids"]
    assert gpt2.decode(case["ids"]) == case["text"]


@pytest.mark.parametrize("name", EXPECTED["corpora"])
def test_corpora_encode_to_openais_ids_and_back(
    gpt2: BPETokenizer, test_data: Path, name: str
) -> None:
    answer = EXPECTED["corpora"][name]
    path = test_data / "corpora" / name
    if not path.exists():
        pytest.skip(f"{path} is not among the fixtures")
    text = path.read_bytes().decode()
    ids = gpt2.encode(text)
    assert (len(ids), ids[:10], ids[-5:]) == (
        answer["tokens"],
        answer["first_10"],
        answer["last_5"],
    )
    assert (
        hashlib.sha256(np.array(ids, dtype="<u2").tobytes()).hexdigest()
        == answer["sha256_uint16_le"]
    )
    assert gpt2.decode(ids) == text


def test_openais_vocabulary_is_saved_byte_for_byte(
    gpt2: BPETokenizer, test_data: Path, tmp_path: Path
) -> None:
    gpt2.save(tmp_path)
    assert (tmp_path / "vocab.json").read_bytes() == (
        test_data / "bpe" / "encoder.json"
    ).read_bytes()
    assert (tmp_path / "merges.txt").read_bytes() == (test_data / "bpe" / "vocab.bpe").read_bytes()


def test_openais_vocabulary_has_its_size_and_marker(gpt2: BPETokenizer) -> None:
    assert (gpt2.n_vocab, gpt2.stop_id, gpt2.special) == (50257, 50256, {"<|endoftext|>": 50256})


# --- with a small one -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "Perché la città?\r\n",
        "🙂🇮🇹",
        "\0\x1b[0m",
        "e\u0301",
        "a" * 5000,
        "'Ll \u2028\u00a0  x  ",
    ],
)
def test_any_text_comes_back(small_bpe: BPETokenizer, text: str) -> None:
    assert small_bpe.decode(small_bpe.encode(text)) == text


def test_a_lone_surrogate_becomes_the_replacement_character(small_bpe: BPETokenizer) -> None:
    assert small_bpe.decode(small_bpe.encode("a\ud800b")) == "a\ufffdb"


def test_markers_are_plain_text_unless_asked_for(small_bpe: BPETokenizer) -> None:
    assert small_bpe.encode("a<|endoftext|>", special=True) == [64, 511]
    plain = small_bpe.encode("a<|endoftext|>")
    assert 511 not in plain
    assert small_bpe.decode(plain) == small_bpe.decode([64, 511]) == "a<|endoftext|>"


@pytest.mark.parametrize("space", [" ", "\n", "\xa0"])
def test_a_million_white_spaces_before_a_word_are_encoded(
    small_bpe: BPETokenizer, space: str
) -> None:
    """tiktoken panicked over such a text, with an exception that is no Exception."""
    run = space * 1_000_001
    ids = small_bpe.encode(run[1:]) + small_bpe.encode(f"{space}la")
    assert small_bpe.encode(f"{run}la") == ids
    assert small_bpe.encode(f"{run}la<|endoftext|>", special=True) == [*ids, small_bpe.stop_id]


def test_a_long_text_has_tiktokens_ids(small_bpe: BPETokenizer) -> None:
    pieces = ["  la", " \x1cla", "\xa0'\u2003s", " <|endoftext|>  "]
    text = "".join("." * 2**19 + piece for piece in pieces)
    files = small_bpe.files()
    vocab, merges = json.loads(files["vocab.json"]), files["merges.txt"].decode().splitlines()[1:]
    made = [*vocab.keys() - {*small_bpe.special}]
    assert len(made) == 256 + len(merges)
    encoding = tiktoken.Encoding(
        "golden",
        pat_str=PATTERN,
        mergeable_ranks={small_bpe.token_bytes(vocab[token]): vocab[token] for token in made},
        special_tokens=small_bpe.special,
    )
    assert small_bpe.encode(text, special=True) == encoding.encode(text, allowed_special="all")


def test_decoding_token_by_token_is_decoding_at_once(small_bpe: BPETokenizer) -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        ids = generator.integers(0, 512, 40).tolist()
        decoder = StreamDecoder(small_bpe.token_bytes)
        assert "".join([*map(decoder.feed, ids), decoder.finish()]) == small_bpe.decode(ids)


@pytest.mark.parametrize("token", [512, -1, 2**40])
def test_an_id_outside_the_vocabulary_is_named(small_bpe: BPETokenizer, token: int) -> None:
    with pytest.raises(TokenizerError, match=f"id {token} is not in the vocabulary of 512"):
        small_bpe.decode([token])


def test_a_saved_vocabulary_is_found_again(small_bpe: BPETokenizer, tmp_path: Path) -> None:
    small_bpe.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert isinstance(again, BPETokenizer)
    assert again.encode("the end of the text") == small_bpe.encode("the end of the text")


def test_a_folder_without_a_vocabulary_has_no_tokenizer(tmp_path: Path) -> None:
    assert load_tokenizer(tmp_path) is None


def test_a_folder_is_read_anew_after_it_changed(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # tiktoken's own reader caches by path and would hand out what stood there before.
    before = BPETokenizer.from_folder(folder)
    merges = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    (folder / "merges.txt").write_text("\n".join(merges[:1]) + "\n", encoding="utf-8")
    vocab = {
        token: number
        for token, number in json.loads((folder / "vocab.json").read_text()).items()
        if number < 256
    }
    (folder / "vocab.json").write_text(json.dumps(vocab))
    after = BPETokenizer.from_folder(folder)
    assert before is not None
    assert after is not None
    assert len(after.encode("the")) == 3 > len(before.encode("the"))


# --- the files that others write ------------------------------------------------------------------


def test_openais_file_names_are_found_too(folder: Path, small_bpe: BPETokenizer) -> None:
    (folder / "vocab.json").rename(folder / "encoder.json")
    (folder / "merges.txt").rename(folder / "vocab.bpe")
    found = load_tokenizer(folder)
    assert found is not None
    assert found.encode("the end") == small_bpe.encode("the end")


def test_a_missing_final_newline_and_windows_line_ends_change_nothing(
    folder: Path, small_bpe: BPETokenizer
) -> None:
    text = (folder / "merges.txt").read_text(encoding="utf-8")
    (folder / "merges.txt").write_bytes(text.rstrip("\n").replace("\n", "\r\n").encode())
    found = load_tokenizer(folder)
    assert found is not None
    assert found.encode("the end of the text") == small_bpe.encode("the end of the text")


def tokenizer_json(folder: Path, *, merges_as_text: bool = False, **changes: Any) -> Path:
    """Replace the two files by the one that tokenizers saves."""
    vocab = json.loads((folder / "vocab.json").read_text())
    merges: list[Any] = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")[1:-1]
    content = {
        "added_tokens": [{"id": 511, "content": "<|endoftext|>", "special": True}],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": merges if merges_as_text else [merge.split(" ") for merge in merges],
        },
        **changes,
    }
    (folder / "vocab.json").unlink()
    (folder / "merges.txt").unlink()
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("as_text", [True, False])
def test_tokenizer_json_alone_is_enough(
    folder: Path, small_bpe: BPETokenizer, as_text: bool
) -> None:
    found = load_tokenizer(tokenizer_json(folder, merges_as_text=as_text))
    assert found is not None
    assert found.encode("the end of the text") == small_bpe.encode("the end of the text")
    assert found.stop_id == 511


@pytest.mark.parametrize(
    "changes",
    [
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
        {"pre_tokenizer": {"type": "ByteLevel", "use_regex": False}},
        {"normalizer": {"type": "NFC"}},
        {"model": {"type": "WordPiece", "vocab": {}}},
        {"model": {"type": "BPE", "ignore_merges": True}},
        {"model": {"type": "BPE", "end_of_word_suffix": "</w>"}},
        {"model": {"type": "BPE", "continuing_subword_prefix": "##"}},
    ],
    ids=str,
)
def test_another_tokenizer_json_is_no_bpe_of_gpt2s(folder: Path, changes: dict[str, Any]) -> None:
    """One that does not cut texts into words was read as GPT-2's: with wrong ids, silently."""
    with pytest.raises(TokenizerError, match="expected GPT-2's byte-level BPE"):
        BPETokenizer.from_folder(tokenizer_json(folder, **changes))


@pytest.mark.parametrize(
    "model",
    [
        [],
        {"merges": [5]},
        {"merges": [[1, 2]]},
        {"merges": [[[1], [2]]]},
        {"vocab": [], "merges": []},
    ],
    ids=str,
)
def test_a_tokenizer_json_of_another_shape_is_one_error(folder: Path, model: Any) -> None:
    vocab = json.loads((folder / "vocab.json").read_text())
    with pytest.raises(TokenizerError):
        load_tokenizer(
            tokenizer_json(
                folder,
                model={"type": "BPE", "vocab": vocab, **model}
                if isinstance(model, dict)
                else model,
            )
        )


def test_a_gap_in_the_numbering_is_shown_as_a_replacement_character(folder: Path) -> None:
    (folder / "added_tokens.json").write_text(json.dumps({"<|pad|>": 514}))
    found = load_tokenizer(folder)
    assert found is not None
    assert found.decode([64, 513]) == "a\ufffd"


def test_of_several_end_markers_the_first_is_used_and_that_is_said(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"eos_token_id": [64, 511]}))
    with pytest.warns(Gpt2KitWarning, match="names 2 end markers; the first is used"):
        found = load_tokenizer(folder)
    assert found is not None
    assert found.stop_id == 64


def test_added_tokens_are_markers_and_are_saved(folder: Path, tmp_path: Path) -> None:
    (folder / "added_tokens.json").write_text(json.dumps({"<|pad|>": 512}))
    found = BPETokenizer.from_folder(folder)
    assert found is not None
    assert found.n_vocab == 513
    assert found.encode("<|pad|>", special=True) == [512]
    (tmp_path / "copy").mkdir()
    found.save(tmp_path / "copy")
    again = BPETokenizer.from_folder(tmp_path / "copy")
    assert again is not None
    assert again.special == found.special


def test_the_end_marker_is_the_one_that_the_model_names(folder: Path) -> None:
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 512}))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 512}))
    found = load_tokenizer(folder)
    assert found is not None
    assert found.stop_id == 512
    (folder / "config.json").write_text(
        json.dumps({"eos_token_id": 50256})
    )  # a leftover, not in this vocabulary
    found = load_tokenizer(folder)
    assert found is not None
    assert found.stop_id == 511


# --- tokenizer.json -------------------------------------------------------------------------------

FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


def test_added_tokens_that_only_tokenizer_json_has_are_read(folder: Path, tmp_path: Path) -> None:
    # Beside vocab.json, tokenizer.json was not opened, and its tokens were text.
    whole = {
        "added_tokens": [
            {"id": 511, "content": "<|endoftext|>", "special": True, **FLAGS},
            {"id": 512, "content": "<|user|>", "special": True, **FLAGS},
            {"id": 513, "content": "plainword", "special": False, **FLAGS},
        ]
    }
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    found = BPETokenizer.from_folder(folder)
    assert found is not None
    assert found.encode("a<|user|>plainword", special=True) == [64, 512, 513]
    assert found.n_vocab == 514
    assert json.loads(found.files()["added_tokens.json"]) == {"<|user|>": 512, "plainword": 513}


def test_the_files_of_two_vocabularies_in_one_folder_are_refused(folder: Path) -> None:
    added = [{"id": 510, "content": "<|endoftext|>"}]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    with pytest.raises(TokenizerError, match=r"has the ids 511 and 510; are the files of one"):
        load_tokenizer(folder)


def with_a_pad_token(folder: Path) -> BPETokenizer:
    (folder / "added_tokens.json").write_text(json.dumps({"<|pad|>": 512}))
    tokenizer = BPETokenizer.from_folder(folder)
    assert tokenizer is not None
    return tokenizer


def test_tokenizer_json_is_what_transformers_writes(folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    with_a_pad_token(folder).save(tmp_path)
    ours = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    transformers.GPT2Tokenizer.from_pretrained(folder).save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "tokenizer.json"
    theirs = json.loads(path.read_text(encoding="utf-8"))
    for token in theirs["added_tokens"]:
        token["special"] = True  # they forget what <|pad|> is for; it changes no id
    assert ours == theirs


STRINGS = [
    *(case["text"] for case in EXPECTED["cases"]),
    *("<|endoftext|>", "a<|endoftext|><|endoftext|> b", "<|endoftext", "x<|pad|>y", " <|pad|> "),
]


def test_other_programs_get_our_ids_from_the_folder_that_we_write(
    folder: Path, tmp_path: Path
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    ours = with_a_pad_token(folder)
    ours.save(tmp_path)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in STRINGS:
        ids = ours.encode(text, special=True)
        assert library.encode(text).ids == ids, text
        assert auto(text)["input_ids"] == ids, text
        assert library.decode(ids, skip_special_tokens=False) == text


def test_with_openais_vocabulary_other_programs_get_openais_ids(
    gpt2: BPETokenizer, tmp_path: Path
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    gpt2.save(tmp_path)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for case in EXPECTED["cases"]:
        if "<|endoftext|>" not in case["text"]:  # which OpenAI's encoder takes for plain text
            assert library.encode(case["text"]).ids == case["ids"]
    for text in STRINGS:
        assert library.encode(text).ids == gpt2.encode(text, special=True)


def test_a_vocabulary_is_the_same_from_whichever_files_it_is_read(
    folder: Path, small_bpe: BPETokenizer
) -> None:
    found = load_tokenizer(tokenizer_json(folder))
    assert found is not None
    assert found.files() == small_bpe.files()
    assert identity(found) == identity(small_bpe)
    (folder / "tokenizer.json").unlink()
    assert identity(with_a_pad_token(shutil.copytree(SMALL, folder, dirs_exist_ok=True))) != (
        identity(small_bpe)
    )


def test_a_tokenizer_says_what_it_is(small_bpe: BPETokenizer) -> None:
    assert repr(small_bpe) == "BPETokenizer(n_vocab=512, stop_id=511)"


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["nowhere", "itself"])
@pytest.mark.parametrize(
    "name",
    ["vocab.json", "merges.txt", "added_tokens.json", "tokenizer.json", "gpt2kit_tokenizer.json"],
)
def test_a_link_that_leads_nowhere_is_damage(folder: Path, name: str, target: str) -> None:
    # It was taken for absent: the model had no tokenizer, without a word.
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(name if target == "itself" else "nowhere")
    with pytest.raises(TokenizerError, match=name):
        load_tokenizer(folder)


def test_a_folder_with_nothing_but_broken_links_has_no_silent_vocabulary(tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).symlink_to("nowhere")
    with pytest.raises(TokenizerError, match="a link to nowhere, which does not exist"):
        load_tokenizer(tmp_path)


def _cut(folder: Path) -> None:
    (folder / "vocab.json").write_text((folder / "vocab.json").read_text()[:-40])


def _pipe(folder: Path) -> None:
    (folder / "merges.txt").unlink()
    os.mkfifo(folder / "merges.txt")


def _without(folder: Path, *tokens: str) -> None:
    vocab = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(
        json.dumps({token: number for token, number in vocab.items() if token not in tokens})
    )


def _with(folder: Path, **numbers: Any) -> None:
    vocab = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(vocab | numbers))


def _merges(folder: Path, change: Callable[[list[str]], list[str]]) -> None:
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    (folder / "merges.txt").write_text("\n".join(change(lines)), encoding="utf-8")


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "half a pair": (
        lambda folder: (folder / "merges.txt").unlink(),
        r"vocab\.json is here, but merges\.txt is missing",
    ),
    "cut short": (_cut, "not valid JSON"),
    "a web page": (
        lambda folder: (folder / "vocab.json").write_text("<!DOCTYPE html>"),
        "web page",
    ),
    "merges cut short": (
        lambda folder: _merges(folder, lambda lines: lines[:200]),
        "made by no merge",
    ),
    "an empty token": (
        lambda folder: (folder / "added_tokens.json").write_text('{"": 512}'),
        "a token is empty",
    ),
    "a surrogate": (
        lambda folder: (folder / "added_tokens.json").write_text('{"\\ud800": 512}'),
        "not as tokenizers writes it",
    ),
    "a list": (lambda folder: (folder / "vocab.json").write_text("[]"), "expected a JSON object"),
    "a byte missing": (
        lambda folder: _without(folder, "a", "b"),
        "lacks 2 of the 256 single bytes",
    ),
    "a merge missing": (lambda folder: _without(folder, "he"), "is not in the vocabulary"),
    "text for an id": (
        lambda folder: _with(folder, the="7"),
        "expected an object from tokens to ids",
    ),
    "true for an id": (
        lambda folder: _with(folder, the=True),
        "expected an object from tokens to ids",
    ),
    "a negative id": (lambda folder: _with(folder, the=-1), "negative"),
    # Some callers go through all ids: this one took minutes, and the memory of the machine.
    "an enormous id": (
        lambda folder: _with(folder, **{"<|far|>": 2**31 - 1}),
        "negative, or not below 1,000,000",
    ),
    "an id twice": (lambda folder: _with(folder, extra=300), "same id"),
    "merges out of order": (
        lambda folder: _merges(folder, lambda lines: [lines[0], *reversed(lines[1:-1])]),
        "merge",
    ),
    "ids out of order": (lambda folder: _with(folder, the=256, Ġt=262), "expected more than"),
    "three in a merge": (
        lambda folder: _merges(folder, lambda lines: [*lines[:5], "a b c", *lines[5:]]),
        "expected two tokens",
    ),
    "not utf-8": (
        lambda folder: (folder / "merges.txt").write_bytes(b"#version\n\xff\xfe"),
        "not UTF-8",
    ),
    "a pipe": (_pipe, "expected a file"),
}


@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_a_damaged_vocabulary_is_refused_before_tiktoken_panics(folder: Path, damage: str) -> None:
    act, message = DAMAGES[damage]
    act(folder)
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(folder)
    assert str(folder) in str(caught.value)
