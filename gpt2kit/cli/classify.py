"""classify: labels of the texts of a file or table, by a model that was tuned to give them."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2kit.cli import options, output, process
from gpt2kit.cli.criteria import TextOptions, counted
from gpt2kit.cli.fields import takes
from gpt2kit.cli.files import FORMATS_HELP, check_not_input, output_format
from gpt2kit.cli.options import OUTPUT_GROUP, TEXT_GROUP, BatchSize, Device, Dtype, Json

if TYPE_CHECKING:
    from gpt2kit.data.tables import Format, Table
    from gpt2kit.evaluation.classification import Classifier

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="The folder of a run with --label_field, or a classifier of the Hub."
    ),
]
File = Annotated[
    str,
    typer.Argument(
        metavar="FILE|-",
        help=f"A table: {FORMATS_HELP}; or .txt, with a text on each line. - is standard input.",
    ),
]
Label = Annotated[
    str | None,
    typer.Option(
        "--label",
        metavar="COLUMN",
        help="The column of the right labels: shows how many were found.",
        show_default=False,
        rich_help_panel=TEXT_GROUP,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE",
        help=f"Write the input with the new columns: {FORMATS_HELP}.",
        show_default=False,
        rich_help_panel=OUTPUT_GROUP,
    ),
]
_PREDICTED = "predicted"
_MOST_SHOWN = 20  # labels in the table of confusions


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command("classify")(classify)


@takes(reading=TextOptions)
def classify(
    model: Model,
    file: File,
    label: Label = None,
    out: Out = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    batch_size: BatchSize = 8,
    json: Json = False,
    *,
    reading: TextOptions,
) -> None:
    """Give each text a label, and show how likely the model takes each label to be.

    The new columns are predicted, the likeliest label, and p_LABEL, the probability of each. The
    probabilities are those of the model: nothing calibrates them, and after tuning on few examples
    they are often too sure. Without --out, stdout has a CSV table, or JSON lines with --json.
    """
    format: Format = output_format(out) if out is not None else "jsonl" if json else "csv"
    if out is not None and json:
        raise typer.BadParameter("--json and --out are both given; --out FILE.jsonl writes JSON")
    check_not_input(out, file)
    process.import_torch()
    from gpt2kit.data.streams import write_batches
    from gpt2kit.data.tables import written
    from gpt2kit.evaluation.classification import Classifier

    classifier = Classifier.load(model, options.locate, device=device, dtype=dtype)
    tally = _Tally(label)
    tables = tally.noted(_with_labels(reading, file, classifier, batch_size))
    if out is not None:
        rows = write_batches(out, tables, format=format)
        output.note(out, f": {output.count(rows, 'row')}")
    else:
        for line in written(tables, format):
            if json:
                output.print_json(json_module.loads(line))
            else:
                output.result(line.removesuffix("\n"))
    if tally.right:
        from gpt2kit.evaluation.classification import judge

        found = judge(tally.right, tally.given, tally.labels(classifier))
        for shown in judgement_lines(found.as_record()):
            output.note(shown)


class _Tally:
    """The right labels and the given ones, as the rows of tables pass."""

    def __init__(self, column: str | None) -> None:
        self._column = column
        self.right: list[str] = []
        self.given: list[str] = []

    def noted(self, tables: Iterator[Table]) -> Iterator[Table]:
        """Pass tables on; rows without a right or a given label do not count."""
        for table in tables:
            if self._column is not None:
                given = table.column(_PREDICTED)
                for row, right in zip(table.rows, table.texts(self._column, {}), strict=True):
                    if right and row[given] is not None:
                        self.right.append(right)
                        self.given.append(row[given])
            yield table

    def labels(self, classifier: Classifier) -> Sequence[str]:
        """Return the labels of the model, and the right ones that it does not have."""
        return [*dict.fromkeys([*classifier.labels, *sorted({*self.right})])]


def _with_labels(
    reading: TextOptions, file: str, classifier: Classifier, batch_size: int
) -> Iterator[Table]:
    """Yield the tables of the input with the new columns."""
    from gpt2kit.errors import TokenizerError
    from gpt2kit.evaluation.classification import likeliest
    from gpt2kit.evaluation.criteria_tables import figures_of, with_columns

    labels = classifier.labels
    columns = [f"p_{label}" for label in labels]

    def measure(texts: Sequence[str]) -> Iterator[dict[str, Any]]:
        errors = dict[int, str]()
        for index, text in enumerate(texts):
            try:
                classifier.tokenizer.encode(text)
            except TokenizerError as error:
                errors[index] = str(error)
        known = [text for index, text in enumerate(texts) if index not in errors]
        found = classifier.probabilities(known, batch_size=batch_size)
        for index in range(len(texts)):
            if index in errors:
                yield {"error": errors[index]}
                continue
            each = next(found)
            shares = dict(zip(columns, each, strict=True))
            yield {_PREDICTED: likeliest(labels, each), **shares, "error": None}

    types = {_PREDICTED: str, **dict.fromkeys(columns, float)}
    for table in counted(reading.batches(file)):
        yield with_columns(table, figures_of(table, reading.text, measure), types)


def judgement_lines(judgement: Mapping[str, Any]) -> list[str]:
    """Return what the record of a `Judgement` says, with the table of confusions."""
    spread = judgement["accuracy_standard_error"]
    margin = "" if spread is None else f" ± {spread:.1%}"
    texts = output.count(judgement["items"], "text")
    lines = [
        f"accuracy {judgement['accuracy']:.1%}{margin} of {texts}; "
        f"always {judgement['most_frequent']!r} would be right for {judgement['baseline']:.1%}",
    ]
    confusion = judgement["confusion"]
    labels = [*confusion]
    if len(labels) > _MOST_SHOWN:
        return lines
    rows = [("right \\ given", *labels)]
    rows += [(one, *(f"{confusion[one][other]:,}" for other in labels)) for one in labels]
    return [*lines, *output.table(rows, right=range(1, len(labels) + 1))]
