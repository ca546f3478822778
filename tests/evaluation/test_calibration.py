"""Calibration: exact on small numbers, honest about few texts, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from gpt2kit.errors import ConfigError
from gpt2kit.evaluation.calibration import Calibration, auroc, calibrate


def made(human: list[float], machine: list[float], *, higher: bool = True) -> Calibration:
    return calibrate(human, machine, higher=higher, seed=1)


def test_auroc_counts_pairs_and_ties_as_one_half() -> None:
    generator = np.random.default_rng(0)
    human, machine = generator.integers(0, 6, 30), generator.integers(2, 8, 20)
    pairs = [1.0 if m > h else 0.5 if m == h else 0.0 for h in human for m in machine]
    assert auroc(human, machine) == pytest.approx(sum(pairs) / len(pairs))
    assert auroc(np.ones(5), np.ones(3)) == 0.5
    assert auroc(np.zeros(5), np.ones(3)) == 1.0


@pytest.mark.parametrize(("n", "allowed"), [(99, 0), (100, 1), (199, 1), (300, 3)])
def test_at_most_one_percent_of_the_human_texts_lie_above_the_threshold(
    n: int, allowed: int
) -> None:
    human = [float(number) for number in range(n)]
    found = made(human, [1000.0, 1001.0, 0.0])
    assert sum(figure > found.threshold for figure in human) == allowed
    assert found.false_positives == allowed / n <= 0.01
    assert found.found == pytest.approx(2 / 3)
    assert found.machine_like(found.threshold + 0.5)
    assert not found.machine_like(found.threshold)


def test_ties_at_the_threshold_are_never_machine_like() -> None:
    human = [0.0] * 150 + [1.0] * 50  # a quarter of them share the highest figure
    found = made(human, [1.0] * 30 + [2.0] * 10)
    assert found.threshold == 1.0
    assert found.false_positives == 0.0
    assert found.found == 0.25


def test_a_criterion_whose_lower_figures_are_machine_like_is_the_mirror_image() -> None:
    generator = np.random.default_rng(3)
    human, machine = generator.normal(size=200).tolist(), generator.normal(2, size=150).tolist()
    one = made(human, machine)
    other = made([-each for each in human], [-each for each in machine], higher=False)
    assert other.auroc == one.auroc
    assert other.threshold == -one.threshold
    assert other.found_interval == one.found_interval
    low, high = one.threshold_interval
    assert low is not None
    assert high is not None
    assert other.threshold_interval == (-high, -low)
    assert other.machine_like(-3.5) is one.machine_like(3.5) is True
    assert other.human_share(-1.0) == one.human_share(1.0)


def test_intervals_hold_the_estimate_and_the_same_seed_gives_them_again() -> None:
    generator = np.random.default_rng(5)
    human, machine = generator.normal(size=300).tolist(), generator.normal(1.5, size=300).tolist()
    found = made(human, machine)
    for value, (low, high) in (
        (found.auroc, found.auroc_interval),
        (found.threshold, found.threshold_interval),
        (found.found, found.found_interval),
    ):
        assert low is not None
        assert high is not None
        assert low <= value <= high
        assert low < high
    assert made(human, machine) == found
    assert calibrate(human, machine, higher=True, seed=2).auroc_interval != found.auroc_interval
    # The standard error of an AUROC by Hanley and McNeil 1982, about.
    low, high = found.auroc_interval
    assert low is not None
    assert high is not None
    q1, q2 = found.auroc / (2 - found.auroc), 2 * found.auroc**2 / (1 + found.auroc)
    error = ((q1 + q2 - 2 * found.auroc**2) / 300) ** 0.5
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.25)
    assert not found.notes


def test_few_texts_leave_open_what_they_cannot_bound() -> None:
    few = made([float(n) for n in range(20)], [float(n) for n in range(10, 30)])
    assert few.threshold == 19.0
    assert few.threshold_interval[0] is not None
    assert few.threshold_interval[1] is None
    assert few.found_interval[0] is None
    # Of 20 texts none above: with 95% confidence at most 1 - 0.05 ** (1 / 20).
    assert few.false_positives_at_most == pytest.approx(1 - 0.05 ** (1 / 20), abs=1e-9)
    assert "20 human texts are too few" in few.notes[0]
    fewer = made([1.0, 2.0], [3.0, 4.0])
    assert fewer.auroc_interval == fewer.threshold_interval == (None, None)
    assert len(fewer.notes) == 2
    with pytest.raises(ConfigError, match="1 human texts and 2 of the machine"):
        made([1.0], [2.0, 3.0])


def test_a_useless_criterion_is_called_useless() -> None:
    assert "chance" in made([2.0, 3.0], [0.0, 1.0]).notes[-1]


def test_a_human_text_has_a_human_share_of_a_fifth_or_less_one_time_in_five() -> None:
    """For any distribution of figures, over calibrations and new texts of one kind."""
    generator = np.random.default_rng(7)
    small = 0
    for _ in range(2000):
        *human, new = generator.exponential(size=10).tolist()
        small += made(human, [5.0, 6.0]).human_share(new) <= 0.2
    assert small / 2000 == pytest.approx(0.2, abs=0.03)
    found = made([float(n) for n in range(199)], [5.0, 6.0])
    assert found.human_share(1000.0) == 1 / 200
    assert found.human_share(-1.0) == 1.0


@pytest.mark.parametrize(("higher", "bound"), [(True, "upper"), (False, "lower")])
def test_the_note_on_few_texts_names_the_bound_that_is_missing(higher: bool, bound: str) -> None:
    # It said "upper" also if lower figures are machine-like, where the lower bound is missing.
    found = calibrate([1.0, 2.0] * 10, [3.0, 4.0] * 10, higher=higher, seed=1)
    assert found.threshold_interval[1 if higher else 0] is None
    assert found.notes[0].endswith(f"has no {bound} bound")
