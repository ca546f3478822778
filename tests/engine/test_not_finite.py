"""A NaN or an infinity anywhere in a model stops generation with GenerationError."""

from __future__ import annotations

import copy
import itertools
import math
import struct
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from conftest import available_levels, compiled, make_model
from engine_builders import int8_of

import gpt2kit
from gpt2kit import GPT2Config, Sampling
from gpt2kit.config import ACTIVATIONS
from gpt2kit.engine import native
from gpt2kit.engine.decoder import Decoder
from gpt2kit.model import GPT2

CONFIG = GPT2Config(n_vocab=50, n_ctx=8, n_embd=80, n_head=2, n_layer=2)
C = CONFIG.n_embd
PROMPT = [7, 3]

# One element of each kind of parameter that these tokens and positions read.
PLACES = [
    ("wte.weight", 3 * C + 5),
    ("wpe.weight", C + 5),
    *(
        (f"h.{layer}.{name}", index)
        for layer in (0, 1)
        for name, index in (
            ("ln_1.weight", 70),
            ("ln_1.bias", 70),
            ("attn.c_attn.weight", 3),
            *(("attn.c_attn.bias", part * C + 3) for part in range(3)),  # query, key and value
            ("attn.c_proj.weight", 5),
            ("attn.c_proj.bias", 5),
            ("ln_2.weight", 70),
            ("ln_2.bias", 70),
            ("mlp.c_fc.weight", 5),
            ("mlp.c_fc.bias", 5),
            ("mlp.c_proj.weight", 5),
            ("mlp.c_proj.bias", 5),
        )
    ),
    ("ln_f.weight", 70),
    ("ln_f.bias", 70),
]
SAMPLINGS = {
    "greedy": Sampling(temperature=0),
    "top_k": Sampling(top_k=5),
    "all": Sampling(top_k=0),
    "top_p": Sampling(top_p=0.9),
    "min_p": Sampling(min_p=0.05),
    "penalty": Sampling(repetition_penalty=1.3),
    "everything": Sampling(top_k=9, top_p=0.8, min_p=0.01, repetition_penalty=1.1),
}
MAKE: dict[str, Callable[[], GPT2]] = {
    "float32": lambda: make_model(CONFIG),
    "bfloat16": lambda: make_model(CONFIG, dtype=torch.bfloat16),
    "int8": lambda: int8_of(make_model(CONFIG)),
}
# The last one is a NaN with every bit of its fraction set.
VALUES = [math.nan, math.inf, -math.inf, struct.unpack("<f", b"\xff\xff\xff\x7f")[0]]


def damaged(model: GPT2, name: str, index: int, value: float) -> GPT2:
    """Return a copy with one element of a parameter set to a value; of int8 weights, a scale."""
    model = copy.deepcopy(model)
    parameter = model.get_parameter(name)
    with torch.no_grad():
        if parameter.dtype == torch.int8:
            parameter = model.get_parameter(name.replace("weight", "scales"))
            index //= C
        parameter.view(-1)[index] = value
    return model


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("engine", ["0", *available_levels()])
def test_they_reach_the_logits(engine: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The native step lost them in the inputs of int8 weights, and torch some in attention."""
    monkeypatch.setenv(native.VARIABLE, engine)
    monkeypatch.setattr(native, "LARGE_HEAD", 0)
    model, lost = MAKE[kind](), []
    for (name, index), value in itertools.product(PLACES, VALUES):
        broken = damaged(model, name, index, value)
        for most_likely in (0, 5):
            with torch.inference_mode():
                cache = broken.new_cache()
                logits = Decoder(broken).read([PROMPT], cache, most_likely=most_likely)
            if logits.max().isfinite():
                lost.append((name, index, value, most_likely))
    assert not lost


@compiled
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_keeps_every_nan(activation: str, level: str) -> None:
    """The native step's tanh gave -1 for some NaNs."""
    model = make_model(replace(CONFIG, activation_function=activation))  # type: ignore[arg-type]
    for value in VALUES[::3]:
        broken = damaged(model, "h.1.mlp.c_fc.bias", 5, value)
        with torch.inference_mode():
            assert not Decoder(broken).read([PROMPT], broken.new_cache()).isfinite().any()


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("engine", ["0", "1"])
def test_generation_stops(
    engine: str, kind: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With top-p or min-p, tokens were drawn from logits that are NaN."""
    monkeypatch.setenv(native.VARIABLE, engine)
    monkeypatch.setattr(native, "LARGE_HEAD", 0)
    model, survived = MAKE[kind](), []
    for name, index in PLACES:
        broken = damaged(model, name, index, value)
        for setting, sampling in SAMPLINGS.items():
            try:
                list(gpt2kit.generate_tokens(broken, [PROMPT], max_tokens=2, sampling=sampling))
            except gpt2kit.GenerationError:
                continue
            survived.append((name, index, setting))
    assert not survived
