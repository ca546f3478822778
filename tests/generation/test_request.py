"""One request: its fields are the options everywhere, and each is checked once."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import gpt2kit
from gpt2kit.errors import ConfigError
from gpt2kit.fields import rules
from gpt2kit.generation.request import Options, Request, Sampling, TokenOptions, as_request


def test_keyword_options_are_the_fields_of_request_and_sampling() -> None:
    # The names are written twice, here and there; this holds the two lists together.
    fields = {**get_type_hints(Request), **get_type_hints(Sampling)}
    del fields["sampling"]
    del fields["prompt_logprobs"]  # only rows deliver it: stream and complete do not take it
    options = get_type_hints(Options)
    assert options.keys() == fields.keys()
    assert get_type_hints(TokenOptions).items() <= options.items()
    # As options, these can be a single one or a list, and `logit_bias` a mapping.
    free = {"stop", "ban", "logit_bias", "logits_processors", "allow", "forbid"}
    for name in options.keys() - free:
        assert options[name] == fields[name], name


def test_every_option_has_a_default_and_a_help() -> None:
    Request()
    for kind in (Request, Sampling):
        assert all(rule.help for name, rule in rules(kind).items() if name != "sampling")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("num_samples", 0),
        ("first_sample", -1),
        ("overflow", "wrap"),
        ("stop", [""]),
        ("stop", 3),
        ("stop", [3]),
        ("ban", [""]),
        ("ban", 3),
        ("ban", ["a", "\ufffd"]),
        ("ban", ["\ud800"]),
        ("min_tokens", -1),
        ("min_tokens", 101),
        ("logits_processors", 3),
        ("logits_processors", [3]),
        ("typical_p", 0.0),
        ("typical_p", 1.1),
        ("no_repeat_ngram", -1),
        ("seed", -1),
        ("seed", 2**64),
        ("special", 1),
        ("draft_tokens", 0),
        ("draft_tokens", 65),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", True),
        ("temperature", 10**400),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 1e-320),
        ("presence_penalty", 2.1),
        ("presence_penalty", float("nan")),
        ("frequency_penalty", -2.1),
        ("logit_bias", {1: 100.1}),
        ("logit_bias", {1: float("nan")}),
        ("logit_bias", {1: True}),
        ("logit_bias", {-1: 0}),
        ("logit_bias", {"1": 0}),
        ("logit_bias", {True: 0}),
        ("logit_bias", [(1, 2), (1, 3)]),
        ("logit_bias", [1]),
        ("logit_bias", 3),
        ("top_logprobs", -1),
        ("top_logprobs", 101),
        ("top_logprobs", True),
    ],
)
def test_an_invalid_option_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        as_request(None, {name: value})


def test_a_sampling_that_is_no_sampling_is_refused() -> None:
    with pytest.raises(ConfigError, match="sampling is"):
        Request(sampling={"top_k": 3})  # type: ignore[arg-type]


def test_options_of_sampling_reach_the_sampling() -> None:
    request = as_request(None, {"top_k": 3, "max_tokens": 5, "seed": 1})
    assert request == Request(max_tokens=5, seed=1, sampling=Sampling(top_k=3))


def test_a_request_is_passed_on_as_it_is_and_takes_no_options_beside_it() -> None:
    request = Request(seed=1)
    assert as_request(request, {}) is request
    with pytest.raises(ConfigError, match="not both; found top_k too"):
        as_request(request, {"top_k": 3})


def test_an_unknown_option_is_a_type_error_as_of_any_function() -> None:
    with pytest.raises(TypeError, match="topk"):
        as_request(None, {"topk": 3})


@pytest.mark.parametrize("stop", ["END", ["END"], ("END",)])
def test_one_stop_text_or_several_are_the_same(stop: Any) -> None:
    assert Request(stop=stop).stop == ("END",)
    assert Request(stop=None).stop == ()  # type: ignore[arg-type]


def test_a_drawn_seed_stays_with_the_request() -> None:
    request = Request()
    assert dataclasses.replace(request, max_tokens=1).drawn_seed == request.drawn_seed
    assert Request(seed=7).drawn_seed == 7
    assert len({Request().drawn_seed for _ in range(20)}) == 20


def test_draft_tokens_need_a_draft_and_compile_excludes_one() -> None:
    Request(compile=True).check_draft(None)
    Request(draft_tokens=3).check_draft("lookup")
    with pytest.raises(ConfigError, match="draft_tokens is given without a draft"):
        Request(draft_tokens=3).check_draft(None)
    with pytest.raises(ConfigError, match="compile is for one token at a time"):
        Request(compile=True).check_draft("lookup")


@pytest.mark.parametrize(
    ("sampling", "needed"),
    [
        (Sampling(temperature=0), 1),
        (Sampling(top_k=7), 7),
        (Sampling(top_k=7, top_p=0.5, min_p=0.1), 7),
        (Sampling(top_k=0), 0),
        (Sampling(repetition_penalty=1.2), 0),
        (Sampling(presence_penalty=0.1), 0),
        (Sampling(frequency_penalty=-0.1, temperature=0), 0),
        (Sampling(logit_bias=((1, 0.5),)), 0),
    ],
)
def test_a_choice_that_depends_on_all_logits_asks_for_all_of_them(
    sampling: Sampling, needed: int
) -> None:
    assert sampling.most_likely == needed
    assert Request(sampling=sampling).most_likely == needed
    assert Request(sampling=sampling, logprobs=True).most_likely == 0
    assert Request(sampling=sampling, top_logprobs=1).most_likely == 0


@pytest.mark.parametrize("bias", [{5: 1, 2: -100.0}, [(5, 1.0), (2, -100)], ((2, -100), (5, 1))])
def test_a_bias_is_a_mapping_or_pairs_and_stays_hashable(bias: Any) -> None:
    sampling = Sampling(logit_bias=bias)
    assert sampling.logit_bias == ((2, -100.0), (5, 1.0))
    assert sampling == Sampling(logit_bias=((2, -100.0), (5, 1.0)))
    assert hash(sampling) == hash(dataclasses.replace(sampling))
    assert not Sampling(logit_bias=None).logit_bias  # type: ignore[arg-type]


def test_a_bias_for_an_id_that_is_not_in_the_vocabulary_is_refused() -> None:
    sampling = Sampling(logit_bias=((2, 1.0), (10, 1.0)))
    sampling.check_vocabulary(11)
    with pytest.raises(ConfigError, match="has the id 10, expected ids from 0 to 9"):
        sampling.check_vocabulary(10)


def test_requests_need_neither_torch_nor_numpy() -> None:
    # The command line makes its help from them.
    code = "import sys, gpt2kit.generation.request; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_documented_trip_of_top_k_has_at_most_six_stations_that_exist() -> None:
    root = Path(gpt2kit.__file__).parent
    text = (root.parent / "docs/architecture.md").read_text(encoding="utf-8")
    section = text.split("## The trip of top_k")[1].split("##")[0]
    stations = re.findall(r"^\| `(?:(\w+)\.)?(\w+)` \| `([\w/.]+)`", section, re.MULTILINE)
    assert 0 < len(stations) <= 6
    for owner, name, file in stations:
        code = (root / file).read_text(encoding="utf-8")
        assert re.search(rf"^class {owner}\b" if owner else rf"^def {name}\b", code, re.MULTILINE)
        assert re.search(rf"\b{name}\b", code)
