"""More steps for a run: which part of it a longer run would have done just the same.

The learning rate is all that depends on the length of a run. As long as it has been that of the
longer run, the steps done are those of the longer run, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpt2kit.training.config import TrainConfig
from gpt2kit.training.optim import learning_rate
from gpt2kit.training.states import LoopState


@dataclass(frozen=True)
class Extension:
    """How a run continues to more steps than it was started for."""

    before: TrainConfig
    now: TrainConfig
    last: int  # steps done
    step: int  # of the saved state that it continues from
    exact: bool  # whether it ends as a run does that had the new length at once
    since: int = 0  # the step at which the newest phase began; 0 is the start of the run

    @classmethod
    def plan(
        cls, before: TrainConfig, now: TrainConfig, kept: Sequence[LoopState], since: int = 0
    ) -> Extension:
        """Return the extension of a run with these saved states, oldest first, at least one.

        It starts from the newest state, or from an earlier one if only that makes it exact: with a
        constant learning rate that has begun to fall. Such a state must hold the best weights so
        far, since those of later steps are given up.
        """
        alike, last = steps_alike(before, now), kept[-1].step
        if last <= alike:
            return cls(before, now, last, last, True, since)
        if now.schedule == "constant":
            for state in reversed(kept):
                validated = state.step % now.eval_every == 0
                if since <= state.step <= alike and validated and state.since_best == 0:
                    return cls(before, now, last, state.step, True, since)
        return cls(before, now, last, last, False, since)

    @property
    def goes_back(self) -> bool:
        """Whether steps that were done are given up and done again."""
        return self.step < self.last

    def as_record(self) -> dict[str, Any]:
        """Return what run.json keeps of it."""
        return {
            "step": self.step,
            "max_steps_before": self.before.max_steps,
            "max_steps": self.now.max_steps,
            "kind": "exact" if self.exact else "new phase",
        }

    def __str__(self) -> str:
        """Return a line on what is exact and what is a new phase."""
        now, steps = self.now, f"{self.now.max_steps:,} steps"
        if not self.exact:
            rates = f"{learning_rate(self.last - 1, self.before):.3g} to "
            rates += f"{learning_rate(self.last, now):.3g}"
            return (
                f"new phase: after step {self.last:,} the learning rate goes from {rates}, since "
                f"the schedule is now one of {steps}; a run of {steps} from the start would differ"
            )
        start = "the start" if not self.since else f"the phase that began at step {self.since:,}"
        line = f"exact: from step {self.step:,} on, bit for bit as if there had been {steps} from "
        line += f"{start}, with warmup {now.warmup} and eval_every {now.eval_every}"
        if self.goes_back:
            line += f"; steps {self.step + 1:,} to {self.last:,} are done again"
        elif self.last == self.before.max_steps and self.last % now.eval_every:
            line += f", but for one more validation, at step {self.last:,}"
        return line


def steps_alike(before: TrainConfig, now: TrainConfig) -> int:
    """Return how many of the first steps have the same learning rate in two configurations."""
    for step in range(before.max_steps):
        if learning_rate(step, before) != learning_rate(step, now):
            return step
    return before.max_steps
