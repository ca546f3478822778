"""Bans, repeated n-grams and minimum lengths: what is forbidden, and nothing else."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_model

from gpt2kit import complete, generate_tokens
from gpt2kit.config import GPT2Config
from gpt2kit.errors import ConfigError, GenerationError
from gpt2kit.generation.continuation import Continuation
from gpt2kit.generation.request import Request, Sampling, as_request
from gpt2kit.generation.row import Row
from gpt2kit.generation.shaping.forbidding import (
    Bans,
    Limit,
    MinTokens,
    NoRepeatedNgrams,
    limits_for,
)
from gpt2kit.generation.shaping.processors import RowView
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import BPETokenizer, CharTokenizer

# Tokens that overlap in many ways; é is two bytes, and each of them is a token, too.
PIECES = [b"a", b"b", b"ab", b"ba", b"aab", b"\xc3", b"\xa9", b"\xa9a", b"<|end|>"]
MARKER = len(PIECES) - 1


class Pieces:
    """A vocabulary of a few byte strings, the last of which ends a text."""

    n_vocab = len(PIECES)
    stop_id: int | None = MARKER

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        raise NotImplementedError

    def decode(self, ids: list[int]) -> str:
        return b"".join(PIECES[token] for token in ids).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        return PIECES[token]

    def files(self) -> dict[str, bytes]:
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        raise NotImplementedError


def allowed(limit: Limit, tokens: tuple[int, ...], prompt_length: int, n_vocab: int) -> list[int]:
    """Return the tokens that a limit leaves."""
    logits = torch.zeros(n_vocab)
    limit.forbid(logits, RowView(tokens, prompt_length, 0, {}))
    assert set(logits.tolist()) <= {0.0, -math.inf}
    return torch.nonzero(logits == 0).flatten().tolist()


@pytest.mark.parametrize("bans", [["ab"], ["aba", "bb"], ["é"], ["éa", "b"], ["aaba", "abab"]])
@pytest.mark.parametrize("prompt", [(0,), (2, 3), (5,), (0, MARKER)])
def test_every_text_without_a_ban_can_be_written_and_no_other(
    bans: list[str], prompt: tuple[int, ...]
) -> None:
    """All continuations of three tokens; a ban may begin in the prompt, after its last marker."""
    limit = Bans(bans, Pieces(), MARKER)
    before = b"" if MARKER in prompt else b"".join(PIECES[token] for token in prompt)

    def brings_a_ban(new: tuple[int, ...]) -> bool:
        text = before + b"".join(PIECES[token] for token in new)
        return any(
            text.endswith(ban.encode(), 0, end)
            for ban in bans
            for end in range(len(before) + 1, len(text) + 1)
        )

    for n in range(3):
        for new in itertools.product(range(MARKER), repeat=n):
            if not brings_a_ban(new):
                expected = [t for t in range(MARKER) if not brings_a_ban((*new, t))]
                found = allowed(limit, (*prompt, *new), len(prompt), len(PIECES))
                assert found == [*expected, MARKER]


def test_the_end_marker_is_a_text_only_if_it_does_not_end_one() -> None:
    assert MARKER in allowed(Bans(["end"], Pieces(), MARKER), (0,), 1, len(PIECES))
    assert MARKER not in allowed(Bans(["end"], Pieces(), None), (0,), 1, len(PIECES))


def test_a_long_ban_needs_little_memory_and_a_longer_one_is_refused() -> None:
    # Every beginning was kept with its rest: a ban of a million characters took 10^12 bytes.
    letters = "".join("ab"[i * i % 7 % 2] for i in range(1000))
    tracemalloc.start()
    Bans([letters], Pieces(), MARKER)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()
    with pytest.raises(ConfigError, match="has 1,001 characters, expected at most 1,000"):
        Request(ban=(letters + "a",))


@pytest.mark.parametrize("draft", [None, "lookup", "model"])
def test_a_banned_text_is_never_written(
    tiny_model: GPT2, tiny_config: GPT2Config, small_bpe: BPETokenizer, draft: Any
) -> None:
    if draft == "model":
        draft = make_model(tiny_config, seed=3)
    options: Any = {"num_samples": 4, "seed": 1, "max_tokens": 60, "ignore_eos": True}
    free = complete(tiny_model, small_bpe, "ab", **options)
    bans = [text for text, _ in Counter("".join(each.text for each in free)).most_common(12)]
    bans = [each for each in bans if each != "\ufffd"]
    for each in complete(tiny_model, small_bpe, "ab", ban=bans, draft=draft, **options):
        assert len(each.tokens) == 60
        assert not any(ban in each.text for ban in bans)


def test_limited_texts_are_the_same_alone_in_a_batch_and_with_a_lookup_draft(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    options: Any = {
        "max_tokens": 50,
        "seed": 1,
        "ban": ["e", "th", " a"],
        "no_repeat_ngram": 2,
        "min_tokens": 20,
        "typical_p": 0.8,
        "stop": "\n",
        "logprobs": True,
    }
    prompts = ["ab", "the", "x y z the the"]
    together = complete(tiny_model, small_bpe, prompts, num_samples=3, **options)
    drafted = complete(tiny_model, small_bpe, prompts, num_samples=3, draft="lookup", **options)
    assert together == drafted
    for i, prompt in enumerate(prompts):
        for sample in range(3):
            (alone,) = complete(tiny_model, small_bpe, prompt, first_sample=sample, **options)
            assert alone == together[3 * i + sample]


def test_a_ban_leaves_the_models_distribution_renormalized_and_its_log_probabilities(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    n = 1500
    with torch.no_grad():
        logits = tiny_model(torch.tensor([small_bpe.encode("ab")]))[0, -1, : small_bpe.n_vocab]
    logprobs = logits.double().log_softmax(dim=-1)
    holds_e = torch.tensor([b"e" in small_bpe.token_bytes(i) for i in range(small_bpe.n_vocab)])
    holds_e[small_bpe.stop_id] = False  # it ends the text, and its name is not written
    expected = logprobs.exp().masked_fill(holds_e, 0)
    expected /= expected.sum()
    found = complete(
        tiny_model, small_bpe, "ab", ban="e", num_samples=n, max_tokens=1, top_k=0, logprobs=True
    )
    counts = np.bincount([each.tokens[0] for each in found], minlength=len(expected))
    assert not counts[holds_e.numpy()].any()
    wanted = n * expected.numpy()[~holds_e.numpy()]
    square = ((counts[~holds_e.numpy()] - wanted) ** 2 / wanted).sum()
    df = len(wanted) - 1
    assert abs(square - df) < 5 * math.sqrt(2 * df)
    for each in found[:20]:
        assert each.logprobs == pytest.approx([logprobs[each.tokens[0]].item()], abs=1e-4)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_no_ngram_is_written_twice(n: int) -> None:
    """A row without any tokens raised IndexError."""
    rng = np.random.default_rng(n)
    for length in (0, 1, 2, 4, 30):
        tokens = tuple(rng.integers(0, 6, length).tolist())
        seen = {tokens[i : i + n] for i in range(length - n + 1)}
        end = tokens[length - n + 1 :] if n > 1 else ()
        expected = [t for t in range(6) if len(end) != n - 1 or (*end, t) not in seen]
        assert allowed(NoRepeatedNgrams(n), tokens, 1, 6) == expected


def test_ngrams_do_not_repeat_across_a_window_that_has_slid(tiny_model: GPT2) -> None:
    steps = generate_tokens(
        tiny_model, [[1, 2, 3]], max_tokens=90, sampling=Sampling(temperature=0, no_repeat_ngram=2)
    )
    text = [1, 2, 3, *(token for (token,) in steps)]
    assert len(text) == 93
    assert len(set(itertools.pairwise(text))) == 92


@pytest.mark.slow
def test_ngrams_and_typical_p_are_those_of_transformers() -> None:
    process = pytest.importorskip("transformers.generation.logits_process")
    from gpt2kit.generation.sampling import full_distribution

    rng = np.random.default_rng(0)
    for n, _ in itertools.product((1, 2, 3), range(20)):
        ids = torch.from_numpy(rng.integers(0, 5, (1, int(rng.integers(1, 30)))))
        theirs = process.NoRepeatNGramLogitsProcessor(n)(ids, torch.zeros(1, 5))
        expected = torch.nonzero(theirs[0] == 0).flatten().tolist()
        assert allowed(NoRepeatedNgrams(n), tuple(ids[0].tolist()), 1, 5) == expected
    for p in (0.1, 0.5, 0.9, 0.99):
        logits = torch.from_numpy(rng.normal(0, 3, (50, 40)))
        theirs = process.TypicalLogitsWarper(mass=p)(None, logits.clone()).softmax(dim=-1)
        ours = full_distribution(logits, Sampling(top_k=0, typical_p=p))
        torch.testing.assert_close(ours, theirs)


def test_no_end_marker_comes_before_the_least_number_of_tokens(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    assert small_bpe.stop_id is not None
    bias = {small_bpe.stop_id: 100}
    for least in (0, 1, 5):
        (found,) = complete(
            tiny_model, small_bpe, "ab", logit_bias=bias, min_tokens=least, top_k=1, seed=1
        )
        assert len(found.tokens) == least + 1
        assert found.finish_reason == "end_of_text"
    assert allowed(MinTokens(2, 3), (0, 1), 1, 4) == [0, 1, 2]
    assert allowed(MinTokens(2, 3), (0, 1, 1), 1, 4) == [0, 1, 2, 3]


def test_the_shortlist_has_room_for_the_end_marker_that_must_not_come(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    """The end marker may be the likeliest token; with top_k 1 nothing else was known."""
    with torch.no_grad():
        logits = tiny_model(torch.tensor([small_bpe.encode("ab")]))[0, -1]
        tiny_model.wte.weight[small_bpe.stop_id] = tiny_model.wte.weight[logits.argmax()] * 1.5
    options: Any = {"temperature": 0, "seed": 1, "max_tokens": 20, "min_tokens": 20}
    assert (
        complete(tiny_model, small_bpe, "ab", **options)[0].tokens
        == complete(tiny_model, small_bpe, "ab", **options, logprobs=True)[0].tokens
    )


def test_a_row_that_nothing_may_follow_is_one_clear_error(tiny_config: GPT2Config) -> None:
    tokenizer = CharTokenizer.from_text("abc")
    model = make_model(GPT2Config(n_vocab=3, n_ctx=16, n_embd=8, n_head=2, n_layer=1))
    with pytest.raises(GenerationError, match="after 2 new tokens no_repeat_ngram leaves no token"):
        complete(model, tokenizer, "a", no_repeat_ngram=1)
    with pytest.raises(GenerationError, match="after 0 new tokens ban leaves no token"):
        complete(model, tokenizer, "a", ban=["a", "b", "c"])
    with pytest.raises(GenerationError, match="no_repeat_ngram leaves no token"):
        list(generate_tokens(model, [[0]], sampling=Sampling(no_repeat_ngram=1)))
    small = make_model(GPT2Config(n_vocab=3, n_ctx=16, n_embd=4, n_head=2, n_layer=1), seed=1)
    for draft in ("lookup", small):
        with pytest.raises(GenerationError, match="after 2 new tokens no_repeat_ngram leaves"):
            complete(model, tokenizer, "a", no_repeat_ngram=1, draft=draft)


def test_rows_with_limits_of_their_own_share_steps_without_touching_each_other(
    tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    """Rows of different requests join at different times; one of them comes to a dead end."""
    everything = [chr(i) for i in range(256)]
    asked: list[dict[str, Any]] = [
        {"ban": ["e", "t"]},
        {"no_repeat_ngram": 1, "min_tokens": 80},
        {"ban": everything, "no_repeat_ngram": 1, "max_tokens": 600, "min_tokens": 600},
        {"typical_p": 0.3, "stop": "a"},
        {},
    ]

    def row(options: dict[str, Any]) -> Row:
        request = as_request(None, {"max_tokens": 80, "seed": 3, **options})
        limits = limits_for(request, small_bpe, small_bpe.stop_id)
        stop_id = small_bpe.stop_id
        return Row([64], request, tiny_model.config, stop_id=stop_id, limits=limits)

    def run(rows: list[Row], slots: int) -> list[tuple[list[int], str | None, str]]:
        state = Continuation(tiny_model, slots=slots)
        for each in rows:
            state.add(each)
        while state.has_work:
            state.step()
        return [(each.tokens, each.finish_reason, str(each.error)) for each in rows]

    together = run([row(options) for options in asked], slots=3)
    assert together == [run([row(options)], slots=1)[0] for options in asked]
    assert [reason for _, reason, _ in together].count("dead_end") == 1
