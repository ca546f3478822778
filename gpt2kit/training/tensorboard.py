"""A run's figures as TensorBoard event files (needs gpt2kit[tensorboard])."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2kit.errors import MissingDependencyError
from gpt2kit.training.records import StepReport

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FIGURES = (
    "train_loss",
    "val_loss",
    "eval_train_loss",
    "lr",
    "gradient_norm",
    "tokens_per_second",
)


def check_tensorboard() -> None:
    """Raise MissingDependencyError unless tensorboard is installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise MissingDependencyError("tensorboard", extra="tensorboard") from None


class EventWriter:
    """Writes the figures of every report into event files in a folder.

    Raises MissingDependencyError if tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        check_tensorboard()
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def write(self, report: StepReport) -> None:
        """Add a report's figures. The first call purges events of this step and later ones.

        So a resumed run has every step once, although earlier files hold steps that are done again.
        """
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=report.step)
        writer: Any = self._writer
        for name in FIGURES:
            if (value := getattr(report, name)) is not None:
                writer.add_scalar(name, value, report.step)
        for part, norm in (report.gradient_norms or {}).items():
            writer.add_scalar(f"gradient_norms/{part}", norm, report.step)
        writer.flush()  # so that a kill cannot lose steps that a saved state continues after

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
