"""Activation patching: a sweep equals one run for each cell; estimates are first derivatives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from conftest import make_model
from test_model import VARIANTS

from gpt2kit.config import GPT2Config
from gpt2kit.errors import ConfigError
from gpt2kit.inspection import Edit, Pair, PatchOptions, patch, run
from gpt2kit.inspection.patch_options import At
from gpt2kit.inspection.patching import Cell, Patching
from gpt2kit.model import GPT2

PAIR = Pair([5, 17, 300, 42, 8, 99, 410, 3, 7], [5, 18, 300, 43, 8, 99, 411, 3, 7], 30, 31)
AT: tuple[At, ...] = get_args(At)


def cell_by_cell(model: GPT2, pair: Pair, options: PatchOptions) -> list[float]:
    """Return what every cell should be: one whole run with one edit."""
    prompts = {"denoise": (pair.corrupted, pair.clean), "noise": (pair.clean, pair.corrupted)}
    into, source = (torch.tensor([each]) for each in prompts[options.direction])
    other = run(model, source, record=[options.at])
    found = []
    for layer in range(model.config.n_layer):
        for head in range(model.config.n_head) if options.by_head else [None]:
            for position in range(into.shape[1]) if options.by_position else [None]:
                name = f"layers.{layer}.{options.place.name}"
                edit = Edit(name, head=head, position=position, value=other[name])
                logits = run(model, into, [edit]).logits[0, -1]
                found.append(float(logits[pair.answer] - logits[pair.wrong]))
    return found


@pytest.mark.parametrize("at", AT)
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_a_sweep_equals_one_run_for_each_cell(tiny_model: GPT2, at: Any, direction: Any) -> None:
    has_heads = at in ("z", "q", "k", "v", "pattern")
    for by in ("position", "head", "both") if has_heads else ("position",):
        options = PatchOptions(at=at, by=by, direction=direction)
        found = patch(tiny_model, PAIR, options)
        expected = cell_by_cell(tiny_model, PAIR, options)
        assert [each.logit_diff for each in found.cells] == pytest.approx(expected, abs=1e-5)
        assert max(expected) > min(expected)


@pytest.mark.parametrize("name", ["post-norm", "no residual", "swiglu", "rmsnorm", "no positions"])
def test_a_sweep_of_a_variant_equals_one_run_for_each_cell(
    tiny_config: GPT2Config, name: str
) -> None:
    model = make_model(replace(tiny_config, **VARIANTS[name]))
    for at in ("resid_pre", "resid_mid", "z"):
        options = PatchOptions(at=at)
        found = [each.logit_diff for each in patch(model, PAIR, options).cells]
        assert found == pytest.approx(cell_by_cell(model, PAIR, options), abs=1e-5)


def test_a_patch_of_a_whole_stream_gives_the_other_runs_difference(tiny_model: GPT2) -> None:
    """At the last position after the last layer nothing of the base run is left."""
    for direction, recovered in (("denoise", 1), ("noise", 0)):
        found = patch(
            tiny_model,
            PAIR,
            PatchOptions(at="resid_post", direction=direction),  # type: ignore[arg-type]
        )
        last = found.cells[-1]
        assert (last.layer, last.position) == (1, 8)
        assert last.recovered == pytest.approx(recovered, abs=1e-5)


def test_long_sweeps_are_cut_into_batches(
    tiny_model: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = PatchOptions(at="z", by="both")
    whole = [each.logit_diff for each in patch(tiny_model, PAIR, options).cells]
    monkeypatch.setattr("gpt2kit.inspection.patching._AT_ONCE", 20)
    small = [each.logit_diff for each in patch(tiny_model, PAIR, options).cells]
    assert small == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("at", ["resid_pre", "z", "pattern", "k"])
def test_estimates_approach_measurements_as_the_prompts_approach_each_other(
    tiny_config: GPT2Config, at: Any
) -> None:
    """A first-order estimate is off by the square of the change."""
    model = make_model(tiny_config, dtype=torch.float64)
    with torch.no_grad():  # the two prompts differ by tokens that are nearly alike
        for one, other in zip(PAIR.clean, PAIR.corrupted, strict=True):
            if one != other:
                model.wte.weight[other] = model.wte.weight[one] + 1e-4
                model.wte.weight[other, :8] += 1e-4
    found = patch(model, PAIR, PatchOptions(at=at, attribution=True))
    assert found.clean != found.corrupted
    correlation, largest = found.agreement()
    scale = max(abs(each.logit_diff - found.corrupted) for each in found.cells)
    assert largest < 2e-3 * scale
    assert correlation > 0.9999


def test_agreement_is_correlation_and_largest_difference() -> None:
    cells = [Cell(0, None, n, value, None, value + 0.5) for n, value in enumerate([0.0, 1.0, 3.0])]
    assert Patching(1, 0, "denoise", tuple(cells)).agreement() == pytest.approx((1.0, 0.5))


def test_prompts_that_agree_have_nothing_to_recover(tiny_model: GPT2) -> None:
    same = replace(PAIR, corrupted=PAIR.clean)
    assert all(each.recovered is None for each in patch(tiny_model, same).cells)


def test_prompts_of_unequal_length_and_heads_of_a_stream_are_refused(tiny_model: GPT2) -> None:
    with pytest.raises(ConfigError, match="the prompts have 2 and 1 tokens"):
        Pair([1, 2], [1], 0, 1)
    with pytest.raises(ConfigError, match="resid_pre has no heads; patch it by position"):
        PatchOptions(by="head")
