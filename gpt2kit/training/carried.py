"""The optimizer's averages of an earlier run, for a run that starts from its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.optim import Optimizer

from gpt2kit.errors import CheckpointError
from gpt2kit.model import GPT2
from gpt2kit.training.config import OptimizerName
from gpt2kit.training.distributed import Ranks
from gpt2kit.training.optim import is_hidden_matrix
from gpt2kit.training.states import STATES, States, load_averages, read_averages


@dataclass(frozen=True)
class Carried:
    """Where the averages of a new run come from: a saved state, or None if they start at zero."""

    state: Path | None
    reason: str  # in one line, for the user

    @classmethod
    def find(cls, run: Path, model: GPT2, optimizer: OptimizerName) -> Carried | None:
        """Return the averages of a run that fit the parameters to train; None if it kept none.

        They fit if there is one for every trained parameter, of its shape, and no other.
        """
        newest = States(run / STATES, Ranks()).newest()
        if newest is None:
            return None
        folder, step = newest
        try:
            found = {name: each.shape for name, each in read_averages(folder).items()}
        except CheckpointError as error:
            return cls(None, f"optimizer: starts anew, since its saved state is damaged: {error}")
        expected = _averages(model, optimizer)
        if found != expected:
            different = sorted(
                name
                for name in found.keys() | expected.keys()
                if found.get(name) != expected.get(name)
            )
            return cls(
                None,
                f"optimizer: starts anew, since the state of step {step:,} is of other parameters "
                f"or of another optimizer than {optimizer}: {len(different)} differ, such as "
                f"{different[0]}",
            )
        return cls(
            folder,
            f"optimizer: continues with its averages of step {step:,} of {run}; "
            "--fresh_optimizer starts it anew",
        )

    def put(self, optimizers: Sequence[Optimizer]) -> None:
        """Set the averages of new optimizers.

        Raises CheckpointError if the state was changed or deleted meanwhile.
        """
        if self.state is not None:
            load_averages(self.state, optimizers)


def _averages(model: GPT2, optimizer: OptimizerName) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of what the optimizers keep for the trained parameters."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        shape = tuple(parameter.shape)
        if optimizer == "muon" and is_hidden_matrix(name, parameter):
            shapes[f"{name}.momentum_buffer"] = shape
        else:
            shapes |= {f"{name}.exp_avg": shape, f"{name}.exp_avg_sq": shape, f"{name}.step": ()}
    return shapes
