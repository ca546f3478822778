"""Hidden states of the words of a table, as arrays: a vector for each word beside its surprisal.

U units (words, texts or targets), L layers, C width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gpt2kit.data.arrays import mapped
from gpt2kit.data.tables import Table
from gpt2kit.errors import TokenizerError
from gpt2kit.evaluation.vectors import word_vectors
from gpt2kit.evaluation.word_options import TableOptions, WordOptions, check_together
from gpt2kit.evaluation.word_tables import Plan, targets_plan, text_rows, texts_plan, words_plan
from gpt2kit.evaluation.words import Meter
from gpt2kit.inspection.hidden import Layer, Pool


def plan_of(table: Table, how: TableOptions, options: WordOptions) -> Plan:
    """Return which passages of a whole table are read, and the row that each unit belongs to."""
    check_together(how, options)
    errors = dict(table.errors)
    if how.words is not None:
        cells = table.texts(how.words, errors)
        texts = text_rows(table, how.by_columns, how.order, errors)
        return replace(words_plan(table, cells, texts, how.sep, options), errors=errors)
    if how.context is not None and how.target is not None:
        return targets_plan(table, how.context, how.target, how.sep, errors)
    return texts_plan(
        table, table.texts(how.text or "text", errors), how.unit, options, errors=errors
    )


def arrays(
    plan: Plan,
    meter: Meter,
    layers: Sequence[Layer],
    pool: Pool,
    *,
    batch_size: int,
    folder: Path | None = None,
    strict: bool = False,
) -> dict[str, Any]:
    """Return arrays with an entry for each unit, in the order of the rows, and the layers' names.

    `hidden` is (U, L, C) float32, NaN for a unit without a vector, and lies in a file without a
    name in `folder`; `row` is the row of the input, from 1; `flag` has the flags of `words.Word`. A
    passage that cannot be spelled has no units, or if `strict` raises TokenizerError.
    """
    measured = meter.measure(plan.passages)
    for each, rows in zip(measured, plan.owners, strict=True):
        if strict and each.error is not None:
            row = plan.table.first + rows[0]
            raise TokenizerError(f"{plan.table.path}: row {row:,}: {each.error}") from each.error
    good = [n for n, each in enumerate(measured) if each.error is None]
    vectors = word_vectors(
        meter.model,
        meter.tokenizer,
        [plan.passages[n] for n in good],
        layers,
        pool=pool,
        first=meter.options.first,
        stride=meter.options.stride,
        batch_size=batch_size,
    )
    owners = np.array([row for n in good for row in plan.owners[n]], dtype=np.int64)
    order = np.argsort(owners, kind="stable")
    every = [word for n in good for word in measured[n].words]
    words = [every[index] for index in order]
    hidden = mapped((len(words), len(layers), meter.model.config.n_embd), folder)
    ranks, done = np.argsort(order, kind="stable"), 0
    for own in vectors:  # (units, L, C)
        hidden[ranks[done : done + len(own)]] = own.numpy()
        done += len(own)
    return {
        "hidden": hidden,
        "layers": np.array([str(layer) for layer in layers]),
        "row": owners[order] + plan.table.first,
        "word": np.array([word.text for word in words]),
        "start": np.array([word.start for word in words], dtype=np.int64),
        "end": np.array([word.end for word in words], dtype=np.int64),
        "surprisal": _numbers(word.surprisal for word in words),
        "surprisal_corrected": _numbers(word.surprisal_corrected for word in words),
        "flag": np.array([" ".join(word.flags) for word in words]),
    }


def _numbers(values: Any) -> Any:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
