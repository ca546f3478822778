"""What is chosen where nothing was said, and what a resumed run keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from training_builders import small_config, small_corpus, small_model

from gpt2kit.errors import ConfigError
from gpt2kit.training.config import TrainConfig
from gpt2kit.training.configure import Options, configure, reconfigure
from gpt2kit.training.distributed import Ranks
from gpt2kit.training.options import FinetuneOptions, TrainOptions


def chosen(options: Options) -> TrainConfig:
    return configure(options, small_model(), small_corpus(), Ranks(), torch.device("cpu"))


def test_a_new_model_and_an_existing_one_are_trained_differently() -> None:
    new, existing = chosen(TrainOptions()), chosen(FinetuneOptions())
    assert (new.optimizer, new.lr, new.batch_size, new.max_steps) == ("muon", 3e-3, 16, 2000)
    assert (existing.optimizer, existing.lr, existing.batch_size) == ("adamw", 1e-4, 8)
    tokens = len(small_corpus().train_ids)
    assert existing.max_steps == round(3 * tokens / (8 * 16))
    assert chosen(FinetuneOptions(lora_rank=2)).lr == 1e-3


def test_steps_decide_the_warm_up_and_how_often_to_validate() -> None:
    config = chosen(TrainOptions(max_steps=70))
    assert (config.warmup, config.eval_every, config.save_every) == (7, 4, 4)
    assert chosen(TrainOptions(max_steps=5000)).warmup == 100


def test_epochs_become_steps() -> None:
    tokens = len(small_corpus().train_ids)
    config = chosen(TrainOptions(epochs=2, block_size=8, batch_size=4))
    assert config.max_steps == round(2 * tokens / 32)
    assert chosen(TrainOptions(epochs=1e-9)).max_steps == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            TrainOptions(block_size=17),
            "the text is too short for two such windows",
        ),
        (FinetuneOptions(block_size=17), "the model has 16 positions"),
    ],
)
def test_a_window_that_does_not_fit_is_refused(options: Options, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"block_size is 17, but {expected}"):
        chosen(options)


def test_a_given_choice_is_kept() -> None:
    given: dict[str, Any] = {"warmup": 3, "accumulate": 2, "checkpointing": True, "patience": 0}
    config = chosen(TrainOptions(max_steps=20, dtype="bfloat16", lr=0.5, **given))
    assert (config.warmup, config.accumulate, config.checkpointing) == (3, 2, True)
    assert (config.patience, config.dtype, config.lr) == (0, "bfloat16", 0.5)


def test_a_resumed_run_keeps_its_choices_but_for_those_given_again() -> None:
    before, corpus = small_config(lr=0.1), small_corpus()
    assert reconfigure(TrainOptions(), {}, before, corpus) == before
    changed = reconfigure(TrainOptions(max_steps=99), {"max_steps"}, before, corpus)
    assert changed == small_config(lr=0.1, max_steps=99)
    longer = reconfigure(TrainOptions(epochs=50), {"epochs"}, before, corpus)
    assert longer.max_steps == round(50 * len(corpus.train_ids) / (8 * 4))
