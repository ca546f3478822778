"""The likeliest next words: as in surprisal, complete, and with bounds that hold."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path

import pytest
from builders import add_vocabulary, write_hub
from conftest import make_model
from typer.testing import CliRunner

from gpt2kit.cli import app
from gpt2kit.config import GPT2Config
from gpt2kit.errors import ConfigError
from gpt2kit.evaluation.cloze import cloze
from gpt2kit.evaluation.words import words
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import BPETokenizer, CharTokenizer

LETTERS = CharTokenizer([" ", "a", "b", ".", "<|endoftext|>"])


@pytest.fixture(scope="module")
def letters() -> GPT2:
    return make_model(GPT2Config(n_vocab=5, n_ctx=16, n_embd=8, n_head=2, n_layer=1), seed=3)


def test_words_have_the_probability_of_their_corrected_surprisal(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    found = cloze(tiny_model, small_bpe, "The old man ", top=5, most=64, keep_punctuation=True)
    assert len(found.words) == 5
    for word in found.words:
        text = f"The old man {word.text}"
        surprisal = words(tiny_model, small_bpe, text)[0][-1].surprisal_corrected
        assert word.probability == pytest.approx(2 ** -(surprisal or 0), rel=1e-4)


def test_the_search_finds_what_an_enumeration_of_all_words_finds(letters: GPT2) -> None:
    found = cloze(letters, LETTERS, "ab", top=6, longest=5, most=1000, keep_punctuation=True)
    every = {}
    for n in range(1, 5):
        for word in map("".join, product("ab.", repeat=n)):
            bits = words(letters, LETTERS, f"ab {word}")[0][-1].surprisal_corrected
            every[word] = 2 ** -(bits or 0)
    best = sorted(every, key=every.__getitem__)[:-7:-1]
    assert [word.text for word in found.words] == best
    assert found.complete
    assert [word.n_tokens for word in found.words] == [len(word) + 1 for word in best]
    assert found.words[-1].cumulative == pytest.approx(sum(every[word] for word in best), rel=1e-4)


def test_bounds_on_the_entropy_close_in_as_more_is_read(letters: GPT2) -> None:
    few, many = (cloze(letters, LETTERS, "ab", top=99, most=most) for most in (2, 400))
    assert few.entropy_at_least <= many.entropy_at_least <= many.entropy_at_most
    assert many.entropy_at_most <= few.entropy_at_most
    assert few.found < many.found <= 1.0 + 1e-6
    assert not few.complete


def test_a_word_ends_before_punctuation_unless_that_is_kept(letters: GPT2) -> None:
    apart, kept = (
        cloze(letters, LETTERS, "ab", top=50, most=400, keep_punctuation=keep)
        for keep in (False, True)
    )
    assert not any("." in word.text for word in apart.words)
    assert any("." in word.text for word in kept.words)
    same = {word.text: word.probability for word in kept.words}
    assert all(word.probability >= same.get(word.text, 0) for word in apart.words)
    assert math.isfinite(kept.entropy_at_most)


def test_a_text_without_room_for_a_word_is_refused(letters: GPT2) -> None:
    with pytest.raises(ConfigError, match="has 14 tokens; expected from 1 to 10"):
        cloze(letters, LETTERS, "ab ab ab ab a")


def test_the_command_prints_what_the_library_finds(
    tiny_model: GPT2, small_bpe: BPETokenizer, tmp_path: Path
) -> None:
    folder = str(add_vocabulary(write_hub(tmp_path / "model", tiny_model)))
    found = cloze(tiny_model, small_bpe, "The old", top=3, most=40)
    arguments = ["cloze", "The old", "--model", folder, "--top", "3", "--most", "40"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    shown = [line.split(maxsplit=3) for line in result.stdout.splitlines()[1:]]
    assert [line[3] for line in shown] == [word.text for word in found.words]
    assert [line[0] for line in shown] == [f"{word.probability:.4f}" for word in found.words]
    assert f"{found.entropy_at_least:.2f} bits or more" in result.stderr
    as_json = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert as_json["found"] == pytest.approx(found.found)
    kept = json.loads(CliRunner().invoke(app, [*arguments, "--json", "--keep_punctuation"]).stdout)
    assert kept["words"] != as_json["words"]
