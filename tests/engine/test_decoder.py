"""Who reads which tokens, and that nobody beside a row changes what it gives."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import compiled
from engine_builders import (
    SMALL,
    TOLERANCE,
    block_of,
    difference,
    ids_of,
    int8_of,
    model_of,
    read_prompts,
    torch_logits,
)
from torch import Tensor, nn

import gpt2kit
from gpt2kit.cache import KVCache
from gpt2kit.config import GPT2Config
from gpt2kit.engine import native
from gpt2kit.engine.decoder import PIECE, Decoder
from gpt2kit.engine.native import library
from gpt2kit.errors import ConfigError, ContextLengthError
from gpt2kit.generation import row as rows_of_a_batch
from gpt2kit.generation.request import Sampling
from gpt2kit.generation.sampling import sample
from gpt2kit.generation.text import generate_tokens
from gpt2kit.model import GPT2

LONG = GPT2Config(n_vocab=67, n_ctx=600, n_embd=64, n_head=2, n_layer=2)
KINDS: dict[str, Callable[[GPT2Config], GPT2]] = {
    "float32": model_of,
    "bfloat16": lambda config: model_of(config, torch.bfloat16),
    "int8": lambda config: int8_of(model_of(config)),
}


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


# --- who reads ---------------------------------------------------------------------------------


@compiled
def test_the_native_step_reads_every_token_that_it_can_read() -> None:
    for make in KINDS.values():
        decoder = Decoder(make(SMALL))
        assert decoder.name() == decoder.name(1000) == f"native {native.level()}"
        assert decoder.cut == 1


@compiled
@pytest.mark.parametrize("batch_size", [1, 20])
def test_who_reads_a_token_does_not_depend_on_how_many_rows_there_are(batch_size: int) -> None:
    """Torch read the tokens of more than 16 rows, with other bits than a row has alone."""
    model = model_of(SMALL)
    ids = ids_of(batch_size, 1)
    found = Decoder(model).read(ids, model.new_cache(batch_size))
    alone = [Decoder(model).read(ids[b : b + 1], model.new_cache()) for b in range(batch_size)]
    assert torch.equal(found, torch.cat(alone))


@compiled
@pytest.mark.parametrize("method", ["forward", "hidden", "head"])
def test_a_model_whose_methods_were_replaced_is_left_to_torch(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The native step gave the logits of the method that had been replaced."""
    model = model_of(SMALL)
    monkeypatch.setattr(model, method, getattr(model, method))
    assert Decoder(model).name() == "torch"


@compiled
def test_the_native_step_is_not_used_in_training_or_if_gradients_are_wanted() -> None:
    model = model_of(SMALL)
    decoder = Decoder(model)
    model.train()
    assert decoder.name() == "torch"
    model.eval()
    assert decoder.name() != "torch"
    with torch.inference_mode(False), torch.enable_grad():
        fresh = GPT2(SMALL).eval()
        assert Decoder(fresh).read(ids_of(1, 2).clone(), fresh.new_cache()).requires_grad


def test_without_the_library_torch_reads_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "load", lambda: None)
    greedy = Sampling(temperature=0)
    for model in (model_of(SMALL), int8_of(model_of(SMALL))):
        assert Decoder(model).name() == "torch"
        assert len(list(generate_tokens(model, [[1, 2]], max_tokens=5, sampling=greedy))) == 5
    monkeypatch.setenv(native.VARIABLE, "plain")
    with pytest.raises(ConfigError, match="was not compiled here"):
        Decoder(model)


def test_torch_reads_a_long_prompt_of_an_int8_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the last piece have no wanted logits, and int8 could not multiply no vectors."""
    monkeypatch.setenv(native.VARIABLE, "0")
    model = KINDS["int8"](LONG)
    logits, cache = read_alone(model, ids_of(PIECE + 9, V=LONG.n_vocab).tolist())
    assert cache.lengths == [PIECE + 9]
    assert logits.isfinite().all()


def test_every_new_cache_aligns_its_slots_alike() -> None:
    decoder = Decoder(model_of(replace(SMALL, n_ctx=1000)))
    for capacity in (1, 16, 17, 300):
        cache = decoder.new_cache(3, capacity)
        assert capacity <= cache.capacity < capacity + 16
        stride = cache.keys.stride(2) // cache.capacity * cache.capacity
        assert cache.keys[0, 1, 0].storage_offset() * cache.keys.itemsize % 64 == 0
        assert stride * cache.keys.itemsize % 64 == 0


# --- a row is what it is alone -----------------------------------------------------------------


def read_alone(model: GPT2, prompt: Sequence[int]) -> tuple[Tensor, KVCache]:
    """Return the logits after a prompt, (V,), and the cache that it was read into."""
    decoder = Decoder(model)
    cache = decoder.new_cache(1, len(prompt) + 5)
    return read_prompts(decoder, [prompt], cache)[0][0], cache


@compiled
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("shared", "lengths"),
    [
        (0, [5, 16, 17, 40, 40, 40, 120]),
        (PIECE + 44, [PIECE + 45, PIECE + 60, 2 * PIECE, 2 * PIECE + 1, 590, 590]),
    ],
    ids=["nothing shared", "a beginning shared"],
)
def test_a_prompt_has_the_same_bits_alone_and_in_any_batch(
    kind: str, shared: int, lengths: list[int]
) -> None:
    """Torch read prompts of equal length at once, and a shared beginning apart from its rest."""
    model = KINDS[kind](LONG)
    beginning = ids_of(shared, V=LONG.n_vocab, seed=9).tolist()
    prompts = [
        [*beginning, *ids_of(n - shared, V=LONG.n_vocab, seed=i).tolist()]
        for i, n in enumerate(lengths)
    ]
    decoder = Decoder(model)
    cache = decoder.new_cache(len(prompts), max(lengths))
    logits, slots = read_prompts(decoder, prompts, cache)
    assert [cache.lengths[slot] for slot in slots] == lengths
    for found, slot, prompt, n in zip(logits, slots, prompts, lengths, strict=True):
        expected, own = read_alone(model, prompt)
        assert torch.equal(found, expected)
        assert torch.equal(cache.keys[:, slot, :, :n], own.keys[:, 0, :, :n])
        assert torch.equal(cache.values[:, slot, :, :n], own.values[:, 0, :, :n])


@compiled
def test_a_prompt_read_in_pieces_has_the_bits_of_one_read_at_once() -> None:
    model = model_of(LONG)
    prompt = ids_of(590, V=LONG.n_vocab).tolist()
    expected, _ = read_alone(model, prompt)
    decoder = Decoder(model)
    cache = decoder.new_cache(3, 600)
    for start in range(0, 590, PIECE):
        logits = decoder.read([prompt[start : start + PIECE]], cache, slots=[1])
        decoder.read([[1], [2]], cache, slots=[0, 2])  # other texts go on meanwhile
    assert torch.equal(logits[0], expected)


@compiled
@pytest.mark.parametrize(
    "options", [{"dtype": "float32"}, {"dtype": "bfloat16"}, {"quantize": "int8"}], ids=str
)
def test_texts_are_the_same_alone_and_in_a_batch(options: dict[str, Any]) -> None:
    """In bfloat16, 4 of these 96 texts were others."""
    model, tokenizer = gpt2kit.load("dante", **options)
    assert tokenizer is not None
    generator = random.Random(0)
    for batch in range(12):
        n = generator.choice((0, 40))
        beginning = generator.choices(range(tokenizer.n_vocab), k=n)
        prompts = []
        for _ in range(8):
            ids = [*beginning, *generator.choices(range(tokenizer.n_vocab), k=120)]
            prompts.append(tokenizer.decode(ids[: generator.randint(17, 120)]))
        wish: dict[str, Any] = {"max_tokens": 10, "seed": batch, "ignore_eos": True}
        together = gpt2kit.complete(model, tokenizer, prompts, **wish)
        for prompt, found in zip(prompts, together, strict=True):
            assert gpt2kit.complete(model, tokenizer, prompt, **wish)[0].tokens == found.tokens


# --- rows of any lengths, in any slots ---------------------------------------------------------

ROWS = [[5, 6, 7, 8], [9], [], list(range(20))]


def expected_each(model: GPT2, before: Sequence[int], tokens: Sequence[int]) -> Tensor:
    """Return the model's logits after each of the tokens: (T, V)."""
    logits: Tensor = model(torch.tensor([[*before, *tokens]]))[0]
    return logits[len(before) :]


@pytest.mark.parametrize("engine", ["torch", "native"])
@pytest.mark.parametrize("capacity", [48, 23])  # with room to pad shorter rows, and without
def test_several_tokens_of_each_row_are_read_at_once(
    engine: str, capacity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "torch":
        monkeypatch.setenv(native.VARIABLE, "0")
    model, before = model_of(SMALL), ids_of(4, 5)
    decoder, cache = Decoder(model), model.new_cache(4, capacity=capacity)
    decoder.read(before, cache)
    cache.truncate([5, 5, 4, 3])
    found = decoder.read_each(ROWS, cache)
    assert cache.lengths == [9, 6, 4, 23]
    for row, (tokens, length) in enumerate(zip(ROWS, [5, 5, 4, 3], strict=True)):
        expected = expected_each(model, before[row, :length].tolist(), tokens)
        assert found[row].shape == expected.shape
        assert not tokens or difference(found[row], expected) < TOLERANCE


@pytest.mark.parametrize("engine", ["torch", "native"])
@pytest.mark.parametrize("lengths", [(1, 1), (3, 3), (2, 30)], ids=str)
def test_rows_are_read_into_any_slots_and_leave_the_others_alone(
    engine: str, lengths: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "torch":
        monkeypatch.setenv(native.VARIABLE, "0")
    model = model_of(SMALL)
    decoder, cache = Decoder(model), model.new_cache(4)
    decoder.read(ids_of(4, 6), cache)
    cache.free([3])
    before = cache.keys.clone()
    rows = [ids_of(n, seed=n).tolist() for n in lengths]
    logits = decoder.read(rows, cache, slots=[3, 1])
    assert cache.lengths == [6, 6 + lengths[1], 6, lengths[0]]
    for slot in (0, 2):
        assert torch.equal(cache.keys[:, slot], before[:, slot])
    for row, held, found in zip(rows, ([], ids_of(4, 6)[1].tolist()), logits, strict=True):
        assert difference(found, expected_each(model, held, row)[-1]) < TOLERANCE


@pytest.mark.parametrize("engine", ["torch", "native"])
def test_tokens_are_read_without_logits(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if engine == "torch":
        monkeypatch.setenv(native.VARIABLE, "0")
    model = model_of(SMALL)
    decoder, cache = Decoder(model), model.new_cache(2)
    rows = [[1, 2, 3], list(range(30))]
    assert decoder.read(rows, cache, wanted=0).shape == (0, SMALL.n_vocab)
    assert cache.lengths == [3, 30]
    found = decoder.read([[4], [5]], cache)
    for logits, row, token in zip(found, rows, (4, 5), strict=True):
        assert difference(logits, expected_each(model, row, [token])[0]) < TOLERANCE


def test_what_does_not_fit_or_does_not_exist_is_refused_before_it_is_read() -> None:
    model = model_of(SMALL)
    decoder, cache = Decoder(model), model.new_cache(2, capacity=5)
    message = "0 tokens are read and 6 more were given, but the cache has room for 5"
    with pytest.raises(ContextLengthError, match=message):
        decoder.read_each([[1], [1, 2, 3, 4, 5, 6]], cache)
    with pytest.raises(ContextLengthError, match=message):
        decoder.read(ids_of(2, 6), cache)
    for wrong in (-1, SMALL.n_vocab):
        with pytest.raises(IndexError, match="outside of the vocabulary"):
            decoder.read([[1], [wrong]], cache)
        with pytest.raises(IndexError, match="outside of the vocabulary"):
            decoder.read_each([[1], [wrong]], cache)
    with pytest.raises(ValueError, match="fewer new tokens than logits"):
        decoder.read([[1], []], cache)
    assert cache.lengths == [0, 0]


# --- a model that changes in the middle of a text ----------------------------------------------


UNTIED = replace(SMALL, tie_word_embeddings=False)


def new_bias(model: GPT2) -> None:
    block_of(model, 0).attn.c_attn.bias = nn.Parameter(torch.full((3 * SMALL.n_embd,), 0.5))


CHANGES: dict[str, Callable[[GPT2], object]] = {
    "a weight in place": lambda model: block_of(model, 0).attn.c_attn.bias.add_(1),
    "a weight's memory": lambda model: setattr(model.wte.weight, "data", model.wte.weight.data * 2),
    "a weight replaced": lambda model: setattr(model.ln_f, "weight", nn.Parameter(-torch.ones(96))),
    "the head replaced": lambda model: setattr(
        model.lm_head, "weight", nn.Parameter(model.lm_head.weight.flip(0))
    ),
    "a bias replaced": new_bias,
    "a bias removed": lambda model: setattr(block_of(model, 0).attn.c_attn, "bias", None),
    "a module replaced": lambda model: setattr(
        block_of(model, 1), "mlp", block_of(model_of(SMALL, seed=6), 1).mlp
    ),
    "all weights loaded": lambda model: model.load_state_dict(
        model_of(UNTIED, seed=5).state_dict(), assign=True
    ),
    "another dtype": lambda model: model.to(torch.float64),
    "a hook": lambda model: model.ln_f.register_forward_hook(lambda *seen: -seen[-1]),
    "a hook before": lambda model: block_of(model, 1).register_forward_pre_hook(
        lambda _, arguments: (2 * arguments[0], *arguments[1:])
    ),
}


@compiled
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_read_as_it_is_at_the_very_next_token(change: str) -> None:
    """It went on to be read as it was for up to seven tokens."""
    model = model_of(UNTIED)
    decoder, cache = Decoder(model), model.new_cache()
    before = decoder.read([[1]], cache)
    CHANGES[change](model)
    cache = model.new_cache()
    found = decoder.read([[1]], cache)
    assert found.dtype != before.dtype or difference(found, before) > 1e-3
    expected = torch_logits(model, torch.tensor([[1]]), model.new_cache())
    assert difference(found, expected) < TOLERANCE


@compiled
def test_a_bias_that_was_left_out_and_is_there_now_is_noticed() -> None:
    model = model_of(replace(SMALL, qkv_bias=False))
    decoder = Decoder(model)
    before = decoder.read([[1]], model.new_cache())
    new_bias(model)
    found = decoder.read([[1]], model.new_cache())
    assert difference(found, before) > 1e-3
    expected = torch_logits(model, torch.tensor([[1]]), model.new_cache())
    assert difference(found, expected) < TOLERANCE


@compiled
def test_a_matrix_of_another_size_than_the_configuration_says_is_left_to_torch() -> None:
    """The native step read beyond its end."""
    model = model_of(UNTIED)
    decoder = Decoder(model)
    assert decoder.name() != "torch"
    model.lm_head.weight = nn.Parameter(model.lm_head.weight[:100].clone())
    assert decoder.name() == "torch"
    assert decoder.read([[1]], model.new_cache()).shape == (1, 100)


@compiled
def test_adapters_and_hooks_are_left_to_torch_for_as_long_as_they_are_there() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = model_of(SMALL)
    decoder = Decoder(model)
    original = block_of(model, 0).attn.c_proj
    block_of(model, 0).attn.c_proj = Doubled(96, 96)
    assert decoder.name() == "torch"
    block_of(model, 0).attn.c_proj = original
    assert decoder.name() != "torch"
    handle = block_of(model, 0).register_forward_hook(lambda *_: None)
    assert decoder.name() == "torch"
    handle.remove()
    assert decoder.name() != "torch"


# --- threads -----------------------------------------------------------------------------------


@compiled
def test_torch_keeps_to_one_thread_between_two_native_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[int] = []

    def watched(*arguments: Any) -> list[int]:
        threads.append(torch.get_num_threads())
        return sample(*arguments)

    monkeypatch.setattr(rows_of_a_batch, "sample", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        list(generate_tokens(model_of(SMALL), [[1, 2]], max_tokens=3))
        monkeypatch.setenv(native.VARIABLE, "0")
        list(generate_tokens(model_of(SMALL), [[1, 2]], max_tokens=2))
        assert threads == [1, 1, 1, 2, 2]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
