"""The fields of /v1/completions: their defaults, their rules, and who is told what is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpt2kit.serve.completions import CompletionRequest, parse
from gpt2kit.serve.errors import Refusal


def refusal(**body: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        parse(body)
    assert caught.value.status == 400
    return caught.value


def test_the_defaults_are_those_of_openai() -> None:
    found = parse({})
    assert found.prompt == ("",)
    assert (found.max_tokens, found.n, found.samples) == (16, 1, 1)
    assert (found.request.sampling.temperature, found.request.sampling.top_k) == (1, 0)
    assert (found.request.special, found.request.overflow) == (True, "error")
    assert (found.logprobs, found.echo, found.stream) == (None, False, False)


def test_null_means_absent_for_every_field() -> None:
    names = [
        *("model", "prompt", "max_tokens", "temperature", "top_p", "n", "best_of", "stop", "seed"),
        *("logit_bias", "presence_penalty", "frequency_penalty", "logprobs", "echo", "stream"),
        *("stream_options", "suffix", "user", "top_k", "min_p", "overflow", "return_token_ids"),
    ]
    found, plain = parse(dict.fromkeys(names)), parse({})
    assert vars(found) | {"request": None} == vars(plain) | {"request": None}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("The dog", ("The dog",)),
        (["The", "A"], ("The", "A")),
        ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
        (["The", [2, 3]], ("The", (2, 3))),
    ],
)
def test_a_prompt_is_a_text_or_ids_or_a_list_of_them(value: Any, expected: Any) -> None:
    assert parse({"prompt": value}).prompt == expected


@pytest.mark.parametrize(
    "value", [[], [[]], [1, True], [1.0], 7, {"a": 1}, ["The", 3], [[1], None], [None], "\ud83d"]
)
def test_any_other_prompt_is_refused(value: Any) -> None:
    assert refusal(prompt=value).param == "prompt"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("max_tokens", -1, "a whole number, from 0"),
        ("max_tokens", 1.5, "a whole number"),
        ("max_tokens", True, "a whole number"),
        ("temperature", "hot", "a number, 0 or more"),
        ("temperature", -0.1, "a number, 0 or more"),
        ("top_p", 0, "above 0, at most 1"),
        ("top_k", -1, "a whole number, 0 or more"),
        ("min_p", 2, "from 0 to 1"),
        ("n", 0, "a whole number, from 1"),
        ("n", True, "a whole number"),
        ("best_of", 0, "a whole number, from 1"),
        ("seed", -1, "a whole number, from 0"),
        ("seed", "1", "a whole number"),
        ("presence_penalty", 3, "from -2 to 2"),
        ("frequency_penalty", -2.1, "from -2 to 2"),
        ("repetition_penalty", 0, "from 0.01"),
        ("logprobs", 101, "from 0 to 100"),
        ("logprobs", "1", "a whole number"),
        ("echo", 1, "true or false"),
        ("stream", "yes", "true or false"),
        ("model", 5, "expected text"),
        ("overflow", "wrap", "one of slide, stop, error"),
        ("stop", [""], "empty"),
        ("stop", ["a"] * 17, "at most 16"),
        ("stop", 5, "expected text"),
        ("logit_bias", [1], "expected"),
        ("ban", [""], "is empty"),
        ("ban", ["a"] * 257, "at most 256"),
        ("ban", [3], "expected text"),
        ("ban", ["🙂" * 4096, "a"], "16,385 bytes"),  # 256 long ones had tables of 137 MB
        ("regex", "(", "unterminated subpattern"),
        ("regex", 3, "expected text"),
        ("regex", r"(a)\1", "the backreference"),
        ("allow", [], "allow has no lines"),
        ("forbid", ["a\nb"], "a line end in it"),
        ("forbid", ["a"] * 4097, "at most 4096"),
        ("valid_utf8", 1, "expected true or false"),
        ("min_tokens", 17, "at most max_tokens, 16"),
        ("min_tokens", -1, "from 0 to"),
        ("typical_p", 0, "above 0"),
        ("no_repeat_ngram", 0.5, "a whole number"),
        ("logit_bias", {"dog": 1}, "expected a token id"),
        ("logit_bias", {"1": 101}, "from -100 to 100"),
        ("logit_bias", {"1": 1, "01": 2}, "each id only once"),
        ("suffix", "end", "cannot fill in"),
        ("stream_options", {"include_usage": True}, "only for streams"),
        ("stream_options", 3, "expected an object"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(
    name: str, value: Any, expected: str
) -> None:
    found = refusal(**{name: value})
    assert found.param == name
    assert expected in str(found)


def test_an_unknown_field_is_named_with_the_nearest_known_one() -> None:
    found = refusal(max_token=3)
    assert str(found) == "there is no field 'max_token'; did you mean max_tokens?"
    assert found.param == "max_token"


def test_fields_that_describe_the_caller_are_accepted() -> None:
    parse({"user": "me", "metadata": {"a": 1}, "store": False, "service_tier": "auto"})


def test_best_of_goes_with_n_and_not_with_streams() -> None:
    assert parse({"n": 2, "best_of": 5, "prompt": ["a", "b"]}).rows == 10
    assert refusal(n=3, best_of=2).param == "best_of"
    assert refusal(best_of=2, stream=True).param == "best_of"
    assert parse({"n": 2, "best_of": 2, "stream": True}).samples == 2


def test_true_asks_for_one_alternative_and_zero_is_not_absent() -> None:
    """`logprobs: 0` asks for the tokens' own values, which is not the same as nothing."""
    asked = [parse({"logprobs": value}) for value in (True, False, 0, 5)]
    assert [each.logprobs for each in asked] == [1, None, 0, 5]
    assert [each.request.logprobs for each in asked] == [True, False, True, True]
    assert [each.request.top_logprobs for each in asked] == [1, 0, 0, 5]


def test_every_field_changes_what_is_asked() -> None:
    values: dict[str, Any] = {
        "max_tokens": 3,
        "temperature": 0.5,
        "top_p": 0.5,
        "stop": "x",
        "seed": 4,
        "logit_bias": {"3": 1.5},
        "presence_penalty": 1,
        "frequency_penalty": 1,
        "top_k": 2,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "ignore_eos": True,
        "special": False,
        "overflow": "stop",
        "logprobs": 2,
    }
    plain = parse({"seed": 1}).request
    for name, value in values.items():
        assert parse({"seed": 1, name: value}).request != plain, name


def test_a_request_made_directly_is_checked_like_a_parsed_one() -> None:
    with pytest.raises(Refusal, match="max_tokens"):
        CompletionRequest(max_tokens=-1)
    assert json.dumps(refusal(n=0).body)
