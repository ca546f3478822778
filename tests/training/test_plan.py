"""What a training needs is counted, and it is made to fit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from training_builders import same, small_config, small_corpus, small_model, weights

from gpt2kit.training import plan
from gpt2kit.training.distributed import Ranks
from gpt2kit.training.optim import freeze
from gpt2kit.training.trainer import Trainer


def test_memory_is_counted_by_part() -> None:
    model = small_model()
    n = model.config.n_params
    needed = plan.memory(model, small_config(optimizer="adamw"))
    assert (needed["weights"], needed["gradients"], needed["optimizer"]) == (4 * n, 4 * n, 8 * n)
    assert (
        plan.memory(model, small_config(optimizer="muon"))["optimizer"]
        == 8 * n - 4 * 2 * 12 * 16 * 16
    )
    freeze(model, "blocks:0-1")
    rest = plan.memory(model, small_config(optimizer="adamw"))
    assert rest["weights"] == 4 * n
    assert rest["optimizer"] == 2 * rest["gradients"] < 4 * n


def test_in_shards_each_process_has_its_part_and_what_is_gathered() -> None:
    model, config = small_model(n_layer=8), small_config(optimizer="adamw")
    whole, part = (
        plan.memory(model, config, Ranks(0, 2)),
        plan.memory(model, config, Ranks(0, 2, sharded=True)),
    )
    assert part["optimizer"] == whole["optimizer"] // 2
    assert whole["weights"] // 2 < part["weights"] < whole["weights"]
    assert part["activations"] == whole["activations"]


def test_activations_are_estimated_near_what_they_are() -> None:
    model = small_model(
        n_embd=64, n_head=4, n_layer=4, n_ctx=64, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0
    )
    config = small_config(block_size=64, batch_size=16)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.zeros(16, 65, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(ids[:, :-1]).logsumexp(-1).mean()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    measured = sum(size for place, size in kept.items() if place not in parameters)
    assert loss.isfinite()
    assert 0.5 < plan.memory(model, config)["activations"] / measured < 2


def test_what_does_not_fit_is_cut_into_parts_and_then_computed_twice() -> None:
    model, config = small_model(n_layer=8), small_config(batch_size=12)
    needed = sum(plan.memory(model, config).values())
    assert plan.fit(model, config, 2 * needed, fixed=set()) == config
    parts = plan.fit(model, config, int(0.7 * needed), fixed=set())
    assert parts.accumulate > 1
    assert config.batch_size % parts.accumulate == 0
    assert not parts.checkpointing
    least = plan.fit(model, config, 1, fixed=set())
    assert (least.accumulate, least.checkpointing) == (12, True)


def test_what_was_given_stays() -> None:
    config = small_config(batch_size=12)
    assert plan.fit(small_model(), config, 1, fixed={"accumulate", "checkpointing"}) == config
    assert plan.fit(small_model(), config, 1, fixed={"accumulate"}) == replace(
        config, checkpointing=True
    )


def test_parts_leave_a_share_for_every_process() -> None:
    assert (
        plan.fit(
            small_model(), small_config(batch_size=12), 1, fixed=set(), ranks=Ranks(0, 4)
        ).accumulate
        == 3
    )


def test_help_is_offered_only_where_it_is_needed() -> None:
    assert plan.advice(50, 100) is None
    assert "--lora_rank" in (plan.advice(95, 100) or "")


def test_free_memory_is_known_here() -> None:
    free = plan.free_memory(torch.device("cpu"))
    assert free is None or free > 2**20


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_probing_the_speed_leaves_the_weights_as_they_are(optimizer: str) -> None:
    model = small_model()
    before = weights(model)
    assert plan.seconds_per_step(model, small_corpus(), small_config(optimizer=optimizer)) > 0
    assert same(weights(model), before)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("steps", "expected", "probed"),
    [
        ([5.0, 0.3, 0.1, 0.05, 0.07, 0.09], 0.05, 5),  # a machine that others use for a moment
        ([9.0, 4.0, 4.0], 4.0, 2),  # a large model is not kept waiting
        ([0.01] * 30, 0.01, 20),
    ],
)
def test_the_shortest_of_some_steps_is_taken(
    steps: list[float], expected: float, probed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = list(itertools.accumulate(steps))
    clock = [time for end, length in zip(ends, steps, strict=True) for time in (end - length, end)]
    left = iter(clock)
    monkeypatch.setattr("time.perf_counter", lambda: next(left))
    assert plan.seconds_per_step(small_model(), small_corpus(), small_config()) == pytest.approx(
        expected
    )
    assert len(list(left)) == 2 * (len(steps) - probed)


def test_processes_that_share_a_step_probe_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    class Pair(Ranks):
        def any(self, flag: bool) -> bool:
            asked.append(flag)
            return len(asked) == 3  # the other one has had enough

    steps: list[int] = []

    class Probed(Trainer):
        def losses(self, step: int) -> Iterator[torch.Tensor]:
            steps.append(step)
            return iter(())

    monkeypatch.setattr(plan, "Trainer", Probed)
    plan.seconds_per_step(small_model(), small_corpus(), small_config(), Pair())
    assert steps == [0, 1, 2, 3]
