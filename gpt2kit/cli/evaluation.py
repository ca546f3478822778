"""evaluate and score: how well models predict a text or answer questions; how likely lines are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gpt2kit.bulk.options import Reading, Running
from gpt2kit.cli import bulk, files, options, output, process, suites
from gpt2kit.cli.fields import takes
from gpt2kit.cli.options import (
    OUTPUT_GROUP,
    TEXT_GROUP,
    BatchSize,
    Corpus,
    CorpusOptions,
    Device,
    Dtype,
    Encoding,
    Json,
    Model,
    NoCache,
    Quantize,
    Special,
    Unknown,
)
from gpt2kit.errors import ConfigError

if TYPE_CHECKING:
    from gpt2kit.data.texts import Text
    from gpt2kit.evaluation.perplexity import Line

_TASKS = ("lambada", "hellaswag", *suites.TASKS)


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    app.command("evaluate")(evaluate)
    app.command("score")(score)


Models = Annotated[
    list[str], typer.Argument(metavar="MODEL", help=f"One or several. {options.MODEL_HELP}")
]
Task = Annotated[
    tuple[str, Path] | None,
    typer.Option(
        "--task",
        metavar="NAME FILE|DIR",
        help="lambada or hellaswag, and its .jsonl file; blimp or syntaxgym, and the folder of its "
        "files; or pairs, and a .csv, .tsv or .jsonl file with the columns good and bad.",
        show_default=False,
        rich_help_panel=TEXT_GROUP,
    ),
]

ScoredAs = Annotated[
    Literal["paper", "harness"],
    typer.Option(
        "--as",
        help="How the sentences of blimp and pairs are read: paper puts <|endoftext|> before them, "
        "as BLiMP's authors do; harness puts <|endoftext|> and a space, as lm-evaluation-harness "
        "does.",
        rich_help_panel=TEXT_GROUP,
    ),
]
Out = Annotated[Path | None, files.out_option("a row for each item of blimp, pairs or syntaxgym")]


@takes(how=CorpusOptions)
def evaluate(
    context: typer.Context,
    models: Models,
    corpus: Corpus = None,
    task: Task = None,
    as_: ScoredAs = "paper",
    out: Out = None,
    quantize: Quantize = None,
    no_cache: NoCache = False,
    json: Json = False,
    *,
    how: CorpusOptions,
) -> None:
    """Measure how well models predict a text (--corpus) or answer questions (--task), side by side.

    Every token of the text but the first is scored once, including the <|endoftext|> between two
    documents. Perplexities are comparable only between models with the same vocabulary; bits per
    byte are comparable between all models.
    """
    _check_source(context, corpus, task)
    files.check_written(out)
    files.check_not_input(out, None if task is None else task[1])
    process.import_torch()
    from gpt2kit.cli.progress import counting
    from gpt2kit.tokenizers import identity

    text = None if corpus is None else options.read_corpus(corpus, how)
    for name in models[1:]:
        options.locate(name)  # finds a mistyped name before the first model is measured
    found, rows, vocabularies = [], [], set()
    if task is not None and task[0] in suites.TASKS:
        measure = suites.read(*task, as_)
    else:
        measure = _figures(text, task, how.stride)
    for name in models:
        model, tokenizer = options.load(
            name, how.device, how.dtype, quantize, write_cache=not no_cache
        )
        options.set_unknown(tokenizer, how.unknown)
        with counting(name) as progress:
            measured = measure(model, tokenizer, batch_size=how.batch_size, progress=progress)
        found.append({"model": name, **measured.figures})
        rows += [{"model": name, **row} for row in measured.rows]
        suites.warn_of_errors(name, measured.rows)
        if json:
            output.print_json(found[-1])
        if tokenizer is not None:
            vocabularies.add(identity(tokenizer))
    if out is not None:
        files.write_rows(out, rows)
    if not json:
        _print_columns(found)
    if text is not None and len(vocabularies) > 1:
        output.note(
            "these models split a text into different tokens: "
            "compare their bits per byte, not their losses and perplexities"
        )


def _check_source(
    context: typer.Context, corpus: str | None, task: tuple[str, Path] | None
) -> None:
    """Refuse anything but one text or one known task."""
    if (corpus is None) == (task is None):
        raise typer.BadParameter(
            "give a text with --corpus FILE, or a task with --task lambada FILE, "
            "--task blimp DIR or another"
        )
    if task is not None:
        if task[0] not in _TASKS:
            raise typer.BadParameter(f"--task is {task[0]!r}, expected one of {', '.join(_TASKS)}")
        options.refuse(context, ("stride", "encoding", "text_field"), "they are for --corpus")
    if task is None or task[0] not in suites.TASKS:
        options.refuse(context, ("out",), "it is for blimp, pairs and syntaxgym")
    if task is None or task[0] not in ("blimp", "pairs"):
        options.refuse(context, ("as_",), "it is for blimp and pairs")


def _figures(
    text: Text | Path | None, task: tuple[str, Path] | None, stride: int | None
) -> suites.Measure:
    """Return what measures a model on a text, or on a task whose result is a few figures."""
    from gpt2kit.evaluation import perplexity, tasks

    def measure(model: Any, tokenizer: Any, **how: Any) -> suites.Measured:
        found: Any
        if task is not None:
            run = {"lambada": tasks.lambada, "hellaswag": tasks.hellaswag}[task[0]]
            found = run(model, tokenizer, task[1], **how)
        else:
            assert text is not None
            found = perplexity.evaluate(model, tokenizer, text, stride=stride, **how)
        return suites.Measured(asdict(found), [])

    return measure


def _print_columns(found: Sequence[dict[str, Any]]) -> None:
    """Print a line for each figure, with its standard error, and a column for each model."""
    names = [Path(row["model"]).name for row in found]
    if len(set(names)) < len(names):
        names = [row["model"] for row in found]
    if "groups" in found[0]:
        suites.print_table(found, names)
        return
    lines = [["", *names]]
    for key in [key for key in found[0] if key != "model" and not key.endswith("standard_error")]:
        error = "standard_error" if key == "loss" else f"{key}_standard_error"
        lines.append([key.replace("_", " "), *(_cell(row[key], row.get(error)) for row in found)])
    output.result("\n".join(output.table(lines, right=range(1, len(names) + 1))))


def _cell(value: float | None, error: float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        shown = f"{value:,}"
    else:
        shown = f"{value:,.4f}" if value < 1e7 else f"{value:.4g}"
    return shown if error is None else f"{shown} ± {_cell(error, None)}"


# --- score ---------------------------------------------------------------------------------------

Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE|-",
        help="A text with one sentence on each line; - is standard input. With --out DIR also "
        "tables (.jsonl, .csv, .tsv, .parquet), several files, folders and globs.",
    ),
]
TextColumn = Annotated[
    str,
    typer.Option(
        "--text",
        "--text_field",
        metavar="COLUMN",
        help="With --out: the key or column of the text.",
        rich_help_panel=TEXT_GROUP,
    ),
]
Sort = Annotated[
    Literal["total", "per_token"] | None,
    typer.Option(
        "--sort",
        help="Print the most likely lines first: by their total, or by the mean of their tokens.",
        show_default=False,
        rich_help_panel=OUTPUT_GROUP,
    ),
]
Overflow = Annotated[
    Literal["slide", "stop", "error"],
    typer.Option(
        "--overflow",
        help="If a line is longer than the model's window: slide scores it in windows that "
        "overlap by half, stop scores what fits, error refuses it.",
        rich_help_panel=TEXT_GROUP,
    ),
]


@takes(reading=Reading, running=Running)
def score(
    context: typer.Context,
    files: Files,
    model: Model = "124M",
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    no_cache: NoCache = False,
    special: Special = False,
    unknown: Unknown = "error",
    encoding: Encoding = "utf-8",
    overflow: Overflow = "slide",
    batch_size: BatchSize = 8,
    sort: Sort = None,
    json: Json = False,
    out: bulk.OutFolder = None,
    text: TextColumn = "text",
    on_error: bulk.OnError = "cell",
    *,
    reading: Reading,
    running: Running,
) -> None:
    """Show how likely each line of a text is: its log-probability in nats, in total and per token.

    Every line is scored as a text of its own, after <|endoftext|>. With a vocabulary that has no
    such marker, the first token of a line is not scored. Blank lines are skipped, but count in the
    line numbers.

    With --out DIR, any number of files is scored in parts, by as many processes and machines as
    give the same command; see docs/score-at-scale.md.
    """
    if out is not None:
        options.refuse(context, ("sort", "json", "encoding"), "--out DIR writes all rows as JSONL")
        from gpt2kit.bulk.measures import Score

        work = Score(
            text_field=text,
            overflow=overflow,
            special=special,
            unknown=unknown,
            batch_size=batch_size,
        )
        load = bulk.Loader(model, device, dtype, quantize, not no_cache, unknown)
        bulk.run(files, out, work, load, reading, running, on_error)
        return
    bulk.refuse_without_folder(context)
    options.refuse(context, ("text", "on_error"), "it is for many files, and needs --out DIR")
    bulk.is_folder(files, None)
    file = files[0]
    _check_plain(file)
    process.import_torch()
    from gpt2kit.data.texts import read_file
    from gpt2kit.errors import CorpusError
    from gpt2kit.evaluation.perplexity import score as score_lines

    read = options.read_stdin(encoding) if file == "-" else read_file(Path(file), encoding=encoding)
    lines = [line.removesuffix("\r") for line in read.split("\n")]
    if not any(map(str.strip, lines)):
        name = "standard input" if file == "-" else file
        raise CorpusError(f"{name}: no text, expected a sentence on each line")
    gpt2, tokenizer = options.load(model, device, dtype, quantize, write_cache=not no_cache)
    options.set_unknown(tokenizer, unknown)
    found: Iterable[Line] = score_lines(
        gpt2, tokenizer, lines, overflow=overflow, special=special, batch_size=batch_size
    )
    if sort is not None:
        found = sorted(found, key=_by_total if sort == "total" else _by_mean)
    if json:
        for line in found:
            output.print_json(asdict(line))
    else:
        _print_scores(iter(found))


def _check_plain(file: str) -> None:
    """Refuse a table, whose rows would be scored as they stand: keys, commas and quotes too."""
    from gpt2kit.data.tables import format_of

    if (found := format_of(Path(file))) not in (None, "txt"):
        raise ConfigError(
            f"{file} is a table ({found}), expected a text with one sentence on each line. To "
            "score a column of it, add --out DIR and --text COLUMN; gpt2kit filter and surprisal "
            "read tables, too"
        )


def _print_scores(lines: Iterator[Line]) -> None:
    output.note(f"{'line':>6}{'nats':>12}{'per token':>11}{'tokens':>8}", dim=True)
    for line in lines:
        mean = "-" if line.logprob_per_token is None else f"{line.logprob_per_token:.3f}"
        output.result(f"{line.line:>6}{line.logprob:>12.3f}{mean:>11}{line.tokens:>8}  {line.text}")


def _by_total(line: Line) -> float:
    """Sort by total log-probability, with lines without any scored token last."""
    return -line.logprob if line.tokens else float("inf")


def _by_mean(line: Line) -> float:
    return float("inf") if line.logprob_per_token is None else -line.logprob_per_token
