"""Steps of fixed shapes compute what the model defines: plainly, captured and compiled.

The captures are of a stand-in for CUDA (fake_cuda.py). What only a GPU can show is marked `gpu`,
and has never been run.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import begun, make_model
from fake_cuda import FakeGraph, StorageWeakRef, fake_cuda
from torch import Tensor, nn

from gpt2kit.cache import KVCache
from gpt2kit.config import GPT2Config
from gpt2kit.engine import native
from gpt2kit.engine.decoder import Decoder
from gpt2kit.engine.graph_engine import MOST_STEPS, SHORTEST, GraphEngine, graph_engine
from gpt2kit.engine.protocol import NewTokens
from gpt2kit.errors import ConfigError, Gpt2KitWarning
from gpt2kit.generation.continuation import Continuation
from gpt2kit.generation.request import Request, Sampling
from gpt2kit.generation.row import Row
from gpt2kit.generation.text import generate_tokens
from gpt2kit.model import GPT2

__all__ = ["fake_cuda"]

CONFIG = GPT2Config(n_vocab=101, n_ctx=160, n_embd=32, n_head=2, n_layer=2)
GREEDY = Sampling(temperature=0)


@pytest.fixture(autouse=True)
def _read_by_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(native.VARIABLE, "0")
    with torch.inference_mode():
        yield


@pytest.fixture
def model() -> GPT2:
    return make_model(CONFIG)


@pytest.fixture
def not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `compile=True` run the step as it is."""
    monkeypatch.setattr(torch, "compile", lambda function: function)


def ids_of(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(0, CONFIG.n_vocab, shape, generator=torch.Generator().manual_seed(seed))


def plain_or_captured(model: GPT2, *, captures: bool = False) -> GraphEngine:
    return GraphEngine(model, captures=captures, compiled=False)


def read(engine: GraphEngine, tokens: Sequence[int], cache: KVCache) -> Tensor:
    """Read one token for each slot."""
    new = [NewTokens(slot, [token]) for slot, token in enumerate(tokens)]
    assert engine.can_read(new, cache)
    return engine.read(new, cache)


def largest_difference(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).abs().max() / expected.abs().max())


def caches(model: GPT2, lengths: list[int], n: int = 2) -> list[KVCache]:
    """Return n equal caches with slots of these lengths."""
    made = []
    for _ in range(n):
        made.append(model.new_cache(len(lengths)))
        model.hidden(ids_of(len(lengths), max(lengths)), made[-1])
        made[-1].truncate(lengths)
    return made


def assert_reads_as_the_model(
    engine: GraphEngine, model: GPT2, pair: Sequence[KVCache], n: int, tolerance: float = 1e-5
) -> None:
    """Read n tokens with the engine and with the model, and compare logits, keys and values."""
    ours, theirs = pair
    ids = [ids_of(ours.batch_size, 1, seed=i) for i in range(n)]
    expected = [model(each, theirs)[:, -1].float() for each in ids]
    # Compared at the end: a later step must not write into the logits of an earlier one.
    found = [read(engine, each[:, 0].tolist(), ours) for each in ids]
    for one, other in zip(found, expected, strict=True):
        assert largest_difference(one, other) < tolerance
    assert ours.lengths == theirs.lengths
    for slot, length in enumerate(ours.lengths):
        for one, other in ((ours.keys, theirs.keys), (ours.values, theirs.values)):
            part = (slice(None), slot, slice(None), slice(length))
            assert largest_difference(one[part], other[part]) < tolerance


# --- the same numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize("captures", [False, True])
@pytest.mark.parametrize("lengths", [[12], [125], [3, 13, 8], [0, 124, 155]], ids=str)
def test_logits_are_those_of_the_model_across_the_borders_of_sizes(
    model: GPT2, lengths: list[int], captures: bool, fake_cuda: type[FakeGraph]
) -> None:
    engine = plain_or_captured(model, captures=captures)
    assert_reads_as_the_model(engine, model, caches(model, lengths), 5)
    assert ("replay" in fake_cuda.log) == captures


@pytest.mark.parametrize("captures", [False, True])
def test_slots_may_be_cut_dropped_and_refilled_between_steps(
    model: GPT2, captures: bool, fake_cuda: type[FakeGraph]
) -> None:
    engine = plain_or_captured(model, captures=captures)
    ours, theirs = caches(model, [20, 7, 126])
    (other,) = caches(model, [11], 1)
    changes: list[Callable[[KVCache], None]] = [
        lambda cache: None,
        lambda cache: cache.truncate([5, 7, 1]),
        lambda cache: cache.keep([2, 0]),
        lambda cache: cache.fill([1], other, 0),
        lambda cache: cache.free([0]),
        lambda cache: cache.keep([1]),
    ]
    for change in changes:
        change(ours)
        change(theirs)
        assert_reads_as_the_model(engine, model, (ours, theirs), 5)


@pytest.mark.parametrize("captures", [False, True])
def test_slots_without_a_new_token_keep_what_they_hold(
    model: GPT2, captures: bool, fake_cuda: type[FakeGraph]
) -> None:
    engine = plain_or_captured(model, captures=captures)
    ours, theirs = caches(model, [20, 7, CONFIG.n_ctx, 3])
    before = ours.keys.clone()
    for token in (5, 6):
        found = engine.read([NewTokens(3, [token]), NewTokens(1, [token + 1])], ours)
        for row, (slot, own) in enumerate(((3, token), (1, token + 1))):
            view = theirs.view(slot, slot + 1)
            expected = model(torch.tensor([[own]]), view)[:, -1]
            theirs.advance(
                [view.lengths[0] - theirs.lengths[slot] if b == slot else 0 for b in range(4)]
            )
            assert largest_difference(found[row : row + 1], expected) < 1e-5
    assert ours.lengths == theirs.lengths == [20, 9, CONFIG.n_ctx, 5]
    assert torch.equal(ours.keys[:, 0, :, :20], before[:, 0, :, :20])
    assert torch.equal(ours.keys[:, 2, :, :-1], before[:, 2, :, :-1])


def test_bfloat16_logits_are_those_of_the_model_up_to_its_rounding() -> None:
    model = make_model(CONFIG, dtype=torch.bfloat16)
    engine = plain_or_captured(model)
    assert_reads_as_the_model(engine, model, caches(model, [3, 13, 8]), 5, tolerance=0.03)


@pytest.mark.parametrize(
    "variant",
    [
        {"norm": "rmsnorm", "mlp": "swiglu"},
        {"norm_first": False, "positions": "sinusoidal"},
        {"reorder_and_upcast_attn": True},
    ],
    ids=str,
)
def test_every_shape_of_model_is_read(variant: dict[str, Any]) -> None:
    model = make_model(replace(CONFIG, n_ctx=24, **variant))
    assert_reads_as_the_model(plain_or_captured(model), model, caches(model, [3, 14]), 4)


def test_it_reads_one_token_for_each_row_into_a_cache_of_a_usual_size(model: GPT2) -> None:
    engine = plain_or_captured(model)
    usual = model.new_cache(2)
    assert engine.can_read([NewTokens(0, [1]), NewTokens(1, [2])], usual)
    assert engine.can_read([NewTokens(1, [1])], usual)
    assert not engine.can_read([NewTokens(0, [1, 2]), NewTokens(1, [2, 3])], usual)
    sizes = (100, SHORTEST, 140, CONFIG.n_ctx)
    one = [NewTokens(0, [1])]
    fitting = [n for n in sizes if engine.can_read(one, model.new_cache(capacity=n))]
    assert fitting == [SHORTEST, CONFIG.n_ctx]
    with torch.inference_mode(False):
        assert not engine.can_read(one, model.new_cache())
    model.train()
    assert not engine.can_read(one, model.new_cache())


# --- what is captured -----------------------------------------------------------------------------


def test_every_size_is_captured_once_and_then_replayed(
    model: GPT2, fake_cuda: type[FakeGraph]
) -> None:
    engine, (cache, _) = plain_or_captured(model, captures=True), caches(model, [SHORTEST - 3])
    for token in range(6):
        read(engine, [token], cache)
    first = ["capture", "replay", "replay", "replay"]
    assert fake_cuda.log == first * 2  # 128 keys, then all 160
    cache.truncate([SHORTEST - 3])
    fake_cuda.log.clear()
    for token in range(6):
        read(engine, [token], cache)
    assert fake_cuda.log == ["replay"] * 6
    assert engine.name == "cuda graph"


def test_a_cache_elsewhere_gets_a_graph_of_its_own(model: GPT2, fake_cuda: type[FakeGraph]) -> None:
    engine = plain_or_captured(model, captures=True)
    pairs = [caches(model, [n]) for n in (3, 5)]
    for _ in range(2):  # taking turns
        for pair in pairs:
            assert_reads_as_the_model(engine, model, pair, 3)
    assert fake_cuda.log.count("capture") == 2


def test_a_graph_does_not_keep_the_cache_in_memory(model: GPT2, fake_cuda: type[FakeGraph]) -> None:
    engine, (cache, _) = plain_or_captured(model, captures=True), caches(model, [3])
    for _ in range(3):
        read(engine, [7], cache)
    memory = StorageWeakRef(cache.keys.untyped_storage())
    del cache
    assert memory.expired()


def test_only_the_graphs_that_were_used_last_are_kept(
    model: GPT2, fake_cuda: type[FakeGraph]
) -> None:
    engine = plain_or_captured(model, captures=True)
    made = [caches(model, [1], 1)[0] for _ in range(MOST_STEPS + 1)]
    for cache in made:
        read(engine, [7], cache)
    fake_cuda.log.clear()
    read(engine, [7], made[-1])
    assert fake_cuda.log == ["replay"]
    read(engine, [7], made[0])
    assert fake_cuda.log == ["replay", "capture", "replay"]


def test_new_weights_and_hooks_end_a_graph_at_the_next_token(
    model: GPT2, fake_cuda: type[FakeGraph]
) -> None:
    """A graph replays at the old addresses, and calls no hooks."""
    engine, pair = plain_or_captured(model, captures=True), caches(model, [3])
    assert_reads_as_the_model(engine, model, pair, 2)
    model.ln_f.weight = nn.Parameter(torch.full((32,), 2.0))
    assert_reads_as_the_model(engine, model, pair, 2)
    assert fake_cuda.log.count("capture") == 2
    handle = model.ln_f.register_forward_hook(lambda *_: None)
    read(engine, [7], pair[0])
    handle.remove()
    read(engine, [7], pair[0])
    assert fake_cuda.log.count("capture") == 3


def test_a_model_with_hooks_is_read_without_a_graph(
    model: GPT2, fake_cuda: type[FakeGraph]
) -> None:
    engine, (cache, _) = plain_or_captured(model, captures=True), caches(model, [3])
    seen: list[object] = []
    model.ln_f.register_forward_hook(lambda *_: seen.append(None))
    for _ in range(3):
        read(engine, [7], cache)
    assert len(seen) == 3
    assert fake_cuda.log == []


def test_if_a_capture_fails_tokens_are_read_without_and_the_name_says_so(
    model: GPT2, fake_cuda: type[FakeGraph]
) -> None:
    fake_cuda.fails = True
    engine = plain_or_captured(model, captures=True)
    assert_reads_as_the_model(engine, model, caches(model, [12]), 6)
    assert fake_cuda.log == ["capture"]
    failure = "CUDA error: operation not permitted when stream is capturing"
    assert engine.name == f"torch (no cuda graph: {failure})"


def test_an_engine_is_kept_for_as_long_as_its_model(fake_cuda: type[FakeGraph]) -> None:
    model = make_model(CONFIG)
    engine = graph_engine(model, compiled=False)
    assert graph_engine(model, compiled=False) is engine
    read(engine, [7], model.new_cache())
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


# --- generation -----------------------------------------------------------------------------------

PROMPTS = [[5, 6, 7], [9], list(range(100)), [5, 6, 7]]
KINDS = {
    "greedy": GREEDY,
    "sampled": Sampling(top_k=20, top_p=0.9, min_p=0.01),
    "everything": Sampling(top_k=0, temperature=1.5),
    "penalty": Sampling(repetition_penalty=1.3),
}


def by_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let decoders take the CPU for a GPU with graphs."""
    monkeypatch.setattr(
        "gpt2kit.engine.decoder.graph_engine",
        lambda model, compiled: GraphEngine(model, captures=True, compiled=False),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("captures", [False, True])
def test_generation_gives_the_same_tokens(
    model: GPT2,
    kind: str,
    captures: bool,
    not_compiled: None,
    fake_cuda: type[FakeGraph],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Longer than the window for one row, which slides; rows of equal prompts read them once.
    options: dict[str, Any] = {"max_tokens": 80, "sampling": KINDS[kind], "seed": 3}
    plain = list(generate_tokens(model, PROMPTS, **options))
    if captures:
        by_graph(monkeypatch)
    assert list(generate_tokens(model, PROMPTS, compile=True, **options)) == plain
    assert fake_cuda.log.count("capture") == (2 if captures else 0)  # 128 keys, and 160


def test_rows_that_join_and_leave_are_read_by_graphs_of_all_slots(
    model: GPT2, fake_cuda: type[FakeGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    def texts(**options: Any) -> list[list[int]]:
        request = Request(max_tokens=90, seed=2, sampling=Sampling(top_k=5))
        rows = [Row(prompt, request, CONFIG, sample=i) for i, prompt in enumerate(2 * PROMPTS)]
        state = Continuation(model, slots=3, pieces_per_step=1, **options)
        found: dict[Row, list[int]] = {row: [] for row in rows}
        coming = list(rows)
        while coming or state.has_work:
            if coming:
                state.add(coming.pop(0))
            for each in state.step():
                found[each] += [chosen.token for chosen in each.new]
        return list(found.values())

    plain = texts()
    by_graph(monkeypatch)
    assert texts(compile=True) == plain
    assert fake_cuda.log.count("capture") == 2  # 128 keys, and 160
    assert fake_cuda.log.count("replay") > 90


@pytest.mark.parametrize("captures", [False, True])
def test_rows_that_end_leave_the_others_as_they_are(
    model: GPT2,
    captures: bool,
    not_compiled: None,
    fake_cuda: type[FakeGraph],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = list(generate_tokens(model, PROMPTS, max_tokens=30, seed=5))
    options: dict[str, Any] = {"max_tokens": 30, "seed": 5, "stop_id": free[10][1]}
    plain = list(generate_tokens(model, PROMPTS, **options))
    assert any(row[1] == free[10][1] for row in plain[:12])
    if captures:
        by_graph(monkeypatch)
    assert list(generate_tokens(model, PROMPTS, compile=True, **options)) == plain


def test_a_decoder_makes_caches_of_usual_sizes(model: GPT2, not_compiled: None) -> None:
    decoder = Decoder(model, compile=True)
    assert [decoder.new_cache(1, n).capacity for n in (1, SHORTEST, 130)] == [128, 128, 160]


# --- compilation ----------------------------------------------------------------------------------


def test_compiling_is_refused_if_the_native_step_reads(
    model: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(native.VARIABLE, "")
    if native.level() is None:
        pytest.skip("the native step is not compiled here")
    with pytest.raises(ConfigError, match="--compile is for torch.*GPT2KIT_NATIVE=0"):
        next(generate_tokens(model, [[1]], max_tokens=1, compile=True))


def test_nothing_is_compiled_again_from_token_to_token(
    model: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile(function, backend=count))
    plain = list(generate_tokens(model, [[1, 2, 3]], max_tokens=30, sampling=GREEDY))
    for _ in range(2):  # and not for another text of about that length
        assert (
            list(generate_tokens(model, [[1, 2, 3]], max_tokens=30, sampling=GREEDY, compile=True))
            == plain
        )
    assert len(graphs) == 1
    assert Decoder(model, compile=True).name() == "torch compiled"


def test_if_torch_cannot_compile_tokens_are_read_without(
    model: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Tensor:
        raise RuntimeError("no compiler found\nmore")

    monkeypatch.setattr(torch, "compile", lambda function: broken)
    plain = list(generate_tokens(model, [[1, 2, 3]], max_tokens=9, sampling=GREEDY))
    with pytest.warns(Gpt2KitWarning, match=r"cannot compile here \(no compiler found\)") as warned:
        assert (
            list(generate_tokens(model, [[1, 2, 3]], max_tokens=9, sampling=GREEDY, compile=True))
            == plain
        )
    assert len(warned) == 1
    assert Decoder(model, compile=True).name() == "torch (it could not be compiled)"


def test_what_fails_without_the_compiler_too_is_not_blamed_on_it(
    model: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Running out of memory was taken for a missing compiler."""

    def full(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("no memory is left")

    monkeypatch.setattr(torch, "compile", lambda function: full)
    engine = GraphEngine(model, captures=False, compiled=True)
    monkeypatch.setattr(GPT2, "hidden", full)
    with pytest.raises(torch.OutOfMemoryError):
        read(engine, [7], model.new_cache())
    assert engine.name == "torch compiled"


@pytest.mark.slow
def test_compiled_tokens_are_the_same(model: GPT2) -> None:
    for sampling in (GREEDY, Sampling()):
        options: dict[str, Any] = {"max_tokens": 30, "sampling": sampling, "seed": 1}
        plain = list(generate_tokens(model, PROMPTS[:2], **options))
        assert list(generate_tokens(model, PROMPTS[:2], compile=True, **options)) == plain
    assert Decoder(model, compile=True).name() == "torch compiled"


# --- on a GPU -------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_writes_by_graph_what_it_writes_without(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(CONFIG).cuda()
    options: dict[str, Any] = {"max_tokens": 80, "sampling": KINDS[kind], "seed": 3}
    found = list(generate_tokens(model, PROMPTS, **options))
    assert Decoder(model).name() == "cuda graph"
    monkeypatch.setattr("gpt2kit.engine.decoder.graph_engine", lambda model, compiled: None)
    assert Decoder(model).name() == "torch"
    assert found == list(generate_tokens(model, PROMPTS, **options))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_on_a_gpu_waits_once_for_its_tokens(kind: str) -> None:
    model = make_model(CONFIG).cuda()
    request = Request(max_tokens=12, seed=0, sampling=KINDS[kind])
    rows = [Row([1, 2], request, model.config), Row([3, 4], request, model.config, sample=1)]
    state = begun(model, rows)
    for _ in range(3):
        state.step()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchronizing") as waits:
            state.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(waits) == 1, [str(wait.message) for wait in waits]


@pytest.mark.gpu
def test_compiled_tokens_of_a_gpu_are_the_same() -> None:
    model = make_model(CONFIG).cuda()
    options: dict[str, Any] = {"max_tokens": 30, "sampling": GREEDY}
    assert list(generate_tokens(model, PROMPTS[:1], compile=True, **options)) == list(
        generate_tokens(model, PROMPTS[:1], **options)
    )
    assert Decoder(model, compile=True).name() == "cuda graph of torch compiled"
