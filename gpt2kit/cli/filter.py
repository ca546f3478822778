"""filter: texts of a file or table with their perplexity and other criteria, or some of them."""

from __future__ import annotations

import json
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from gpt2kit.bulk.options import Reading, Running
from gpt2kit.cli import bulk, options, output, process
from gpt2kit.cli.criteria import (
    Meter,
    ModelChoice,
    TextOptions,
    counted,
    write_receipt,
)
from gpt2kit.cli.fields import takes
from gpt2kit.cli.files import FORMATS_HELP, Texts, check_not_input, output_format
from gpt2kit.cli.options import OUTPUT_GROUP
from gpt2kit.errors import CorpusError
from gpt2kit.evaluation.conditions import (
    BUCKET,
    Conditions,
    bucket,
    parse_percentiles,
    percentiles,
)
from gpt2kit.evaluation.criteria_options import CriteriaOptions
from gpt2kit.fields import check, option, same_option

if TYPE_CHECKING:
    from gpt2kit.data.tables import Table


@dataclass(frozen=True, kw_only=True)
class FilterCriteria(CriteriaOptions):
    """The criteria of filter: by default those of one reading."""

    criteria: str = same_option(CriteriaOptions, "criteria", "nll,tokens,perplexity,bits_per_byte")


@dataclass(frozen=True, kw_only=True)
class KeepOptions:
    """Which rows are written."""

    keep: str | None = option(
        None,
        "Write only rows that fulfill conditions on columns, joined by and: 'perplexity < 60 and "
        "tokens >= 20'. Rows with an error fulfill none on a criterion.",
        group=OUTPUT_GROUP,
        metavar="CONDITIONS",
    )
    percentiles: str | None = option(
        None,
        "Add the column bucket: head up to the first percentile of the perplexities, middle up to "
        "the second, then tail. The file is read twice.",
        group=OUTPUT_GROUP,
        metavar="30,60",
    )

    def __post_init__(self) -> None:
        check(self)

    @property
    def conditions(self) -> Conditions | None:
        """The parsed conditions, if any."""
        return None if self.keep is None else Conditions.parse(self.keep)


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command("filter")(filter_texts)


Out = Annotated[
    Path,
    typer.Option(
        "--out",
        metavar="FILE",
        help=f"What is written, whole or not at all: {FORMATS_HELP}. A receipt comes beside it.",
        rich_help_panel=OUTPUT_GROUP,
    ),
]


@takes(
    reading=TextOptions,
    choice=ModelChoice,
    measured=FilterCriteria,
    keeping=KeepOptions,
    many=Reading,
    running=Running,
)
def filter_texts(
    context: typer.Context,
    files: Texts,
    out: Out,
    *,
    reading: TextOptions,
    choice: ModelChoice,
    measured: FilterCriteria,
    keeping: KeepOptions,
    many: Reading,
    running: Running,
) -> None:
    """Add perplexity and other criteria to the texts of a file, and keep those that you want.

    All columns, rows and their order stay, and the criteria come as new columns. With --keep only
    some rows are written. A row that cannot be measured has the reason in the column error, and
    stops no other.

    With --out DIR, any number of files is measured in parts, by as many processes and machines as
    give the same command; see docs/score-at-scale.md.
    """
    observed = choice.observer is not None
    wanted = parse_percentiles(keeping.percentiles) if keeping.percentiles else None
    if wanted and "perplexity" not in measured.names(observed=observed):
        raise typer.BadParameter("--percentiles are those of perplexity; add it to --criteria")
    if bulk.is_folder(files, out):
        options.refuse(context, ("format", "encoding"), bulk.BY_NAME)
        process.import_torch()
        from gpt2kit.bulk.measures import Filter

        work = Filter(
            text=reading.text,
            keep=keeping.keep,
            percentiles=keeping.percentiles,
            observed=observed,
            options=measured,
            batch_size=choice.batch_size,
        )
        bulk.run(files, out, work, choice.loader, many, running, "cell")
        return
    bulk.refuse_without_folder(context)
    file = files[0]
    format = output_format(out)
    check_not_input(out, file)
    conditions = keeping.conditions
    if wanted and file == "-":
        raise typer.BadParameter("--percentiles reads the input twice; give a file in place of -")
    process.import_torch()
    from gpt2kit.data.streams import write_batches

    meter = Meter.load(choice, measured)
    counts = _Counts()
    with tempfile.TemporaryFile("w+") as spool:
        tables = (
            _in_two_passes(file, reading, meter, wanted, spool, counts)
            if wanted
            else _in_one_pass(file, reading, meter)
        )
        write_batches(out, counts.kept_of(tables, conditions), format=format)
    meter.note()
    write_receipt(meter, file, out, keep=keeping.keep, percentiles=counts.cuts, **counts.rows)
    _say(out, counts)


@dataclass
class _Counts:
    """How many rows there were, and which perplexities divide them."""

    rows: dict[str, int] = field(default_factory=lambda: {"rows": 0, "kept": 0, "errors": 0})
    cuts: dict[str, float] | None = None

    def kept_of(self, tables: Iterator[Table], conditions: Conditions | None) -> Iterator[Table]:
        """Yield tables with the rows that fulfill conditions, and count."""
        from gpt2kit.evaluation.criteria_tables import ERROR, as_mapping

        first = True
        for table in tables:
            if conditions and first:
                conditions.check(table.columns)
            first = False
            error = table.column(ERROR)
            rows = [
                row
                for row in table.rows
                if conditions is None or conditions.holds(as_mapping(table, row))
            ]
            self.rows["rows"] += len(table.rows)
            self.rows["kept"] += len(rows)
            self.rows["errors"] += sum(bool(row[error]) for row in table.rows)
            yield replace(table, rows=rows)


def _in_one_pass(file: str, reading: TextOptions, meter: Meter) -> Iterator[Table]:
    from gpt2kit.evaluation.criteria_tables import with_columns

    for table in counted(reading.batches(file)):
        yield with_columns(table, meter.figures_of(table, reading.text), meter.types)


def _in_two_passes(
    file: str,
    reading: TextOptions,
    meter: Meter,
    wanted: tuple[float, float],
    spool: IO[str],
    counts: _Counts,
) -> Iterator[Table]:
    """Measure everything first, figures going to a temporary file, then divide by percentiles."""
    from gpt2kit.evaluation.criteria_tables import with_columns

    values = array("d")
    for table in counted(reading.batches(file)):
        figures = meter.figures_of(table, reading.text)
        values.extend(each["perplexity"] for each in figures if each.get("perplexity") is not None)
        spool.write(json.dumps(figures) + "\n")
    cuts = percentiles(values, wanted)
    counts.cuts = dict(zip((f"{each:g}" for each in wanted), cuts, strict=True))
    spool.seek(0)
    for table, line in zip(reading.batches(file), spool, strict=True):
        found: list[dict[str, Any]] = json.loads(line)
        if len(found) != len(table.rows):
            raise CorpusError(f"{file} changed while it was read; give the command again")
        for each in found:
            each[BUCKET] = bucket(each.get("perplexity"), cuts)
        yield with_columns(table, found, {**meter.types, BUCKET: str})


def _say(out: Path, counts: _Counts) -> None:
    rows, kept, errors = (counts.rows[name] for name in ("rows", "kept", "errors"))
    text = f": {kept:,} of {output.count(rows, 'row')}"
    output.note(out, text, f", {errors:,} with an error" if errors else "")
    if counts.cuts:
        output.note(bulk.shown_cuts(counts.cuts.values()))
