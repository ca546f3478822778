"""An outline has everything about a model that its memory and time depend on."""

from __future__ import annotations

import torch
from training_builders import small_model

from gpt2kit import lora
from gpt2kit.checkpoints.classifiers import add_class_head
from gpt2kit.training.optim import freeze
from gpt2kit.training.outline import Outline


def trained(model: torch.nn.Module) -> set[str]:
    return {name for name, each in model.named_parameters() if each.requires_grad}


def test_a_model_that_is_built_from_its_outline_has_the_same_outline() -> None:
    model = small_model()
    lora.add_adapters(model, 3)
    add_class_head(model, ["no", "yes"])
    freeze(model, "blocks:0-0")
    built = Outline.of(model).build()
    assert Outline.of(built) == Outline.of(model)
    assert trained(built) == trained(model)
    shapes = {name: each.shape for name, each in model.named_parameters()}
    assert {name: each.shape for name, each in built.named_parameters()} == shapes


def test_equal_outlines_are_one_key() -> None:
    assert len({Outline.of(small_model()), Outline.of(small_model())}) == 1
    assert Outline.of(small_model()) != Outline.of(small_model(n_embd=32))


def test_another_number_of_blocks_keeps_the_rest() -> None:
    model = small_model(n_layer=4)
    freeze(model, "embeddings")
    fewer = Outline.of(model).with_blocks(1).build()
    assert len(fewer.h) == 1
    assert not fewer.wte.weight.requires_grad
    assert all(parameter.requires_grad for parameter in fewer.h.parameters())
    assert len(Outline.of(model).with_blocks(2, n_vocab=5).build().wte.weight) == 5
