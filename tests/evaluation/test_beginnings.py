"""Texts that begin alike: their surprisals are those of texts that are read alone."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from conftest import compiled, make_model
from engine_builders import int8_of

from gpt2kit.config import GPT2Config
from gpt2kit.engine.decoder import Decoder
from gpt2kit.errors import ContextLengthError, GenerationError
from gpt2kit.evaluation.beginnings import text_surprisals
from gpt2kit.model import GPT2

CONFIG = GPT2Config(n_vocab=50, n_ctx=32, n_embd=16, n_head=2, n_layer=2)


def texts_alike(n: int, seed: int = 0) -> list[list[int]]:
    """Return random texts of 2 to 33 ids, some of which begin alike, contain others, or recur."""
    draw = random.Random(seed)
    texts = [[draw.randrange(50) for _ in range(draw.randint(2, 33))] for _ in range(n // 2)]
    for _ in range(n - len(texts)):
        kept = draw.choice(texts)[: draw.randint(1, 33)]
        texts.append((kept + [draw.randrange(50) for _ in range(draw.randint(1, 8))])[:33])
    texts += [texts[0], texts[1][:2]]
    draw.shuffle(texts)
    return texts


def alone(model: GPT2, text: list[int]) -> torch.Tensor:
    """Return the surprisals of a text that the model reads by itself, (n - 1,)."""
    with torch.no_grad():
        logits = model(torch.tensor([text[:-1]]))[0].double()
    nats: torch.Tensor = -logits.log_softmax(-1)[range(len(text) - 1), text[1:]]
    return nats


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"positions": "sinusoidal"},
        {"positions": "none", "norm": "rmsnorm", "mlp": "swiglu"},
        {"n_layer": 0},
    ],
)
@pytest.mark.parametrize("batch_size", [1, 8, 40])
def test_each_text_is_scored_as_if_read_alone(batch_size: int, changes: dict[str, object]) -> None:
    model = make_model(replace(CONFIG, **changes)).double()  # type: ignore[arg-type]
    texts = texts_alike(60)
    done: list[tuple[int, int]] = []
    found = text_surprisals(
        model, texts, batch_size=batch_size, progress=lambda *counts: done.append(counts)
    )
    for nats, text in zip(found, texts, strict=True):
        torch.testing.assert_close(nats, alone(model, text), rtol=0, atol=1e-9)
    assert done[-1] == (len(texts), len(texts))


@compiled
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_the_native_step_gives_each_text_the_bits_that_it_has_alone(kind: str) -> None:
    config = replace(CONFIG, n_ctx=512)
    model = int8_of(make_model(config)) if kind == "int8" else make_model(config)
    model = model.to(torch.bfloat16) if kind == "bfloat16" else model
    assert Decoder(model).scores_natively()
    texts = texts_alike(300)  # several trees, and steps that end within one
    long = [position % 50 for position in range(500)]
    texts += [long, [*long[:400], 1, 2, 3], [*long[:400], 1, 2, 4], long[:300]]
    for nats, text in zip(text_surprisals(model, texts), texts, strict=True):
        assert torch.equal(nats, text_surprisals(model, [text])[0])
        if kind == "float32":
            torch.testing.assert_close(nats, alone(model, text), rtol=0, atol=1e-4)


@pytest.mark.parametrize("native", ["0", "1"])
def test_an_unknown_id_is_an_error(native: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT2KIT_NATIVE", native)
    for text in ([1, 50, 2], [1, 2, 50], [1, -1, 2]):
        with pytest.raises(IndexError):
            text_surprisals(make_model(CONFIG), [[1, 2], text])


def test_what_texts_share_is_read_once() -> None:
    model = make_model(CONFIG)
    read: list[int] = []
    model.get_submodule("wte").register_forward_hook(
        lambda module, inputs, output: read.append(inputs[0].numel())
    )
    text_surprisals(model, [[0, 1, 2, 3, last] for last in range(20)] + [[0, 1, 2, 9, 9]])
    assert sum(read) == len([0, 1, 2, 3]) + len([9])


def test_the_order_of_the_texts_and_the_batch_change_only_rounding() -> None:
    model, texts = make_model(CONFIG), texts_alike(40)
    one = text_surprisals(model, texts)
    other = text_surprisals(model, texts[::-1], batch_size=64)[::-1]
    for nats, same in zip(one, other, strict=True):
        torch.testing.assert_close(nats, same, rtol=0, atol=1e-5)


def test_a_text_that_is_too_long_and_damaged_weights_are_errors() -> None:
    model = make_model(CONFIG)
    with pytest.raises(ContextLengthError, match="34 tokens; expected at most 33"):
        text_surprisals(model, [[1, 2], [1] * 34])
    model.get_parameter("ln_f.weight").data.fill_(float("nan"))
    with pytest.raises(GenerationError, match="not finite"):
        text_surprisals(model, [[1, 2, 3]])


def test_no_texts_have_no_surprisals() -> None:
    assert text_surprisals(make_model(CONFIG), []) == []
