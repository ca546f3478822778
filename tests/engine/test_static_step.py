"""The static step computes what the model defines, plainly, captured and compiled; what a GPU alone can show is marked so."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from conftest import make_model
from fake_cuda import FakeGraph, StorageWeakRef, fake_cuda
from torch import Tensor, nn

from gpt2kit.cache import KVCache
from gpt2kit.config import GPT2Config
from gpt2kit.engine import native, static_step
from gpt2kit.engine.decoder import Decoder
from gpt2kit.engine.static_step import MOST_STEPS, WARM_UP, StaticSteps, rounded, steps_of
from gpt2kit.errors import ConfigError, ContextLengthError, Gpt2KitWarning
from gpt2kit.generation.continuation import Continuation
from gpt2kit.generation.request import Request, Sampling
from gpt2kit.generation.row import Row
from gpt2kit.generation.text import generate_tokens
from gpt2kit.model import GPT2

__all__ = ["fake_cuda"]

CONFIG = GPT2Config(n_vocab=101, n_ctx=40, n_embd=32, n_head=2, n_layer=2)
GREEDY = Sampling(temperature=0)


@pytest.fixture(autouse=True)
def _small_steps_by_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(static_step, "SHORTEST", 16)
    monkeypatch.setenv(native.VARIABLE, "0")
    with torch.inference_mode():
        yield


@pytest.fixture
def model() -> GPT2:
    return make_model(CONFIG)


@pytest.fixture
def not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `compile=True` run the static step as it is."""
    monkeypatch.setattr(torch, "compile", lambda function: function)


def ids_of(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(0, CONFIG.n_vocab, shape, generator=torch.Generator().manual_seed(seed))


def steps(*, capture: bool = False) -> StaticSteps:
    return StaticSteps(capture=capture, compiled=False)


def largest_difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def caches(model: GPT2, lengths: list[int], n: int = 2) -> list[KVCache]:
    """Return equal caches of rows of these lengths."""
    made = []
    for _ in range(n):
        made.append(model.new_cache(len(lengths)))
        model.hidden(ids_of(len(lengths), max(lengths)), made[-1])
        made[-1].truncate(lengths)
    return made


def assert_reads_as_the_model(
    static: StaticSteps, model: GPT2, pair: Sequence[KVCache], n: int, tolerance: float = 1e-5
) -> None:
    """Read n tokens both ways, ours first, and compare logits, keys and values."""
    ours, theirs = pair
    ids = [ids_of(ours.batch_size, 1, seed=number) for number in range(n)]
    expected = [model(each, theirs)[:, -1].float() for each in ids]
    found = [static.read(model, each.tolist(), ours) for each in ids]
    for one, other in zip(
        found, expected, strict=True
    ):  # compared in the end: a later step must not write into the logits of an earlier one
        assert largest_difference(one, other) < tolerance
    assert ours.lengths == theirs.lengths
    for row, length in enumerate(ours.lengths):
        assert (
            largest_difference(
                ours.keys[:, row, :, :length].float(), theirs.keys[:, row, :, :length].float()
            )
            < tolerance
        )
        assert (
            largest_difference(
                ours.values[:, row, :, :length].float(), theirs.values[:, row, :, :length].float()
            )
            < tolerance
        )


# --- the same numbers ------------------------------------------------------------------------------------------------


def test_sizes_are_the_shortest_and_its_doubles() -> None:
    assert [rounded(n) for n in (1, 16, 17, 32, 33, 128)] == [16, 16, 32, 32, 64, 128]


@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.parametrize("lengths", [[12], [31], [3, 13, 8], [0, 28, 31]], ids=str)
def test_logits_are_those_of_the_model_across_the_borders_of_sizes(
    model: GPT2, lengths: list[int], capture: bool, fake_cuda: type[FakeGraph]
) -> None:
    assert_reads_as_the_model(steps(capture=capture), model, caches(model, lengths), 8)
    assert ("replay" in fake_cuda.log) == capture


@pytest.mark.parametrize("capture", [False, True])
def test_rows_may_be_cut_ended_and_refilled_between_steps(
    model: GPT2, capture: bool, fake_cuda: type[FakeGraph]
) -> None:
    static, (ours, theirs) = steps(capture=capture), caches(model, [20, 7, 31])
    (other,) = caches(model, [11], 1)
    changes: list[Callable[[KVCache], None]] = [
        lambda cache: None,
        lambda cache: cache.truncate([5, 7, 1]),
        lambda cache: cache.keep([2, 0]),
        lambda cache: cache.fill([1], other, 0),
        lambda cache: cache.keep([1]),
    ]
    for change in changes:
        change(ours)
        change(theirs)
        assert_reads_as_the_model(static, model, (ours, theirs), 5)


def test_bfloat16_logits_are_those_of_the_model_up_to_its_rounding() -> None:
    model = make_model(CONFIG, dtype=torch.bfloat16)
    assert_reads_as_the_model(steps(), model, caches(model, [3, 13, 8]), 5, tolerance=0.03)


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
    model = make_model(GPT2Config(n_vocab=101, n_ctx=24, n_embd=32, n_head=2, n_layer=2, **variant))
    assert_reads_as_the_model(steps(), model, caches(model, [3, 14]), 4)


def test_what_does_not_fit_is_refused(model: GPT2) -> None:
    static, (ours, theirs) = steps(), caches(model, [38])
    assert_reads_as_the_model(static, model, (ours, theirs), 2)
    with pytest.raises(ContextLengthError, match="room for 40"):
        static.read(model, [[7]], ours)


# --- what is captured ------------------------------------------------------------------------------------------------


def test_every_size_is_captured_once_after_a_warm_up_and_then_replayed(
    model: GPT2, fake_cuda: type[FakeGraph]
) -> None:
    static, (cache, _) = steps(capture=True), caches(model, [8])
    warm_up, replay = ["wait", "stream", "wait"], ["replay"]
    captured = ["stream", "capture", "replay"]
    for number in range(16):
        static.read(model, [[number]], cache)
    assert (
        fake_cuda.log == [*warm_up * WARM_UP, *captured, *replay * (8 - WARM_UP - 1)] * 2
    )  # keys up to 16, then up to 32
    cache.truncate([4])
    fake_cuda.log.clear()
    for number in range(20):
        static.read(model, [[number]], cache)
    assert fake_cuda.log == replay * 20
    assert static.name == "cuda graph"


def test_a_cache_elsewhere_gets_a_graph_of_its_own(model: GPT2, fake_cuda: type[FakeGraph]) -> None:
    static = steps(capture=True)
    pairs = [caches(model, [n]) for n in (3, 5)]
    for _ in range(2):  # taking turns
        for ours, theirs in pairs:
            assert_reads_as_the_model(static, model, (ours, theirs), WARM_UP + 2)
    assert fake_cuda.log.count("capture") == 2


def test_a_graph_does_not_keep_the_cache_in_memory(model: GPT2, fake_cuda: type[FakeGraph]) -> None:
    static, (cache, _) = steps(capture=True), caches(model, [3])
    for _ in range(WARM_UP + 2):
        static.read(model, [[7]], cache)
    memory = StorageWeakRef(cache.keys.untyped_storage())
    del cache
    assert memory.expired()


def test_no_more_graphs_are_kept_than_may_be(model: GPT2, fake_cuda: type[FakeGraph]) -> None:
    static = steps(capture=True)
    made = [caches(model, [1], 1)[0] for _ in range(MOST_STEPS + 2)]
    for cache in made:
        for _ in range(WARM_UP + 1):
            static.read(model, [[7]], cache)
    assert len(static._steps) == MOST_STEPS
    fake_cuda.log.clear()
    static.read(model, [[7]], made[-1])
    static.read(model, [[7]], made[0])
    assert fake_cuda.log == ["replay", "wait", "stream", "wait"]


def test_new_weights_and_hooks_end_a_graph(model: GPT2, fake_cuda: type[FakeGraph]) -> None:
    static, (ours, theirs) = steps(capture=True), caches(model, [3])
    assert_reads_as_the_model(static, model, (ours, theirs), WARM_UP + 1)
    model.ln_f.weight = nn.Parameter(torch.full((32,), 2.0))
    assert_reads_as_the_model(static, model, (ours, theirs), WARM_UP + 1)
    assert fake_cuda.log.count("capture") == 2
    seen: list[object] = []
    handle = model.ln_f.register_forward_hook(lambda *_: seen.append(None))
    for _ in range(5):
        static.read(model, [[7]], ours)
    assert len(seen) == 5
    handle.remove()
    ours.truncate([3])
    fake_cuda.log.clear()
    for _ in range(WARM_UP + 1):
        static.read(model, [[7]], ours)
    assert fake_cuda.log[-1] == "replay"


def test_where_a_capture_fails_tokens_are_read_without_and_the_name_says_so(
    model: GPT2, fake_cuda: type[FakeGraph]
) -> None:
    fake_cuda.fails = True
    static, (ours, theirs) = steps(capture=True), caches(model, [12])
    assert_reads_as_the_model(static, model, (ours, theirs), 16)
    assert fake_cuda.log.count("capture") == 1
    assert (
        static.name
        == "torch (no cuda graph: CUDA error: operation not permitted when stream is capturing)"
    )


def test_a_failed_step_does_not_count(model: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    static, (ours, theirs) = steps(), caches(model, [3])
    assert_reads_as_the_model(static, model, (ours, theirs), 2)
    with pytest.raises(IndexError):
        static.read(model, [[CONFIG.n_vocab]], ours)
    assert_reads_as_the_model(static, model, (ours, theirs), 2)


def test_steps_are_kept_for_as_long_as_their_model(fake_cuda: type[FakeGraph]) -> None:
    model = make_model(CONFIG)
    static = steps_of(model, compiled=False)
    assert steps_of(model, compiled=False) is static
    static.read(model, [[7]], model.new_cache())
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


# --- generation ------------------------------------------------------------------------------------------------------

PROMPTS = [[5, 6, 7], [9], list(range(20)), [5, 6, 7]]
KINDS = {
    "greedy": GREEDY,
    "sampled": Sampling(top_k=20, top_p=0.9, min_p=0.01),
    "everything": Sampling(top_k=0, temperature=1.5),
    "penalty": Sampling(repetition_penalty=1.3),
}


def by_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Decoders take the CPU for a GPU with graphs."""
    monkeypatch.setattr(
        static_step,
        "steps_of",
        lambda model, compiled: StaticSteps(capture=True, compiled=compiled),
    )
    monkeypatch.setattr(
        "gpt2kit.engine.decoder.steps_of",
        lambda model, compiled: StaticSteps(capture=True, compiled=False),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("capture", [False, True])
def test_generation_gives_the_same_tokens(
    model: GPT2,
    kind: str,
    capture: bool,
    not_compiled: None,
    fake_cuda: type[FakeGraph],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Longer than the window, so that rows slide, each at its own time; rows of equal prompts read them once.
    wish: dict[str, Any] = {"max_tokens": 60, "sampling": KINDS[kind], "seed": 3}
    plain = list(generate_tokens(model, PROMPTS, **wish))
    if capture:
        by_graph(monkeypatch)
    assert list(generate_tokens(model, PROMPTS, compile=True, **wish)) == plain
    assert fake_cuda.log.count("capture") == (2 if capture else 0)  # keys up to 32 and 40


@pytest.mark.parametrize("capture", [False, True])
def test_rows_that_end_leave_the_others_as_they_are(
    model: GPT2,
    capture: bool,
    not_compiled: None,
    fake_cuda: type[FakeGraph],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = list(generate_tokens(model, PROMPTS, max_tokens=30, seed=5))
    wish: dict[str, Any] = {"max_tokens": 30, "seed": 5, "stop_id": free[10][1]}
    plain = list(generate_tokens(model, PROMPTS, **wish))
    assert any(row[1] == free[10][1] for row in plain[:12])
    if capture:
        by_graph(monkeypatch)
    assert list(generate_tokens(model, PROMPTS, compile=True, **wish)) == plain


def test_only_caches_of_usual_sizes_are_read_by_static_steps(
    model: GPT2, not_compiled: None
) -> None:
    static = steps_of(model, compiled=True)
    sizes = (15, 16, 20, 32, 40)
    assert [size for size in sizes if static.takes(model, model.new_cache(capacity=size))] == [
        16,
        32,
        40,
    ]
    assert [Decoder(model, compile=True).new_cache(1, size).capacity for size in (1, 20, 33)] == [
        16,
        32,
        40,
    ]
    with torch.inference_mode(False):
        assert not static.takes(model, model.new_cache())
    assert not static.takes(make_model(CONFIG).train(), model.new_cache())


# --- compilation -----------------------------------------------------------------------------------------------------


def test_compiling_is_refused_where_the_native_step_reads(
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


def test_where_torch_cannot_compile_tokens_are_read_without(
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


@pytest.mark.slow
def test_compiled_tokens_are_the_same(model: GPT2) -> None:
    for sampling in (GREEDY, Sampling()):
        wish: dict[str, Any] = {"max_tokens": 30, "sampling": sampling, "seed": 1}
        plain = list(generate_tokens(model, PROMPTS[:2], **wish))
        assert list(generate_tokens(model, PROMPTS[:2], compile=True, **wish)) == plain
    assert Decoder(model, compile=True).name() == "torch compiled"


# --- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_writes_by_graph_what_it_writes_without(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(CONFIG).cuda()
    wish: dict[str, Any] = {"max_tokens": 60, "sampling": KINDS[kind], "seed": 3}
    found = list(generate_tokens(model, PROMPTS, **wish))
    assert Decoder(model).name() == "cuda graph"
    assert any(step.graph is not None for step in steps_of(model, compiled=False)._steps.values())
    monkeypatch.setattr("gpt2kit.engine.decoder.steps_of", lambda model, compiled: None)
    assert found == list(generate_tokens(model, PROMPTS, **wish))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_on_a_gpu_waits_once_for_its_tokens(kind: str) -> None:
    model = make_model(CONFIG).cuda()
    request = Request(max_tokens=12, seed=0, sampling=KINDS[kind])
    rows = [Row([1, 2], request, model.config), Row([3, 4], request, model.config, sample=1)]
    state = Continuation(model, rows)
    for _ in range(WARM_UP + 3):
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
    wish: dict[str, Any] = {"max_tokens": 30, "sampling": GREEDY}
    assert list(generate_tokens(model, PROMPTS[:1], compile=True, **wish)) == list(
        generate_tokens(model, PROMPTS[:1], **wish)
    )
    assert Decoder(model, compile=True).name() == "cuda graph of torch compiled"
