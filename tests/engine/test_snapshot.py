"""A snapshot notices whatever makes addresses of a model's weights stale."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import make_model
from torch import nn

from gpt2kit.config import GPT2Config
from gpt2kit.engine.snapshot import Snapshot
from gpt2kit.model import GPT2

CONFIG = GPT2Config(n_vocab=20, n_ctx=8, n_embd=8, n_head=2, n_layer=2)


def first(model: GPT2) -> Any:
    return model.h[0]


CHANGES: dict[str, Callable[[GPT2], object]] = {
    "a module": lambda model: setattr(first(model), "ln_1", nn.LayerNorm(8)),
    "a module of the same kind": lambda model: model.h.__setitem__(0, model.h[1]),
    "a weight": lambda model: setattr(model.ln_f, "weight", nn.Parameter(torch.ones(8))),
    "a bias removed": lambda model: setattr(model.ln_f, "bias", None),
    "a weight's memory": lambda model: setattr(model.wte.weight, "data", torch.ones(20, 8)),
    "a hook": lambda model: first(model).register_forward_hook(lambda *_: None),
    "a hook before": lambda model: model.register_forward_pre_hook(lambda *_: None),
    "another dtype": lambda model: model.to(torch.bfloat16),
}


@pytest.mark.parametrize("change", CHANGES)
def test_it_notices_changes_of_what_it_was_taken_from(change: str) -> None:
    model = make_model(CONFIG)
    snapshot = Snapshot(model)
    assert snapshot.is_current()
    CHANGES[change](model)
    assert not snapshot.is_current()


def test_numbers_that_change_in_place_change_no_address() -> None:
    model = make_model(CONFIG)
    snapshot = Snapshot(model)
    with torch.no_grad():
        model.wte.weight.add_(1)
    assert snapshot.is_current()


def test_a_bias_that_was_left_out_is_noticed_when_it_is_added() -> None:
    model = GPT2(GPT2Config(**{**CONFIG.__dict__, "bias": False}))
    snapshot = Snapshot(model)
    first(model).mlp.c_fc.bias = nn.Parameter(torch.ones(32))
    assert not snapshot.is_current()


def test_a_snapshot_does_not_keep_the_model() -> None:
    model = make_model(CONFIG)
    snapshot, gone = Snapshot(model), weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert snapshot.is_current()  # of what nobody else has any longer
