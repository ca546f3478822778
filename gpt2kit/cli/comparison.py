"""diff and blend."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpt2kit.cli import options
from gpt2kit.cli.options import (
    Corpus,
    Device,
    Dtype,
    Encoding,
    Force,
    Json,
    Stride,
    TextField,
    Unknown,
    WindowsAtOnce,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpt2kit.checkpoints.load import Checkpoint
    from gpt2kit.data.corpus import Ids
    from gpt2kit.evaluation.compare import PartDifference, TextDifference
    from gpt2kit.evaluation.perplexity import Evaluation
    from gpt2kit.tokenizers import Tokenizer


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    app.command("diff")(diff)
    app.command("blend")(blend)


First = Annotated[str, typer.Argument(metavar="A", help=f"A model. {options.MODEL_HELP}")]
Second = Annotated[
    str, typer.Argument(metavar="B", help="Another one of the same shape and vocabulary.")
]

_OF_A_TEXT = ("stride", "batch_size", "unknown", "encoding", "text_field", "device", "dtype")
_NO_TEXT = "there is no text; give one with --corpus"


def diff(
    context: typer.Context,
    a: First,
    b: Second,
    corpus: Corpus = None,
    top: Annotated[
        int,
        typer.Option(
            "--top",
            min=0,
            help="Tokens of the text to show that got better, and as many that got worse.",
        ),
    ] = 10,
    stride: Stride = None,
    batch_size: WindowsAtOnce = 8,
    unknown: Unknown = "error",
    encoding: Encoding = "utf-8",
    text_field: TextField = "text",
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Show how far two models are apart: the norm of B - A over that of A, for every part of every layer.

    With --corpus also what that does to a text: the loss of both, and the tokens that B predicts better than A, or worse.
    """
    from gpt2kit.cli.progress import counting
    from gpt2kit.evaluation import compare
    from gpt2kit.evaluation.perplexity import default_stride, present, token_surprisals

    if corpus is None:
        options.refuse(context, (*_OF_A_TEXT, "top"), _NO_TEXT)
    first, second = _open(a), _open(b)
    tokenizer = compare.check_alike(first, second)
    ids = (
        None if corpus is None else _ids(corpus, encoding, text_field, present(tokenizer), unknown)
    )
    parts = compare.weight_differences(first, second)
    if json:
        for part in parts:
            options.print_json(asdict(part))
    else:
        _print_parts(parts, first.config.n_layer)
    if ids is None or tokenizer is None:
        return
    stride = default_stride(first.config.n_ctx) if stride is None else stride
    nats = []
    for name in (a, b):  # one model in memory at a time
        with counting(name) as progress:
            model = options.load(name, device, dtype)[0]
            nats.append(
                token_surprisals(
                    model, ids, stride=stride, batch_size=batch_size, progress=progress
                )
            )
        del model
    change = compare.text_difference(nats[0], nats[1], ids, tokenizer, top=top)
    if json:
        options.print_json(asdict(change))
    else:
        _print_change(change)


def _open(name: str) -> Checkpoint:
    from gpt2kit.checkpoints.load import open_checkpoint

    return open_checkpoint(options.locate(name))


def _ids(
    corpus: str, encoding: str, text_field: str, tokenizer: Tokenizer, unknown: Unknown
) -> Ids:
    from gpt2kit.evaluation.perplexity import text_ids

    options.set_unknown(tokenizer, unknown)
    return text_ids(options.read_corpus(corpus, encoding, text_field), tokenizer)


def _print_parts(parts: Sequence[PartDifference], n_layer: int) -> None:
    """Print the relative difference of what is in layers as a table, a row for each layer, and a line for each other part."""
    found = {(part.layer, part.part): part for part in parts}
    columns = list(dict.fromkeys(part.part for part in parts if part.layer is not None))
    for part in parts:
        if part.layer is None:
            typer.echo(f"{part.part:<20}{_percent(part.relative):>12}")
    if columns:
        typer.echo("\n" + f"{'layer':<20}" + "".join(f"{column:>15}" for column in columns))
    for layer in range(n_layer):
        typer.echo(
            f"{layer:<20}"
            + "".join(f"{_percent(found[layer, column].relative):>15}" for column in columns)
        )


def _percent(relative: float | None) -> str:
    return "-" if relative is None else f"{relative:.4%}"


def _print_change(found: TextDifference) -> None:
    error = "" if found.standard_error is None else f" ± {found.standard_error:.4f}"
    typer.echo(
        f"\n{found.tokens:,} tokens: loss {found.loss_a:.4f} with A, {found.loss_b:.4f} with B, change {found.change:+.4f}{error}"
    )
    typer.echo(f"{found.better:,} tokens got better, {found.worse:,} worse")
    for change in found.changes:
        before = repr(change.before)[1:-1][-48:]
        numbers = (
            f"{change.change:>+9.3f}  {change.surprisal_a:>7.3f} -> {change.surprisal_b:>7.3f}"
        )
        typer.echo(f"{numbers}  {before:>48}[{repr(change.token)[1:-1]}]")


# --- blend -----------------------------------------------------------------------------------------------------------

_ALPHAS = [tenth / 10 for tenth in range(11)]


def blend(
    context: typer.Context,
    a: First,
    b: Second,
    alpha: Annotated[
        float | None,
        typer.Option(
            "--alpha",
            help="The share of B: 0 is A, 1 is B. With --corpus, the best one.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="The folder to write.", show_default=False),
    ] = None,
    corpus: Corpus = None,
    force: Force = False,
    stride: Stride = None,
    batch_size: WindowsAtOnce = 8,
    unknown: Unknown = "error",
    encoding: Encoding = "utf-8",
    text_field: TextField = "text",
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Write the model between two of one shape: (1 - alpha) times the weights of A, and alpha times those of B.

    Halfway back to where it came from, an overfitted model is often better than at either end. --corpus tries the shares 0, 0.1 … 1 on
    a text, which should be one that neither was trained on, and says which is best.
    """
    from gpt2kit.cli.weights import check_target
    from gpt2kit.evaluation import compare
    from gpt2kit.evaluation.perplexity import present

    if corpus is None:
        options.refuse(context, _OF_A_TEXT, _NO_TEXT)
    elif out is None:
        options.refuse(context, ("alpha", "force"), "nothing is written; give --out")
    if corpus is None and (alpha is None or out is None):
        raise typer.BadParameter(
            "give --alpha and --out, or a text with --corpus to try several on"
        )
    first, second = _open(a), _open(b)
    tokenizer = compare.check_alike(first, second)
    if alpha is not None:
        compare.blend(first, second, alpha)  # refuses a wrong one at once
    if out is not None:
        check_target(out, force, "--out")
    if corpus is not None:
        ids = _ids(corpus, encoding, text_field, present(tokenizer), unknown)
        best = _try(
            first,
            second,
            ids,
            present(tokenizer),
            device=device,
            dtype=dtype,
            stride=stride,
            batch_size=batch_size,
            json=json,
        )
        alpha = best if alpha is None else alpha
    if out is not None and alpha is not None:
        _write(compare.blend(first, second, alpha), out, tokenizer, force)
        if json:
            options.print_json({"path": str(out), "alpha": alpha})
        else:
            typer.echo(out)


def _try(
    first: Checkpoint,
    second: Checkpoint,
    ids: Ids,
    tokenizer: Tokenizer,
    *,
    device: str,
    dtype: str,
    stride: int | None,
    batch_size: int,
    json: bool,
) -> float:
    """Measure several shares of the second model on a text, print what each gives, and return the best."""
    from gpt2kit.checkpoints.load import build_model, pick_numbers
    from gpt2kit.cli.progress import counting
    from gpt2kit.evaluation.compare import blend
    from gpt2kit.evaluation.perplexity import evaluate

    place, number = pick_numbers(device, dtype, None)
    found: dict[float, Evaluation] = {}
    if not json:
        typer.echo(f"{'alpha':>5}{'loss':>10}{'perplexity':>14}{'bits per byte':>16}")
    for alpha in _ALPHAS:
        with counting(f"alpha {alpha}") as progress:
            model = build_model(blend(first, second, alpha), device=place, dtype=number)
            found[alpha] = evaluate(
                model, tokenizer, ids, stride=stride, batch_size=batch_size, progress=progress
            )
        del model
        if json:
            options.print_json({"alpha": alpha, **asdict(found[alpha])})
        else:
            bits = found[alpha].bits_per_byte
            figures = f"{found[alpha].loss:>10.4f}{found[alpha].perplexity:>14.4f}{'-' if bits is None else f'{bits:.4f}':>16}"
            typer.echo(f"{alpha:>5.1f}{figures}")
    best = min(found, key=lambda alpha: found[alpha].loss)
    if json:
        options.print_json({"best_alpha": best})
    else:
        typer.echo(f"best: alpha {best}")
    return best


def _write(blended: Checkpoint, out: Path, tokenizer: Tokenizer | None, force: bool) -> None:
    import functools

    import torch

    from gpt2kit.checkpoints.load import write_checkpoint
    from gpt2kit.errors import CheckpointError
    from gpt2kit.files import new_directory

    stored = functools.reduce(
        torch.promote_types, (tensor.dtype for tensor in blended.tensors.values())
    )
    with new_directory(out, replace=force, error=CheckpointError) as folder:
        write_checkpoint(folder, blended, stored, tokenizer)
