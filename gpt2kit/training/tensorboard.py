"""A run's figures for TensorBoard, beside its own record (needs gpt2kit[tensorboard])."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2kit.errors import MissingDependencyError
from gpt2kit.training.loop import StepReport

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FIGURES = ("train_loss", "val_loss", "lr", "gradient_norm", "tokens_per_second")


def check_tensorboard() -> None:
    """Raise MissingDependencyError unless tensorboard is installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise MissingDependencyError("tensorboard", extra="tensorboard") from None


class EventWriter:
    """Writes the figures of every report into event files in a folder; raises MissingDependencyError without tensorboard."""

    def __init__(self, folder: Path) -> None:
        check_tensorboard()
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def write(self, report: StepReport) -> None:
        """Add what the report has; what earlier files hold of its step and those after it counts no longer, as in a run gone on with."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=report.step)
        writer: Any = self._writer
        for name in FIGURES:
            if (value := getattr(report, name)) is not None:
                writer.add_scalar(name, value, report.step)
        writer.flush()  # a kill takes nothing with it that a saved state goes on from

    def close(self) -> None:
        """End the file."""
        if self._writer is not None:
            self._writer.close()
