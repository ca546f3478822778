"""A rehearsal counts the bytes that a real step has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.profiler import profile
from training_builders import small_config, small_model

from gpt2kit import lora
from gpt2kit.checkpoints.classifiers import add_class_head
from gpt2kit.training.config import TrainConfig
from gpt2kit.training.loss import NextTokenLoss
from gpt2kit.training.outline import Outline
from gpt2kit.training.readings import blank_batch
from gpt2kit.training.rehearsal import rehearse

CPU = torch.device("cpu")
WINDOWS = 4


def model_of(kind: str) -> Any:
    model = small_model(n_layer=4, n_embd=64, n_head=2, n_ctx=64, n_vocab=20_000)
    if kind == "adapters":
        lora.add_adapters(model, 4)
    return model


def peak_of_a_real_step(model: Any, config: TrainConfig, predicted: int | None = None) -> int:
    """Return the most bytes that torch has allocated during a step, beside weights and averages."""
    loss = NextTokenLoss(model, config.dtype, config.checkpointing).train()
    ids = blank_batch(WINDOWS, config.block_size, predicted)
    loss(ids).backward()  # what torch makes once is there now
    model.zero_grad(set_to_none=True)
    with profile(profile_memory=True) as profiler:
        loss(ids).backward()
    now = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "checkpointing", "adapters"])
def test_the_peak_is_that_of_a_real_step(kind: str) -> None:
    # Activations were estimated, up to a third too low.
    dtype: Any = "bfloat16" if kind == "bfloat16" else "float32"
    config = small_config(
        block_size=64, batch_size=WINDOWS, dtype=dtype, checkpointing=kind == "checkpointing"
    )
    model = model_of(kind)
    found = rehearse(Outline.of(model), config, WINDOWS, CPU)
    step = found.gradients + found.activations + found.temporaries
    assert step == pytest.approx(peak_of_a_real_step(model, config), rel=0.03)


@pytest.mark.parametrize(("predicted", "labels"), [(2, ()), (50, ()), (1, ("no", "yes"))])
def test_of_examples_only_what_is_predicted_has_logits(
    predicted: int, labels: tuple[str, ...]
) -> None:
    # They were planned as if every token were predicted: six times the memory.
    model = model_of("float32")
    if labels:
        add_class_head(model, labels)
    config = small_config(block_size=64, batch_size=WINDOWS)
    found = rehearse(Outline.of(model, predicted), config, WINDOWS, CPU)
    step = found.gradients + found.activations + found.temporaries
    assert step == pytest.approx(peak_of_a_real_step(model, config, predicted), rel=0.03)


def test_with_accumulation_the_gradients_of_earlier_parts_are_there() -> None:
    outline = Outline.of(model_of("float32"))
    first, later = (
        rehearse(outline, small_config(block_size=64, accumulate=parts), WINDOWS, CPU)
        for parts in (1, 2)
    )
    assert later.gradients >= 4 * outline.config.n_params > first.gradients


def test_a_device_with_memory_of_its_own_holds_no_program_and_no_gaps() -> None:
    found = rehearse(Outline.of(small_model()), small_config(), 2, torch.device("meta"))
    assert (found.program, found.gaps) == (0, 0)
    assert found.weights == 4 * small_model().config.n_params
