"""Rows of a batch: each gets the tokens it would get alone, and leaves when it ends."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import begun, compiled, make_model
from engine_builders import int8_of, model_of

from gpt2kit.config import GPT2Config
from gpt2kit.engine import native
from gpt2kit.engine.decoder import PIECE, Decoder
from gpt2kit.evaluation.surprisal import Window, surprisals
from gpt2kit.generation.continuation import Continuation
from gpt2kit.generation.request import Request, Sampling
from gpt2kit.generation.row import Row
from gpt2kit.generation.sampling import sample
from gpt2kit.generation.speculate import drafter_for
from gpt2kit.model import GPT2

GREEDY = Sampling(temperature=0)
PROMPTS = [[5, 6, 7], [9], [1, 2, 3, 4, 5, 6, 7, 8], [400, 401]]


def finished(model: GPT2, rows: Sequence[Row], **options: Any) -> list[list[int]]:
    """Take all steps, and return what each row got."""
    lengths = [len(row.history) for row in rows]
    state = begun(model, rows, **options)
    while state.has_work:
        state.step()
    return [row.history[length:] for row, length in zip(rows, lengths, strict=True)]


def test_a_step_chooses_one_token_for_every_running_row(tiny_model: GPT2) -> None:
    request = Request(max_tokens=3, seed=1)
    rows = [Row(prompt, request, tiny_model.config) for prompt in PROMPTS]
    state = begun(tiny_model, rows)
    for n in (1, 2, 3):
        assert state.step() == rows
        assert [len(row.history) for row in rows] == [len(prompt) + n for prompt in PROMPTS]
        assert [[chosen.token for chosen in row.new] for row in rows] == [
            row.history[-1:] for row in rows
        ]
    assert state.step() == []
    assert {row.finish_reason for row in rows} == {"max_tokens"}


def test_rows_with_equal_sampling_are_chosen_for_at_once(
    tiny_model: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Requests of several clients have equal samplings that are not the same object: each of their
    # rows was sampled by a call of its own.
    sizes = []

    def counting(logits: torch.Tensor, *others: Any) -> list[int]:
        sizes.append(len(logits))
        return sample(logits, *others)

    samplings = [Sampling(), GREEDY, Sampling(), Sampling()]
    requests = [Request(max_tokens=1, seed=1, sampling=each) for each in samplings]
    rows = [
        Row(prompt, request, tiny_model.config)
        for prompt, request in zip(PROMPTS, requests, strict=True)
    ]
    monkeypatch.setattr("gpt2kit.generation.row.sample", counting)
    begun(tiny_model, rows).step()
    assert sizes == [3, 1]


def test_rows_with_requests_of_their_own_are_what_they_are_alone(tiny_model: GPT2) -> None:
    # Nobody asks for this yet; rows that join a running batch will.
    requests = [
        Request(max_tokens=30, seed=1, sampling=GREEDY),
        Request(max_tokens=40, seed=2, sampling=Sampling(top_k=3, repetition_penalty=1.3)),
        Request(max_tokens=7, seed=3, logprobs=True),
        Request(max_tokens=30, seed=4, overflow="stop", sampling=Sampling(top_k=0, top_p=0.9)),
    ]

    def rows() -> list[Row]:
        return [
            Row(prompt, request, tiny_model.config, sample=sample)
            for sample, (prompt, request) in enumerate(zip(PROMPTS, requests, strict=True))
        ]

    for draft in (None, "lookup", make_model(replace(tiny_model.config, n_layer=1), seed=3)):

        def drafter(of: list[Row], draft: Any = draft) -> Any:
            return draft and drafter_for(of, draft, 4, n_vocab=tiny_model.config.n_vocab)

        together = rows()
        found = finished(tiny_model, together, drafter=drafter(together))
        alone = [finished(tiny_model, [row], drafter=drafter([row]))[0] for row in rows()]
        assert found == alone
        assert [len(tokens) for tokens in found[2:]] == [7, 30]


def test_a_row_that_ended_costs_nothing_and_changes_no_other(
    tiny_model: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = Decoder.read

    def counted(self: Decoder, ids: Any, *arguments: Any, **options: Any) -> Any:
        read.append(len(ids))
        return original(self, ids, *arguments, **options)

    rows = [
        Row(prompt, Request(max_tokens=n, seed=1), tiny_model.config, sample=i)
        for i, (prompt, n) in enumerate(zip(PROMPTS, (2, 9, 5, 9), strict=True))
    ]
    expected = finished(
        tiny_model,
        [
            Row(prompt, Request(max_tokens=9, seed=1), tiny_model.config, sample=i)
            for i, prompt in enumerate(PROMPTS)
        ],
    )
    monkeypatch.setattr(Decoder, "read", counted)
    found = finished(tiny_model, rows)
    assert found == [expected[0][:2], expected[1], expected[2][:5], expected[3]]
    assert read[-8:] == [4, 3, 3, 3, 2, 2, 2, 2]  # after the prompts


def test_a_caller_can_end_a_row(tiny_model: GPT2) -> None:
    rows = [Row(prompt, Request(max_tokens=9, seed=1), tiny_model.config) for prompt in PROMPTS]
    state = begun(tiny_model, rows)
    state.step()
    rows[1].finish_reason = "stop_text"
    assert state.step() == [rows[0], rows[2], rows[3]]
    assert len(rows[1].history) == 2
    for row in rows:
        row.finish_reason = "stop_text"
    assert state.step() == []


def test_a_row_ends_at_its_own_stop_id(tiny_model: GPT2) -> None:
    request = Request(max_tokens=30, sampling=GREEDY)
    free = finished(tiny_model, [Row([5, 6, 7], request, tiny_model.config)])[0]
    rows = [
        Row([5, 6, 7], request, tiny_model.config, stop_id=stop_id) for stop_id in (free[4], None)
    ]
    assert finished(tiny_model, rows) == [free[: free.index(free[4]) + 1], free]
    assert [row.finish_reason for row in rows] == ["end_of_text", "max_tokens"]


@pytest.mark.parametrize("draft", [None, "lookup"])
def test_a_full_window_ends_a_row_that_must_not_slide(tiny_model: GPT2, draft: Any) -> None:
    requests = [Request(max_tokens=40, sampling=GREEDY, overflow=way) for way in ("stop", "slide")]
    rows = [
        Row(list(range(n)), request, tiny_model.config) for n in (29, 32) for request in requests
    ]
    drafter = draft and drafter_for(rows, draft, 4, n_vocab=512)
    assert [len(tokens) for tokens in finished_slid(tiny_model, rows, drafter)] == [3, 40, 0, 40]
    assert [row.finish_reason for row in rows] == ["context", "max_tokens"] * 2


def finished_slid(model: GPT2, rows: Sequence[Row], drafter: Any) -> list[list[int]]:
    """Take all steps, and return what each row got, counted while its window slides."""
    found: dict[Row, list[int]] = {row: [] for row in rows}
    state = begun(model, rows, drafter=drafter)
    while state.has_work:
        for row in state.step():
            found[row] += [chosen.token for chosen in row.new]
    return list(found.values())


@pytest.mark.parametrize("draft", [None, "lookup"])
def test_log_probabilities_are_those_of_the_whole_vocabulary(tiny_model: GPT2, draft: Any) -> None:
    request = Request(max_tokens=20, seed=1, logprobs=True, sampling=Sampling(top_k=2))
    row = Row([1, 2, 1, 2], request, tiny_model.config)
    drafter = draft and drafter_for([row], draft, 4, n_vocab=512)
    state = begun(tiny_model, [row], drafter=drafter)
    found: list[Any] = []
    while state.has_work:
        for each in state.step():
            found += each.new
    with torch.no_grad():
        logits = tiny_model(torch.tensor([row.history]))[0, 3:-1]  # (20, V)
    expected = logits.log_softmax(dim=-1).gather(1, torch.tensor(row.history[4:])[:, None])[:, 0]
    assert [chosen.token for chosen in found] == row.history[4:]
    assert [chosen.logprob for chosen in found] == pytest.approx(expected.tolist(), abs=1e-4)


def test_float64_log_probabilities_are_not_narrowed(tiny_config: GPT2Config) -> None:
    # They were computed in float32.
    model = make_model(tiny_config, dtype=torch.float64)
    row = Row([1, 2], Request(max_tokens=1, logprobs=True, sampling=GREEDY), tiny_config)
    begun(model, [row]).step()
    with torch.no_grad():
        expected = model(torch.tensor([[1, 2]]))[0, -1].log_softmax(dim=-1)[row.history[-1]].item()
    assert row.new[0].logprob == pytest.approx(expected, abs=1e-13)


def test_an_id_that_is_padding_is_never_chosen(tiny_config: GPT2Config) -> None:
    model = make_model(tiny_config)
    with torch.no_grad():
        model.wte.weight[500:] *= 100  # the largest logits by far
    row = Row([1], Request(max_tokens=30, seed=0, sampling=Sampling(top_k=0)), model.config)
    (found,) = finished(model, [row], n_vocab=500)
    assert len(found) == 30
    assert max(found) < 500


# --- rows that join and leave ---------------------------------------------------------------------

JOINING = GPT2Config(n_vocab=67, n_ctx=3 * PIECE, n_embd=32, n_head=2, n_layer=2)
KINDS = ("float32", "bfloat16", "int8")


def model_to_join(kind: str) -> GPT2:
    with torch.inference_mode():
        model = model_of(JOINING, torch.bfloat16 if kind == "bfloat16" else torch.float32)
        return int8_of(model) if kind == "int8" else model


def random_row(rng: random.Random, beginnings: Sequence[Sequence[int]], sample: int) -> Row:
    """Return a row with a prompt of any length, perhaps with a beginning that others have too."""
    beginning = rng.choice(beginnings)
    length = rng.choice((rng.randint(1, 20), rng.randint(1, JOINING.n_ctx)))
    rest = rng.choices(range(JOINING.n_vocab), k=JOINING.n_ctx)
    shared = [*beginning[: rng.randint(100, JOINING.n_ctx)], *rest][:length]
    prompt = rng.choice((shared, shared, beginning[:length], rest[:length]))
    sampling = rng.choice(
        (
            GREEDY,
            Sampling(top_k=rng.randint(0, 5), temperature=rng.uniform(0.1, 2)),
            Sampling(top_p=0.8, repetition_penalty=1.2),
            Sampling(min_p=0.05, presence_penalty=0.5, logit_bias=((3, 4.0),)),
        )
    )
    request = Request(
        max_tokens=rng.randint(1, 25),
        seed=rng.randint(0, 5),
        overflow=rng.choice(("slide", "stop")),
        sampling=sampling,
        logprobs=rng.random() < 0.8,  # they show every bit
        prompt_logprobs=rng.random() < 0.1,
        top_logprobs=rng.choice((0, 0, 0, 2)),
    )
    return Row(prompt, request, JOINING, sample=sample, stop_id=rng.choice((None, 5)))


def random_rows(n: int, seed: int) -> list[Row]:
    rng = random.Random(seed)
    beginnings = [rng.choices(range(JOINING.n_vocab), k=JOINING.n_ctx) for _ in range(2)]
    return [random_row(rng, beginnings, sample) for sample in range(n)]


def outcome(row: Row, found: Sequence[Any]) -> tuple[Any, ...]:
    return row.finish_reason, list(found), row.prompt_chosen, row.history


def outcomes(model: GPT2, rows: Sequence[Row], **options: Any) -> list[Any]:
    """Take all steps, and return what became of each row."""
    found: dict[Row, list[Any]] = {row: [] for row in rows}
    state = begun(model, rows, **options)
    while state.has_work:
        for row in state.step():
            found[row] += row.new
    return [outcome(row, found[row]) for row in rows]


def check_random_requests(model: GPT2, n: int, seed: int) -> None:
    """Let n rows join and leave at random turns, and compare each with the same row alone."""
    rng = random.Random(seed)
    rows, alone = random_rows(n, seed), random_rows(n, seed)
    state = Continuation(model, slots=5, pieces_per_step=1)
    found: dict[Row, list[Any]] = {row: [] for row in rows}
    cancelled: set[Row] = set()
    coming = list(rows)
    while coming or state.has_work:
        for _ in range(rng.choice((0, 0, 1, 4))):
            if coming:
                state.add(coming.pop(0))
        if rng.random() < 0.1 and (here := [*state.running, *state.waiting]):
            cancelled.add(gone := rng.choice(here))
            state.remove(gone)
            assert gone not in [*state.running, *state.waiting]
        state.pieces_per_step = rng.choice((1, 1, 1, 2, None))
        for row in state.step():
            assert row not in cancelled
            found[row] += row.new
        assert len(state.running) <= 5
    assert not state.running
    assert not state.waiting
    for row, own in zip(rows, alone, strict=True):
        (expected,) = outcomes(model, [own])
        if row in cancelled:
            assert found[row] == expected[1][: len(found[row])]
        else:
            assert outcome(row, found[row]) == expected
    assert len(cancelled) > n // 50
    hits = [row for row in rows if 0 < row.cached_tokens < row.prompt_length]
    assert len(hits) >= n // 50
    # No slot was lost: as many rows as there are slots run at the same time.
    for _ in range(6):
        state.add(Row([1], Request(max_tokens=3, sampling=GREEDY), JOINING))
    state.pieces_per_step = None
    state.step()
    assert (len(state.running), len(state.waiting)) == (5, 1)


@compiled
@pytest.mark.parametrize("kind", KINDS)
def test_requests_at_random_turns_get_what_they_get_alone(kind: str) -> None:
    check_random_requests(model_to_join(kind), 50, seed=1)


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_requests_at_random_turns_get_what_they_get_alone(kind: str) -> None:
    check_random_requests(model_to_join(kind), 1000, seed=2)


def long_prompt(n: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(JOINING.n_vocab), k=n)


def test_rows_join_in_the_order_in_which_they_came() -> None:
    rows = [
        Row(long_prompt(n, seed=n), Request(max_tokens=4, sampling=GREEDY), JOINING)
        for n in (PIECE + 9, 3, 2 * PIECE + 20, 5, 1, PIECE)
    ]
    state = Continuation(model_to_join("float32"), slots=2, pieces_per_step=1)
    for row in rows:
        state.add(row)
    first: list[Row] = []
    while state.has_work:
        assert state.waiting == [row for row in rows if not row.new]
        first += [row for row in state.step() if row not in first]
    assert first == rows


def tokens_read(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Return a list that gets, for every call of the decoder, how many tokens each row has."""
    read: list[list[int]] = []
    original = Decoder.read

    def counted(self: Decoder, rows: Any, *arguments: Any, **options: Any) -> Any:
        read.append([len(row) for row in rows])
        return original(self, rows, *arguments, **options)

    monkeypatch.setattr(Decoder, "read", counted)
    return read


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_prompt_holds_up_a_running_row_by_one_piece_at_most(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_to_join(kind)
    state = Continuation(model, slots=3, pieces_per_step=1)
    running = Row([1, 2], Request(max_tokens=60, sampling=GREEDY), JOINING)
    # Its window is full at once, and half of it is read again.
    sliding = Row(long_prompt(JOINING.n_ctx), Request(max_tokens=9, sampling=GREEDY), JOINING)
    coming = [sliding, *(Row([3] * n, Request(max_tokens=2), JOINING) for n in (150, 9, 150, 8))]
    state.add(running)
    state.step()
    for row in coming:
        state.add(row)
    read = tokens_read(monkeypatch)
    while running.finish_reason is None:
        read.clear()
        assert running in state.step()
        decoded, *pieces = read
        assert set(decoded) == {1}
        assert sum(sum(piece) for piece in pieces) <= Decoder(model).piece
    assert all(row.finish_reason for row in coming)


def test_a_window_that_is_read_again_in_pieces_gives_the_same_tokens() -> None:
    model = model_to_join("bfloat16")

    def rows() -> list[Row]:
        request = Request(max_tokens=JOINING.n_ctx, seed=1, sampling=Sampling(top_k=5))
        return [Row(long_prompt(n, seed=n), request, JOINING) for n in (170, 150, 192)]

    assert outcomes(model, rows(), pieces_per_step=1) == outcomes(model, rows())


def test_beginnings_that_a_slot_holds_are_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_to_join("float32")
    prompt = long_prompt(2 * PIECE)
    state = Continuation(model, slots=2)
    read = tokens_read(monkeypatch)
    # From a slot that has ended, and from one that runs; never the last token, and of what torch
    # reads only whole pieces.
    most = PIECE if native.level() is None else 2 * PIECE - 1
    for row, cached in (
        (Row([*prompt, 1], Request(max_tokens=1), JOINING), 0),
        (Row([*prompt, 2], Request(max_tokens=50), JOINING), 2 * PIECE),
        (Row([*prompt, 3, 3], Request(max_tokens=1), JOINING), 2 * PIECE),
        (Row(prompt, Request(max_tokens=1), JOINING), most),
        (Row(prompt[1:], Request(max_tokens=1), JOINING), 0),
    ):
        running = bool(state.running)
        read.clear()
        state.add(row)
        state.step()
        assert sum(n for each in read[running:] for n in each) == row.prompt_length - cached
        assert row.cached_tokens == cached


def test_equal_prompts_are_read_once_and_share_their_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = tokens_read(monkeypatch)
    rows = [Row([1, 2, 3], Request(max_tokens=1), JOINING, sample=i) for i in range(4)]
    state = begun(model_to_join("float32"), rows, pieces_per_step=1)
    assert state.step() == rows
    assert read == [[3]]
    assert [row.cached_tokens for row in rows] == [0, 3, 3, 3]


@pytest.mark.parametrize("turns", range(6))
def test_a_removed_row_frees_its_slot_whether_it_waits_is_read_or_runs(turns: int) -> None:
    rows = [Row(long_prompt(150), Request(max_tokens=9), JOINING, sample=i) for i in range(3)]
    state = Continuation(model_to_join("float32"), slots=2, pieces_per_step=1)
    for row in rows:
        state.add(row)
    for _ in range(turns):
        state.step()
    for row in rows:
        state.remove(row)
        state.remove(row)  # it is gone already
        assert row not in [*state.running, *state.waiting]
    assert not state.has_work
    state.pieces_per_step = None
    for _ in range(3):
        state.add(Row([1], Request(max_tokens=3, sampling=GREEDY), JOINING))
    state.step()
    assert (len(state.running), len(state.waiting)) == (2, 1)


# --- the log-probabilities of prompts -------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_tokens", [0, 5])
def test_prompts_are_scored_as_evaluation_does_and_go_on_as_without(
    kind: str, max_tokens: int
) -> None:
    model = model_to_join(kind)
    lengths = (1, 2, 10, PIECE, PIECE + 1, 2 * PIECE + 30, JOINING.n_ctx)
    prompts = [long_prompt(n, seed=n) for n in lengths]

    def rows(**options: Any) -> list[Row]:
        request = Request(max_tokens=max_tokens, seed=1, overflow="stop", **options)
        return [Row(prompt, request, JOINING) for prompt in prompts]

    scored = rows(prompt_logprobs=True, top_logprobs=3)
    found = outcomes(model, [*scored, *rows(prompt_logprobs=True)], pieces_per_step=1, slots=2)
    plain = outcomes(model, rows())
    for prompt, row, one, other in zip(prompts, scored, found, plain, strict=False):
        assert one[0] == other[0]
        assert [chosen.token for chosen in one[1]] == [chosen.token for chosen in other[1]]
        assert [chosen.token for chosen in row.prompt_chosen] == prompt
        assert row.prompt_chosen[0].logprob is None
        assert row.cached_tokens == 0
        if len(prompt) == 1:
            continue
        (expected,) = surprisals(model, [Window(prompt, len(prompt) - 1)])
        logprobs = [chosen.logprob for chosen in row.prompt_chosen[1:]]
        tolerance = 0.2 if kind == "bfloat16" else 1e-5
        assert logprobs == pytest.approx((-expected.nats).tolist(), abs=tolerance)
        for chosen, greedy in zip(row.prompt_chosen[1:], expected.greedy.tolist(), strict=True):
            assert chosen.top_logprobs is not None
            assert len(chosen.top_logprobs) == 3
            assert kind == "bfloat16" or (chosen.top_logprobs[0][0] == chosen.token) == greedy
            assert dict(chosen.top_logprobs).get(chosen.token, chosen.logprob) == chosen.logprob


def test_the_logits_of_a_scored_prompt_are_never_in_memory_all_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n_logits: list[int] = []
    original = Decoder.read_scored

    def counted(self: Decoder, *arguments: Any) -> Any:
        logits = original(self, *arguments)
        n_logits.append(len(logits))
        return logits

    monkeypatch.setattr(Decoder, "read_scored", counted)
    request = Request(max_tokens=0, prompt_logprobs=True)
    outcomes(model_to_join("float32"), [Row(long_prompt(JOINING.n_ctx), request, JOINING)])
    assert sum(n_logits) == JOINING.n_ctx
    assert max(n_logits) <= Decoder(model_to_join("float32")).piece < JOINING.n_ctx
