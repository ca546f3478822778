"""Replays: the same text from the receipt alone, and a name for everything that was changed."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest
import torch
from conftest import make_model
from engine_builders import int8_of

from gpt2kit import complete
from gpt2kit.errors import ConfigError
from gpt2kit.generation.receipts.receipt import receipt
from gpt2kit.generation.receipts.replaying import (
    changes,
    check_receipt,
    compare,
    prompts_of,
    request_of,
)
from gpt2kit.generation.request import as_request
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import BPETokenizer

PROMPTS = ["", "the", "the cat and the cat and", "Perché no? 🙂", "x" * 20]


def random_request(rng: random.Random) -> dict[str, Any]:
    """Return options of any kind; each is left out as often as not."""
    choices: dict[str, Any] = {
        "max_tokens": rng.randint(1, 50),
        "temperature": rng.choice([0, 0.7, 1.5]),
        "top_k": rng.choice([0, 1, 5, 100]),
        "top_p": rng.choice([0.5, 0.9]),
        "min_p": 0.05,
        "typical_p": 0.8,
        "no_repeat_ngram": rng.randint(1, 3),
        "repetition_penalty": 1.3,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.7,
        "logit_bias": {rng.randrange(511): rng.uniform(-9, 9) for _ in range(4)},
        "stop": rng.choice(["e", ["th", " a"]]),
        "ban": ["o", "in"],
        "regex": "[a-z ]+",
        "valid_utf8": True,
        "ignore_eos": True,
        "special": True,
        "num_samples": rng.randint(2, 4),
        "first_sample": rng.randint(0, 9),
        "seed": rng.randrange(2**64),
    }
    options = {name: value for name, value in choices.items() if rng.random() < 0.5}
    if {"regex", "ban"} <= options.keys():  # together with n-grams they may leave no token
        del options["regex"]
    return options


def replays(model: GPT2, small: GPT2, tokenizer: BPETokenizer, numbers: range) -> None:
    """Write texts, and write them again from what their receipts say."""
    for number in numbers:
        rng = random.Random(number)
        request = as_request(None, random_request(rng))
        prompts = rng.sample(PROMPTS, rng.randint(1, 3))
        draft: Any = rng.choice([None, "lookup", small])
        own = rng.choice([model, int8_of(model)]) if number % 5 == 0 else model
        completions = complete(own, tokenizer, prompts, request, draft=draft)
        found = json.loads(
            json.dumps(
                receipt(
                    own,
                    tokenizer,
                    request,
                    completions,
                    draft=draft,
                    with_text=rng.random() < 0.5,
                )
            )
        )
        check_receipt(found)
        again_request = request_of(found)
        told = "text" in found["prompts"][0]
        again_prompts = prompts_of(found, None if told else prompts)
        again = complete(own, tokenizer, again_prompts, again_request, draft=draft)
        for entry, completion in zip(found["texts"], again, strict=True):
            assert compare(entry, completion, tokenizer.decode).equal
        assert changes(found, receipt(own, tokenizer, again_request, again, draft=draft)) == []


@pytest.fixture
def small_model(tiny_config: Any) -> GPT2:
    return make_model(tiny_config, seed=7)


def test_random_requests_of_every_kind_replay_to_the_same_texts(
    tiny_model: GPT2, small_model: GPT2, small_bpe: BPETokenizer
) -> None:
    replays(tiny_model, small_model, small_bpe, range(6))


@pytest.mark.slow
def test_a_hundred_random_requests_replay_to_the_same_texts(
    tiny_model: GPT2, small_model: GPT2, small_bpe: BPETokenizer
) -> None:
    replays(tiny_model, small_model, small_bpe, range(6, 106))


@pytest.fixture
def first(tiny_model: GPT2, small_bpe: BPETokenizer) -> dict[str, Any]:
    return written(tiny_model, small_bpe)


def written(model: GPT2, tokenizer: BPETokenizer, **options: Any) -> dict[str, Any]:
    request = as_request(None, {"seed": 1, "max_tokens": 20, **options})
    completions = complete(model, tokenizer, "the", request)
    found: dict[str, Any] = json.loads(
        json.dumps(receipt(model, tokenizer, request, completions, with_text=True))
    )
    return found


def test_another_option_weight_dtype_and_vocabulary_are_named(
    tiny_model: GPT2,
    small_bpe: BPETokenizer,
    first: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def said(model: GPT2, tokenizer: BPETokenizer, **options: Any) -> str:
        return "; ".join(changes(first, written(model, tokenizer, **options)))

    assert said(tiny_model, small_bpe) == ""
    assert said(tiny_model, small_bpe, top_k=3) == "top_k: 40 in the receipt, 3 now"
    assert said(tiny_model, small_bpe, ban="e") == "ban: [] in the receipt, ['e'] now"
    assert said(tiny_model, small_bpe, seed=2) == "seed: 1 in the receipt, 2 now"
    narrow = copy.deepcopy(tiny_model).to(torch.bfloat16)
    assert "dtype: 'float32' in the receipt, 'bfloat16' now" in said(narrow, small_bpe)
    assert "weights" not in said(narrow, small_bpe)
    assert "quantize: None in the receipt, 'int8' now" in said(int8_of(tiny_model), small_bpe)
    other = copy.deepcopy(tiny_model)
    with torch.no_grad():
        other.wte.weight[3, 3] += 1e-3
    assert said(other, small_bpe).startswith("weights: sha256 ")
    files = {**small_bpe.files(), "merges.txt": b"others"}
    monkeypatch.setattr(small_bpe, "files", lambda: files)
    assert said(tiny_model, small_bpe).startswith("tokenizer: sha256 ")


def test_other_versions_engines_and_processors_are_named(first: dict[str, Any]) -> None:
    for part, name in (
        ("versions", "torch"),
        ("computed", "engine"),
        ("computed", "processor"),
        ("computed", "threads"),
        ("config", "n_head"),
    ):
        now = copy.deepcopy(first)
        now[part][name] = "another"
        (said,) = changes(first, now)
        assert said.startswith(f"{name}: ")
        assert said.endswith("'another' now")
    now = {**first, "processors": ["mine"], "draft": "lookup"}
    assert [said.partition(":")[0] for said in changes(first, now)] == [
        "draft",
        "logits_processors",
    ]


def test_a_text_that_differs_says_at_which_token_and_character(
    tiny_model: GPT2, small_bpe: BPETokenizer, first: dict[str, Any]
) -> None:
    (entry,) = first["texts"]
    (same,) = complete(tiny_model, small_bpe, "the", seed=1, max_tokens=20)
    assert compare(entry, same, small_bpe.decode).equal
    for i in (0, 7, 19):
        tokens = [*same.tokens]
        tokens[i] ^= 1
        changed = compare(
            entry,
            same.__class__(**{**vars(same), "tokens": tokens, "text": small_bpe.decode(tokens)}),
            small_bpe.decode,
        )
        assert (changed.equal, changed.token) == (False, i)
        assert changed.character == len(small_bpe.decode(tokens[:i]))
    (shorter,) = complete(tiny_model, small_bpe, "the", seed=1, max_tokens=12)
    assert compare(entry, shorter, small_bpe.decode).token == 12


def test_the_prompt_has_to_be_that_of_the_receipt(first: dict[str, Any]) -> None:
    assert prompts_of(first, None) == ["the"]
    assert prompts_of(first, ["the"]) == ["the"]
    with pytest.raises(ConfigError, match="not the one of the receipt"):
        prompts_of(first, ["The"])
    del first["prompts"][0]["text"]
    with pytest.raises(ConfigError, match="only its digest; give the prompt"):
        prompts_of(first, None)


HOSTILE: list[dict[str, Any]] = [
    {"receipt": 2},
    {"receipt": "x" * 10**5},
    {"texts": []},
    {"texts": [3]},
    {"texts": [{"prompt": 9, "sample": 0, "sha256": "", "marks": ""}]},
    {"texts": [{"prompt": True, "sample": 0, "sha256": "", "marks": ""}]},
    {"prompts": {}},
    {"prompts": [{"sha256": 3}]},
    {"prompts": [{"sha256": "", "text": 3}]},
    {"weights": None},
    {"config": []},
    {"computed": "fast"},
    {"versions": 3},
    {"draft": 3},
]


@pytest.mark.parametrize("change", HOSTILE, ids=lambda change: str(change)[:40])
def test_what_is_no_receipt_is_one_error(first: dict[str, Any], change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as found:
        check_receipt({**first, **change})
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 200


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": -1},
        {"top_k": "x"},
        {"seed": None},
        {"seed": "1"},
        {"stop": [3]},
        {"stop": {"a": 1}},
        {"logit_bias": [[1]]},
        {"logit_bias": [[[], 1]]},
        {"logit_bias": 7},
        {"logits_processors": ["os.system"]},
        {"sampling": {}},
        {"invented": 1},
        {"max_tokens": 10**30},
    ],
)
def test_options_that_no_request_has_are_one_error(
    first: dict[str, Any], options: dict[str, Any]
) -> None:
    first["options"] |= options
    with pytest.raises(ConfigError) as found:
        request_of(first)
    assert "\n" not in str(found.value)


def test_a_text_of_a_processor_is_replayed_with_the_processor(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    def even(logits: Any, rows: Any) -> Any:
        logits[:, ::2] = -torch.inf
        return logits

    found = written(tiny_model, small_bpe, logits_processors=even)
    with pytest.raises(ConfigError, match=r"processor .*even, which a receipt does not hold"):
        request_of(found)
    request = request_of(found, logits_processors=even)
    (again,) = complete(tiny_model, small_bpe, "the", request)
    assert compare(found["texts"][0], again, small_bpe.decode).equal
