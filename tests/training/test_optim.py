"""Which parameters move, by which optimizer, and at what rate."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from training_builders import small_model

from gpt2kit.errors import ConfigError
from gpt2kit.training.config import Schedule, TrainConfig
from gpt2kit.training.optim import (
    build_optimizers,
    clip_gradients,
    freeze,
    learning_rate,
    named_state,
    set_learning_rate,
)


def test_every_parameter_is_optimized_once_and_a_tied_head_not_twice() -> None:
    model = small_model()
    for optimizer in ("muon", "adamw"):
        names = [
            name
            for name, _, _ in named_state(
                build_optimizers(model, optimizer=optimizer, weight_decay=0.1)
            )
        ]
        assert sorted(names) == sorted(name for name, _ in model.named_parameters())
        assert "lm_head.weight" not in names


def test_muon_moves_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    muon, adamw = build_optimizers(small_model(), optimizer="muon", weight_decay=0.1)
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    moved = [name for group in muon.param_groups for name in group["param_names"]]
    assert len(moved) == 8
    assert all(
        name.startswith("h.") and name.endswith("weight") and "ln_" not in name for name in moved
    )


def test_matrices_and_embeddings_decay_and_biases_and_gains_do_not() -> None:
    (adamw,) = build_optimizers(small_model(), optimizer="adamw", weight_decay=0.1)
    for group in adamw.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            assert group["weight_decay"] == (0.1 if parameter.ndim == 2 else 0.0), name


def test_betas_reach_adamw() -> None:
    (adamw,) = build_optimizers(
        small_model(), optimizer="adamw", weight_decay=0.1, betas=(0.8, 0.99)
    )
    assert adamw.defaults["betas"] == (0.8, 0.99)


def test_the_learning_rate_of_all_groups_is_set() -> None:
    optimizers = build_optimizers(small_model(), optimizer="muon", weight_decay=0.1)
    set_learning_rate(optimizers, 0.5)
    assert {group["lr"] for optimizer in optimizers for group in optimizer.param_groups} == {0.5}


def test_the_learning_rate_rises_in_the_warm_up_and_falls_as_the_schedule_says() -> None:
    def rates(schedule: Schedule) -> list[float]:
        config = TrainConfig(lr=1.0, max_steps=10, warmup=3, schedule=schedule)
        return [learning_rate(step, config) for step in range(10)]

    assert rates("cosine")[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates("constant")[3:] == [1.0] * 7
    assert rates("linear")[3:] == pytest.approx([1 - n / 7 for n in range(7)])
    assert rates("cosine")[3:] == pytest.approx(
        [(1 + math.cos(math.pi * n / 7)) / 2 for n in range(7)]
    )
    assert rates("cosine")[-1] > 0


def test_a_constant_rate_falls_in_the_last_steps_if_asked() -> None:
    config = TrainConfig(lr=1.0, max_steps=10, warmup=3, schedule="constant", warmdown=3)
    assert [learning_rate(step, config) for step in range(3, 10)] == [1, 1, 1, 1, 0.75, 0.5, 0.25]


def test_gradients_are_scaled_to_the_largest_norm_and_smaller_ones_left() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    for largest, after in ((1.0, [0.6, 0.8]), (0.0, [3.0, 4.0]), (10.0, [3.0, 4.0])):
        parameter.grad = torch.tensor([3.0, 4.0])
        assert clip_gradients({"wte.weight": parameter}, largest) == (5.0, {"wte": 5.0})
        assert parameter.grad.tolist() == pytest.approx(after)


def test_a_gradient_that_is_not_finite_is_reported_and_does_not_spread() -> None:
    first, second = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    first.grad, second.grad = torch.tensor([math.nan]), torch.tensor([2.0])
    norm, parts = clip_gradients({"wte.weight": first, "h.3.ln_1.bias": second}, 1.0)
    assert math.isnan(norm)
    assert math.isnan(parts["wte"])
    assert parts["h.3"] == 2.0
    assert second.grad.item() == 2.0


@pytest.mark.parametrize(
    ("what", "frozen"),
    [
        ("embeddings", {"wte.weight", "wpe.weight"}),
        ("blocks:1", {"h.1."}),
        ("blocks:0-1", {"h.0.", "h.1."}),
        ("norms, head", {"h.0.ln_1.", "h.0.ln_2.", "h.1.ln_1.", "h.1.ln_2.", "ln_f.", "lm_head."}),
        ("attention,mlp", {"h.0.attn.", "h.0.mlp.", "h.1.attn.", "h.1.mlp."}),
        ("", set()),
    ],
)
def test_parts_can_be_frozen_by_name(what: str, frozen: set[str]) -> None:
    model = small_model(tie_word_embeddings="head" not in what)
    freeze(model, what)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is not any(name.startswith(part) for part in frozen), name


@pytest.mark.parametrize("what", ["blocks:2", "blocks:1-0", "blocks:", "head2", "wte"])
def test_a_part_that_a_model_does_not_have_cannot_be_frozen(what: str) -> None:
    with pytest.raises(ConfigError, match="freeze is"):
        freeze(small_model(), what)


@pytest.mark.parametrize(
    ("part", "shape", "why"),
    [
        ("mlp", {"mlp": "none"}, "the model has none"),
        ("norms", {"norm": "none"}, "the model has none"),
        ("head", {}, "its weights are those of the embeddings"),
        ("attention", {"n_layer": 0}, "the model has none"),
    ],
)
def test_a_part_without_weights_of_its_own_cannot_be_frozen(
    part: str, shape: dict[str, Any], why: str
) -> None:
    """Nothing was frozen, and nothing was said."""
    with pytest.raises(ConfigError, match=f"freeze is '{part}', but {why}; leave it out"):
        freeze(small_model(**shape), f"embeddings,{part}")


def test_a_model_that_is_frozen_altogether_is_refused() -> None:
    model = small_model()
    freeze(model, "embeddings,norms,blocks:0-1")
    with pytest.raises(ConfigError, match="freeze less"):
        build_optimizers(model, optimizer="adamw", weight_decay=0.1)
