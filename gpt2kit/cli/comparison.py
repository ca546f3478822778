"""diff and blend: how the weights of two models differ, and their weighted mean as a model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpt2kit.cli import options, output, process
from gpt2kit.cli.fields import takes
from gpt2kit.cli.options import OUTPUT_GROUP, Corpus, CorpusOptions, Force, Json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from gpt2kit.checkpoints.classifiers import LabelWords
    from gpt2kit.checkpoints.load import Checkpoint
    from gpt2kit.data.ids import Ids
    from gpt2kit.evaluation.compare import PartDifference, TextDifference
    from gpt2kit.evaluation.perplexity import Evaluation
    from gpt2kit.tokenizers import Tokenizer


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    app.command("diff")(diff)
    app.command("blend")(blend)


First = Annotated[str, typer.Argument(metavar="A", help=f"A model. {options.MODEL_HELP}")]
Second = Annotated[
    str, typer.Argument(metavar="B", help="Another model of the same shape and vocabulary.")
]
Top = Annotated[
    int,
    typer.Option(
        "--top",
        min=0,
        help="With --corpus: show this many tokens that B predicts better, and as many that it "
        "predicts worse.",
        rich_help_panel=OUTPUT_GROUP,
    ),
]

_OF_A_TEXT = ("stride", "batch_size", "unknown", "encoding", "text_field", "device", "dtype")
_NO_TEXT = "there is no text; give one with --corpus"


@takes(how=CorpusOptions)
def diff(
    context: typer.Context,
    a: First,
    b: Second,
    corpus: Corpus = None,
    top: Top = 10,
    json: Json = False,
    *,
    how: CorpusOptions,
) -> None:
    """Compare the weights of two models: the norm of B - A, relative to A's, by layer and part.

    With --corpus also their predictions of a text: the loss of both, and the tokens that B predicts
    better or worse than A.
    """
    process.import_torch()
    from gpt2kit.evaluation import compare

    if corpus is None:
        options.refuse(context, (*_OF_A_TEXT, "top"), _NO_TEXT)
    first, second = _open(a), _open(b)
    tokenizer = compare.check_alike(first, second)
    ids = None if corpus is None else _ids(corpus, tokenizer, how)
    parts = compare.weight_differences(first, second)
    if json:
        for part in parts:
            output.print_json(asdict(part))
    else:
        _print_parts(parts, first.config.n_layer)
    if ids is None or tokenizer is None:
        return
    change = compare.text_difference(
        _surprisals(a, first, ids, how), _surprisals(b, second, ids, how), ids, tokenizer, top=top
    )
    if json:
        output.print_json(asdict(change))
    else:
        _print_change(change)


def _open(name: str) -> Checkpoint:
    from gpt2kit.checkpoints.load import open_checkpoint

    return open_checkpoint(options.locate(name))


def _ids(corpus: str, tokenizer: Tokenizer | None, how: CorpusOptions) -> Ids:
    """Return the tokens of a text, or those of a file of ids."""
    from gpt2kit.evaluation.perplexity import text_ids
    from gpt2kit.tokenizers import require_tokenizer

    options.set_unknown(tokenizer, how.unknown)
    return text_ids(options.read_corpus(corpus, how), require_tokenizer(tokenizer, "the models"))


def _surprisals(name: str, checkpoint: Checkpoint, ids: Ids, how: CorpusOptions) -> Tensor:
    """Return the surprisal in nats of every token but the first: (n - 1,)."""
    from gpt2kit.cli.progress import counting
    from gpt2kit.evaluation.perplexity import default_stride, token_surprisals

    stride = how.stride or default_stride(checkpoint.config.n_ctx)
    model = options.load(name, how.device, how.dtype)[0]
    with counting(name) as progress:
        return token_surprisals(
            model, ids, stride=stride, batch_size=how.batch_size, progress=progress
        )


def _print_parts(parts: Sequence[PartDifference], n_layer: int) -> None:
    """Print a line for each part outside of the layers, and a table with a row for each layer."""
    found = {(part.layer, part.part): part for part in parts}
    columns = list(dict.fromkeys(part.part for part in parts if part.layer is not None))
    for part in parts:
        if part.layer is None:
            output.result(f"{part.part:<20}{_percent(part.relative):>12}")
    if columns:
        output.result("\n" + f"{'layer':<20}" + "".join(f"{column:>15}" for column in columns))
    for layer in range(n_layer):
        cells = (f"{_percent(found[layer, column].relative):>15}" for column in columns)
        output.result(f"{layer:<20}" + "".join(cells))


def _percent(relative: float | None) -> str:
    return "-" if relative is None else f"{relative:.4%}"


def _print_change(found: TextDifference) -> None:
    error = "" if found.standard_error is None else f" ± {found.standard_error:.4f}"
    output.result(
        f"\n{found.tokens:,} tokens: loss {found.loss_a:.4f} with A, {found.loss_b:.4f} with B, "
        f"change {found.change:+.4f}{error}"
    )
    output.result(f"{found.better:,} tokens got better, {found.worse:,} worse")
    for change in found.changes:
        before = repr(change.before)[1:-1][-48:]
        losses = f"{change.surprisal_a:>7.3f} -> {change.surprisal_b:>7.3f}"
        token = repr(change.token)[1:-1]
        output.result(f"{change.change:>+9.3f}  {losses}  {before:>48}[{token}]")


# --- blend ---------------------------------------------------------------------------------------

_ALPHAS = [tenth / 10 for tenth in range(11)]

Alpha = Annotated[
    float | None,
    typer.Option(
        "--alpha",
        help="The share of B: 0 is A, 1 is B. Default with --corpus: the best share.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="The folder to write.",
        show_default=False,
        rich_help_panel=OUTPUT_GROUP,
    ),
]


@takes(how=CorpusOptions)
def blend(
    context: typer.Context,
    a: First,
    b: Second,
    alpha: Alpha = None,
    corpus: Corpus = None,
    out: Out = None,
    force: Force = False,
    json: Json = False,
    *,
    how: CorpusOptions,
) -> None:
    """Write the weighted average of two models: (1 - alpha) times A plus alpha times B.

    An overfitted model is often best when blended with the model that it was trained from.
    --corpus tries the shares 0, 0.1 … 1 on a text, which neither model should have been trained on.
    """
    from gpt2kit.cli.weights import check_target

    process.import_torch()
    from gpt2kit.checkpoints.classifiers import words_of_either
    from gpt2kit.evaluation import compare

    if corpus is None:
        options.refuse(context, _OF_A_TEXT, _NO_TEXT)
    elif out is None:
        options.refuse(context, ("alpha", "force"), "nothing is written; give --out")
    if corpus is None and (alpha is None or out is None):
        raise typer.BadParameter("give --alpha and --out, or a text with --corpus to find alpha")
    first, second = _open(a), _open(b)
    tokenizer, words = compare.check_alike(first, second), words_of_either(first, second)
    if alpha is not None:
        compare.blend(first, second, alpha)  # refuses a wrong alpha before anything is measured
    if out is not None:
        check_target(out, force, "--out")
    if corpus is not None:
        best = _best_alpha(first, second, _ids(corpus, tokenizer, how), tokenizer, how, json=json)
        alpha = best if alpha is None else alpha
    if out is not None and alpha is not None:
        _write(compare.blend(first, second, alpha), out, tokenizer, words, force)
        if json:
            output.print_json({"path": str(out), "alpha": alpha})
        else:
            output.result(out)


def _best_alpha(
    first: Checkpoint,
    second: Checkpoint,
    ids: Ids,
    tokenizer: Tokenizer | None,
    how: CorpusOptions,
    *,
    json: bool,
) -> float:
    """Measure several shares of the second model on a text, print the results, return the best."""
    from gpt2kit.checkpoints.load import build_model, resolve_device_and_dtype
    from gpt2kit.cli.progress import counting
    from gpt2kit.evaluation.compare import blend
    from gpt2kit.evaluation.perplexity import evaluate

    device, dtype = resolve_device_and_dtype(how.device, how.dtype)
    losses: dict[float, float] = {}
    if not json:
        output.result(f"{'alpha':>5}{'loss':>10}{'perplexity':>14}{'bits per byte':>16}")
    for alpha in _ALPHAS:
        model = build_model(blend(first, second, alpha), device=device, dtype=dtype)
        with counting(f"alpha {alpha}") as progress:
            found = evaluate(
                model,
                tokenizer,
                ids,
                stride=how.stride,
                batch_size=how.batch_size,
                progress=progress,
            )
        del model  # before the next one is built
        losses[alpha] = found.loss
        _print_alpha(alpha, found, json=json)
    best = min(losses, key=losses.__getitem__)
    if json:
        output.print_json({"best_alpha": best})
    else:
        output.result(f"best: alpha {best}")
    return best


def _print_alpha(alpha: float, found: Evaluation, *, json: bool) -> None:
    if json:
        output.print_json({"alpha": alpha, **asdict(found)})
        return
    bits = "-" if found.bits_per_byte is None else f"{found.bits_per_byte:.4f}"
    output.result(f"{alpha:>5.1f}{found.loss:>10.4f}{found.perplexity:>14.4f}{bits:>16}")


def _write(
    blended: Checkpoint,
    out: Path,
    tokenizer: Tokenizer | None,
    words: LabelWords | None,
    force: bool,
) -> None:
    """Write a checkpoint in the widest dtype of its tensors."""
    from gpt2kit.checkpoints.load import write_checkpoint
    from gpt2kit.errors import CheckpointError
    from gpt2kit.files import new_directory

    with new_directory(out, replace=force, error=CheckpointError) as folder:
        write_checkpoint(folder, blended, blended.dtype, tokenizer)
        if words is not None:
            words.write(folder)
