"""A text is the same alone, in a batch, streamed, and past the model's window."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN, begun, make_model

import gpt2kit
from gpt2kit.checkpoints.load import build_model, open_checkpoint
from gpt2kit.config import GPT2Config
from gpt2kit.errors import (
    ConfigError,
    ContextLengthError,
    GenerationError,
    Gpt2KitWarning,
    TokenizerError,
)
from gpt2kit.generation.request import Request, Sampling
from gpt2kit.generation.row import Row
from gpt2kit.generation.stop_texts import StopTexts
from gpt2kit.generation.text import complete, generate, generate_tokens, stream
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import BPETokenizer

GREEDY = Sampling(temperature=0)
PROMPTS = ["Perché ", "Nel mezzo del cammin di nostra vita", "🙂", "a", "the end of the", "a"]
FIXTURES = sorted(
    path
    for kind in ("tf", "hf")
    for path in (GOLDEN / kind).iterdir()
    if path.name != "sample-filters"
)


def tokens(model: GPT2, prompt: Sequence[int], n: int, **options: Any) -> list[int]:
    return [
        step[0]
        for step in generate_tokens(
            model, [prompt], max_tokens=n, **{"sampling": GREEDY, **options}
        )
    ]


def fresh_greedy(model: GPT2, ids: list[int], n: int) -> list[int]:
    """Return the greedy continuation, computed without a cache and without the code under test."""
    ids = list(ids)
    for _ in range(n):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[-n:]


# --- tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", FIXTURES, ids=lambda path: path.name)
def test_greedy_tokens_are_those_of_the_original_programs(folder: Path) -> None:
    answers = np.load(folder / "reference.npz")
    prompt, expected = np.atleast_2d(answers["prompt"]), np.atleast_2d(answers["greedy"])
    model = build_model(open_checkpoint(folder))
    n = expected.shape[1] - prompt.shape[1]
    found = list(
        generate_tokens(model, torch.from_numpy(prompt).long(), max_tokens=n, sampling=GREEDY)
    )
    assert np.array_equal(np.array(found).T, expected[:, prompt.shape[1] :])


def test_a_trained_model_writes_what_transformers_writes(test_data: Path) -> None:
    folder = test_data / "models" / "shakespeare"
    answer = json.loads((folder / "expected.json").read_text())
    model, tokenizer = gpt2kit.load(folder, device="cpu")
    n = len(answer["greedy"]) - len(answer["prompt"])
    completion = complete(model, tokenizer, "First Citizen:", max_tokens=n, temperature=0)[0]
    assert answer["prompt"] + completion.tokens == answer["greedy"]


def test_prompts_of_different_lengths_give_the_same_tokens_as_one_by_one(tiny_model: GPT2) -> None:
    prompts = [[5, 6, 7], [9], [5, 6, 7], [1, 2, 3, 4, 5, 6, 7, 8], [400, 401, 402]]
    together = list(
        zip(*generate_tokens(tiny_model, prompts, max_tokens=40, sampling=GREEDY), strict=True)
    )
    assert [list(row) for row in together] == [tokens(tiny_model, prompt, 40) for prompt in prompts]


def test_memory_that_was_never_written_does_not_reach_a_row(
    tiny_model: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Shorter rows are masked where longer ones have tokens, but 0 * NaN is NaN: what the allocator
    # had left there ruined the row.
    monkeypatch.setenv("GPT2KIT_NATIVE", "0")
    options: Any = {"max_tokens": 3, "sampling": GREEDY}
    expected = list(generate_tokens(tiny_model, [[1], [1, 2, 3, 4, 5]], **options))
    torch.use_deterministic_algorithms(True)  # fills memory that nothing was written to with NaN
    try:
        found = list(generate_tokens(tiny_model, [[1], [1, 2, 3, 4, 5]], **options))
    finally:
        torch.use_deterministic_algorithms(False)
    assert found == expected


def test_generation_ends_when_every_row_has_stopped(tiny_model: GPT2) -> None:
    prompts = [[5, 6, 7], [9], [1, 2, 3, 4]]
    free = list(
        zip(*generate_tokens(tiny_model, prompts, max_tokens=12, sampling=GREEDY), strict=True)
    )
    stop_id = free[0][4]
    first = [row.index(stop_id) if stop_id in row else 12 for row in free]
    stopped = list(
        zip(
            *generate_tokens(tiny_model, prompts, max_tokens=12, sampling=GREEDY, stop_id=stop_id),
            strict=True,
        )
    )
    for row, (whole, end) in enumerate(zip(free, first, strict=True)):
        assert stopped[row][: end + 1] == whole[: end + 1]
        assert set(stopped[row][end + 1 :]) <= {stop_id}
    assert len(stopped[0]) == min(12, max(first) + 1)


@pytest.mark.parametrize("length", [31, 32, 33, 50])
def test_sliding_continues_like_a_new_run_from_the_last_half_of_the_window(
    tiny_model: GPT2, length: int
) -> None:
    prompt = torch.randint(
        0, 512, (length,), generator=torch.Generator().manual_seed(length)
    ).tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = tokens(tiny_model, prompt, 60)
    text = prompt[-32:]  # what the model can read of the prompt
    expected: list[int] = []
    window = list(text)
    while len(expected) < 60:
        if len(window) > 32:
            window = window[-16:]
        new = fresh_greedy(tiny_model, window, min(33 - len(window), 60 - len(expected)))
        expected += new
        window += new
    assert found == expected


def test_rows_slide_each_at_its_own_time(tiny_model: GPT2) -> None:
    prompts = [list(range(30)), [7], list(range(100, 120))]
    together = list(
        zip(*generate_tokens(tiny_model, prompts, max_tokens=70, sampling=GREEDY), strict=True)
    )
    assert [list(row) for row in together] == [tokens(tiny_model, prompt, 70) for prompt in prompts]


@pytest.mark.parametrize("n_ctx", [1, 2, 3])
def test_the_smallest_windows_slide_too(tiny_config: GPT2Config, n_ctx: int) -> None:
    model = make_model(replace(tiny_config, n_ctx=n_ctx))
    assert len(tokens(model, [5], 9)) == 9


def test_a_prompt_that_is_too_long_keeps_its_end_with_a_warning(tiny_model: GPT2) -> None:
    with pytest.warns(
        Gpt2KitWarning,
        match="has 50 tokens, but the model reads at most 32: the first 18 are left out",
    ):
        found = tokens(tiny_model, list(range(50)), 3)
    assert found == tokens(tiny_model, list(range(18, 50)), 3)


def test_stop_ends_at_the_last_position(tiny_model: GPT2) -> None:
    assert len(tokens(tiny_model, list(range(30)), 20, overflow="stop")) == 2
    assert tokens(tiny_model, list(range(32)), 20, overflow="stop") == []


@pytest.mark.parametrize(("overflow", "length"), [("stop", 33), ("error", 33), ("error", 23)])
def test_a_text_that_does_not_fit_is_refused_before_anything_is_computed(
    tiny_model: GPT2, overflow: str, length: int
) -> None:
    with pytest.raises(ContextLengthError, match=r"reads at most 32.*--overflow slide") as caught:
        tokens(tiny_model, list(range(length)), 10, overflow=overflow)
    assert caught.value.limit == 32


def test_overflow_error_accepts_a_text_that_fits_exactly(tiny_model: GPT2) -> None:
    assert len(tokens(tiny_model, list(range(22)), 10, overflow="error")) == 10


def test_ids_outside_the_vocabulary_are_refused(tiny_model: GPT2) -> None:
    with pytest.raises(TokenizerError, match="id 512 is not in the model's vocabulary of 512"):
        tokens(tiny_model, [1, 512], 1)
    with pytest.raises(ConfigError, match="no tokens"):
        tokens(tiny_model, [], 1)


def test_damaged_weights_are_an_error_and_not_a_text(tiny_model: GPT2) -> None:
    with torch.no_grad():
        dict(tiny_model.named_parameters())["ln_f.bias"][0] = float("nan")
    with pytest.raises(GenerationError, match="not finite"):
        tokens(tiny_model, [1], 1)


# --- text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0}, {"seed": 3}, {"seed": 4, "top_k": 0, "temperature": 1.5}],
    ids=str,
)
def test_many_prompts_give_the_same_texts_as_one_by_one(
    tiny_model: GPT2, small_bpe: BPETokenizer, options: dict[str, Any]
) -> None:
    together = complete(tiny_model, small_bpe, PROMPTS, max_tokens=40, **options)
    alone = [
        complete(tiny_model, small_bpe, prompt, max_tokens=40, **options)[0] for prompt in PROMPTS
    ]
    assert together == [
        replace(one, seed=both.seed) for one, both in zip(alone, together, strict=True)
    ]


def test_sample_three_alone_is_sample_three_of_eight(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    eight = complete(tiny_model, small_bpe, "a", max_tokens=20, num_samples=8, seed=11)
    four = complete(tiny_model, small_bpe, "a", max_tokens=20, num_samples=4, seed=11)
    assert four == eight[:4]
    assert len({completion.text for completion in eight}) == 8
    ids = small_bpe.encode("a")
    row = Row(ids, Request(max_tokens=20, seed=11), tiny_model.config, sample=3)
    state = begun(tiny_model, [row])
    while state.has_work:
        state.step()
    assert row.history[len(ids) :] == eight[3].tokens


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("seed", range(5))
def test_the_pieces_of_a_stream_joined_are_all_tokens_decoded(
    tiny_model: GPT2, small_bpe: BPETokenizer, prompt: str, seed: int
) -> None:
    # Random tokens of this vocabulary are mostly halves of characters, the hardest case there is.
    pieces = list(
        stream(
            tiny_model,
            small_bpe,
            prompt,
            max_tokens=60,
            seed=seed,
            top_k=0,
            temperature=2.0,
            ignore_eos=True,
        )
    )
    assert "".join(piece.text for piece in pieces) == small_bpe.decode(
        [piece.token for piece in pieces]
    )
    assert [piece.finish_reason for piece in pieces] == [None] * 59 + ["max_tokens"]


class Parrot:
    """A model whose most likely tokens are given ones, in their order; the last one repeats."""

    def __init__(self, ids: list[int], config: GPT2Config) -> None:
        self._model = make_model(config)
        self._ids = ids
        self._next = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(hidden), self._model.config.n_vocab)
        logits[:, self._ids[min(self._next, len(self._ids) - 1)]] = 1.0
        self._next += 1
        return logits


def say(
    text: str, tiny_config: GPT2Config, tokenizer: BPETokenizer, **options: Any
) -> gpt2kit.Completion:
    ids = tokenizer.encode(text)
    model: Any = Parrot(ids, replace(tiny_config, n_ctx=256))
    return complete(model, tokenizer, "x", **{"temperature": 0, "max_tokens": len(ids), **options})[
        0
    ]


def test_italian_and_emoji_stream_whole(tiny_config: GPT2Config, small_bpe: BPETokenizer) -> None:
    text = "Perché la città è più giù? 🙂🇮🇹 ché\n"
    model: Any = Parrot(small_bpe.encode(text), replace(tiny_config, n_ctx=256))
    pieces = list(
        stream(model, small_bpe, "x", temperature=0, max_tokens=len(small_bpe.encode(text)))
    )
    assert "".join(piece.text for piece in pieces) == text
    assert not any("\ufffd" in piece.text for piece in pieces)
    assert any(piece.text == "" for piece in pieces)  # the first bytes of an emoji are held back


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (".", "The end"),
        (["zzz", "end"], "The "),
        ("d. S", "The en"),
        ("more to come", "The end. So it goes"),
        (["goes", "So it"], "The end. "),
        ("The", ""),
    ],
)
def test_a_stop_text_ends_the_text_before_it(
    tiny_config: GPT2Config, small_bpe: BPETokenizer, stop: Any, expected: str
) -> None:
    found = say("The end. So it goes", tiny_config, small_bpe, stop=stop)
    assert found.text == expected
    assert found.finish_reason == (
        "stop_text" if expected != "The end. So it goes" else "max_tokens"
    )


def test_a_stop_text_that_begins_with_itself_is_found(
    tiny_config: GPT2Config, small_bpe: BPETokenizer
) -> None:
    # A matcher that forgets what it held when a match breaks would miss "aab" in "aaab".
    assert say("xaaabx", tiny_config, small_bpe, stop="aab").text == "xa"


def test_a_stop_text_that_one_of_the_least_tokens_completes_stays_in_the_text(
    tiny_config: GPT2Config, small_bpe: BPETokenizer
) -> None:
    ids = small_bpe.encode("one END two END three")
    ends = [i + 1 for i in range(len(ids)) if small_bpe.decode(ids[: i + 1]).endswith("END")]

    def said(least: int) -> str:
        return say(
            "one END two END three", tiny_config, small_bpe, stop="END", min_tokens=least
        ).text

    assert said(ends[0] - 1) == "one "
    assert said(ends[0]) == said(ends[1] - 1) == "one END two "
    assert said(ends[1]) == "one END two END three"


def test_what_may_begin_a_stop_text_is_held_back() -> None:
    stops = StopTexts(["END"])
    shown = [stops.feed(piece) for piece in ("a E", "N", "x E", "ND b")]
    assert shown == ["a ", "", "ENx ", ""]
    assert stops.found
    assert stops.feed("more") == stops.finish() == ""


def test_the_end_marker_ends_a_text_unless_it_is_ignored(
    tiny_config: GPT2Config, small_bpe: BPETokenizer
) -> None:
    ids = [*small_bpe.encode("hi"), 511, *small_bpe.encode(" there")]
    for ignore, text, reason in (
        (False, "hi", "end_of_text"),
        (True, "hi<|endoftext|> there", "max_tokens"),
    ):
        model: Any = Parrot(ids, replace(tiny_config, n_ctx=256))
        found = complete(
            model, small_bpe, "x", temperature=0, max_tokens=len(ids), ignore_eos=ignore
        )[0]
        assert (found.text, found.finish_reason) == (text, reason)


def test_a_text_that_fills_the_window_ends_with_the_reason_context(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    found = complete(
        tiny_model, small_bpe, "abc", max_tokens=100, overflow="stop", seed=0, ignore_eos=True
    )[0]
    assert found.finish_reason == "context"
    assert len(found.tokens) + len(small_bpe.encode("abc")) == 32


def test_an_empty_prompt_starts_at_the_end_marker(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    found = complete(tiny_model, small_bpe, "", max_tokens=5, temperature=0, ignore_eos=True)[0]
    assert found.tokens == tokens(tiny_model, [511], 5)


def test_the_marker_in_a_prompt_is_text_unless_special(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    as_marker = tokens(tiny_model, [511, 64], 5)
    for special in (True, False):
        found = complete(
            tiny_model,
            small_bpe,
            "<|endoftext|>a",
            max_tokens=5,
            temperature=0,
            ignore_eos=True,
            special=special,
        )[0]
        assert (found.tokens == as_marker) == special


def test_log_probabilities_are_the_models_own(tiny_model: GPT2, small_bpe: BPETokenizer) -> None:
    found = complete(
        tiny_model,
        small_bpe,
        "abc",
        max_tokens=8,
        seed=1,
        top_k=5,
        temperature=0.7,
        ignore_eos=True,
        logprobs=True,
    )[0]
    ids = torch.tensor([small_bpe.encode("abc") + found.tokens])
    with torch.no_grad():
        expected = tiny_model(ids)[0, -9:-1].log_softmax(dim=-1).gather(1, ids[0, -8:, None])[:, 0]
    np.testing.assert_allclose(np.array(found.logprobs), expected, atol=1e-4)


@pytest.mark.parametrize("draft", [None, "lookup"])
def test_alternatives_are_the_models_own_before_bias_penalties_and_filters(
    tiny_model: GPT2, small_bpe: BPETokenizer, draft: Any
) -> None:
    request = Request(
        max_tokens=20,
        seed=1,
        ignore_eos=True,
        num_samples=2,
        logprobs=True,
        top_logprobs=3,
        sampling=Sampling(
            top_k=5, temperature=0.7, frequency_penalty=2, logit_bias=((64, 7.0), (70, -100.0))
        ),
    )
    for found in complete(tiny_model, small_bpe, "abcabcabc", request, draft=draft):
        prompt = small_bpe.encode("abcabcabc")
        with torch.no_grad():
            logits = tiny_model(torch.tensor([prompt + found.tokens]))[0, len(prompt) - 1 : -1]
        exact = logits.double().log_softmax(dim=-1).numpy()
        assert found.logprobs is not None
        assert found.top_logprobs is not None
        assert len(found.top_logprobs) == len(found.tokens) == 20
        for own, token, logprob, top in zip(
            exact, found.tokens, found.logprobs, found.top_logprobs, strict=True
        ):
            assert [other for other, _ in top] == np.argsort(-own)[:3].tolist()
            np.testing.assert_allclose([value for _, value in top], -np.sort(-own)[:3], atol=1e-4)
            assert dict(top).get(token, logprob) == logprob  # the same float in both


def test_alternatives_are_given_only_where_they_are_asked_for(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    plain = complete(tiny_model, small_bpe, "a", max_tokens=3, seed=1, logprobs=True)[0]
    assert plain.top_logprobs is None
    asked = complete(tiny_model, small_bpe, "a", max_tokens=3, seed=1, top_logprobs=2)[0]
    assert asked.logprobs is None
    assert asked.tokens == plain.tokens
    assert [len(top) for top in asked.top_logprobs or []] == [2, 2, 2]


def test_rows_that_ask_for_different_log_probabilities_each_get_their_own(
    tiny_model: GPT2,
) -> None:
    asks: list[dict[str, Any]] = [{"top_logprobs": 4}, {"logprobs": True}, {"top_logprobs": 2}, {}]
    requests = [Request(max_tokens=1, seed=1, **ask) for ask in asks]
    rows = [Row([1, 2], request, tiny_model.config) for request in requests]
    begun(tiny_model, rows).step()
    found = [(row.new[0].logprob is None, len(row.new[0].top_logprobs or ())) for row in rows]
    assert found == [(True, 4), (False, 0), (True, 2), (True, 0)]
    assert rows[0].new[0].top_logprobs is not None
    assert rows[0].new[0].top_logprobs[:2] == rows[2].new[0].top_logprobs


def test_penalties_count_generated_tokens_beyond_the_window_and_not_the_prompt(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    # `history` forgets what has left the window of 32 tokens; the counts must not.
    banned = {token: -100.0 for token in range(512) if token not in (64, 65, 66)}
    found = complete(
        tiny_model,
        small_bpe,
        "aaaaaaaaaa",
        max_tokens=120,
        temperature=0,
        frequency_penalty=2,
        logit_bias=banned,
    )[0].tokens
    counts = [found.count(token) for token in (64, 65, 66)]
    assert sum(counts) == 120
    # Each time costs 2, so the counts differ by no more than half the distance of the logits.
    assert max(counts) - min(counts) <= 4


def test_a_bias_beyond_the_vocabulary_is_refused_at_the_call(
    tiny_config: GPT2Config, small_bpe: BPETokenizer
) -> None:
    padded = make_model(replace(tiny_config, n_vocab=small_bpe.n_vocab + 8))
    with pytest.raises(ConfigError, match=f"has the id {small_bpe.n_vocab}, expected"):
        stream(padded, small_bpe, "a", logit_bias={small_bpe.n_vocab: 1.0})
    with pytest.raises(ConfigError, match="logit_bias has the id"):
        next(
            generate_tokens(
                padded, [[1]], sampling=Sampling(logit_bias=((padded.config.n_vocab, 1.0),))
            )
        )


def test_the_repetition_penalty_reaches_the_text(tiny_model: GPT2, small_bpe: BPETokenizer) -> None:
    plain = complete(tiny_model, small_bpe, "a", max_tokens=30, temperature=0)[0].tokens
    varied = complete(
        tiny_model, small_bpe, "a", max_tokens=30, temperature=0, repetition_penalty=1e6
    )[0].tokens
    assert len(set(plain)) < len(set(varied))
    assert 64 not in varied  # the prompt counts as seen


def test_the_same_seed_gives_the_same_text_and_a_drawn_seed_is_reported(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    drawn = complete(tiny_model, small_bpe, "a", max_tokens=20)[0]
    assert complete(tiny_model, small_bpe, "a", max_tokens=20, seed=drawn.seed)[0] == drawn
    assert generate(tiny_model, small_bpe, "a", max_tokens=20, seed=drawn.seed) == drawn.text


def test_generate_refuses_several_samples(tiny_model: GPT2, small_bpe: BPETokenizer) -> None:
    with pytest.raises(ConfigError, match="use complete"):
        generate(tiny_model, small_bpe, "a", num_samples=2)


@pytest.mark.parametrize(
    "ids",
    [
        [],
        [1, 2],
        torch.tensor([1, 2]),
        torch.tensor(1),
        np.array([1, 2]),
        torch.tensor([[1.0, 2.0]]),
        np.array([[1.0, 2.0]]),
        np.array([[True, False]]),
        [[1, 2.0]],
        [[1, True]],
        [[1, None]],
        [[1, [2]], [3, 4]],
        "abc",
        ["abc"],
        b"abc",
        [b"abc"],
        [["a"]],
        7,
        None,
        {1: 2},
    ],
    ids=str,
)
def test_ids_that_are_no_prompts_are_refused(tiny_model: GPT2, ids: Any) -> None:
    # NumPy arrays, floats, strings and nested lists ended in ValueErrors and TypeErrors.
    with pytest.raises(ConfigError, match=r"^expected \(B, T\) ids or a list of prompts"):
        list(generate_tokens(tiny_model, ids, max_tokens=1))


@pytest.mark.parametrize(
    "ids",
    [
        [[1, 2], [3, 4]],
        ((1, 2), (3, 4)),
        torch.tensor([[1, 2], [3, 4]]),
        torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8),
        np.array([[1, 2], [3, 4]]),
        np.array([[1, 2], [3, 4]], dtype=np.uint16),
        [np.array([1, 2]), torch.tensor([3, 4])],
        [[np.int32(1), np.int64(2)], range(3, 5)],
    ],
    ids=str,
)
def test_tensors_arrays_and_lists_of_prompts_are_the_same(tiny_model: GPT2, ids: Any) -> None:
    expected = list(generate_tokens(tiny_model, [[1, 2], [3, 4]], max_tokens=5, seed=1))
    assert list(generate_tokens(tiny_model, ids, max_tokens=5, seed=1)) == expected


def test_an_option_that_only_texts_have_is_refused_for_tokens(tiny_model: GPT2) -> None:
    for name, value in (("stop", "x"), ("num_samples", 2), ("top_k", 3), ("topk", 3)):
        with pytest.raises(TypeError, match=name):
            next(generate_tokens(tiny_model, [[1]], **{name: value}))  # type: ignore[arg-type]


def test_a_request_and_its_options_by_keyword_are_the_same(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    request = Request(max_tokens=9, seed=1, stop=("e",), sampling=Sampling(top_k=3))
    options: Any = {"max_tokens": 9, "seed": 1, "stop": "e", "top_k": 3}
    for function in (generate, complete):
        by_request = function(tiny_model, small_bpe, "a", request)
        assert by_request == function(tiny_model, small_bpe, "a", **options)
    assert list(stream(tiny_model, small_bpe, "a", request)) == list(
        stream(tiny_model, small_bpe, "a", **options)
    )
    with pytest.raises(ConfigError, match="not both"):
        stream(tiny_model, small_bpe, "a", request, top_k=3)


def test_samples_can_begin_at_any_number(tiny_model: GPT2, small_bpe: BPETokenizer) -> None:
    eight = complete(tiny_model, small_bpe, "a", max_tokens=9, num_samples=8, seed=11)
    assert (
        complete(tiny_model, small_bpe, "a", max_tokens=9, num_samples=2, first_sample=3, seed=11)
        == eight[3:5]
    )


def test_zero_new_tokens_give_an_empty_text(tiny_model: GPT2, small_bpe: BPETokenizer) -> None:
    found = complete(tiny_model, small_bpe, ["a", "b"], max_tokens=0)
    assert [(completion.text, completion.finish_reason) for completion in found] == [
        ("", "max_tokens")
    ] * 2


def test_a_model_without_a_vocabulary_says_what_to_do(tiny_model: GPT2) -> None:
    with pytest.raises(
        TokenizerError, match=r"no vocabulary beside the weights; expected vocab\.json"
    ):
        generate(tiny_model, None, "a")


def test_a_long_stop_text_does_not_slow_the_text_down() -> None:
    """Every beginning of it was compared with a few characters: seconds for each token."""
    stops = StopTexts(["a" * 1_000_000])
    began = time.process_time()
    assert [stops.feed("ba"), stops.feed("b"), stops.finish()] == ["b", "ab", ""]
    assert time.process_time() - began < 1


def test_a_text_that_goes_on_like_a_long_stop_text_does_not_get_slower() -> None:
    """All that was held back was compared anew at each token, in a server for all its clients."""
    stops = StopTexts(["-" * 30_000 + "!"] * 4)
    began = time.process_time()
    shown = [stops.feed("-" * 64) for _ in range(300)]
    assert "".join(shown) == ""
    assert stops.feed("a") == "-" * 64 * 300 + "a"
    assert time.process_time() - began < 1
