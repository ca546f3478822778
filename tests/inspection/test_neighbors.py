"""Similar tokens, against NumPy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gpt2kit.errors import ConfigError, TokenizerError
from gpt2kit.inspection.neighbors import (
    combine,
    embedding_of,
    find_term,
    nearest,
    own_tokens,
    similarity,
)
from gpt2kit.tokenizers import BPETokenizer, CharTokenizer, WordTokenizer


def embeddings(n: int = 9000, width: int = 8) -> Tensor:
    """Rows of very different lengths; there are more than are converted to float64 at once."""
    random = torch.Generator().manual_seed(0)
    lengths = torch.rand(n, 1, generator=random) * 10
    return torch.randn(n, width, generator=random) * lengths


def unit(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_the_nearest_tokens_are_those_of_numpy_in_float64() -> None:
    rows = embeddings()
    judge = rows.double().numpy()
    sought = unit(judge[3]) - unit(judge[5]) + unit(judge[[7, 8]].mean(0))
    cosines = unit(judge) @ unit(sought)
    expected = [token for token in np.argsort(-cosines) if token not in (3, 5, 7, 8)][:20]
    tokenizer = CharTokenizer([chr(0x4E00 + n) for n in range(9000)])
    characters = tokenizer.tokens
    terms = [
        find_term(characters[3], tokenizer),
        find_term(characters[5], tokenizer, sign=-1),
        find_term(characters[7] + characters[8], tokenizer),
    ]
    found = nearest(combine(terms, rows), rows, top=20, without=own_tokens(terms, tokenizer))
    assert [each.token for each in found] == expected
    assert [each.similarity for each in found] == pytest.approx(cosines[expected], abs=1e-12)


def test_the_similarity_of_two_words_is_that_of_numpy() -> None:
    rows = embeddings(50)
    judge = rows.double().numpy()
    tokenizer = CharTokenizer([chr(ord("A") + n) for n in range(50)])
    found = similarity(
        embedding_of(find_term("AB", tokenizer), rows),
        embedding_of(find_term("C", tokenizer), rows),
    )
    expected = unit(judge[:2].mean(0)) @ unit(judge[2])
    assert found == pytest.approx(expected, abs=1e-14)


def test_narrow_dtypes_are_compared_in_float64_and_a_row_of_zeros_is_like_nothing() -> None:
    rows = embeddings(50).to(torch.bfloat16)
    rows[4] = 0
    judge = rows.double().numpy()
    found = nearest(rows[3], rows, top=50)
    assert len(found) == 50
    by_token = {each.token: each.similarity for each in found}
    assert by_token[4] == 0.0
    assert by_token[9] == pytest.approx(unit(judge[3]) @ unit(judge[9]), abs=1e-14)
    assert found[0].token == 3


def test_of_equal_neighbors_the_lower_id_comes_first() -> None:
    rows = torch.ones(6, 2)
    assert [each.token for each in nearest(rows[0], rows, without={1})] == [0, 2, 3, 4, 5]


def test_a_word_is_taken_after_a_space_unless_that_takes_more_tokens(
    small_bpe: BPETokenizer,
) -> None:
    def text(word: str, space: bool | None = None) -> str:
        return find_term(word, small_bpe, space=space).text

    assert len(small_bpe.encode(" the")) == 1
    assert text("the") == " the"
    assert text("the", space=False) == "the"
    assert text(" the", space=None) == " the"
    assert len(small_bpe.encode(" Z")) > len(small_bpe.encode("Z"))
    assert text("Z") == "Z"
    assert text("Z", space=True) == " Z"


def test_a_vocabulary_of_words_or_letters_may_have_one_form_only() -> None:
    words = WordTokenizer.from_text("tre donne\ntre rose")
    assert find_term("donne", words).text == " donne"
    assert find_term("tre", words).text == "tre"  # known at the beginning of a line only
    letters = CharTokenizer([*"abc"])
    assert find_term("b", letters).ids == (1,)
    with pytest.raises(TokenizerError, match="the word 'mare'"):
        find_term("mare", words, space=False)
    with pytest.raises(TokenizerError, match="mare"):
        find_term("mare", words)


def test_both_forms_of_a_word_are_its_own_tokens(small_bpe: BPETokenizer) -> None:
    term = find_term("the", small_bpe)
    one_token = [form for form in ("the", " the") if len(small_bpe.encode(form)) == 1]
    assert own_tokens([term], small_bpe) == {small_bpe.encode(form)[0] for form in one_token}


def test_no_word_and_an_empty_word_are_refused(small_bpe: BPETokenizer) -> None:
    with pytest.raises(ConfigError, match="a word is empty"):
        find_term("", small_bpe)
    with pytest.raises(ConfigError, match="no word was given"):
        combine([], embeddings(5))
