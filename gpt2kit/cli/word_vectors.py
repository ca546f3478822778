"""surprisal --hidden: the hidden states of words, as arrays in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gpt2kit.cli import output
from gpt2kit.cli.options import OUTPUT_GROUP
from gpt2kit.evaluation.word_options import TableOptions, WordOptions

if TYPE_CHECKING:
    from gpt2kit.data.tables import Table
    from gpt2kit.evaluation.words import Meter

Hidden = Annotated[
    str | None,
    typer.Option(
        "--hidden",
        metavar="LAYERS",
        help="Write the hidden states of the words instead, to a .npz file: 0 after the "
        "embeddings, l after block l, ln_f what the head reads; such as 0-12 or 6,ln_f.",
        show_default=False,
        rich_help_panel=OUTPUT_GROUP,
    ),
]
PoolOption = Annotated[
    Literal["mean", "last", "first"],
    typer.Option(
        "--pool",
        help="Of --hidden: the mean over a word's tokens, or its last or first token.",
        rich_help_panel=OUTPUT_GROUP,
    ),
]


def check(
    hidden: str | None, out: Path | None, models: Sequence[str], how: TableOptions, *, json: bool
) -> bool:
    """Return whether hidden states are wanted; raises a usage error for what they do not allow."""
    is_npz = out is not None and out.suffix == ".npz"
    if hidden is None:
        if is_npz:
            raise typer.BadParameter("a .npz file has hidden states: add --hidden LAYERS")
        return False
    if not is_npz or json:
        raise typer.BadParameter("--hidden needs --out, a .npz file, and no --json")
    if len(models) > 1:
        raise typer.BadParameter("--hidden takes one --model; give the command once for each")
    if how.unit == "token":
        raise typer.BadParameter("--hidden is for --unit word and --unit text")
    return True


def write(
    opened: AbstractContextManager[Callable[[], Iterator[Table]]],
    meter: Meter,
    hidden: str,
    pool: Literal["mean", "last", "first"],
    how: TableOptions,
    measured: WordOptions,
    out: Path,
) -> None:
    """Write the hidden states of the words of a table, which is in memory as a whole."""
    import numpy as np

    from gpt2kit.data.tables import ABSENT
    from gpt2kit.data.tables import Table as TableOf
    from gpt2kit.evaluation.scored_tables import stop
    from gpt2kit.evaluation.vector_tables import arrays, plan_of
    from gpt2kit.files import new_file
    from gpt2kit.inspection.hidden import parse_layers

    layers = parse_layers(hidden, meter.model.config.n_layer)
    names = how.columns
    rows: list[list[object]] = []
    errors: dict[int, str] = {}
    with opened as read:
        for number, table in enumerate(read()):
            if number == 0:
                for name in names:
                    table.column(name)
            errors |= {len(rows) + row: problem for row, problem in table.errors.items()}
            index = {name: at for at, name in enumerate(table.columns)}
            rows += [
                [row[index[name]] if name in index else ABSENT for name in names]
                for row in table.rows
            ]
            path = table.path
    whole = TableOf(names, rows, path, errors=errors)
    plan = plan_of(whole, how, measured)
    stop(whole, plan.errors, how)
    found = arrays(
        plan,
        meter,
        layers,
        pool,
        batch_size=meter.batch_size,
        folder=out.parent,
        strict=how.on_error == "stop",
    )
    with new_file(out) as file:
        np.savez(file, **found)
    shape = " x ".join(f"{n:,}" for n in found["hidden"].shape)
    if missing := len(rows) - len(set(found["row"].tolist())):
        without = output.count(missing, "row")
        output.warn(f"{without} without hidden states: no word there, or one that cannot be read")
    output.note(out, f": hidden states {shape} (words x layers x width)")
