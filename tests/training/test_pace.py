"""The seconds of a step are measured, with the model or with parts of it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from training_builders import same, small_config, small_corpus, small_model, weights

from gpt2kit import lora
from gpt2kit.checkpoints.classifiers import add_class_head
from gpt2kit.training import pace
from gpt2kit.training.distributed import Ranks
from gpt2kit.training.optim import freeze
from gpt2kit.training.outline import Outline

CPU = torch.device("cpu")


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_measuring_leaves_the_weights_as_they_are(optimizer: str) -> None:
    model = small_model()
    before = weights(model)
    assert pace.seconds_per_step(model, small_corpus(), small_config(optimizer=optimizer)) > 0
    assert same(weights(model), before)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("steps", "expected", "measured"),
    [
        ([5.0, 0.3, 0.1, 0.05, 0.07, 0.09], 0.05, 5),  # other programs disturb some steps
        ([9.0, 4.0, 4.0], 4.0, 2),  # a slow model is measured only twice
        ([0.01] * 30, 0.01, 20),
    ],
)
def test_the_shortest_of_several_steps_counts(
    steps: list[float], expected: float, measured: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = list(itertools.accumulate(steps))
    clock = [time for end, length in zip(ends, steps, strict=True) for time in (end - length, end)]
    left = iter(clock)
    monkeypatch.setattr("time.perf_counter", lambda: next(left))
    assert pace.seconds_per_step(small_model(), small_corpus(), small_config()) == pytest.approx(
        expected
    )
    assert len(list(left)) == 2 * (len(steps) - measured)


def test_processes_that_share_a_step_measure_the_same_number_of_steps() -> None:
    asked: list[bool] = []

    class Pair(Ranks):
        def any(self, flag: bool) -> bool:
            asked.append(flag)
            return len(asked) == 3  # the other process has spent enough time

    model = small_model()
    steps: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda *_: steps.append(torch.zeros(())))
    pace.seconds_per_step(model, small_corpus(), small_config(), Pair())
    assert len(asked) == 3


def test_without_weights_a_step_takes_as_long_as_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "shortest", lambda *_: 1.0)
    model = small_model(n_layer=5)
    config = small_config()
    # Forward and backward passes of the rest and of 5 blocks in each of 3 parts, and 6 updates
    seconds = pace.seconds_without_weights(Outline.of(model), config, CPU, windows=2, parts=3)
    assert seconds == 3 * (1 + 5) + (1 + 5)


@pytest.mark.parametrize("kind", ["adapters", "frozen", "checkpointing", "no blocks", "labels"])
def test_every_kind_of_model_is_measured_without_weights(kind: str) -> None:
    model = small_model(n_layer=0 if kind == "no blocks" else 2)
    if kind == "adapters":
        lora.add_adapters(model, 2)
    if kind == "frozen":
        freeze(model, "blocks:0-1")
    if kind == "labels":
        add_class_head(model, ["no", "yes"])
    config = small_config(checkpointing=kind == "checkpointing")
    for predicted in (3,) if kind == "labels" else (None, 3):  # examples, and a text
        outline = Outline.of(model, predicted)
        assert pace.seconds_without_weights(outline, config, CPU, windows=2, parts=1) > 0


def test_without_weights_only_what_is_predicted_has_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    # The time of examples was measured as if every token were predicted.
    found = []
    cross_entropy = torch.nn.functional.cross_entropy

    def counted(logits: torch.Tensor, targets: torch.Tensor, **how: Any) -> torch.Tensor:
        found.append(logits.shape[0])
        return cross_entropy(logits, targets, **how)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", counted)
    for predicted in (None, 3):
        outline = Outline.of(small_model(), predicted)
        pace.seconds_without_weights(outline, small_config(), CPU, windows=2, parts=1)
    assert {*found} == {2 * 8, 2 * 3}
