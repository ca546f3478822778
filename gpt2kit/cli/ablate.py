"""ablate: what a model loses without some of its heads, MLPs or neurons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gpt2kit.cli import files, options, output, process, suites
from gpt2kit.cli.fields import takes
from gpt2kit.cli.options import TEXT_GROUP, CorpusOptions, Json, ModelArgument
from gpt2kit.errors import ConfigError
from gpt2kit.fields import check, option, same_option

if TYPE_CHECKING:
    from gpt2kit.inspection.ablation import Ablation, Effect, Part, Texts
    from gpt2kit.model import GPT2
    from gpt2kit.tokenizers import Tokenizer

_PARTS = "What to ablate"


@dataclass(frozen=True, kw_only=True)
class AblateOptions:
    """Which parts are replaced, and what is measured."""

    heads: str | None = option(
        None, "Heads: 9.9,9.6 (layer.head), 5.* for a layer, or all.", group=_PARTS, metavar="HEADS"
    )
    mlps: str | None = option(None, "MLPs: 0,3, or all.", group=_PARTS, metavar="LAYERS")
    neurons: str | None = option(
        None, "Neurons of MLPs: 3.17,3.20 (layer.neuron).", group=_PARTS, metavar="NEURONS"
    )
    each: bool = option(False, "Ablate each part by itself, not all together.", group=_PARTS)
    seed: int = option(0, "Of what resample draws, and of --over random.", at_least=0)
    over: str | None = option(
        None,
        "Measure the loss of this text; random: of random tokens when they come a second time.",
        group=TEXT_GROUP,
        metavar="FILE|random",
    )
    prompt: str | None = option(
        None,
        "Measure by how much the logit of --answer exceeds that of --wrong after this text.",
        group=TEXT_GROUP,
        metavar="TEXT",
    )
    answer: str | None = option(
        None, "The right next token, mostly with a space before it.", group=TEXT_GROUP
    )
    wrong: str | None = option(None, "The token to compare it with.", group=TEXT_GROUP)
    reference: str | None = option(
        None,
        "The text whose outputs mean and resample use. Default: what is measured on.",
        group=TEXT_GROUP,
        metavar="FILE",
    )
    block_size: int | None = option(
        None,
        "Tokens of a window of --over and --reference.",
        default="what the model reads at once, at most 1024",
        group=TEXT_GROUP,
        at_least=2,
    )
    encoding: str = same_option(CorpusOptions, "encoding")
    device: str = same_option(CorpusOptions, "device")
    dtype: str = same_option(CorpusOptions, "dtype")

    def __post_init__(self) -> None:
        check(self)
        if not (self.heads or self.mlps or self.neurons):
            raise ConfigError("no parts are named; give --heads, --mlps or --neurons")
        if (self.prompt is None) != (self.answer is None) or (self.answer is None) != (
            self.wrong is None
        ):
            raise ConfigError("--prompt, --answer and --wrong go together; give all three")


Task = Annotated[
    tuple[str, Path] | None,
    typer.Option(
        "--task",
        metavar="NAME FILE|DIR",
        help="Measure the accuracy in blimp, syntaxgym, pairs or lambada, as evaluate does.",
        show_default=False,
        rich_help_panel=TEXT_GROUP,
    ),
]
With = Annotated[
    Literal["mean", "zero", "zero-tl", "resample"],
    typer.Option(
        "--with",
        help="What replaces a part's output: mean, its mean over all positions of the reference "
        "text; zero, which for a head is 0 before the output projection; zero-tl, what "
        "TransformerLens calls zero: for a head the values that the norm's and the values' biases "
        "alone give, otherwise 0; resample, its output at random positions of the reference text.",
        rich_help_panel=_PARTS,
    ),
]
Out = Annotated[Path | None, files.out_option("the effects")]
Picture = Annotated[
    Path | None, files.picture_option("the changes of --each with --heads all and nothing else")
]


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command("ablate")(ablate)


@takes(chosen=AblateOptions)
def ablate(
    model: ModelArgument,
    *,
    chosen: AblateOptions,
    with_: With = "mean",
    task: Task = None,
    out: Out = None,
    picture: Picture = None,
    json: Json = False,
) -> None:
    """Show what a model loses without some heads, MLPs or neurons.

    The change is that of the loss, in nats per token, of an accuracy, or of a difference of logits,
    with its standard error over the texts or items.
    """
    _check(chosen, task, out, picture)
    process.import_torch()
    from gpt2kit.inspection.ablation import Ablation
    from gpt2kit.tokenizers import require_tokenizer

    gpt2, found = options.load(model, chosen.device, chosen.dtype)
    tokenizer = require_tokenizer(found, model)
    parts = _parts(gpt2, chosen)
    texts = _texts(gpt2, tokenizer, chosen)
    reference = texts
    if chosen.reference is not None:
        reference = _windows(gpt2, tokenizer, chosen.reference, chosen)
    made = Ablation(gpt2, parts, with_, reference, seed=chosen.seed)
    effects = list(_effects(made, gpt2, tokenizer, texts, task, each=chosen.each))
    rows = [_row(each, with_, chosen.seed) for each in effects]
    if json:
        for row in rows:
            output.print_json(row)
    else:
        _print(effects, with_)
    if out is not None:
        files.write_rows(out, rows)
    if picture is not None:
        from gpt2kit import plots

        files.save_picture(plots.ablations(effects, with_), picture)


def _check(
    chosen: AblateOptions, task: tuple[str, Path] | None, out: Path | None, picture: Path | None
) -> None:
    """Refuse what has no effect or cannot be written, before a model is loaded."""
    if sum(each is not None for each in (chosen.over, chosen.prompt, task)) != 1:
        raise typer.BadParameter(
            "give one of --over FILE, --task NAME FILE and --prompt with --answer and --wrong"
        )
    if task is not None and task[0] not in (*suites.TASKS, "lambada"):
        known = ", ".join((*suites.TASKS, "lambada"))
        raise typer.BadParameter(f"--task is {task[0]!r}, expected one of {known}")
    is_map = chosen.each and chosen.heads == "all" and not chosen.mlps and not chosen.neurons
    if picture is not None and not is_map:
        raise typer.BadParameter("--picture needs --heads all --each, and nothing else ablated")
    files.check_written(out, picture)
    files.check_not_input(out, chosen.over, None if task is None else task[1])


# --- parts ----------------------------------------------------------------------------------------


def _parts(model: GPT2, chosen: AblateOptions) -> list[Part]:
    """Return the parts that were typed; the library says which do not exist."""
    from gpt2kit.inspection.ablation import Part, every_head, every_mlp

    found: list[Part] = []
    if chosen.heads == "all":
        found += every_head(model)
    elif chosen.heads:
        for layer, head in _pairs("heads", chosen.heads):
            heads = range(model.config.n_head) if head is None else [head]
            found += [Part("head", layer, each) for each in heads]
    if chosen.mlps == "all":
        found += every_mlp(model)
    elif chosen.mlps:
        for name in chosen.mlps.split(","):
            found.append(Part("mlp", _number("mlps", name, "a layer, as in --mlps 0,3")))
    if chosen.neurons:
        for layer, neuron in _pairs("neurons", chosen.neurons):
            if neuron is None:
                raise typer.BadParameter("--neurons takes single neurons, as in --neurons 3.17")
            found.append(Part("neuron", layer, neuron))
    if not found:
        raise ConfigError("this model has none of these parts, so there is nothing to ablate")
    return found


def _pairs(option: str, typed: str) -> Iterator[tuple[int, int | None]]:
    """Yield layer and index of 9.9,9.6; the index is None in 9.*."""
    form = f"a layer and a number, as in --{option} 9.6"
    for name in typed.split(","):
        layer, _, index = name.strip().partition(".")
        yield _number(option, layer, form), None if index == "*" else _number(option, index, form)


def _number(option: str, text: str, form: str) -> int:
    if not text.strip().isdecimal():
        raise typer.BadParameter(f"--{option}: found {text!r}, expected {form}")
    return int(text)


# --- what is measured -----------------------------------------------------------------------------


def _texts(model: GPT2, tokenizer: Tokenizer, chosen: AblateOptions) -> Texts | None:
    """Return the texts to measure on; None for a task, which has its own."""
    from gpt2kit.inspection import random_tokens
    from gpt2kit.inspection.ablation import Texts, of_repetition

    if chosen.over == "random":
        return of_repetition(random_tokens(model, tokenizer, seed=chosen.seed))
    if chosen.over is not None:
        return _windows(model, tokenizer, chosen.over, chosen)
    if chosen.prompt is None:
        return None
    from gpt2kit.cli.explain import single_token as token

    ids = tokenizer.encode(options.as_typed(chosen.prompt) or "")
    if not ids:
        raise ConfigError("the prompt is empty, expected one token or more")
    answer, wrong = token(tokenizer, chosen.answer), token(tokenizer, chosen.wrong)
    assert answer is not None
    assert wrong is not None
    return Texts((tuple(ids),), compared=((answer, wrong),))


def _windows(model: GPT2, tokenizer: Tokenizer, file: str, chosen: AblateOptions) -> Texts:
    """Return a file's texts in windows."""
    from gpt2kit.data.texts import read_texts
    from gpt2kit.inspection.ablation import of_windows

    limit = model.config.n_ctx
    length = min(limit, 1024) if chosen.block_size is None else chosen.block_size
    if length > limit:
        raise ConfigError(f"block_size is {length}, but the model reads {limit} tokens at once")
    stop = [] if tokenizer.stop_id is None else [tokenizer.stop_id]
    ids: list[int] = []
    for document in read_texts(file, encoding=chosen.encoding).documents:
        ids += [*(stop if ids else []), *tokenizer.encode(document)]
    return of_windows(ids, length)


def _effects(
    made: Ablation,
    model: GPT2,
    tokenizer: Tokenizer,
    texts: Texts | None,
    task: tuple[str, Path] | None,
    *,
    each: bool,
) -> Iterable[Effect]:
    """Return the effect of all parts together, or of each by itself."""
    if texts is not None:
        return made.effects(texts) if each else [made.effect(texts)]
    assert task is not None
    return _on_task(made, model, tokenizer, task, each=each)


def _on_task(
    made: Ablation, model: GPT2, tokenizer: Tokenizer, task: tuple[str, Path], *, each: bool
) -> Iterator[Effect]:
    """Yield effects on the accuracy in a task."""
    import torch

    from gpt2kit.inspection.ablation import Effect, standard_error
    from gpt2kit.inspection.running import editing

    before = _right(model, tokenizer, task)
    weights = torch.full((len(before),), 1 / len(before), dtype=torch.float64)
    groups = [(part,) for part in made.parts] if each else [made.parts]
    for parts in groups:
        with editing(model, made.edits(parts)):
            after = _right(model, tokenizer, task)
        means = float(before.mean()), float(after.mean())
        error = standard_error(after - before, weights)
        yield Effect(tuple(parts), "accuracy", len(before), *means, error)


def _right(model: GPT2, tokenizer: Tokenizer, task: tuple[str, Path]) -> Any:
    """Return 1 for each item of a task that the model gets right, else 0: (items,) float64.

    Items that cannot be scored are left out; the edits do not change which ones.
    """
    import torch

    name, path = task
    if name == "lambada":
        from gpt2kit.evaluation.tasks import lambada_items

        return lambada_items(model, tokenizer, path)[0]
    measured = suites.read(name, path, "paper")(model, tokenizer)
    right = [float(row["correct"]) for row in measured.rows if row["correct"] is not None]
    return torch.tensor(right, dtype=torch.float64)


# --- what is shown --------------------------------------------------------------------------------


def _row(effect: Effect, replacement: str, seed: int) -> dict[str, Any]:
    return {
        "parts": effect.name,
        "with": replacement,
        "measure": effect.what,
        "texts": effect.texts,
        "before": effect.before,
        "after": effect.after,
        "change": effect.change,
        "standard_error": effect.standard_error,
        "seed": seed,
    }


def _print(effects: Sequence[Effect], replacement: str) -> None:
    """Print a line for each effect, the largest change first."""
    ordered = sorted(effects, key=lambda each: -abs(each.change))
    what = effects[0].what
    lines = [[f"without ({replacement})", what, "change", "±"]]
    for each in ordered:
        error = "" if each.standard_error is None else f"{each.standard_error:.4f}"
        lines.append([each.name, f"{each.after:.4f}", f"{each.change:+.4f}", error])
    for line in output.table(lines, right=range(1, 4)):
        output.result(line)
    items = output.count(effects[0].texts, "item" if what == "accuracy" else "text")
    output.note(f"{what} of the whole model: {effects[0].before:.4f}, {items}", dim=True)
