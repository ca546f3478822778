"""The routes: what they answer, and what they say about requests that they refuse."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import torch
from conftest import GOLDEN
from prometheus_client.parser import text_string_to_metric_families
from serve_builders import CONFIG, Client, connected, tiny, wait_until
from starlette.applications import Starlette
from starlette.routing import Mount

from gpt2kit.evaluation.surprisal import Window, surprisals
from gpt2kit.generation.receipts.replaying import check_receipt, compare, prompts_of, request_of
from gpt2kit.generation.text import complete
from gpt2kit.serve.asgi import application
from gpt2kit.serve.settings import Settings
from gpt2kit.tokenizers import BPETokenizer, CharTokenizer

PLAIN = {"prompt": "The dog", "max_tokens": 6, "seed": 3}


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with connected() as found:
        yield found


# --- texts ----------------------------------------------------------------------------------------


def test_an_answer_has_the_fields_of_openai(client: Client) -> None:
    found = client.complete(**PLAIN)
    assert found["id"].startswith("cmpl-")
    assert len(found["id"]) == len("cmpl-") + 24
    assert (found["object"], found["model"]) == ("text_completion", "model")
    assert found["system_fingerprint"].startswith("gpt2kit-")
    (choice,) = found["choices"]
    assert choice.keys() == {"index", "text", "logprobs", "finish_reason"}
    assert (choice["index"], choice["logprobs"], choice["finish_reason"]) == (0, None, "length")
    assert found["usage"]["prompt_tokens"] == 3
    assert found["usage"]["completion_tokens"] == 6


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0},
        {"temperature": 0.7, "top_k": 5},
        {"top_p": 0.8, "min_p": 0.01},
        {"repetition_penalty": 1.5},
        {"presence_penalty": 1.5, "frequency_penalty": -0.5},
        {"logit_bias": {"100": 50.0}},
        {"stop": ["e"]},
        {"ban": ["e", "a"], "no_repeat_ngram": 2, "typical_p": 0.9},
        {"ban": "e", "min_tokens": 15, "stop": ["a", "t"]},
        {"regex": r"[a-z]{2,6}( [a-z]{1,4}){2}\.", "temperature": 0.8},
        {"allow": ["one", "two words", "three"]},
        {"forbid": ["e", "a"], "valid_utf8": True},
        {"overflow": "slide", "max_tokens": 90},
        {"overflow": "stop", "max_tokens": 90},
        {"ignore_eos": True, "special": False},
    ],
)
def test_texts_are_those_of_complete_with_the_same_options(
    client: Client, options: dict[str, Any]
) -> None:
    model, tokenizer = tiny()
    prompts = ["The dog", "In the<|endoftext|>", "x"]
    asked = {"seed": 5, "max_tokens": 20, "prompt": prompts, "n": 2, **options}
    own = {name: value for name, value in asked.items() if name not in ("prompt", "n")}
    own = {"top_k": 0, "special": True, "num_samples": 2, **own}
    if "logit_bias" in own:
        own["logit_bias"] = {100: 50.0}
    expected = complete(model, tokenizer, prompts, **own)
    choices = client.complete(**asked)["choices"]
    assert [choice["index"] for choice in choices] == list(range(6))
    assert [choice["text"] for choice in choices] == [each.text for each in expected]
    reasons = {"end_of_text": "stop", "stop_text": "stop", "constraint": "stop"}
    assert [choice["finish_reason"] for choice in choices] == [
        reasons.get(each.finish_reason, "length") for each in expected
    ]


def test_a_request_that_forbids_everything_is_refused_and_others_go_on(client: Client) -> None:
    asked: dict[str, Any] = {"prompt": "x", "max_tokens": 600, "min_tokens": 600}
    asked["no_repeat_ngram"] = 1
    asked |= {"ban": [chr(i) for i in range(256)], "overflow": "slide"}
    status, error = client.error(**asked)
    assert (status, error["code"]) == (400, "no_token_allowed")
    assert "leave no token to go on with" in error["message"]
    assert client.complete(**PLAIN)["choices"]


def test_a_receipt_of_an_answer_replays_to_its_texts(client: Client) -> None:
    model, tokenizer = tiny()
    asked: dict[str, Any] = {"prompt": ["The dog", ""], "n": 2, "max_tokens": 9, "top_k": 5}
    answer = client.complete(**asked, receipt=True)
    found = answer["receipt"]
    check_receipt(found)
    assert "The dog" not in json.dumps(found)
    again = complete(model, tokenizer, prompts_of(found, asked["prompt"]), request_of(found))
    assert [each.text for each in again] == [choice["text"] for choice in answer["choices"]]
    for entry, completion in zip(found["texts"], again, strict=True):
        assert compare(entry, completion, tokenizer.decode).equal
    assert "receipt" not in client.complete(**asked)
    for change in ({"stream": True}, {"max_tokens": 0}, {"prompt": [1, 2]}):
        status, error = client.error(**{**asked, "receipt": True, **change})
        assert (status, error["param"]) == (400, "receipt")


def test_a_stream_joined_is_the_whole_answer(client: Client) -> None:
    asked = {**PLAIN, "n": 3, "max_tokens": 30, "stop": ["th"], "logprobs": 1, "echo": True}
    whole = client.complete(**asked)["choices"]
    events = client.events(**asked)
    assert all("usage" not in event for event in events)
    for index, expected in enumerate(whole):
        own = [
            choice for event in events for choice in event["choices"] if choice["index"] == index
        ]
        assert "".join(choice["text"] for choice in own) == expected["text"]
        assert [choice["finish_reason"] for choice in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1]["finish_reason"] == expected["finish_reason"]
        for name, values in expected["logprobs"].items():
            assert [value for choice in own for value in choice["logprobs"][name]] == values


def test_usage_comes_at_the_end_of_a_stream_if_asked_for(client: Client) -> None:
    *chunks, last = client.events(**PLAIN, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 9


def test_without_a_prompt_a_new_text_begins(client: Client) -> None:
    assert client.texts(max_tokens=8, seed=1) == client.texts(prompt=[[511]], max_tokens=8, seed=1)
    assert client.texts(max_tokens=8, seed=1) == client.texts(prompt="", max_tokens=8, seed=1)


def test_text_and_its_ids_get_the_same_answer(client: Client) -> None:
    ids = client.post("/tokenize", {"prompt": "The dog"}).json()["tokens"]
    assert client.texts(**{**PLAIN, "prompt": ids}) == client.texts(**PLAIN)


def test_best_of_returns_the_texts_with_the_highest_probability(client: Client) -> None:
    every = client.complete(**PLAIN, n=5, logprobs=0)["choices"]
    means = {choice["text"]: sum(choice["logprobs"]["token_logprobs"]) / 6 for choice in every}
    best = client.complete(**PLAIN, n=2, best_of=5)
    expected = sorted(means, key=lambda text: -means[text])[:2]
    assert [choice["text"] for choice in best["choices"]] == expected
    assert [choice["index"] for choice in best["choices"]] == [0, 1]
    assert all(choice["logprobs"] is None for choice in best["choices"])
    assert best["usage"]["completion_tokens"] == 30


def test_samples_that_share_a_reading_do_not_count_it_as_cached() -> None:
    """One in a lower slot than the sample that read the prompt said that nobody had read it."""
    with connected(settings=Settings(parallel=2)) as client:  # warming up took slot 0
        found = client.complete(prompt="An entirely other text here", max_tokens=1, n=2)
    assert found["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


def test_token_ids_are_returned_if_asked_for(client: Client) -> None:
    (choice,) = client.complete(**PLAIN, return_token_ids=True)["choices"]
    assert len(choice["token_ids"]) == 6
    prompt = client.post("/detokenize", {"tokens": choice["prompt_token_ids"]}).json()["prompt"]
    assert prompt == "The dog"


# --- probabilities --------------------------------------------------------------------------------


def test_what_lm_eval_asks_for_gives_the_log_likelihoods_of_evaluation(client: Client) -> None:
    """llama-server and others refuse `echo` with ids, so that benchmarks cannot score with them."""
    model, _ = tiny()
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(0, 511, (n,), generator=generator).tolist() for n in (2, 17, 40, 63)]
    found = client.complete(
        model="model", prompt=texts, temperature=0, max_tokens=1, logprobs=1, seed=1234, echo=True
    )
    expected = surprisals(model, [Window(ids, len(ids) - 1) for ids in texts])
    for choice, ids, own in zip(found["choices"], texts, expected, strict=True):
        values = choice["logprobs"]["token_logprobs"]
        assert len(values) == len(ids) + 1
        assert values[0] is None
        scored = torch.tensor(values[1:-1])
        assert torch.allclose(scored, -own.nats, atol=1e-5)
        likeliest = [
            value == max(listed.values())
            for value, listed in zip(
                values[1:-1], choice["logprobs"]["top_logprobs"][1:-1], strict=True
            )
        ]
        assert likeliest == own.greedy.tolist()


def test_scores_alone_need_no_new_token(client: Client) -> None:
    asked = {"prompt": "The dog", "echo": True, "logprobs": 2}
    one = client.complete(**asked, max_tokens=1, temperature=0)
    none = client.complete(**asked, max_tokens=0)
    assert none["choices"][0]["text"] == "The dog"
    assert none["choices"][0]["finish_reason"] == "length"
    assert none["usage"]["completion_tokens"] == 0
    for name, values in none["choices"][0]["logprobs"].items():
        assert values == one["choices"][0]["logprobs"][name][:-1]


def test_a_prompt_that_fills_the_window_can_be_scored(client: Client) -> None:
    ids = list(range(100, 100 + CONFIG.n_ctx))
    asked = {"prompt": ids, "echo": True, "logprobs": 0}
    scored = client.complete(**asked, max_tokens=0)["choices"][0]
    assert len(scored["logprobs"]["tokens"]) == CONFIG.n_ctx
    stopped = client.complete(**asked, max_tokens=5, overflow="stop")["choices"][0]
    assert stopped == scored
    stopped = client.events(**asked, max_tokens=5, overflow="stop")
    assert [event["choices"] for event in stopped] == [[scored]]


def test_echo_without_scores_needs_no_work(client: Client) -> None:
    found = client.complete(prompt=["The", "A"], echo=True, max_tokens=0, n=2)
    assert [choice["text"] for choice in found["choices"]] == ["The", "The", "A", "A"]
    (event,) = client.events(prompt="The", echo=True, max_tokens=0)
    assert event["choices"][0] == found["choices"][0]


def test_nothing_to_write_only_reads_the_prompt(client: Client) -> None:
    found = client.complete(prompt="The dog", max_tokens=0)
    assert (found["choices"][0]["text"], found["choices"][0]["finish_reason"]) == ("", "length")
    assert found["usage"]["completion_tokens"] == 0


def test_log_probabilities_have_an_entry_for_each_token(client: Client) -> None:
    """The end token and the tokens of a stop text are among them, as with OpenAI."""
    bias = {"511": 100}
    (choice,) = client.complete(prompt="a", max_tokens=5, logprobs=1, logit_bias=bias)["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("", "stop")
    assert choice["logprobs"]["tokens"] == ["<|endoftext|>"]
    assert len(choice["logprobs"]["top_logprobs"][0]) == 2  # the likeliest, and the chosen one
    assert choice["logprobs"]["text_offset"] == [1]


# --- refusals -------------------------------------------------------------------------------------


def test_too_long_a_prompt_is_told_what_to_do(client: Client) -> None:
    status, error = client.error(prompt=[1] * 60, max_tokens=5)
    assert (status, error["code"]) == (400, "context_length_exceeded")
    assert error["message"].startswith(
        "This model's maximum context length is 64 tokens, however you requested 65 tokens "
        "(60 in your prompt; 5 for the completion)."
    )
    assert "max_length=64" in error["message"]
    assert client.error(prompt=[1] * 65, overflow="stop")[1]["code"] == "context_length_exceeded"
    assert client.complete(prompt=[1] * 100, overflow="slide", max_tokens=2)
    scored = {"prompt": [1] * 100, "overflow": "slide", "echo": True, "logprobs": 1}
    assert client.error(**scored)[1]["code"] == "context_length_exceeded"


class CountingTokenizer(BPETokenizer):
    """Counts the characters that it encodes and the ids that it decodes."""

    work = 0

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        type(self).work += len(text)
        return super().encode(text, special=special)

    def decode(self, ids: list[int]) -> str:
        type(self).work += len(ids)
        return super().decode(ids)


@pytest.mark.parametrize("prompt", ["The dog. " * 100_000, [1] * 100_000], ids=["text", "ids"])
def test_what_is_surely_too_long_is_refused_before_it_is_encoded(prompt: object) -> None:
    """A megabyte was encoded, which takes a second, and then refused."""
    tokenizer = CountingTokenizer.from_folder(GOLDEN / "bpe" / "small")
    assert tokenizer is not None
    model, _ = tiny()
    with connected(application((model, tokenizer))) as client:
        CountingTokenizer.work = 0
        status, error = client.error(prompt=prompt, max_tokens=5)
        assert (status, error["code"]) == (400, "context_length_exceeded")
        found = "at least 69235" if isinstance(prompt, str) else "100005"
        assert f"however you requested {found} tokens" in error["message"]
        assert client.error(prompt=prompt, overflow="stop")[0] == 400
        assert CountingTokenizer.work == 0
        # What may fit is encoded: 20 times the same token of several bytes.
        assert client.complete(prompt=" the" * 20, max_tokens=5)
        assert CountingTokenizer.work


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"regex": "[^\\s\\S]"}, "regex"),
        ({"allow": ["a"], "regex": "b"}, "regex"),
        ({"forbid": ["xb"], "allow": ["b"], "prompt": "x"}, "allow"),
    ],
)
def test_constraints_that_no_text_meets_are_refused(
    client: Client, asked: dict[str, Any], param: str
) -> None:
    answer = client.post("/v1/completions", {"prompt": "a", **asked})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert "no text is allowed by" in answer.json()["error"]["message"]


def test_ids_that_the_vocabulary_lacks_are_refused(client: Client) -> None:
    for ids in ([512], [1, -1], [10**400]):
        status, error = client.error(prompt=ids)
        assert (status, error["param"]) == (400, "prompt")
    status, error = client.error(prompt="a", logit_bias={"512": 1})
    assert (status, error["param"]) == (400, "logit_bias")


def test_unknown_models_are_refused_with_the_known_ones(client: Client) -> None:
    status, error = client.error(prompt="a", model="gpt-4")
    assert (status, error["code"]) == (404, "model_not_found")
    assert error["message"] == "the model 'gpt-4' is not served here; there are: model"
    assert client.get("/v1/models/gpt-4").status_code == 404


def test_wrong_paths_and_methods_have_the_shape_of_all_errors(client: Client) -> None:
    response = client.get("/v1/completions")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert "expected POST" in response.json()["error"]["message"]
    assert client.get("/v1/nothing").json()["error"]["type"] == "not_found_error"
    chat = client.post("/v1/chat/completions", {"messages": []})
    assert chat.status_code == 404
    assert "no chat template" in chat.json()["error"]["message"]


def test_only_json_of_a_limited_size_is_read(client: Client) -> None:
    wrong = client.post("/v1/completions", content=b"{}", headers={"content-type": "text/plain"})
    assert wrong.status_code == 415
    large = client.post("/v1/completions", content=b'{"prompt": "' + b"a" * 2**20 + b'"}')
    assert large.status_code == 413
    broken = client.post("/v1/completions", content=b'{"prompt": ')
    assert broken.status_code == 400
    assert client.complete(prompt="a" * 60, max_tokens=1, overflow="slide")


def test_paths_may_end_with_a_slash(client: Client) -> None:
    assert client.post("/v1/completions/", PLAIN).status_code == 200
    assert client.get("/v1/models/").status_code == 200


def test_a_failure_of_ours_is_a_500_that_tells_nothing(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("/secret/path")

    monkeypatch.setattr("gpt2kit.serve.rows.encode", fail)
    response = client.post("/v1/completions", PLAIN)
    assert response.status_code == 500
    assert response.headers["x-should-retry"] == "false"
    assert "secret" not in response.text


# --- models and tokenizers ------------------------------------------------------------------------


def test_models_are_listed(client: Client) -> None:
    (listed,) = client.get("/v1/models").json()["data"]
    assert (listed["id"], listed["object"], listed["max_model_len"]) == ("model", "model", 64)
    assert client.get("/v1/models/model").json() == listed


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_the_tokenizer_can_be_asked(client: Client, prefix: str) -> None:
    found = client.post(
        f"{prefix}/tokenize", {"prompt": "<|endoftext|>The 😀", "return_token_strs": True}
    ).json()
    assert found["tokens"][0] == 511
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert found["token_strs"][-1].startswith("bytes:")
    back = client.post(f"{prefix}/detokenize", {"tokens": found["tokens"]}).json()
    assert back == {"prompt": "<|endoftext|>The 😀"}
    info = client.get(f"{prefix}/tokenizer_info").json()
    assert (info["eos_token"], info["eos_token_id"]) == ("<|endoftext|>", 511)
    plain = client.post(f"{prefix}/tokenize", {"prompt": "<|endoftext|>", "special": False}).json()
    assert plain["count"] > 1


def test_wrong_questions_to_the_tokenizer_are_refused(client: Client) -> None:
    for path, body in (
        ("/tokenize", {}),
        ("/tokenize", {"prompt": ["a"]}),
        ("/tokenize", {"promt": "a"}),
        ("/detokenize", {"tokens": [512]}),
        ("/detokenize", {"tokens": "a"}),
        # A flag that is not true or false was taken for one of them.
        ("/tokenize", {"prompt": "a", "special": "false"}),
        ("/tokenize", {"prompt": "a", "special": 0}),
        ("/tokenize", {"prompt": "a", "return_token_strs": "no"}),
        ("/tokenize", {"prompt": "a", "add_special_tokens": []}),
    ):
        assert client.post(path, body).status_code == 400, body
    error = client.post("/tokenize", {"prompt": "a", "special": "false"}).json()["error"]
    assert error["message"] == "special is 'false', expected true or false"
    assert error["param"] == "special"
    assert client.post("/tokenize", {"prompt": "a", "special": None}).status_code == 200
    assert client.post("/tokenize", {"prompt": "a", "model": "none"}).status_code == 404


def test_a_character_that_the_vocabulary_lacks_is_named() -> None:
    model, _ = tiny()
    with connected(application((model, CharTokenizer(sorted("abc "))))) as client:
        status, error = client.error(prompt="abd")
        assert (status, error["param"]) == (400, "prompt")
        assert "'d'" in error["message"]
        # It named an option of the command line, --unknown, which no client can type.
        assert "--" not in error["message"]
        status, error = client.error(prompt="")
        assert "empty" in error["message"]
        assert client.complete(prompt="ab", max_tokens=3)


# --- life, logs, counters -------------------------------------------------------------------------


def test_until_the_model_is_loaded_every_answer_is_503() -> None:
    with connected(start=False) as client:
        client.app.service.life.state = "loading"
        for response in (client.get("/health"), client.post("/v1/completions", PLAIN)):
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) > 0
        assert client.get("/health/live").status_code == 200
        client.app.service.life.state = "new"
        client.start()
        assert client.get("/health").json() == {"status": "ok"}
        client.app.service.life.state = "draining"
        assert client.post("/v1/completions", PLAIN).status_code == 503
        assert client.get("/health").status_code == 503


def test_a_model_that_cannot_be_loaded_is_no_healthy_server() -> None:
    with connected(application("no-such-model")) as client:
        assert client.get("/health").status_code == 503
        assert client.get("/health/live").status_code == 503
        assert "cannot be loaded" in str(client.app.service.life.error)


def test_an_engine_that_does_not_move_is_no_healthy_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise a load balancer sends it requests for ever."""
    moves = threading.Event()

    def step(_: object) -> list[object]:
        moves.wait(20)
        return []

    with connected() as client:
        monkeypatch.setattr("gpt2kit.serve.worker.BEAT_SECONDS", 0.05)
        assert client.get("/health").status_code == 200
        with monkeypatch.context() as patch:
            patch.setattr("gpt2kit.serve.worker.Continuation.step", step)
            thread = threading.Thread(target=lambda: client.post("/v1/completions", PLAIN))
            thread.start()
            wait_until(lambda: client.get("/health").status_code == 503)
            assert client.get("/health/live").status_code == 200
        moves.set()
        thread.join(20)
        assert client.get("/health").status_code == 200


def test_the_log_has_a_line_for_each_request_and_no_text(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    sent = {"x-request-id": "abc-123"}
    response = client.post(
        "/v1/completions", {**PLAIN, "prompt": "Xylophone", "stop": "Zebra"}, headers=sent
    )
    assert response.headers["x-request-id"] == "abc-123"
    hostile = client.get("/v1/mo%1bdels", headers={"x-request-id": "a b"})
    assert hostile.headers["x-request-id"] != "a b"
    text = caplog.text
    line = next(line for line in text.splitlines() if "abc-123" in line)
    for fact in ("status=200", "model=model", "new_tokens=6", "seed=3", "reason=done", "wait="):
        assert fact in line
    answer = response.json()["choices"][0]["text"]
    assert "Xylophone" not in text
    assert "Zebra" not in text
    assert answer not in text
    assert "\x1b" not in text


def test_counters_say_what_was_done() -> None:
    with connected() as client:
        client.complete(**PLAIN, n=2)
        client.complete(prompt="The dog", max_tokens=0, echo=True, logprobs=1)
        client.error(promt=1)
        text = client.get("/metrics").text
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["gpt2kit_requests_total", "/v1/completions", "200"] == 2
    assert found["gpt2kit_requests_total", "/v1/completions", "400"] == 1
    assert found["gpt2kit_generated_tokens_total",] == 12
    assert found["gpt2kit_scored_tokens_total",] == 2
    read = found["gpt2kit_prompt_tokens_total", "read"]
    assert read + found["gpt2kit_prompt_tokens_total", "cache"] == 9
    assert found["gpt2kit_slots", "model"] == 8
    assert found["gpt2kit_requests_running",] == 0
    assert found["gpt2kit_request_seconds_count",] == 2
    assert found["gpt2kit_token_seconds_count",] == 10


def test_settings_out_of_their_range_are_refused() -> None:
    with pytest.raises(ValueError, match="parallel is 0, expected a whole number, from 1"):
        Settings(parallel=0)
    with pytest.raises(ValueError, match="served_name has an empty value"):
        Settings(served_name=("",))


def test_another_application_may_have_this_one_under_a_prefix() -> None:
    """The page redirected to itself, health asked for a key, and all routes counted as unknown."""
    settings = Settings(api_key=("k",))
    with connected(application(tiny(), settings=settings), start=False) as client:
        outer = httpx2.ASGITransport(Starlette(routes=[Mount("/gpt", client.app)]))

        async def status(path: str) -> int:
            async with httpx2.AsyncClient(transport=outer, base_url="http://localhost") as http:
                return (await http.get(path)).status_code

        assert client.run(status("/gpt/")) == 200
        assert client.run(status("/gpt/health/live/")) == 200
        assert client.run(status("/gpt/v1/models")) == 401
        requests = client.app.service.metrics.requests
        assert requests.value(route="/health/live", code="200") == 1
