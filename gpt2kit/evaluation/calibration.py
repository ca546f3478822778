"""How well a criterion tells human texts from those of a machine, measured on texts of both kinds.

    found = calibrate(human, machine, higher=True, seed=1)  # figures of texts of either kind
    found.machine_like(2.7)

Higher figures count as machine-like here; for a criterion whose lower figures do, signs change. The
threshold is the smallest figure above which at most 1% of the human texts lie. A text is
machine-like if its figure is above the threshold, not at it.

Intervals are those of 95% from the percentiles of bootstrap samples, which draw texts of each kind
anew with replacement. They say how much these texts happen to differ, and nothing about texts of
another kind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt2kit.errors import ConfigError

FALSE_POSITIVES = 0.01  # share of human texts that a threshold may take for a machine's
RESAMPLES = 1000
# Fewer texts of a kind give no interval: their bootstrap samples hardly differ.
FEWEST_FOR_INTERVAL = 10

Interval = tuple[float | None, float | None]  # None: these texts do not bound it


@dataclass(frozen=True)
class Calibration:
    """How a criterion tells two kinds of texts apart."""

    higher: bool  # whether higher figures are machine-like
    auroc: float  # chance that a machine's text is more machine-like than a human one; 0.5: useless
    auroc_interval: Interval
    threshold: float
    threshold_interval: Interval
    found: float  # share of the machine's texts beyond the threshold
    found_interval: Interval
    false_positives: float  # share of the human texts beyond the threshold
    false_positives_at_most: float  # with 95% confidence, for texts of the same kind
    human: tuple[float, ...]  # figures of the human texts, sorted
    machine_texts: int

    def machine_like(self, figure: float) -> bool:
        """Return whether a figure lies beyond the threshold."""
        return figure > self.threshold if self.higher else figure < self.threshold

    def human_share(self, figure: float) -> float:
        """Return the share of human texts that are as machine-like, the text itself counted as one.

        For a human text of the same kind it is below a with a probability of at most a.
        """
        human = np.asarray(self.human)
        as_much = human >= figure if self.higher else human <= figure
        return (1 + int(as_much.sum())) / (1 + len(human))

    @property
    def notes(self) -> list[str]:
        """What the numbers of texts do not allow to say."""
        n, notes = len(self.human), []
        if n < 1 / FALSE_POSITIVES:
            bound = "upper" if self.higher else "lower"
            notes.append(
                f"{n} human texts are too few to measure 1% of them: the threshold is the most "
                f"machine-like of them, and has no {bound} bound"
            )
        if min(n, self.machine_texts) < FEWEST_FOR_INTERVAL:
            notes.append(f"fewer than {FEWEST_FOR_INTERVAL} texts of a kind give no intervals")
        if self.auroc <= 0.5:
            notes.append("it tells these texts apart no better than chance, or the wrong way round")
        return notes


def calibrate(
    human: Sequence[float], machine: Sequence[float], *, higher: bool, seed: int
) -> Calibration:
    """Measure how figures of human texts and of a machine's differ.

    Raises ConfigError for fewer than two of either kind.
    """
    if min(len(human), len(machine)) < 2:
        raise ConfigError(
            f"{len(human)} human texts and {len(machine)} of the machine could be measured; "
            "expected at least two of each kind"
        )
    sign = 1.0 if higher else -1.0
    ours, theirs = (np.sort(sign * np.asarray(kind)) for kind in (human, machine))
    threshold = _threshold(ours)
    auroc_ci, threshold_ci, found_ci = _bootstrap(ours, theirs, seed)
    if len(ours) < 1 / FALSE_POSITIVES:
        # No sample of so few texts exceeds the largest of them, as the next text may.
        threshold_ci, found_ci = (threshold_ci[0], None), (None, found_ci[1])
    false = int((ours > threshold).sum())
    lowest, highest = (None if each is None else sign * each for each in threshold_ci)
    return Calibration(
        higher=higher,
        auroc=auroc(ours, theirs),
        auroc_interval=auroc_ci,
        threshold=sign * threshold,
        threshold_interval=(lowest, highest) if higher else (highest, lowest),
        found=float((theirs > threshold).mean()),
        found_interval=found_ci,
        false_positives=false / len(ours),
        false_positives_at_most=_at_most(false, len(ours)),
        human=tuple(np.sort(human).tolist()),
        machine_texts=len(theirs),
    )


def auroc(human: Any, machine: Any) -> float:
    """Return the share of pairs in which the machine's figure is higher; ties count one half."""
    ordered = np.sort(human)
    below = np.searchsorted(ordered, machine, side="left")
    up_to = np.searchsorted(ordered, machine, side="right")
    return float((below + up_to).mean() / 2 / len(ordered))


def _threshold(human: Any) -> float:
    """Return the smallest figure above which at most 1% of the human texts lie."""
    # The added millionth keeps 1% of 300 at 3, whatever the rounding of the product.
    allowed = math.floor(FALSE_POSITIVES * len(human) + 1e-6)
    return float(np.partition(human, len(human) - 1 - allowed)[len(human) - 1 - allowed])


def _bootstrap(human: Any, machine: Any, seed: int) -> tuple[Interval, Interval, Interval]:
    """Return the intervals of AUROC, threshold, and share of the machine's texts beyond it."""
    if min(len(human), len(machine)) < FEWEST_FOR_INTERVAL:
        nothing = (None, None)
        return nothing, nothing, nothing
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(RESAMPLES):
        ours = human[generator.integers(len(human), size=len(human))]
        theirs = machine[generator.integers(len(machine), size=len(machine))]
        threshold = _threshold(ours)
        found.append((auroc(ours, theirs), threshold, (theirs > threshold).mean()))
    low, high = np.quantile(np.array(found), (0.025, 0.975), axis=0)
    first, second, third = ((float(a), float(b)) for a, b in zip(low, high, strict=True))
    return first, second, third


def _at_most(found: int, of: int, confidence: float = 0.95) -> float:
    """Return the share that `found` in `of` bounds from above, by Clopper and Pearson, one-sided.

    It is the share at which as few as `found` would be seen with a probability of 5% only.
    """
    if found >= of:
        return 1.0
    low, high = found / of, 1.0
    for _ in range(60):  # halves an interval until it is a float's precision wide
        middle = (low + high) / 2
        chance = _binomial(found, of, middle)
        low, high = (middle, high) if chance > 1 - confidence else (low, middle)
    return high


def _binomial(most: int, of: int, share: float) -> float:
    """Return the probability of at most `most` in `of` independent draws."""
    if share >= 1:
        return 0.0
    return math.fsum(
        math.exp(
            math.lgamma(of + 1)
            - math.lgamma(n + 1)
            - math.lgamma(of - n + 1)
            + (n * math.log(share) if n else 0.0)
            + (of - n) * math.log1p(-share)
        )
        for n in range(most + 1)
    )
