"""A text longer than the model reads at once: kept whole, cut with a warning, or refused."""

from __future__ import annotations

import warnings

import pytest

from gpt2kit.data.window import Overflow, check_ids, check_length, fit
from gpt2kit.errors import ConfigError, ContextLengthError, Gpt2KitWarning, TokenizerError

IDS = list(range(10))


@pytest.mark.parametrize("overflow", ["slide", "stop", "error"])
@pytest.mark.parametrize("slides", [True, False])
def test_a_text_that_fits_exactly_is_kept_whole_without_a_warning(
    overflow: Overflow, slides: bool
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit(IDS, 10, overflow, slides=slides) == IDS


def test_sliding_keeps_all_for_a_caller_that_reads_several_windows() -> None:
    assert fit(IDS, 4, "slide") == IDS


@pytest.mark.parametrize(
    ("overflow", "kept", "left_out"),
    [("stop", [0, 1, 2, 3], "the last 6 are"), ("slide", [6, 7, 8, 9], "the first 6 are")],
)
def test_a_text_for_one_window_is_cut_at_the_end_that_the_option_says(
    overflow: Overflow, kept: list[int], left_out: str
) -> None:
    with pytest.warns(Gpt2KitWarning, match=f"^the prompt has 10 tokens.*at most 4: {left_out}"):
        assert fit(IDS, 4, overflow, what="the prompt", slides=False) == kept


def test_a_text_one_token_too_long_is_refused_with_its_length_and_the_limit() -> None:
    check_length(9, 9)
    with pytest.raises(ContextLengthError, match="the text has 10 tokens.*at most 9") as caught:
        fit(IDS, 9, "error")
    assert (caught.value.requested, caught.value.limit) == (10, 9)


@pytest.mark.parametrize("token", [-1, 512])
def test_an_id_outside_of_the_vocabulary_is_refused(token: int) -> None:
    check_ids([0, 511], 512)
    with pytest.raises(TokenizerError, match=f"^id {token} is not in the model's vocabulary"):
        check_ids([0, token], 512)


def test_a_text_without_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="^the first text has no tokens"):
        check_ids([], 512, "the first text")
