"""What training needs of a corpus: batches for each step, and others to measure the loss with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from gpt2kit.data.corpus import CorpusReport, Split

if TYPE_CHECKING:
    from torch import Tensor


class Batches(Protocol):
    """Windows of a text, or rows of examples: `Corpus` and `ExampleCorpus`.

    Windows are (B, T + 1) int64, rows (B, 3, T).
    """

    @property
    def report(self) -> CorpusReport:
        """What was read."""

    @property
    def sha256(self) -> str:
        """What tells this corpus from others."""

    def usual_block_size(self, least: int) -> int:
        """Return the block size by default, at least this one."""

    def usual_batch_size(self, block_size: int, usual: int) -> int:
        """Return the size of a batch by default, which for a text is `usual`."""

    def fit_block_size(self, block_size: int) -> int:
        """Return block_size, or less if there is too little text."""

    def epoch_tokens(self, block_size: int) -> int:
        """Return how many tokens a pass has."""

    def predicted_in_row(self, block_size: int) -> int | None:
        """Return how many tokens or labels of a row are predicted; None for windows: all."""

    def batch(
        self,
        split: Split,
        step: int,
        *,
        block_size: int,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        stride: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> Tensor:
        """Return what one process has of the batch of a step."""

    def eval_windows(
        self, split: Split, block_size: int, *, batch_size: int = 1, most_tokens: int | None = None
    ) -> Iterator[Tensor]:
        """Yield batches to measure a split's loss with, always the same ones."""
