"""Drawn numbers: engines, samplers, constraints and losses beside their definitions in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import compiled
from torch import Tensor

from campaigns.drawn_numbers import CAMPAIGN
from campaigns.number_cases import NumberCases, NumberTarget
from gpt2kit import attention
from gpt2kit.cache import KVCache
from gpt2kit.engine.native_engine import NativeEngine
from gpt2kit.generation import sampling
from gpt2kit.generation.constraints.constraint import Constraint
from gpt2kit.generation.shaping.forbidding import NoRepeatedNgrams
from gpt2kit.generation.stop_texts import StopTexts
from gpt2kit.training import loss

SCRIPT = Path(__file__).parents[2] / "scripts" / "campaign.py"
TARGETS = {target.name: target for target in CAMPAIGN.targets}
FEW = 2  # cases of a target in the default run


def outcomes(target: NumberTarget, n: int) -> dict[int, str]:
    """Return what was wrong in the first cases of a target."""
    cases = NumberCases(target)
    found = {seed: cases.run(seed) for seed in range(n)}
    cases.close()
    return {seed: each.why for seed, each in found.items() if each.outcome == "failed"}


@pytest.mark.parametrize("target", CAMPAIGN.targets, ids=lambda target: target.name)
def test_drawn_numbers_are_those_of_the_definition(target: NumberTarget) -> None:
    assert outcomes(target, FEW) == {}


@pytest.mark.parametrize(
    ("target", "seed"),
    [
        ("constraints", 431901),  # the list of all texts took minutes: it is made of few now
        ("other shapes: int8", 263630),  # scores of minus infinity alone: torch's weights are 0
        ("other shapes: bfloat16", 642177),  # three draws missed a sign that rounding turns
    ],
)
def test_cases_that_were_wrongly_counted_as_failed(target: str, seed: int) -> None:
    assert NumberCases(TARGETS[target]).run(seed).outcome != "failed"


@pytest.mark.campaign
def test_a_hundred_thousand_comparisons_fail_no_case(tmp_path: Path) -> None:
    results = Path(os.environ.get("GPT2KIT_CAMPAIGN", tmp_path / "campaign.jsonl"))
    command = [sys.executable, str(SCRIPT), "drawn_numbers", "--results", str(results)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# --- planted faults -------------------------------------------------------------------------------

Planted = Callable[[pytest.MonkeyPatch], None]


def wrapped(owner: Any, name: str, fault: Callable[..., Any]) -> Planted:
    """Return what replaces a function by one that gets the real one first."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given, **named: fault(real, *given, **named))

    return plant


def wrong_scale(real: Any, engine: Any, *given: Any, **named: Any) -> Tensor:
    """Logits a thousandth too large, in models whose heads have seven numbers."""
    found: Tensor = real(engine, *given, **named)
    return found * 1.001 if engine._model.config.head_size == 7 else found


def company(real: Any, engine: Any, new: Any, *given: Any, **named: Any) -> Tensor:
    """The last bit of a logit depends on how many rows there are."""
    found: Tensor = real(engine, new, *given, **named)
    return found * (1 + 2**-23 * (len(new) > 1))


def not_forgotten(real: Any, cache: KVCache, lengths: list[int]) -> None:
    """A slot that is cut short to one token keeps two."""
    real(
        cache,
        [2 if new == 1 < old else new for new, old in zip(lengths, cache.lengths, strict=True)],
    )


def leaking(real: Any, cache: KVCache, slots: Any, other: KVCache, slot: int, length: Any) -> None:
    """A copied slot is that of its neighbor."""
    real(cache, slots, other, max(slot - 1, 0), min(length, other.lengths[max(slot - 1, 0)]))
    cache._set_lengths([length if b in slots else n for b, n in enumerate(cache.lengths)])


def last_among_equals(real: Any, logits: Tensor, top_k: int, *, sorted_: bool) -> Any:
    """Of equal logits, the last ones are kept."""
    values, ids = real(logits.flip(-1), top_k, sorted_=sorted_)
    return values, logits.shape[-1] - 1 - ids


FAULTS: dict[str, tuple[str, Planted]] = {
    "a scale": ("logits: float32", wrapped(NativeEngine, "read", wrong_scale)),
    "company": ("logits: bfloat16", wrapped(NativeEngine, "read", company)),
    "a length": ("caches: int8", wrapped(KVCache, "truncate", not_forgotten)),
    "a leak": ("caches: float32", wrapped(KVCache, "fill", leaking)),
    "a tie": ("sampling: distribution", wrapped(sampling, "candidates", last_among_equals)),
    "top-p without its last token": (
        "sampling: distribution",
        wrapped(sampling, "keep_top_p", lambda real, p, top_p: real(p, top_p * 0.9)),
    ),
    "a penalty squared": (
        "sampling: penalties",
        wrapped(sampling, "repetition_penalized", lambda real, x, p: real(x, p * p)),
    ),
    "logarithms to another base": (
        "sampling: logprobs",
        wrapped(sampling, "_log_softmax", lambda real, *given: real(*given) * 1.0001),
    ),
    "half a stop text": (
        "stop texts",
        wrapped(StopTexts, "finish", lambda real, stops: real(stops)[1:]),
    ),
    "an n-gram more": (
        "limits",
        wrapped(NoRepeatedNgrams, "__init__", lambda real, limit, n: real(limit, n + 1)),
    ),
    "an end too early": (
        "constraints",
        wrapped(Constraint, "may_end", lambda real, constraint, state: True),
    ),
    "a loss of the first piece": (
        "training: loss",
        wrapped(loss, "_cross_entropy_", lambda real, *given, **named: real(*given, **named) * 2),
    ),
    "weights of attention that are too small": (
        "training: dropout",
        wrapped(attention, "_attention_weights", lambda real, *given: real(*given) * 0.999),
    ),
}


@compiled
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, plant = FAULTS[fault]
    plant(monkeypatch)
    cases = NumberCases(TARGETS[name])
    assert any(cases.run(seed).outcome == "failed" for seed in range(100)), "no case failed"


def test_a_case_is_the_same_every_time() -> None:
    for name in ("sampling: distribution", "limits", "logits: float32"):
        once, again = (NumberCases(TARGETS[name]).run(5) for _ in range(2))
        assert once == again
        assert once.comparisons
    assert torch.get_num_threads() == 1
