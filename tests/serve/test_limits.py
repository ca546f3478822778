"""How much is accepted: rows, requests, tokens, alternatives, tables of constraints."""

from __future__ import annotations

import pytest

from gpt2kit.generation.constraints.constraint import Constraint, constraints_for
from gpt2kit.generation.request import Request
from gpt2kit.serve import limits as module
from gpt2kit.serve.completions import parse
from gpt2kit.serve.errors import Refusal
from gpt2kit.serve.limits import Limits
from gpt2kit.serve.metrics import Metrics
from gpt2kit.serve.settings import Settings
from gpt2kit.tokenizers import CharTokenizer


def limits(**settings: int) -> Limits:
    return Limits(Settings(**settings), Metrics())  # type: ignore[arg-type]


def test_as_many_requests_are_accepted_as_run_and_wait() -> None:
    found = limits(parallel=1, queue=1)
    asked = parse({"prompt": "a"})
    with found.reserve(asked, 64), found.reserve(asked, 64):
        assert found.requests == 2
        with pytest.raises(Refusal) as caught, found.reserve(asked, 64):
            pass
        assert caught.value.status == 429
        assert (caught.value.retry_after or 0) >= 1
    assert found.requests == 0
    with found.reserve(asked, 64):
        pass


def test_a_request_of_too_many_texts_is_refused_for_good() -> None:
    found = limits(max_rows=6)
    for body, param in (
        ({"prompt": ["a", "b"], "n": 4}, "prompt"),
        ({"n": 7}, "n"),
        ({"best_of": 7}, "n"),
        ({"prompt": [[1]] * 7}, "prompt"),
    ):
        with pytest.raises(Refusal, match="at most 6") as caught, found.reserve(parse(body), 64):
            pass
        assert (caught.value.status, caught.value.param) == (400, param)
        assert caught.value.retry_after is None
    with found.reserve(parse({"prompt": ["a", "b"], "n": 3}), 64):
        pass


def test_tokens_are_counted_before_a_prompt_is_encoded_and_corrected_after() -> None:
    """A text may have a token for each byte, but the window holds no more than n_ctx."""
    found = limits(queue_tokens=100)
    with found.reserve(parse({"prompt": "a" * 30, "max_tokens": 10}), 64) as first:
        assert first.tokens == 40
        with found.reserve(parse({"prompt": [1] * 50, "max_tokens": 10}), 64) as second:
            assert second.tokens == 60
            with (
                pytest.raises(Refusal) as caught,
                found.reserve(parse({"prompt": "a", "max_tokens": 1}), 64),
            ):
                pass
            assert caught.value.status == 429
            first.tokens = 20
            with found.reserve(parse({"prompt": "a", "max_tokens": 1}), 64):
                pass
    with found.reserve(parse({"prompt": "é" * 5000, "max_tokens": 10, "n": 1}), 64) as long:
        assert long.tokens == 74


def test_a_request_that_never_fits_is_told_so() -> None:
    found = limits(queue_tokens=100)
    asked = parse({"prompt": "a", "max_tokens": 60, "n": 2, "overflow": "slide"})
    with pytest.raises(Refusal, match="122 tokens") as caught, found.reserve(asked, 64):
        pass
    assert caught.value.status == 400


def test_what_cannot_fit_into_the_window_is_not_counted() -> None:
    """A client whose default is many tokens is told about the window, not about the queue."""
    found = limits(queue_tokens=100)
    with found.reserve(parse({"prompt": "a", "max_tokens": 4096}), 64) as reservation:
        assert reservation.tokens == 65


def test_alternatives_are_counted_with_the_tokens_that_have_them() -> None:
    """100 for each of 262,144 tokens were accepted, and took gigabytes until they were sent."""
    found = limits(queue_logprobs=1000)
    asked = {"prompt": [1] * 50, "max_tokens": 20, "logprobs": 10}
    with found.reserve(parse(asked), 64) as first:  # the prompt's tokens have none
        assert first.logprobs == 200
        with (
            pytest.raises(Refusal, match="requests for 200 alternatives are ahead") as caught,
            found.reserve(parse(asked | {"n": 5}), 64),
        ):
            pass
        assert caught.value.status == 429
        with found.reserve(parse({"prompt": "a" * 5000, "max_tokens": 40}), 64) as none:
            assert none.logprobs == 0
    with found.reserve(parse(asked | {"echo": True, "n": 2, "prompt": [1] * 30}), 64) as echoed:
        assert echoed.logprobs == 10 * 2 * (30 + 20)  # each choice has the prompt's, too
    with found.reserve(parse(asked | {"echo": True, "stream": True, "n": 2}), 64) as streamed:
        assert streamed.logprobs == 10 * 50
    with (
        pytest.raises(Refusal, match="may name 1,400 alternatives, but at most 1,000") as caught,
        found.reserve(parse(asked | {"echo": True, "n": 2}), 64),
    ):
        pass
    assert (caught.value.status, caught.value.param) == (400, "logprobs")


def constraint(regex: str) -> Constraint:
    tokenizer = CharTokenizer.from_text("ab")
    found = constraints_for(Request(regex=regex), tokenizer, tokenizer.n_vocab, None)
    assert found
    return found.after([]).constraint


def test_tables_of_constraints_are_counted_once_for_all_that_share_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Requests with large lists could wait by the dozen, each with hundreds of megabytes."""
    found, asked = limits(), parse({"prompt": "a"})
    one, other = constraint("a{9}"), constraint("b{9}")
    monkeypatch.setattr(module, "TABLE_BYTES", one.nbytes)
    with found.reserve(asked, 64) as first, found.reserve(asked, 64) as second:
        found.hold(first, one)
        found.hold(second, one)
        with found.reserve(asked, 64) as third, pytest.raises(Refusal, match="large") as caught:
            found.hold(third, other)
        assert caught.value.status == 429
    with found.reserve(asked, 64) as alone:
        found.hold(alone, other)  # the others have ended
        with pytest.raises(Refusal, match="several prompts") as caught:
            found.hold(alone, one)
        assert (caught.value.status, caught.value.retry_after) == (400, None)
