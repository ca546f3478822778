"""The shortlist finds the largest logits without computing the others, bit for bit."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import begun, compiled, make_model
from torch import Tensor, nn

from gpt2kit.checkpoints.load import load
from gpt2kit.config import GPT2Config
from gpt2kit.engine import native
from gpt2kit.engine.decoder import Decoder
from gpt2kit.engine.native import sketch
from gpt2kit.generation.request import Request, Sampling
from gpt2kit.generation.row import Row
from gpt2kit.generation.text import complete, generate_tokens
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import BPETokenizer

pytestmark = [compiled, pytest.mark.usefixtures("_every_head_is_large")]

CONFIG = GPT2Config(n_vocab=3001, n_ctx=32, n_embd=80, n_head=2, n_layer=1)


@pytest.fixture
def _every_head_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "LARGE_HEAD", 0)


def peaked(config: GPT2Config, dtype: torch.dtype = torch.float32) -> GPT2:
    """Return a model whose logits are far apart, as in trained models."""
    model = make_model(config, dtype=dtype)
    with torch.no_grad():
        model.get_parameter("ln_f.weight").mul_(5)
    return model


def both(model: GPT2, k: int, ids: tuple[int, ...] = (7, 5)) -> tuple[Tensor, Tensor]:
    """Return all logits, and the logits of a shortlist for the k largest."""
    with torch.inference_mode():
        return tuple(
            Decoder(model).read([ids], model.new_cache(), most_likely=n)[0] for n in (0, k)
        )  # type: ignore[return-value]


def assert_same(model: GPT2, k: int, ids: tuple[int, ...] = (7, 5)) -> int:
    """Check that the k largest logits are right, bit for bit; return how many were computed."""
    expected, found = both(model, k, ids)
    computed = found > -torch.inf
    assert torch.equal(found[computed], expected[computed])
    assert torch.equal(found.topk(k).values, expected.topk(k).values)
    return int(computed.sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n_embd", [80, 64, 36, 6])
def test_the_largest_logits_are_found(n_embd: int, dtype: torch.dtype, level: str) -> None:
    model = peaked(replace(CONFIG, n_embd=n_embd), dtype)
    for token in range(10):
        for k in (1, 40, 256):
            assert assert_same(model, k, (token,)) < 1500


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_torchs_default_dtype_and_device_do_not_matter(device: str) -> None:
    """C wrote beyond arrays of two bytes a number, and to the addresses of another device."""
    model = peaked(CONFIG)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            assert assert_same(model, 40) < 1500
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_share_the_work(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    assert assert_same(peaked(CONFIG), 20) < 500
    torch.set_num_threads(before)


@pytest.mark.parametrize("size", [10.0, 1000.0, 1e5])
def test_a_few_huge_numbers_in_the_input_do_not_loosen_the_bounds(size: float) -> None:
    model = peaked(CONFIG)
    with torch.no_grad():
        model.get_parameter("ln_f.bias")[3:5] = torch.tensor([size, -size])
    assert assert_same(model, 10) < 100


def test_rows_that_differ_by_less_than_the_error_bound_are_all_computed() -> None:
    model = peaked(CONFIG)
    with torch.no_grad():
        largest = int(both(model, 0)[0].argmax())
        near = model.wte.weight[largest] + 1e-6 * torch.randn(
            300, CONFIG.n_embd, generator=torch.Generator().manual_seed(0)
        )
        model.wte.weight[1000:1300] = near
    assert assert_same(model, 5, (7, 5)) > 300


@pytest.mark.parametrize("large", [False, True])
def test_no_row_is_lost_to_the_worst_rounding(large: bool, level: str) -> None:
    """The largest logit is rounded down as far as possible, and a smaller one up."""
    model = peaked(replace(CONFIG, tie_word_embeddings=False))
    x, head = model.get_parameter("ln_f.bias"), model.get_parameter("lm_head.weight")
    with torch.no_grad():
        model.get_parameter("ln_f.weight").zero_()
        head.zero_()
        if large:  # all in one number
            x.zero_()[5] = 1
            head[10, 0], head[10, 5] = 127, 11.49  # 11, the scale being 1
            head[20, 0], head[20, 5] = 127 * 22.9, 11.48  # 22.9, the scale
        else:  # every number is rounded to the same side
            x.fill_(1)[0] = 0
            head[10], head[20, 1::2], head[20, 2::2] = 10.49, 10.51, 10.46
            head[[10, 20], 0] = 127
    assert both(model, 0)[0].argmax() == 10
    assert assert_same(model, 1) == 2


def test_few_more_logits_are_computed_than_asked_for_in_a_trained_model(test_data: Path) -> None:
    model, tokenizer = load(test_data / "models" / "shakespeare")  # a vocabulary of 50,257
    assert tokenizer is not None
    decoder, cache, computed = Decoder(model), model.new_cache(), []
    with torch.inference_mode():
        for token in tokenizer.encode("Before we proceed any further, hear me speak."):
            computed.append(int(decoder.read([[token]], cache, most_likely=40).isfinite().sum()))
    assert max(computed) < 60


def test_a_text_gives_it_up_once_it_leaves_too_many_logits() -> None:
    """All logits after token 1 are equal, and must all be computed; those after token 2 differ."""
    config = replace(CONFIG, n_layer=0, tie_word_embeddings=False)
    model, half = make_model(config), config.n_embd // 2
    with torch.no_grad():
        model.get_parameter("ln_f.bias").zero_()
        model.get_parameter("ln_f.weight").fill_(5)
        for name in ("wte.weight", "wpe.weight", "lm_head.weight"):
            model.get_parameter(name).zero_()
        signs = torch.tensor([1.0, -1.0]).repeat(half // 2)
        model.get_parameter("wte.weight")[1, :half] = signs
        model.get_parameter("wte.weight")[2, half:] = signs
        model.get_parameter("lm_head.weight")[:, :half] = 1
        model.get_parameter("lm_head.weight")[:, half:] = torch.randn(config.n_vocab, half)

    def computed(decoder: Decoder, token: int) -> int:
        with torch.inference_mode():
            logits = decoder.read([[token]], model.new_cache(), most_likely=3)
        return int(logits.isfinite().sum())

    decoder = Decoder(model)
    assert computed(decoder, 2) < 100
    assert computed(decoder, 1) == config.n_vocab
    assert computed(decoder, 2) == config.n_vocab
    assert computed(Decoder(model), 2) < 100  # the next text tries again


def with_head(head: Tensor, x: Tensor) -> GPT2:
    """Return a model whose logits are head @ x, whatever it reads."""
    config = replace(
        CONFIG, n_vocab=len(head), n_embd=len(x), n_head=1, n_layer=0, tie_word_embeddings=False
    )
    model = make_model(config)
    with torch.no_grad():
        model.get_parameter("ln_f.weight").zero_()
        model.get_parameter("ln_f.bias").copy_(x)
        model.get_parameter("lm_head.weight").copy_(head)
    return model


def test_the_error_bound_uses_the_norm_of_the_rounded_row(level: str) -> None:
    """A rounded row can be larger than the row: the one positive logit was left out."""
    K, size = 12288, 18.5005
    finest = (2**31 - 1) // (128 * K)
    each = size * 0.5005
    first = int(each * (K - 2) / finest - 0.4995) + 0.4995
    x, head = torch.full((K,), 0.5005), torch.zeros(64, K)
    x[:2] = torch.tensor([finest, 0.0])
    head[10, :2] = torch.tensor([first, 127.0])
    head[10, 2 : 2 + int((finest * first - 60) / each)] = -size
    model = with_head(head, x)
    assert both(model, 0)[0][10] > 50
    assert assert_same(model, 1) >= 1


@pytest.mark.parametrize(
    "sizes", [(1e-24, 1), (1, 1e-24), (1e-38, 1), (1e-20, 1e-20), (1e30, 1), (1, 1e37)], ids=str
)
def test_no_logit_is_lost_among_tiny_and_huge_numbers(sizes: tuple[float, float]) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        x = torch.randn(64, generator=generator)
        head = x + 0.01 * torch.randn(
            300, 64, generator=generator
        )  # products that are nearly equal
        assert_same(with_head(head * sizes[0], x * sizes[1]), 1)


def test_no_logit_is_lost_near_the_largest_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        x = torch.rand(3, generator=generator) + 0.01
        x /= x.norm()
        head = x + 0.1 * torch.randn(12, 3, generator=generator)
        head *= (1 - torch.rand(12, 1, generator=generator) * 0.01) / head.norm(dim=1, keepdim=True)
        model = with_head(head * 1.8446e19, x * 1.8446e19)
        if both(model, 0)[0].isfinite().all():
            assert_same(model, 1)


def test_a_head_replaced_within_a_text_is_used_from_the_next_token_on() -> None:
    """The old one went on to be used for up to seven tokens."""
    model, other = peaked(CONFIG), peaked(CONFIG)
    decoder = Decoder(model)
    with torch.inference_mode():
        decoder.read([[1]], model.new_cache(), most_likely=3)
    model.wte.weight = torch.nn.Parameter(other.wte.weight.detach().flip(0))
    expected = both(model, 0, (1,))[0]
    with torch.inference_mode():
        found = decoder.read([[1]], model.new_cache(), most_likely=3)[0]
    assert torch.equal(found.topk(3).values, expected.topk(3).values)


def test_inference_tensors_have_no_sketch() -> None:
    with torch.inference_mode():
        model = peaked(CONFIG)
        assert Decoder(model).read([[1]], model.new_cache(), most_likely=3).isfinite().all()


@pytest.mark.parametrize("damage", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_is_computed(damage: float) -> None:
    model = peaked(replace(CONFIG, tie_word_embeddings=False))
    with torch.no_grad():
        model.lm_head.weight[2000, 11] = damage
    expected, found = both(model, 3)
    assert not expected[2000].isfinite()
    assert torch.equal(found[2000].nan_to_num(), expected[2000].nan_to_num())


@pytest.fixture
def sketches(monkeypatch: pytest.MonkeyPatch) -> list[sketch.Sketch]:
    """Record the sketches that are made."""
    made: list[sketch.Sketch] = []

    class Counted(sketch.Sketch):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(sketch, "Sketch", Counted)
    return made


def test_texts_of_one_model_share_a_sketch(sketches: list[sketch.Sketch]) -> None:
    """Every text made a sketch of its own."""
    model, other = peaked(CONFIG), peaked(CONFIG)
    for each in (model, model, other, model, other):
        assert_same(each, 5)
    assert len(sketches) == 2


def test_a_sketch_leaves_memory_with_its_model(sketches: list[sketch.Sketch]) -> None:
    model = peaked(CONFIG)
    assert_same(model, 5)
    made = weakref.ref(sketches.pop())
    assert made() is not None
    del model
    gc.collect()
    assert made() is None


CHANGES: dict[str, Callable[[nn.Parameter], object]] = {
    "in place": lambda weight: weight.copy_(weight.flip(0)),
    "one number": lambda weight: weight[17, 3].fill_(1e3),
    "through .data": lambda weight: weight.data.copy_(weight.data.flip(0)),
    "one number through .data": lambda weight: weight.data[17, 3].fill_(1e3),
    "through NumPy": lambda weight: weight.detach().view(torch.int16).numpy().__ixor__(-(2**15)),
    "other memory": lambda weight: setattr(weight, "data", weight.data.flip(0)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n_embd", [80, 51])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_noticed_by_the_next_text(
    change: str, n_embd: int, dtype: torch.dtype
) -> None:
    config = replace(CONFIG, n_embd=n_embd, n_head=1, tie_word_embeddings=False)
    model = peaked(config, dtype)
    assert_same(model, 3)
    with torch.no_grad():
        CHANGES[change](model.get_parameter("lm_head.weight"))
    assert_same(model, 3)


def test_a_head_that_is_replaced_is_noticed_by_the_next_text() -> None:
    model = peaked(replace(CONFIG, tie_word_embeddings=False))
    assert_same(model, 3)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().flip(0))
    assert_same(model, 3)


def test_weights_that_change_in_place_are_noticed_within_a_text() -> None:
    model = peaked(CONFIG)
    decoder = Decoder(model)
    for _ in range(2):
        with torch.inference_mode():
            found = decoder.read([[1]], model.new_cache(), most_likely=3)[0]
        assert torch.equal(found.topk(3).values, both(model, 0, (1,))[0].topk(3).values)
        with torch.no_grad():
            model.wte.weight.copy_(model.wte.weight.flip(0))


def test_the_environment_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    model = peaked(CONFIG)
    assert both(model, 3)[1].isinf().any()
    monkeypatch.setenv("GPT2KIT_SHORTLIST", "0")
    assert both(model, 3)[1].isfinite().all()


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=0), Sampling(top_k=5), Sampling(top_k=40, top_p=0.9, min_p=0.01)],
    ids=str,
)
def test_texts_are_the_same_without_it(sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    model = peaked(CONFIG)

    def text() -> list[list[int]]:
        return list(
            generate_tokens(model, [[3, 4]], max_tokens=50, sampling=sampling, seed=5)
        )  # also past n_ctx

    with_it = text()
    monkeypatch.setattr(native, "MOST_LIKELY", 0)
    assert text() == with_it


def test_padding_of_the_vocabulary_does_not_displace_tokens() -> None:
    model = peaked(CONFIG)
    with torch.no_grad():
        model.wte.weight[2960:] *= 3  # padding that would win

    def text(*, logprobs: bool) -> list[int]:
        sampling = Sampling(top_k=20, temperature=0.7)
        request = Request(max_tokens=20, seed=1, sampling=sampling, logprobs=logprobs)
        row = Row([3], request, model.config)
        state = begun(model, [row], n_vocab=2960)
        while state.has_work:
            state.step()
        return row.history[1:]

    assert text(logprobs=False) == text(logprobs=True)  # log-probabilities need all logits
    assert max(text(logprobs=False)) < 2960


def test_log_probabilities_are_those_of_all_tokens(small_bpe: BPETokenizer) -> None:
    model = peaked(replace(CONFIG, n_vocab=small_bpe.n_vocab))
    (found,) = complete(
        model, small_bpe, "a", max_tokens=4, top_k=1, logprobs=True, ignore_eos=True
    )
    ids = torch.tensor([[*small_bpe.encode("a"), *found.tokens]])
    with torch.inference_mode():
        expected = model(ids)[0, :-1].log_softmax(dim=-1)[-4:].gather(1, ids[0, -4:, None])[:, 0]
    assert found.logprobs == pytest.approx(expected.tolist(), abs=1e-3)
