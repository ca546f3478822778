"""Adapters: they begin as nothing, are all that is trained, and fold into the weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from training_builders import (
    same,
    small_config,
    small_corpus,
    small_model,
    small_settings,
    weights,
)

from gpt2kit.checkpoints.adapters import WEIGHTS_FILE, load_adapters, read_adapters, save_adapters
from gpt2kit.errors import CheckpointFormatError, CheckpointNotFoundError, ConfigError
from gpt2kit.lora import add_adapters, merge_adapters
from gpt2kit.model import GPT2
from gpt2kit.training.loop import train
from gpt2kit.training.run import Run

IDS = torch.arange(12)[None]


def adapted(rank: int = 2, alpha: float | None = None) -> GPT2:
    model = small_model().eval()
    add_adapters(model, rank, alpha=alpha)
    return model


def trained() -> GPT2:
    model = adapted()
    for _ in train(model, small_corpus(), small_config(optimizer="adamw", lr=1e-2)):
        pass
    return model.eval()


def test_adapters_begin_as_nothing() -> None:
    torch.testing.assert_close(adapted()(IDS), small_model().eval()(IDS))


def test_only_adapters_are_trained_and_they_learn() -> None:
    model = trained()
    before = weights(small_model())
    for name, parameter in weights(model).items():
        if ".lora_" in name:
            assert parameter.abs().sum() > 0
        else:
            assert torch.equal(parameter, before[name])
    assert not torch.allclose(model(IDS), small_model().eval()(IDS), atol=1e-3)


def test_the_rank_decides_how_many_parameters_are_trained() -> None:
    def count(rank: int) -> int:
        return sum(
            parameter.numel() for parameter in adapted(rank).parameters() if parameter.requires_grad
        )

    assert count(1) == 2 * (16 + 48 + 16 + 16 + 16 + 64 + 64 + 16)
    assert count(4) == 4 * count(1)


def test_alpha_scales_what_adapters_add() -> None:
    def change(alpha: float) -> torch.Tensor:
        model = adapted(alpha=alpha)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if (
                    name == "h.1.mlp.c_proj.lora_b"
                ):  # the last layer, so that the effect is linear before the norm
                    parameter.fill_(1e-4)
        return model.h[1].mlp.c_proj(torch.ones(64)) - small_model().h[1].mlp.c_proj(torch.ones(64))  # type: ignore[operator, no-any-return, union-attr]

    torch.testing.assert_close(change(8.0), 4 * change(2.0), atol=1e-7, rtol=1e-2)


def test_a_merged_model_is_plain_and_computes_the_same() -> None:
    model = trained()
    before = model(IDS)
    merge_adapters(model)
    torch.testing.assert_close(model(IDS), before, atol=1e-5, rtol=1e-5)
    assert weights(model).keys() == weights(small_model()).keys()
    assert all(parameter.requires_grad for parameter in model.parameters())
    # Its layers were torch's own, which the native step does not know: it was read by torch.
    assert [*map(type, model.modules())] == [*map(type, small_model().modules())]


def test_saved_adapters_come_back(tmp_path: Path) -> None:
    model = trained()
    save_adapters(tmp_path, model, base="124M", base_sha256="0" * 64)
    assert read_adapters(tmp_path) == {
        "base": "124M",
        "base_sha256": "0" * 64,
        "rank": 2,
        "alpha": 4.0,
    }
    again = adapted()
    load_adapters(tmp_path, again)
    assert same(weights(again), weights(model))
    assert (tmp_path / WEIGHTS_FILE).stat().st_size < 20_000


def test_adapters_of_another_shape_or_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"expected adapter.json"):
        read_adapters(tmp_path)
    save_adapters(tmp_path, adapted(), base="124M", base_sha256="")
    with pytest.raises(CheckpointFormatError, match="another shape"):
        load_adapters(tmp_path, adapted(rank=3))
    broken = adapted()
    broken.state_dict()["h.0.mlp.c_fc.lora_b"][0, 0] = float("nan")  # merge wrote a model with NaN
    save_adapters(tmp_path, broken, base="124M", base_sha256="")
    with pytest.raises(CheckpointFormatError, match=r"c_fc.lora_b holds 1 numbers that are NaN"):
        load_adapters(tmp_path, adapted())
    (tmp_path / WEIGHTS_FILE).write_bytes(b"")
    with pytest.raises(CheckpointFormatError, match="not a whole safetensors file"):
        load_adapters(tmp_path, adapted())


@pytest.mark.parametrize("change", [{"rank": True}, {"alpha": False}, {"base": 1}, {"rank": 2.0}])
def test_fields_of_another_kind_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    # A rank of true counted as 1, and ended in a traceback.
    save_adapters(tmp_path, adapted(), base="124M", base_sha256="")
    about = json.loads((tmp_path / "adapter.json").read_text())
    (tmp_path / "adapter.json").write_text(json.dumps({**about, **change}))
    with pytest.raises(CheckpointFormatError, match="expected base, rank and alpha"):
        read_adapters(tmp_path)


@pytest.mark.parametrize(("rank", "alpha"), [(0, None), (17, None), (2, 0.0), (2, float("inf"))])
def test_an_invalid_rank_or_alpha_is_refused(rank: int, alpha: float | None) -> None:
    with pytest.raises(ConfigError, match="lora_"):
        adapted(rank, alpha)


def test_a_run_with_adapters_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    def go(folder: Path, steps: int | None, resume: bool = False) -> GPT2:
        model = adapted()
        run = Run(
            folder,
            small_settings(),
            resume=resume,
            write=lambda path, model: save_adapters(path, model, base="", base_sha256=""),
        )
        for report in train(model, small_corpus(), small_config(), run=run):
            if report.step == steps:
                break
        run.close()
        return model

    whole = go(tmp_path / "whole", None)
    go(tmp_path / "cut", 5)
    assert same(weights(go(tmp_path / "cut", None, resume=True)), weights(whole))
