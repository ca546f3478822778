"""The options of a training: their defaults, their rules, and where each is written once."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from gpt2kit.errors import ConfigError
from gpt2kit.fields import declared_types, rules
from gpt2kit.generation.request import Sampling
from gpt2kit.training import recipes
from gpt2kit.training.config import TrainConfig
from gpt2kit.training.keywords import FinetuneKeywords
from gpt2kit.training.options import FinetuneOptions, RunOptions, TrainOptions

ROOT = Path(__file__).parents[2]
SAMPLING = {"temperature", "top_k", "top_p"}
SAMPLES = {
    *("sample_every", "sample_tokens", "sample_count", "prompt", "stop_when_copied"),
    *(f"sample_{name}" for name in SAMPLING),
}


def test_the_keywords_of_finetune_are_its_options_but_for_the_samples() -> None:
    options = {
        name: declared
        for name, declared in declared_types(FinetuneOptions).items()
        if name not in SAMPLES
    }
    paths = {"model": str | Path, "val": str | Path | None}  # in Python these may be paths, too
    assert get_type_hints(FinetuneKeywords) == options | paths


@pytest.mark.parametrize("kind", [TrainOptions, FinetuneOptions])
def test_samples_are_drawn_by_the_rules_of_generation(kind: Any) -> None:
    assert kind().sampling == Sampling()
    chosen: dict[str, Any] = {"temperature": 0.5, "top_k": 3, "top_p": 0.9}
    options = kind(**{f"sample_{name}": value for name, value in chosen.items()})
    assert options.sampling == Sampling(**chosen)
    for name in SAMPLING:
        ours, theirs = rules(kind)[f"sample_{name}"], rules(Sampling)[name]
        assert replace(ours, group="") == replace(theirs, group="")


@pytest.mark.parametrize("kind", [TrainOptions, FinetuneOptions])
def test_every_choice_of_a_configuration_is_an_option(kind: type) -> None:
    assert rules(TrainConfig).keys() <= rules(kind).keys()


@pytest.mark.parametrize("kind", [TrainOptions, FinetuneOptions, RunOptions])
def test_every_option_has_a_help_text_and_every_choice_a_default_in_words(kind: type) -> None:
    chosen_freely = {"epochs", "val", "recipe", "vocabulary", "n_inner", "label_field"}
    options = kind()
    for name, rule in rules(kind).items():
        assert rule.help.endswith("…" if name == "device" else "."), name
        if getattr(options, name) is None and name not in chosen_freely:
            assert rule.default, name


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_steps": 0}, {"epochs": 0}, {"lr": 0.0}, {"val_fraction": 1.0}, {"dropout": 1.0},
        {"patience": -1}, {"schedule": "square"}, {"stop_when_copied": 2.0}, {"sample_tokens": -1},
        {"sample_top_p": 0.0}, {"sample_top_k": -1}, {"sample_temperature": -0.5},
        {"sample_count": 0}, {"seed": 2**63}, {"batch_size": 1.5}, {"encoding": None},
        {"freeze": 3},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("kind", [TrainOptions, FinetuneOptions])
def test_a_value_that_breaks_its_rule_is_refused_by_name(kind: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"^{next(iter(wrong))} is "):
        kind(**wrong)


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_steps and epochs are both given"):
        TrainOptions(max_steps=3, epochs=1.0)
    with pytest.raises(ConfigError, match="resume and force are both given"):
        RunOptions(resume=True, force=True)


def test_a_recipe_with_an_unknown_option_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"recipe mine has no option 'n_layers'; did you mean n_"):
        recipes.parse("mine", "# About.\nn_layers = 3\n")
    with pytest.raises(ConfigError, match=r"^lr is 0, expected a number, above 0$"):
        recipes.parse("mine", "# About.\nlr = 0\n")


def test_the_options_are_known_without_torch() -> None:
    code = "import sys, gpt2kit.training.options; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
