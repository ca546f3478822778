"""What a training needs is known before it starts, and it is made to fit."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_builders import small_config, small_model

from gpt2kit.config import SIZES
from gpt2kit.training import plan
from gpt2kit.training.config import TrainConfig
from gpt2kit.training.distributed import Ranks
from gpt2kit.training.optim import freeze
from gpt2kit.training.outline import Outline
from gpt2kit.training.plan import LORA_RANK, fit, fits, memory, whole_model, with_adapters
from gpt2kit.training.rehearsal import Memory

CPU = torch.device("cpu")
SCRIPTS = Path(__file__).parents[2] / "scripts"


def outline(**changes: int) -> Outline:
    return Outline.of(small_model(**changes))


# --- memory ---


def test_weights_and_averages_are_counted_exactly() -> None:
    n = small_model().config.n_params
    needed = memory(outline(), small_config(optimizer="adamw"), CPU)
    assert needed.weights == 4 * n
    assert 8 * n <= needed.optimizer <= 8 * n + 1000  # two averages, and the number of the step
    muon = memory(outline(), small_config(optimizer="muon"), CPU)
    in_blocks = 2 * 12 * 16 * 16  # weights of the blocks' matrices: one average instead of two
    assert needed.optimizer - muon.optimizer == pytest.approx(4 * in_blocks, abs=1000)


def test_what_is_frozen_needs_no_averages() -> None:
    model = small_model()
    freeze(model, "blocks:0-1")
    all_trained, some = (
        memory(each, small_config(optimizer="adamw"), CPU)
        for each in (outline(), Outline.of(model))
    )
    assert some.weights == all_trained.weights
    assert some.optimizer < all_trained.optimizer / 4


def test_the_total_is_that_of_the_parts() -> None:
    needed = memory(outline(), small_config(), CPU)
    assert needed.total == sum(vars(needed).values())
    assert needed.program > 100e6  # Python and torch


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 8}, {"block_size": 16}, {"checkpointing": False}, {"accumulate": 1}],
    ids=str,
)
def test_larger_batches_need_more_and_checkpointing_less(change: dict[str, Any]) -> None:
    config = small_config(checkpointing=True, accumulate=4, optimizer="adamw", block_size=8)
    deep = outline(n_layer=3)
    assert memory(deep, replace(config, **change), CPU).total > memory(deep, config, CPU).total


def test_a_model_on_the_meta_device_is_planned_for_like_a_real_one() -> None:
    with torch.device("meta"):
        model = small_model(n_embd=32)
    assert memory(Outline.of(model), small_config(), CPU) == memory(
        outline(n_embd=32), small_config(), CPU
    )


def test_planning_leaves_random_numbers_as_they_are() -> None:
    wide = outline(n_embd=48)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    memory(wide, small_config(), CPU)
    assert torch.equal(torch.rand(4), expected)


def test_in_shards_each_process_has_its_part_and_what_is_gathered() -> None:
    deep, config = outline(n_layer=6), small_config(optimizer="adamw")
    alone, copy, shard = (
        memory(deep, config, CPU, ranks)
        for ranks in (Ranks(), Ranks(0, 2), Ranks(0, 2, sharded=True))
    )
    assert shard.optimizer == alone.optimizer // 2
    assert alone.weights // 2 < shard.weights < alone.weights
    assert copy.gradients > alone.gradients  # a second copy, to exchange


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", ["distilgpt2", "distilgpt2 LoRA", "distilgpt2 checkpointing", "distilgpt2 accumulate 4"]
)
def test_the_peak_of_a_real_process_is_within_a_tenth_of_the_plan(
    case: str, tmp_path: Path
) -> None:
    # It was 3.3 GB in the plan and 4.3 GB in reality.
    command = [sys.executable, "benchmark.py", "plan", "--cases", case, "--rounds", "1"]
    command += ["--work", str(tmp_path)]
    done = subprocess.run(command, cwd=SCRIPTS, capture_output=True, text=True, check=True)
    (figures,) = json.loads(done.stdout.splitlines()[-1])["engines"].values()
    assert figures["planned_GB"] == pytest.approx(figures["measured_GB"], rel=0.1)


# --- what fits ---


def test_what_does_not_fit_is_cut_into_parts_and_then_checkpointed() -> None:
    deep = outline(n_layer=4, n_embd=64, n_ctx=128)
    config = small_config(batch_size=4, block_size=128)
    parts, least = (replace(config, accumulate=4, checkpointing=each) for each in (False, True))
    needed = [memory(deep, each, CPU).total for each in (config, parts, least)]
    assert needed[0] > needed[1] > needed[2]

    def fitted(free: float) -> tuple[int, bool]:
        found = fit(deep, config, CPU, int(free))
        return found.accumulate, found.checkpointing

    assert fitted(2 * needed[0]) == (1, False)
    assert 1 < fitted(needed[0] / 0.9 - 1000)[0] <= 4
    assert fitted(needed[1] / 0.9 - 1000) == (4, True)
    assert fitted(1) == (4, True)  # not enough for the weights alone


def test_checkpointing_whole_batches_is_tried_before_it_is_combined_with_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only the combination was tried, which needs more where all gradients are the most of it."""

    def made_up(_: object, config: TrainConfig, *__: object) -> Memory:
        gradients = 3 if config.accumulate > 1 else 0  # of the parts before
        activations = (1 if config.checkpointing else 8) / config.accumulate
        return Memory(0, 10**10, 0, gradients * 10**9, int(activations * 1e9), 0, 0)

    monkeypatch.setattr(plan, "memory", made_up)
    config, fixed = small_config(batch_size=4), {"checkpointing"}
    for needed in (11.2e9, 10e9):  # enough for it, and enough for nothing
        free = int(needed / 0.9)
        monkeypatch.setattr(plan, "free_memory", lambda _, free=free: free)
        found = fit(outline(), config, CPU, free)
        assert (found.accumulate, found.checkpointing) == (1, True)
        assert fit(outline(), config, CPU, free, fixed=fixed).accumulate == 4
        verdict = next(plan.compare_sizes(config, CPU)).verdict
        assert verdict == ("fits" if needed > 11e9 else "does not fit")


def test_options_that_were_given_stay() -> None:
    config = small_config(batch_size=12)
    assert fit(outline(), config, CPU, 1, fixed={"accumulate", "checkpointing"}) == config
    assert fit(outline(), config, CPU, 1, fixed={"accumulate"}) == replace(
        config, checkpointing=True
    )


def test_every_process_keeps_a_window_in_each_part() -> None:
    config = small_config(batch_size=12)
    assert fit(outline(), config, CPU, 1, ranks=Ranks(0, 4)).accumulate == 3


def test_a_tenth_of_the_free_memory_is_left_alone() -> None:
    needed = Memory(90, 0, 0, 0, 0, 0, 0)
    assert fits(needed, 100)
    assert not fits(needed, 99)


def test_the_advice_names_parts_free_memory_and_options_with_their_figures() -> None:
    # It named options of generation, and no figures.
    needed = Memory(300_000_000, 2_000_000_000, 0, 0, 700_000_000, 50_000_000, 0)
    less = {"--checkpointing": Memory(300_000_000, 2_000_000_000, 0, 0, 0, 0, 0)}
    text = plan.advice(needed, 1_500_000_000, less)
    assert "needs about 3.0 GB, and 1.5 GB are free" in text
    assert "program 0.3 GB, weights 2.0 GB, activations 0.7 GB, temporaries 50 MB" in text
    assert "--checkpointing (2.3 GB)" in text
    assert "a smaller --model" in text


def test_options_are_offered_only_if_they_change_something() -> None:
    model = whole_model(small_model(n_layer=3).config)
    config = small_config(batch_size=4)
    assert list(plan.alternatives(model, config, CPU)) == [
        "--accumulate 4",
        "--checkpointing",
        f"--lora_rank {LORA_RANK}",
    ]
    done = replace(config, accumulate=4, checkpointing=True)
    assert not plan.alternatives(with_adapters(model), done, CPU)
    assert not plan.alternatives(model, done, CPU, can_adapt=False)


def test_options_that_save_nothing_are_left_out_and_the_least_comes_first() -> None:
    # "These need less" named options that need more: parts, where gradients are most of it.
    def of(n_bytes: int) -> Memory:
        return Memory(0, n_bytes, 0, 0, 0, 0, 0)

    found = {"--accumulate 4": of(101), "--checkpointing": of(96), "--lora_rank 8": of(40)}
    assert list(plan.savings(found, of(100))) == ["--lora_rank 8", "--checkpointing"]


def test_every_published_size_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def made_up(outline: Outline, config: object, device: object, ranks: object = None) -> Memory:
        n = 4 * len(outline.trained) + outline.config.n_params - (outline.predicted or 0)
        return Memory(0, n, 0, 0, 0, 0, 0)

    monkeypatch.setattr(plan, "memory", made_up)
    monkeypatch.setattr(plan, "free_memory", lambda _: 16 * 10**9)
    found = {size.model: size for size in plan.compare_sizes(small_config(), CPU)}
    of_examples = next(plan.compare_sizes(small_config(), CPU, predicted=2))
    assert of_examples.full != found[of_examples.model].full
    assert found.keys() == SIZES.keys()
    assert found["124M"].parameters == 124_439_808
    assert found["124M"].verdict == "fits"
    assert (
        found["1558M"].verdict == "fits with LoRA"
    )  # 25 GB with gradients and averages, 6 without
    monkeypatch.setattr(plan, "free_memory", lambda _: 10**9)
    assert [size.verdict for size in plan.compare_sizes(small_config(), CPU)][-1] == "does not fit"


# --- free memory ---


def test_free_memory_includes_what_this_process_has_already() -> None:
    # The memory of the weights, loaded by then, was planned for a second time.
    before = plan.free_memory(CPU)
    if before is None:
        pytest.skip("this system does not tell")
    taken = torch.ones(2**28)  # 1 GiB
    after = plan.free_memory(CPU)
    assert after is not None
    assert after > before - taken.nbytes / 2


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = plan.free_memory(CPU)
    if without is None:
        pytest.skip("this system does not tell")
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.stat").write_text("anon 1000000\nfile 999999999\n")
    monkeypatch.setattr(plan, "CONTAINER", tmp_path)
    limited = plan.free_memory(CPU)
    assert limited is not None
    assert limited < without
    (tmp_path / "memory.max").write_text("max\n")
    unlimited = plan.free_memory(CPU)
    assert unlimited is not None
    assert unlimited > limited
