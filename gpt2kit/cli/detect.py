"""detect: how machine-like texts are, by criteria that are calibrated on texts of both kinds."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from gpt2kit.cli.files import FORMATS_HELP, OptionalTexts, check_not_input, output_format
from gpt2kit.cli.options import OUTPUT_GROUP, Json
from gpt2kit.evaluation.criteria_options import CriteriaOptions

if TYPE_CHECKING:
    from gpt2kit.bulk.measures import Detect
    from gpt2kit.data.tables import Format, Table
    from gpt2kit.evaluation.calibration import Interval
    from gpt2kit.evaluation.detection import Detector

_GROUP = "Calibration"


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command("detect")(detect)


Calibrate = Annotated[
    tuple[str, str] | None,
    typer.Option(
        "--calibrate",
        metavar="HUMAN MACHINE",
        help="Measure how well each criterion tells the texts of two files apart, and write the "
        "calibration to --out.",
        show_default=False,
        rich_help_panel=_GROUP,
    ),
]
CalibrationFile = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        help="Add a verdict to each text by a calibration of the same model and options.",
        show_default=False,
        rich_help_panel=_GROUP,
    ),
]
By = Annotated[
    str,
    typer.Option(
        "--by",
        metavar="CRITERION",
        help="The criterion of the verdict. Choose it before you look at results.",
        rich_help_panel=_GROUP,
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed", min=0, help="Of the bootstrap samples for intervals.", rich_help_panel=_GROUP
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE",
        help=f"Write a table ({FORMATS_HELP}) and a receipt beside it, or with --calibrate the "
        "calibration, a .json file.",
        show_default=False,
        rich_help_panel=OUTPUT_GROUP,
    ),
]


@takes(
    reading=TextOptions,
    choice=ModelChoice,
    measured=CriteriaOptions,
    many=Reading,
    running=Running,
)
def detect(
    context: typer.Context,
    files: OptionalTexts = None,
    calibrate: Calibrate = None,
    calibration: CalibrationFile = None,
    by: By = "curvature",
    seed: Seed = 0,
    out: Out = None,
    json: Json = False,
    *,
    reading: TextOptions,
    choice: ModelChoice,
    measured: CriteriaOptions,
    many: Reading,
    running: Running,
) -> None:
    """Show figures by which text that a model wrote can differ from text that people wrote.

    Without --calibration there are figures and no verdict: thresholds differ from model to model
    and from one kind of text to another. A calibration is made from texts of both kinds.

    With --out DIR, any number of files is measured in parts, by as many processes and machines as
    give the same command; see docs/score-at-scale.md.
    """
    if calibrate is None and files and bulk.is_folder(files, out):
        options.refuse(context, ("format", "encoding"), bulk.BY_NAME)
        options.refuse(context, ("json", "seed"), "--out DIR writes rows of JSON")
        work = _work(reading, choice, measured, calibration, by)
        bulk.run(files, out, work, choice.loader, many, running, "cell")
        return
    bulk.refuse_without_folder(context)
    file = files[0] if files else None
    _check_mode(file, calibrate, calibration, out, json)
    check_not_input(out, file, calibration, *(calibrate or ()))
    if calibrate is not None:
        assert out is not None
        _calibrate(choice, reading, measured, calibrate, seed, out, json=json)
        return
    assert file is not None
    format = output_format(out) if out else _printed_format(file, reading, json=json)
    process.import_torch()
    from gpt2kit.data.streams import write_batches
    from gpt2kit.evaluation.detection import LIMITS, Detector

    detector = None if calibration is None else Detector.read(calibration)
    meter = Meter.load(choice, _with(measured, "tokens", by) if detector else measured)
    if detector is not None and calibration is not None:
        detector.check(meter.made_with, calibration)
        detector.calibration(by)
    tables = _detected(file, reading, meter, detector, by)
    if out is None:
        _print(tables, format)
    else:
        write_batches(out, tables, format=format)
        used = None if detector is None else {"file": str(calibration), "by": by}
        write_receipt(meter, file, out, calibration=used)
        output.note(out)
    meter.note()
    output.note(LIMITS if detector else "No verdict: it needs --calibration.")


def _work(
    reading: TextOptions,
    choice: ModelChoice,
    measured: CriteriaOptions,
    calibration: Path | None,
    by: str,
) -> Detect:
    """Return what is done with the texts of many files."""
    process.import_torch()
    from gpt2kit.bulk.measures import Detect
    from gpt2kit.evaluation.detection import Detector

    detector = None if calibration is None else Detector.read(calibration)
    return Detect(
        text=reading.text,
        observed=choice.observer is not None,
        options=_with(measured, "tokens", by) if detector else measured,
        detector=detector,
        by_criterion=by,
        batch_size=choice.batch_size,
    )


def _check_mode(
    file: str | None,
    calibrate: tuple[str, str] | None,
    calibration: Path | None,
    out: Path | None,
    json: bool,
) -> None:
    """Refuse options that do not go together."""
    if calibrate is None:
        if file is None:
            raise typer.BadParameter("give a FILE of texts, or --calibrate HUMAN MACHINE")
        if json and out is not None:
            raise typer.BadParameter("--json is for standard output; --out FILE.jsonl writes it")
    elif file is not None or calibration is not None:
        raise typer.BadParameter("--calibrate takes its two files alone, no FILE or --calibration")
    elif out is None or out.suffix != ".json":
        raise typer.BadParameter("--calibrate needs --out, a .json file such as calibration.json")


def _with(measured: CriteriaOptions, *names: str) -> CriteriaOptions:
    """Return options that have these criteria too."""
    if measured.criteria == "all":
        return measured
    return replace(measured, criteria=",".join((measured.criteria, *names)))


def _printed_format(file: str, reading: TextOptions, *, json: bool) -> Format:
    """Return the format on standard output: that of JSONL or TSV, JSONL if asked for, else CSV."""
    from gpt2kit.data.tables import format_of

    found = reading.format or format_of(Path(file))
    return "jsonl" if json or found == "jsonl" else "tsv" if found == "tsv" else "csv"


def _detected(
    file: str, reading: TextOptions, meter: Meter, detector: Detector | None, by: str
) -> Iterator[Table]:
    from gpt2kit.evaluation.criteria_tables import with_columns

    types: dict[str, type] = meter.types
    if detector:
        types |= {"human_share": float, "verdict": str}
    for table in counted(reading.batches(file)):
        figures = meter.figures_of(table, reading.text)
        if detector:
            figures = [{**each, **detector.verdict(each, by)} for each in figures]
        yield with_columns(table, figures, types)


def _print(tables: Iterator[Table], format: Format) -> None:
    from gpt2kit.data.tables import written

    for line in written(tables, format):
        if format == "jsonl":
            output.print_json(json_module.loads(line))
        else:
            output.result(line, end="")
    sys.stdout.flush()


# --- calibration ----------------------------------------------------------------------------------


def _calibrate(
    choice: ModelChoice,
    reading: TextOptions,
    measured: CriteriaOptions,
    files: tuple[str, str],
    seed: int,
    out: Path,
    *,
    json: bool,
) -> None:
    """Measure the texts of both kinds, write the calibration, and show it."""
    process.import_torch()
    from gpt2kit.evaluation.detection import LIMITS, Detector

    meter = Meter.load(choice, _with(measured, "tokens"))
    human, machine = (
        [
            each
            for table in counted(reading.batches(file))
            for each in meter.figures_of(table, reading.text)
        ]
        for file in files
    )
    made_with = {**meter.made_with, "human_file": files[0], "machine_file": files[1]}
    detector = Detector.calibrated(made_with, human, machine, seed=seed)
    detector.save(out)
    _show(detector, json=json)
    meter.note()
    for kind, counts in (("human", detector.human), ("machine", detector.machine)):
        left = f", {counts['left_out']:,} left out" if counts["left_out"] else ""
        output.note(f"{kind}: {output.count(counts['texts'], 'text')}{left}")
    for note, names in _notes(detector).items():
        output.warn(f"{', '.join(names)}: {note}")
    output.note(out)
    output.note(LIMITS)


def _notes(detector: Detector) -> dict[str, list[str]]:
    """Return what each calibration cannot say, and the criteria of which that is true."""
    found: dict[str, list[str]] = {}
    for name, each in detector.criteria.items():
        for note in each.notes:
            found.setdefault(note, []).append(name)
    return found


def _show(detector: Detector, *, json: bool) -> None:
    """Print a line for each criterion."""
    if json:
        for name, each in detector.criteria.items():
            figures: Mapping[str, Any] = {
                "criterion": name,
                "auroc": each.auroc,
                "auroc_interval": each.auroc_interval,
                "found": each.found,
                "found_interval": each.found_interval,
                "threshold": each.threshold,
                "threshold_interval": each.threshold_interval,
                "higher": each.higher,
                "false_positives_at_most": each.false_positives_at_most,
            }
            output.print_json(dict(figures))
        return
    rows: list[list[object]] = [["criterion", "AUROC", "found at 1%", "machine-like if"]]
    for name, each in detector.criteria.items():
        sign = ">" if each.higher else "<"
        rows.append(
            [
                name,
                f"{each.auroc:.3f} {_interval(each.auroc_interval, '.3f')}",
                f"{each.found:.3f} {_interval(each.found_interval, '.3f')}",
                f"{sign} {each.threshold:.4g} {_interval(each.threshold_interval, '.4g')}",
            ]
        )
    for line in output.table(rows):
        output.result(line)


def _interval(interval: Interval, how: str) -> str:
    low, high = ("?" if each is None else format(each, how) for each in interval)
    return f"[{low}, {high}]"
