"""What all tokenizers share: their examples are true, and a model without one is one error."""

from __future__ import annotations

import doctest
from types import ModuleType

import pytest
from conftest import GOLDEN

from gpt2kit.errors import TokenizerError
from gpt2kit.tokenizers import (
    BPETokenizer,
    CharTokenizer,
    Tokenizer,
    WordTokenizer,
    bpe,
    char,
    load_tokenizer,
    require_tokenizer,
    word,
)


@pytest.mark.parametrize("module", [bpe, char, word], ids=lambda module: module.__name__)
def test_the_examples_in_docstrings_are_true(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_every_tokenizer_keeps_the_protocol_and_says_what_it_is() -> None:
    bpe_tokenizer = BPETokenizer.from_folder(GOLDEN / "bpe" / "small")
    for tokenizer in (bpe_tokenizer, CharTokenizer.from_text("ab"), WordTokenizer.from_text("ab")):
        assert isinstance(tokenizer, Tokenizer)
        assert repr(tokenizer).startswith(f"{type(tokenizer).__name__}(n_vocab={tokenizer.n_vocab}")


def test_a_model_without_a_vocabulary_is_one_error_that_names_it() -> None:
    tokenizer = CharTokenizer.from_text("ab")
    assert require_tokenizer(tokenizer, "mine") is tokenizer
    with pytest.raises(TokenizerError, match=r"^mine: no vocabulary beside the weights; expected"):
        require_tokenizer(load_tokenizer(GOLDEN), "mine")
