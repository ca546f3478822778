"""embed: vectors of the texts of a file or table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2kit.bulk.options import Reading, Running
from gpt2kit.cli import bulk, options, output, process
from gpt2kit.cli.criteria import ModelChoice, TextOptions, counted
from gpt2kit.cli.fields import takes
from gpt2kit.cli.files import Texts, check_not_input
from gpt2kit.cli.options import OUTPUT_GROUP
from gpt2kit.evaluation.vector_options import VectorOptions

if TYPE_CHECKING:
    from gpt2kit.bulk.work import Models
    from gpt2kit.data.tables import Format, Table


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command("embed")(embed)


Out = Annotated[
    Path,
    typer.Option(
        "--out",
        metavar="FILE",
        help=".npz: the vectors as one array; .jsonl (also .gz or .zst) or .parquet: the input "
        "with the column vector.",
        rich_help_panel=OUTPUT_GROUP,
    ),
]


@takes(
    without=("observer",),
    reading=TextOptions,
    choice=ModelChoice,
    wanted=VectorOptions,
    many=Reading,
    running=Running,
)
def embed(
    context: typer.Context,
    files: Texts,
    out: Out,
    *,
    reading: TextOptions,
    choice: ModelChoice,
    wanted: VectorOptions,
    many: Reading,
    running: Running,
) -> None:
    """Turn each text into a vector: the mean of the hidden states of its tokens.

    <|endoftext|> before a text is read and is in no vector. A text that has none, such as an empty
    one, has the reason in error, and NaN or null for its vector.

    With --out DIR, any number of files is read in parts, by as many processes and machines as give
    the same command; see docs/score-at-scale.md.
    """
    if bulk.is_folder(files, out):
        options.refuse(context, ("format", "encoding"), bulk.BY_NAME)
        process.import_torch()
        from gpt2kit.bulk.measures import Embed

        work = Embed(text=reading.text, options=wanted, batch_size=choice.batch_size)
        bulk.run(files, out, work, choice.loader, many, running, "cell")
        return
    bulk.refuse_without_folder(context)
    file = files[0]
    from gpt2kit.data.tables import format_of

    format = format_of(out)
    if out.suffix != ".npz" and format not in ("jsonl", "parquet"):
        raise typer.BadParameter(f"--out is {out}, expected a name in .npz, .jsonl or .parquet")
    check_not_input(out, file)
    process.import_torch()
    from gpt2kit.data.streams import write_batches
    from gpt2kit.evaluation.vectors import layer_of

    models = choice.loader()
    layer_of(wanted, models.model)
    tables = _with_vectors(file, reading, wanted, models, choice.batch_size, _column_type(format))
    if out.suffix == ".npz":
        rows = _write_arrays(tables, models.model.config.n_embd, out)
    else:
        rows = write_batches(out, tables, format=format)
    output.note(out, f": {output.count(rows, 'vector')} of {models.model.config.n_embd:,} numbers")


def _column_type(format: Format | None) -> Any:
    """Return the type of the column vector: for Parquet, Arrow's."""
    if format != "parquet":
        return list
    from gpt2kit.data.packed import require_pyarrow

    require_pyarrow()
    import pyarrow

    return pyarrow.list_(pyarrow.float32())


def _with_vectors(
    file: str,
    reading: TextOptions,
    wanted: VectorOptions,
    models: Models,
    batch_size: int,
    kind: Any,
) -> Iterator[Table]:
    """Yield the tables of the input with the columns vector, of this type, and error."""
    from gpt2kit.evaluation.criteria_tables import figures_of, with_columns
    from gpt2kit.evaluation.vectors import vector_cells

    def measure(texts: Sequence[str]) -> Iterator[dict[str, Any]]:
        return vector_cells(models.model, models.tokenizer, texts, wanted, batch_size=batch_size)

    for table in counted(reading.batches(file)):
        yield with_columns(table, figures_of(table, reading.text, measure), {"vector": kind})


def _write_arrays(tables: Iterator[Table], width: int, out: Path) -> int:
    """Write the arrays `vectors`, (rows, width) float32, and `error`; return the number of rows.

    The vectors wait in a file beside `out`, because a .npz begins with their number.
    """
    import numpy as np

    from gpt2kit.data.arrays import Growing
    from gpt2kit.files import new_file

    errors: list[str] = []
    with Growing((width,), out.parent) as vectors, new_file(out) as file:
        for table in tables:
            at, why = table.column("vector"), table.column("error")
            vectors.append([row[at] or [np.nan] * width for row in table.rows])
            errors += [row[why] or "" for row in table.rows]
        np.savez(file, vectors=vectors.array(), error=np.array(errors))
    return len(errors)
