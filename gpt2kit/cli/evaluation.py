"""evaluate and score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gpt2kit.cli import options
from gpt2kit.cli.options import (
    Corpus,
    Device,
    Dtype,
    Encoding,
    Json,
    Model,
    Quantize,
    Special,
    Stride,
    TextField,
    Unknown,
    WindowsAtOnce,
)

if TYPE_CHECKING:
    from gpt2kit.evaluation.perplexity import Line


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    app.command("evaluate")(evaluate)
    app.command("score")(score)


def evaluate(
    context: typer.Context,
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL", help=f"One or several. {options.MODEL_HELP}")
    ],
    corpus: Corpus = None,
    task: Annotated[
        tuple[str, Path] | None,
        typer.Option(
            "--task",
            metavar="NAME FILE",
            help="lambada or hellaswag, and its .jsonl file.",
            show_default=False,
        ),
    ] = None,
    stride: Stride = None,
    batch_size: WindowsAtOnce = 8,
    unknown: Unknown = "error",
    encoding: Encoding = "utf-8",
    text_field: TextField = "text",
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    json: Json = False,
) -> None:
    """Measure how well models predict a text (--corpus) or answer questions (--task), side by side.

    Every token of the text but the first is scored once; the <|endoftext|> between two documents is a token too. Perplexities compare
    only models with the same vocabulary; bits per byte compare all.
    """
    if (corpus is None) == (task is None):
        raise typer.BadParameter(
            "give a text with --corpus FILE, or a task with --task lambada FILE or --task hellaswag FILE"
        )
    if task is not None and task[0] not in ("lambada", "hellaswag"):
        raise typer.BadParameter(f"--task is {task[0]!r}, expected lambada or hellaswag")
    if task is not None:
        options.refuse(context, ("stride", "encoding", "text_field"), "they are for --corpus")
    from gpt2kit.cli.progress import counting
    from gpt2kit.evaluation import tasks
    from gpt2kit.evaluation.perplexity import evaluate as measure
    from gpt2kit.tokenizers import identity

    text = None if corpus is None else options.read_corpus(corpus, encoding, text_field)
    for name in models[1:]:
        options.locate(
            name
        )  # so that a mistyped one is found out before the first has been measured
    found, vocabularies = [], set()
    for name in models:
        model, tokenizer = options.load(name, device, dtype, quantize)
        options.set_unknown(tokenizer, unknown)
        with counting(name) as progress:
            if text is not None:
                result: Any = measure(
                    model, tokenizer, text, stride=stride, batch_size=batch_size, progress=progress
                )
            else:
                assert task is not None
                ask: Any = {"lambada": tasks.lambada, "hellaswag": tasks.hellaswag}[task[0]]
                result = ask(model, tokenizer, task[1], batch_size=batch_size, progress=progress)
        found.append({"model": name, **asdict(result)})
        if json:
            options.print_json(found[-1])
        if tokenizer is not None:
            vocabularies.add(identity(tokenizer))
    if not json:
        _print_columns(found)
    if text is not None and len(vocabularies) > 1:
        typer.secho(
            "these models cut a text into different tokens: bits per byte compare, losses and perplexities do not",
            err=True,
        )


def _print_columns(found: Sequence[dict[str, Any]]) -> None:
    """Print a line for each figure, with a column for each model; a standard error stands behind what it is of."""
    names = [Path(row["model"]).name for row in found]
    if len(set(names)) < len(names):
        names = [row["model"] for row in found]
    lines = [["", *names]]
    for key in [key for key in found[0] if key != "model" and not key.endswith("standard_error")]:
        error = "standard_error" if key == "loss" else f"{key}_standard_error"
        lines.append([key.replace("_", " "), *(_cell(row[key], row.get(error)) for row in found)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for label, *cells in lines:
        typer.echo(
            "  ".join(
                [
                    label.ljust(widths[0]),
                    *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)),
                ]
            )
        )


def _cell(value: float | None, error: float | None) -> str:
    if value is None:
        return "-"
    shown = (
        f"{value:,}"
        if isinstance(value, int)
        else f"{value:,.4f}"
        if value < 1e7
        else f"{value:.4g}"
    )
    return shown if error is None else f"{shown} ± {_cell(error, None)}"


# --- score -----------------------------------------------------------------------------------------------------------


def score(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE|-", help="A text with one sentence on each line; - is standard input."
        ),
    ],
    model: Model = "124M",
    sort: Annotated[
        Literal["total", "per_token"] | None,
        typer.Option(
            "--sort",
            help="The likeliest lines first: as a whole, or by the mean over their tokens.",
            show_default=False,
        ),
    ] = None,
    overflow: Annotated[
        Literal["slide", "stop", "error"],
        typer.Option(
            "--overflow",
            help="Lines longer than the model's window: read in windows that overlap, or only begin, or refuse.",
        ),
    ] = "slide",
    batch_size: WindowsAtOnce = 8,
    special: Special = False,
    unknown: Unknown = "error",
    encoding: Encoding = "utf-8",
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    json: Json = False,
) -> None:
    """Show how likely each line of a text is: its log-probability in nats, as a whole and per token, and its tokens.

    Every line is a text of its own that begins after <|endoftext|>; where a vocabulary has no such marker, its first token is not scored.
    Blank lines are left out, and counted in the numbers of lines.
    """
    from gpt2kit.data.texts import read_file
    from gpt2kit.errors import CorpusError
    from gpt2kit.evaluation.perplexity import score as score_lines

    text = options.read_stdin(encoding) if file == "-" else read_file(Path(file), encoding=encoding)
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    if not any(map(str.strip, lines)):
        raise CorpusError(
            f"{'standard input' if file == '-' else file}: no lines; expected a sentence on each"
        )
    gpt2, tokenizer = options.load(model, device, dtype, quantize)
    options.set_unknown(tokenizer, unknown)
    found = score_lines(
        gpt2, tokenizer, lines, overflow=overflow, special=special, batch_size=batch_size
    )
    if sort is not None:
        found = iter(sorted(found, key=_by_total if sort == "total" else _by_mean))
    if not json:
        typer.secho(f"{'line':>6}{'nats':>12}{'per token':>11}{'tokens':>8}", err=True, dim=True)
    for line in found:
        if json:
            options.print_json(asdict(line))
        else:
            mean = "-" if line.logprob_per_token is None else f"{line.logprob_per_token:.3f}"
            typer.echo(
                f"{line.line:>6}{line.logprob:>12.3f}{mean:>11}{line.tokens:>8}  {line.text}"
            )


def _by_total(line: Line) -> float:
    return (
        -line.logprob if line.tokens else float("inf")
    )  # a line of which nothing was scored is not the likeliest, but the last


def _by_mean(line: Line) -> float:
    return float("inf") if line.logprob_per_token is None else -line.logprob_per_token
