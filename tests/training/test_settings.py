"""run.json: read with care, also from other versions, and the same on resume."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from training_builders import small_config, small_model, small_settings

from gpt2kit.errors import TrainingError
from gpt2kit.training.settings import SETTINGS, Settings


def written(folder: Path) -> dict[str, Any]:
    small_settings().write(folder)
    values: dict[str, Any] = json.loads((folder / SETTINGS).read_text())
    return values


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    settings = small_settings(options={"lr": 1e-3, "prompt": "selva è", "bias": False})
    settings.write(tmp_path)
    assert Settings.read(tmp_path) == settings


@pytest.mark.parametrize(
    ("section", "name", "value", "expected"),
    [
        (None, "command", None, "run.json has no 'command'"),
        (None, "options", None, "run.json has no 'options'"),
        (None, "corpus", None, "run.json has no 'corpus'"),
        (None, "start", None, "run.json has no 'start'"),
        (None, "model", None, "run.json has no 'model'"),
        (None, "training", None, "run.json has no 'training'"),
        (None, "command", "dance", "command is 'dance', expected one of train, finetune"),
        (None, "corpus", 3, "corpus is 3"),
        (None, "training", [], "training of run.json is [], expected an object"),
        (None, "options", "lr", "options of run.json is 'lr', expected an object"),
        (None, "notes", "x", "run.json has no option 'notes'"),
        (None, "history", 3, "history is 3, expected extensions"),
        (None, "history", [{"step": "x"}], "expected extensions"),
        ("training", "max_steps", None, "training of run.json has no 'max_steps'"),
        ("training", "weigit_decay", 0.1, "no option 'weigit_decay'; did you mean weight_decay?"),
        ("training", "lr", "fast", "lr is 'fast', expected a number"),
        ("model", "n_heads", 2, "no option 'n_heads'; did you mean n_head?"),
        ("model", "n_head", 0, "n_head is 0"),
    ],
)
def test_a_run_json_of_other_fields_is_refused_by_the_name_of_the_field(
    tmp_path: Path, section: str | None, name: str, value: Any, expected: str
) -> None:
    # They were tracebacks: KeyError 'command', KeyError 'training', TypeError in TrainConfig.
    values = written(tmp_path)
    part = values if section is None else values[section]
    if value is None:
        del part[name]
    else:
        part[name] = value
    (tmp_path / SETTINGS).write_text(json.dumps(values))
    with pytest.raises(TrainingError) as caught:
        Settings.read(tmp_path)
    assert expected in str(caught.value)
    assert "cannot be resumed" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"a": 1, "a": 2}', "\ufeff", "[" * 9999]
)
def test_a_damaged_run_json_is_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / SETTINGS).write_text(content, encoding="utf-8")
    with pytest.raises(TrainingError, match=r"cannot be resumed: .*--force starts it anew"):
        Settings.read(tmp_path)


def test_a_field_that_an_older_version_did_not_write_has_its_default(tmp_path: Path) -> None:
    values = written(tmp_path)
    del values["training"]["checkpointing"]
    del values["model"]["mlp"]
    (tmp_path / SETTINGS).write_text(json.dumps(values))
    assert Settings.read(tmp_path) == small_settings()


def test_changed_settings_are_refused_with_the_difference() -> None:
    before = small_settings(options={"lr": 1e-3}, training=small_config(lr=1e-3))
    now = small_settings(
        corpus="c" * 64, options={"clip": 0.5}, training=small_config(lr=1e-3, clip=0.5)
    )
    with pytest.raises(TrainingError) as caught:
        before.check_resumed_by(now, Path("run"))
    assert (
        "corpus was aaaaaaaa… and is now cccccccc…; "
        "options.clip was not given and is now 0.5; options.lr was 0.001 and is now not given; "
        "training.clip was 1.0 and is now 0.5."
    ) in str(caught.value)
    before.check_resumed_by(before, Path("run"))


def test_only_the_number_of_steps_may_grow() -> None:
    before = small_settings(options={"epochs": 2.0})
    more = replace(before, options={"max_steps": 20}, training=small_config(max_steps=20))
    before.check_resumed_by(more, Path("run"))
    with pytest.raises(TrainingError, match=r"training\.max_steps was 20 and is now 12"):
        more.check_resumed_by(before, Path("run"))
    other = replace(more, model=small_model(n_layer=1).config)
    with pytest.raises(TrainingError, match=r"differently: model\.n_layer was 2 and is now 1\."):
        before.check_resumed_by(other, Path("run"))
