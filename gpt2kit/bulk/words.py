"""surprisal by the pile: of each word, token or text, of targets, and of tables of words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from gpt2kit.bulk.sources import SourceRow
from gpt2kit.bulk.work import Cells, Gives, Models, Work
from gpt2kit.data.tables import ABSENT, Table
from gpt2kit.evaluation.surprisal import BATCH_SIZE
from gpt2kit.evaluation.vector_tables import plan_of
from gpt2kit.evaluation.word_options import TableOptions, WordOptions
from gpt2kit.evaluation.word_tables import Added, lines
from gpt2kit.evaluation.words import Meter

_MODEL = ""  # one model needs no name, since its columns carry none


@dataclass(frozen=True, kw_only=True)
class Surprisal(Work):
    """The surprisal of words, tokens or texts, of targets, or of the words of a table."""

    how: TableOptions = field(default_factory=TableOptions)
    options: WordOptions = field(default_factory=WordOptions)
    batch_size: int = BATCH_SIZE

    command: ClassVar[str] = "surprisal"

    @property
    def gives(self) -> Gives:
        """A row for each unit of a text, or one for a row that is a unit itself."""
        return "one" if self._keeps_rows and self.how.unit != "token" else "many"

    @property
    def by(self) -> tuple[str, ...]:
        """The columns that tell one text from another, if a row holds a word."""
        return self.how.by_columns

    @property
    def _keeps_rows(self) -> bool:
        return self.how.unit == "text" or bool(self.how.words or self.how.target)

    @cached_property
    def _added(self) -> Added:
        return Added.to(
            self.how.unit,
            self.options,
            [_MODEL],
            keeps_rows=self._keeps_rows,
            numbered=False,  # each row of the output has its number already
        )

    def needs(self) -> tuple[str, ...]:
        """Return the columns that are read: of texts, or of words and by what they belong to."""
        return self.how.columns

    def columns(self) -> tuple[str, ...]:
        """Return the names of the new columns."""
        return self._added.columns[:-1]  # the last is the error

    def problem(self, row: SourceRow) -> str | None:
        """Return why a row cannot be measured; the other words of its text need to know, too."""
        return None if self.by else super().problem(row)

    def measure(self, models: Models, rows: Sequence[SourceRow]) -> list[list[Cells]]:
        """Return the figures of each unit of each row."""
        names = self.needs()
        table = Table(
            names,
            [[row.cells.get(name, ABSENT) for name in names] for row in rows],
            Path("the input"),
            first=rows[0].number,
            errors={index: row.error for index, row in enumerate(rows) if row.error},
        )
        plan = plan_of(table, self.how, self.options)
        meter = Meter(models.model, models.tokenizer, self.options, batch_size=self.batch_size)
        added = self._added
        found: list[list[Cells]] = [[] for _ in rows]
        for index, cells in lines(plan, {_MODEL: meter.measure(plan.passages)}, added):
            found[index].append(dict(zip(added.columns, cells, strict=True)))
        # A text of punctuation alone may have no word that is wanted.
        return [each or [{"flag": "empty"}] for each in found]

    def tokens(self, found: Cells) -> int:
        """Return how many tokens a row out stands for."""
        return (
            int(found.get("token_id") is not None)
            if self.how.unit == "token"
            else (found.get("n_tokens") or 0)
        )
