"""generate by the pile: the continuations of prompts, each with a seed of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from gpt2kit.bulk.measures import texts_in
from gpt2kit.bulk.sources import SourceRow
from gpt2kit.bulk.work import Cells, Gives, Models, Work
from gpt2kit.generation.request import Request
from gpt2kit.generation.text import collect, stream

_SEED_BYTES = 6  # a larger number would not be exact in JavaScript and R


@dataclass(frozen=True, kw_only=True)
class Generate(Work):
    """Continuations of each prompt, as `gpt2kit.generation` writes them."""

    text: str = "text"
    request: Request = field(default_factory=lambda: Request(seed=0))
    batch_size: int = 16  # texts that are written at once

    command: ClassVar[str] = "generate"

    @property
    def gives(self) -> Gives:
        """A row for each sample of a prompt."""
        return "one" if self.request.num_samples == 1 else "many"

    def needs(self) -> tuple[str, ...]:
        """Return the column of the prompts."""
        return (self.text,)

    def columns(self) -> tuple[str, ...]:
        """Return the names of the new columns."""
        return ("prompt", "text", "n_tokens", "finish_reason", "seed", "sample")

    def measure(self, models: Models, rows: Sequence[SourceRow]) -> Iterator[Sequence[Cells]]:
        """Return the samples of each prompt."""
        prompts, n = texts_in(rows, self.text), self.request.num_samples
        seeds = [seed_of_row(self.request.drawn_seed, row.number) for row in rows]
        pieces = stream(
            models.model,
            models.tokenizer,
            prompts,
            self.request,
            seeds=seeds,
            slots=self.batch_size,
        )
        found = collect(pieces, prompts, self.request)
        for index, seed in enumerate(seeds):
            yield [
                {
                    "prompt": each.prompt,
                    "text": each.text,
                    "n_tokens": len(each.tokens),
                    "finish_reason": each.finish_reason,
                    "seed": seed,
                    "sample": each.sample,
                }
                for each in found[index * n : index * n + n]
            ]


def seed_of_row(seed: int, row: int) -> int:
    """Return the seed of a row: neither its part nor who does it matters to the text."""
    digest = hashlib.blake2b(f"{seed} {row}".encode(), digest_size=_SEED_BYTES).digest()
    return int.from_bytes(digest, "big")
