"""Drafts make texts faster; a text stays the same, or is as likely as with another seed."""

from __future__ import annotations

import itertools
import math
import operator
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_model
from torch import Tensor

from gpt2kit import store
from gpt2kit.cache import KVCache
from gpt2kit.checkpoints.load import load
from gpt2kit.config import GPT2Config
from gpt2kit.engine.decoder import Decoder
from gpt2kit.errors import ConfigError, GenerationError
from gpt2kit.generation import continuation
from gpt2kit.generation.request import Request, Sampling, as_request
from gpt2kit.generation.row import Checked, Row
from gpt2kit.generation.sampling import sample_generator
from gpt2kit.generation.speculate import Draft, Lookup, keep_or_replace, look_up
from gpt2kit.generation.text import collect, complete, generate_tokens, stream
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import BPETokenizer

GREEDY = Sampling(temperature=0)
PROMPTS = [[5, 6, 7], [9], [5, 6, 7], [1, 2, 3, 4, 1, 2, 3], [400, 401, 402], list(range(30))]
TEXTS = ["Perché ", "Nel mezzo del cammin di nostra vita", "a", "the end of the end of the"]


@pytest.fixture
def small_model(tiny_config: GPT2Config) -> GPT2:
    """A draft with another depth, other weights and a shorter window than tiny_model."""
    return make_model(replace(tiny_config, n_layer=1, n_ctx=11), seed=1)


@pytest.fixture(params=["native", "torch"])
def _decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setenv("GPT2KIT_NATIVE", "0")


def rows(
    model: GPT2, prompts: Sequence[Sequence[int]], n: int, **options: Any
) -> list[tuple[int, ...]]:
    return list(
        zip(
            *generate_tokens(
                model, prompts, max_tokens=n, **{"sampling": GREEDY, "seed": 3, **options}
            ),
            strict=True,
        )
    )


def drafts(small: GPT2, own: GPT2) -> list[Draft]:
    return ["lookup", small, own]


# --- the same tokens ------------------------------------------------------------------------------


@pytest.mark.usefixtures("_decoder")
@pytest.mark.parametrize("draft_tokens", [1, 3, 20])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_tokens_are_the_same_with_every_draft(
    tiny_model: GPT2, small_model: GPT2, draft_tokens: int, penalty: float
) -> None:
    sampling = Sampling(temperature=0, repetition_penalty=penalty)
    expected = rows(tiny_model, PROMPTS, 70, sampling=sampling)  # twice past the window of 32
    for draft in drafts(small_model, tiny_model):
        assert (
            rows(tiny_model, PROMPTS, 70, sampling=sampling, draft=draft, draft_tokens=draft_tokens)
            == expected
        )


@pytest.mark.usefixtures("_decoder")
def test_lookup_gives_the_same_text_for_the_same_seed(tiny_model: GPT2) -> None:
    for sampling in (
        Sampling(),
        Sampling(top_k=3, temperature=0.5),
        Sampling(top_p=0.8, min_p=0.01, repetition_penalty=1.2),
        Sampling(frequency_penalty=1.5, presence_penalty=-0.5, logit_bias=((7, 3.0),)),
    ):
        assert rows(tiny_model, PROMPTS, 70, sampling=sampling, draft="lookup") == rows(
            tiny_model, PROMPTS, 70, sampling=sampling
        )


@pytest.mark.parametrize("seed", range(6))
def test_long_greedy_texts_of_random_models_are_the_same(seed: int) -> None:
    model = make_model(GPT2Config(n_vocab=64, n_ctx=256, n_embd=32, n_head=4, n_layer=2), seed=seed)
    small = make_model(
        GPT2Config(n_vocab=64, n_ctx=100, n_embd=16, n_head=2, n_layer=1), seed=seed + 100
    )
    prompts = [[seed, 1, 2], [3] * (seed + 1)]
    expected = rows(model, prompts, 400)
    for draft in drafts(small, model):
        assert rows(model, prompts, 400, draft=draft) == expected


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_long_greedy_texts_of_the_bundled_model_are_the_same(
    quantize: str | None, tmp_path: Path
) -> None:
    model, tokenizer = load(
        shutil.copytree(store.BUNDLED / "dante", tmp_path / "dante"),
        device="cpu",
        quantize=quantize,
    )
    small = make_model(replace(model.config, n_layer=1, n_embd=32, n_head=2, n_ctx=64))
    options: Any = {"max_tokens": 400, "temperature": 0}
    expected = complete(model, tokenizer, "Nel mezzo del cammin ", **options)[0].tokens
    for draft in ("lookup", small):
        assert (
            complete(model, tokenizer, "Nel mezzo del cammin ", draft=draft, **options)[0].tokens
            == expected
        )


def test_long_greedy_texts_of_a_trained_model_are_the_same(test_data: Path) -> None:
    model, tokenizer = load(test_data / "models" / "shakespeare", device="cpu")
    options: Any = {"max_tokens": 300, "temperature": 0}
    expected = complete(model, tokenizer, "First Citizen:", **options)[0].tokens
    for draft in ("lookup", model):
        assert (
            complete(model, tokenizer, "First Citizen:", draft=draft, **options)[0].tokens
            == expected
        )


@pytest.mark.parametrize("overflow", ["stop", "error", "slide"])
@pytest.mark.parametrize("n_ctx", [1, 2, 3, 32])
def test_tokens_past_the_window_are_the_same_with_a_draft(
    tiny_config: GPT2Config, overflow: str, n_ctx: int
) -> None:
    model = make_model(replace(tiny_config, n_ctx=n_ctx))
    n = n_ctx - 1 if overflow == "error" else 40
    for n_small in (1, 2, 3, 64):
        small = make_model(replace(tiny_config, n_ctx=n_small), seed=n_small)
        for draft in drafts(small, model):
            assert rows(model, [[7], [5]], n, overflow=overflow, draft=draft) == rows(
                model, [[7], [5]], n, overflow=overflow
            )


def test_rows_stop_at_the_same_token_with_a_draft(tiny_model: GPT2, small_model: GPT2) -> None:
    stop_id = rows(tiny_model, PROMPTS, 12)[0][4]
    expected = rows(tiny_model, PROMPTS, 12, stop_id=stop_id)
    for draft in drafts(small_model, tiny_model):
        assert rows(tiny_model, PROMPTS, 12, stop_id=stop_id, draft=draft) == expected


def test_tokens_read_at_once_have_the_logits_they_have_one_by_one(tiny_model: GPT2) -> None:
    # The ground of all this: see test_native for the native step, which keeps every bit.
    logits = tiny_model(torch.tensor([PROMPTS[3]]))[0]
    with torch.inference_mode():
        cache = tiny_model.new_cache()
        found = Decoder(tiny_model).read_each([PROMPTS[3]], cache)[0]
    assert (found - logits).abs().max() < 1e-5


# --- texts ----------------------------------------------------------------------------------------


def test_texts_with_stop_texts_and_log_probabilities_are_the_same(
    tiny_model: GPT2, small_model: GPT2, small_bpe: BPETokenizer
) -> None:
    plain = complete(tiny_model, small_bpe, TEXTS, max_tokens=60, temperature=0, ignore_eos=True)
    stops = [completion.text[20:22] for completion in plain]
    choices: list[dict[str, Any]] = [
        {"stop": stops},
        {"overflow": "stop"},
        {"ignore_eos": True},
        {"num_samples": 2},
    ]
    for options in choices:
        given: Any = {"max_tokens": 60, "temperature": 0, "seed": 1, "logprobs": True, **options}
        expected = complete(tiny_model, small_bpe, TEXTS, **given)
        for draft in drafts(small_model, tiny_model):
            found = complete(tiny_model, small_bpe, TEXTS, draft=draft, **given)
            assert [replace(one, logprobs=None) for one in found] == [
                replace(one, logprobs=None) for one in expected
            ]
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_allclose(
                    np.array(one.logprobs), np.array(other.logprobs), atol=1e-4
                )


def test_every_sample_is_the_same_alone_and_in_any_batch(
    tiny_model: GPT2, small_model: GPT2, small_bpe: BPETokenizer
) -> None:
    options: Any = {"max_tokens": 50, "seed": 11, "draft": small_model, "draft_tokens": 4}
    eight = complete(tiny_model, small_bpe, TEXTS, num_samples=8, **options)
    for number, text in enumerate(TEXTS):
        alone = complete(tiny_model, small_bpe, text, num_samples=1, first_sample=3, **options)[0]
        assert eight[8 * number + 3] == alone
    assert len({completion.text for completion in eight}) == 32


def test_a_shorter_text_is_the_beginning_of_a_longer_one(
    tiny_model: GPT2, small_model: GPT2, small_bpe: BPETokenizer
) -> None:
    options: Any = {"seed": 2, "draft": small_model, "ignore_eos": True}
    longest = complete(tiny_model, small_bpe, "a", max_tokens=50, **options)[0].tokens
    for n in range(1, 50, 7):
        assert (
            complete(tiny_model, small_bpe, "a", max_tokens=n, **options)[0].tokens == longest[:n]
        )


def test_pieces_tell_how_many_proposals_were_accepted(
    tiny_model: GPT2, small_model: GPT2, small_bpe: BPETokenizer
) -> None:
    for draft in drafts(small_model, tiny_model):
        pieces = list(
            stream(
                tiny_model,
                small_bpe,
                "a",
                max_tokens=25,
                seed=1,
                ignore_eos=True,
                draft=draft,
                draft_tokens=4,
            )
        )
        checked = [piece.checked for piece in pieces if piece.checked]
        assert pieces[0].checked is None  # the prompt is read without a proposal
        assert all(0 <= accepted <= proposed <= 4 for proposed, accepted in checked)
        assert 25 <= 1 + sum(1 + accepted for _, accepted in checked) <= 25 + 4
    assert not any(
        piece.checked for piece in stream(tiny_model, small_bpe, "a", max_tokens=5, seed=1)
    )


# --- faster ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0, 1])
def test_all_proposals_of_a_model_to_itself_are_accepted(
    tiny_config: GPT2Config, small_bpe: BPETokenizer, temperature: float
) -> None:
    model = make_model(replace(tiny_config, n_ctx=128))
    options: Any = {
        "max_tokens": 1 + 5 * 8,
        "temperature": temperature,
        "seed": 1,
        "ignore_eos": True,
    }
    pieces = list(stream(model, small_bpe, "a", draft=model, draft_tokens=7, **options))
    assert [piece.checked for piece in pieces if piece.checked] == [Checked(7, 7)] * 5


def test_a_text_that_repeats_itself_takes_fewer_steps(
    tiny_model: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    read_each = Decoder.read_each

    def counted(
        self: Decoder, ids: Sequence[Sequence[int]], cache: KVCache, **options: Any
    ) -> list[Tensor]:
        steps.append(len(ids[0]))
        return read_each(self, ids, cache, **options)

    monkeypatch.setattr(Decoder, "read_each", counted)
    text = rows(tiny_model, [[5, 6, 7]], 200)[0]
    assert len(set(text[-60:])) < 20  # greedy texts of tiny models run in circles
    assert rows(tiny_model, [[5, 6, 7]], 200, draft="lookup")[0] == text
    assert len(steps) < 120


def test_fewer_tokens_are_proposed_after_a_proposal_that_did_not_hold(
    tiny_config: GPT2Config,
) -> None:
    lookup = Lookup(8)
    rows = [Row([1, 2] * 10, Request(), tiny_config) for _ in range(3)]

    def learn(*checked: Checked) -> None:
        for row, found in zip(rows, checked, strict=True):
            row.checked = found
        lookup.learn(rows)

    def proposed(rows: list[Row], room: list[int]) -> list[int]:
        return [len(proposal.tokens) for proposal in lookup.propose(rows, room)]

    assert proposed(rows, [100, 100, 5]) == [8, 8, 5]
    learn(Checked(8, 2), Checked(8, 8), Checked(8, 0))
    assert proposed(rows, [100, 100, 100]) == [3, 8, 1]
    learn(Checked(3, 3), Checked(0, 0), Checked(1, 1))
    assert proposed([rows[2], rows[0]], [100, 4]) == [2, 4]
    assert proposed([rows[2], rows[0]], [0, -1]) == [0, 0]


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([1, 2, 3, 4, 1, 2], [3, 4, 1]),
        ([1, 2, 9, 1, 2, 3, 1, 2], [3, 1, 2]),  # the latest
        ([5, 1, 2, 9, 1, 2, 3, 5, 1, 2], [9, 1, 2]),  # but a longer one before it
        ([7, 7, 7], [7, 7, 7]),  # where it overlaps with the end, it goes on
        ([1, 2, 1, 2, 1], [2, 1, 2]),
        ([1, 2, 3, 4], []),
        ([3, 1, 3], []),  # one token is too little
        ([3], []),
        (
            [256, 1, 65536, 256, 256, 1],
            [65536, 256, 256],
        ),  # bytes that look alike between two tokens
        ([1 << 8, 1 << 8, 9, 1, 1], []),
    ],
)
def test_lookup_proposes_what_followed_the_same_tokens(
    history: list[int], expected: list[int]
) -> None:
    assert look_up(history, 3) == expected


# --- the same distribution ------------------------------------------------------------------------

V = 4
ROWS = 2000
CHOICES = [
    Sampling(top_k=0),
    Sampling(top_k=3, temperature=0.7, repetition_penalty=1.5),
    Sampling(top_k=0, top_p=0.8, temperature=1.5),
    Sampling(top_k=0, min_p=0.3, top_p=0.9, repetition_penalty=0.7),
    Sampling(
        top_k=3,
        repetition_penalty=1.2,
        presence_penalty=0.7,
        frequency_penalty=-1.1,
        logit_bias={2: 1.5, 0: -0.5},  # type: ignore[arg-type]
    ),
]


def tiny_pair() -> tuple[GPT2, GPT2]:
    config = GPT2Config(n_vocab=V, n_ctx=16, n_embd=8, n_head=2, n_layer=1)
    return make_model(config, seed=4), make_model(replace(config, n_embd=4), seed=5)


def next_token(
    logits: Any, sampling: Sampling, prompt: Sequence[int], generated: Sequence[int]
) -> Any:
    """Return the distribution of the next token (V,), in plain NumPy."""
    logits = logits.astype(np.float64)
    for token, value in sampling.logit_bias:
        logits[token] += value
    for token in {*prompt, *generated}:
        logits[token] *= (
            1 / sampling.repetition_penalty if logits[token] > 0 else sampling.repetition_penalty
        )
    for token in generated:
        logits[token] -= sampling.frequency_penalty
    for token in set(generated):
        logits[token] -= sampling.presence_penalty
    order = np.argsort(-logits)[: sampling.top_k or None]
    p = np.zeros(V)
    p[order] = np.exp(logits[order] / sampling.temperature)
    p /= p.sum()
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= sampling.top_p]] = 0
    p[p < sampling.min_p * p.max()] = 0
    return p / p.sum()


def exact(
    model: GPT2, prompt: list[int], n: int, sampling: Sampling
) -> dict[tuple[int, ...], float]:
    """Return the probability of every continuation of n tokens."""
    texts = list(itertools.product(range(V), repeat=n))
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *tokens] for tokens in texts])).numpy()[
            :, len(prompt) - 1 :
        ]  # (texts, n + 1, V)
    return {
        tokens: math.prod(
            float(next_token(own[i], sampling, prompt, tokens[:i])[tokens[i]]) for i in range(n)
        )
        for tokens, own in zip(texts, logits, strict=True)
    }


def surprise(counts: Counter[Any], expected: dict[Any, float]) -> float:
    """Return how far Pearson's chi-square of the counts is above its mean, in standard deviations.

    By the approximation of Wilson and Hilferty (1931).
    """
    n = counts.total()
    assert all(expected[cell] > 0 for cell in counts)
    common = [cell for cell, p in expected.items() if n * p >= 5]
    cells = [(counts[cell], n * expected[cell]) for cell in common]
    cells.append(
        (n - sum(found for found, _ in cells), n - sum(wanted for _, wanted in cells) + 1e-9)
    )
    square = sum((found - wanted) ** 2 / max(wanted, 1) for found, wanted in cells)
    df = len(cells) - 1  # degrees of freedom
    return (math.cbrt(square / df) - (1 - 2 / (9 * df))) / math.sqrt(2 / (9 * df))


def draft_surprise(sampling: Sampling, with_model: bool) -> float:
    model, small = tiny_pair()
    prompt = [1, 2, 1, 2, 1, 2]  # lookup has something to propose
    options: Any = {
        "sampling": sampling,
        "seed": 1,
        "draft": small if with_model else "lookup",
        "draft_tokens": 3,
    }
    found = rows(model, [prompt] * ROWS, 4, **options)
    return surprise(
        Counter(tokens[1:] for tokens in found), marginal(exact(model, prompt, 4, sampling))
    )


def marginal(joint: dict[tuple[int, ...], float]) -> dict[tuple[int, ...], float]:
    """Return the distribution of all tokens but the first, which is chosen without a proposal."""
    found: dict[tuple[int, ...], float] = {}
    for tokens, p in joint.items():
        found[tokens[1:]] = found.get(tokens[1:], 0) + p
    return found


@pytest.mark.parametrize("sampling", CHOICES, ids=str)
@pytest.mark.parametrize("with_model", [True, False], ids=["model", "lookup"])
def test_three_tokens_together_have_the_models_distribution(
    sampling: Sampling, with_model: bool
) -> None:
    assert draft_surprise(sampling, with_model) < 3


def test_a_wrong_rule_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuation, "keep_or_replace", lambda p, q, tokens, generators: tokens)
    assert draft_surprise(CHOICES[0], with_model=True) > 10


@pytest.mark.parametrize("p", [[0.5, 0.5, 0, 0], [0.1, 0.2, 0.3, 0.4], [0, 0, 0, 1.0]], ids=str)
def test_kept_and_replaced_tokens_together_have_the_distribution_p(p: list[float]) -> None:
    q = torch.tensor([0.25, 0.05, 0.3, 0.4], dtype=torch.float64)
    n = 20000
    generators = [sample_generator(0, row) for row in range(n)]
    proposed = torch.multinomial(
        q, n, replacement=True, generator=torch.Generator().manual_seed(1)
    ).tolist()
    found = keep_or_replace(
        torch.tensor([p] * n, dtype=torch.float64), q.expand(n, 4), proposed, generators
    )
    assert surprise(Counter(found), dict(enumerate(p))) < 3
    kept = sum(map(operator.eq, found, proposed)) / n
    assert kept == pytest.approx(
        torch.minimum(torch.tensor(p, dtype=torch.float64), q).sum().item(), abs=0.02
    )


# --- refused --------------------------------------------------------------------------------------


def padded(model: GPT2, n_vocab: int) -> GPT2:
    """Return the model with more rows in its embedding, whose ids would be chosen if they could."""
    wider = make_model(replace(model.config, n_vocab=n_vocab))
    state = model.state_dict()
    state["wte.weight"] = torch.cat(
        [state["wte.weight"], 10 * state["wte.weight"][: n_vocab - model.config.n_vocab]]
    )
    wider.load_state_dict(state)
    return wider


@pytest.mark.usefixtures("_decoder")
@pytest.mark.parametrize("temperature", [0, 1])
def test_models_with_padded_embeddings_can_draft_for_each_other(
    tiny_model: GPT2, small_model: GPT2, small_bpe: BPETokenizer, temperature: int
) -> None:
    # 50,304 rows for 50,257 tokens were another vocabulary.
    options: Any = {
        "max_tokens": 60,
        "temperature": temperature,
        "top_k": 0,
        "seed": 1,
        "ignore_eos": True,
    }
    plain = complete(tiny_model, small_bpe, TEXTS, **options)
    wide = padded(tiny_model, 576)
    assert wide(torch.tensor([[1, 2, 3]])).argmax(-1).max() >= 512
    for model, draft in (
        (wide, small_model),
        (tiny_model, padded(small_model, 640)),
        (wide, padded(small_model, 640)),
    ):
        pieces = list(stream(model, small_bpe, TEXTS, draft=draft, **options))
        assert sum(piece.checked.proposed for piece in pieces if piece.checked) > 0
        assert max(piece.token for piece in pieces) < 512
        if temperature == 0:
            assert collect(pieces, TEXTS, as_request(None, options)) == plain


def test_a_draft_of_another_vocabulary_is_refused(
    tiny_model: GPT2, tiny_config: GPT2Config
) -> None:
    with pytest.raises(
        ConfigError, match=r"vocabulary of 500 tokens, expected the 512 of the model"
    ):
        rows(tiny_model, [[1]], 1, draft=make_model(replace(tiny_config, n_vocab=500)))


@pytest.mark.parametrize(
    ("name", "value"),
    [("draft", "lokup"), ("draft_tokens", 0), ("draft_tokens", 1000), ("draft_tokens", 2.0)],
)
def test_an_invalid_draft_is_refused_by_name(tiny_model: GPT2, name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        rows(tiny_model, [[1]], 1, **{name: value})


@pytest.mark.parametrize("broken", ["model", "draft"])
@pytest.mark.parametrize("temperature", [0, 1])
def test_broken_logits_of_the_model_or_of_its_draft_are_an_error(
    tiny_model: GPT2, small_model: GPT2, broken: str, temperature: float
) -> None:
    with torch.no_grad():
        named = (tiny_model if broken == "model" else small_model).named_parameters()
        dict(named)["ln_f.weight"][0] = math.nan
    for filters in ({}, {"top_p": 0.9}, {"min_p": 0.05}, {"top_k": 0, "top_p": 0.5, "min_p": 0.1}):
        sampling = Sampling(**{"temperature": temperature, **filters})  # type: ignore[arg-type]
        for draft in (small_model, "lookup") if broken == "model" else (small_model,):
            with pytest.raises(GenerationError, match="not finite"):
                rows(tiny_model, [[1, 2], [3]], 6, sampling=sampling, draft=draft)


def test_a_replacement_is_possible_even_if_rounding_leaves_nothing_of_p_above_q() -> None:
    p = torch.tensor([[0.5, 0.0, 0.0]])  # nowhere more than q
    q = torch.tensor([[0.5, 0.5, 0.0]])
    assert keep_or_replace(p, q, [1], [sample_generator(0, 0)]) == [
        0
    ]  # it was the last token, impossible or not
