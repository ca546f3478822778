"""sae: which features of a sparse autoencoder fire in a text, and what changing them does."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gpt2kit.cli import color, files, options, output, process
from gpt2kit.cli.color import visible
from gpt2kit.cli.fields import takes
from gpt2kit.cli.options import MODEL_GROUP, OUTPUT_GROUP, TEXT_GROUP, ModelOptions
from gpt2kit.fields import check, option, same_option

if TYPE_CHECKING:
    from torch import Tensor

    from gpt2kit.inspection.features import SAE
    from gpt2kit.model import GPT2
    from gpt2kit.tokenizers import Tokenizer

_CHANGE = "What to change"  # the heading of these options in the help
_BAR = 30  # columns of the longest bar


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command("sae")(sae)


@dataclass(frozen=True, kw_only=True)
class SaeOptions:
    """What is asked of a sparse autoencoder."""

    text: str | None = option(
        None, "Which features fire in this text; - is standard input.", group=TEXT_GROUP
    )
    corpus: str | None = option(
        None,
        "Measure the SAE on this text: explained variance, active features, loss recovered.",
        group=TEXT_GROUP,
        metavar="FILE",
    )
    top: int = option(
        10, "Features of each token, or next tokens, to show.", group=OUTPUT_GROUP, at_least=1
    )
    feature: int | None = option(
        None,
        "Show how strongly this feature fires at each token of the text, and the tokens whose "
        "logits it raises most.",
        at_least=0,
    )
    ablate: tuple[int, ...] = option(
        (),
        "Take this feature out of the text, and show what the model expects next; may be given "
        "several times.",
        group=_CHANGE,
    )
    steer: tuple[str, ...] = option(
        (),
        "Set this feature to a value at every token; may be given several times.",
        group=_CHANGE,
        metavar="FEATURE=VALUE",
    )
    max_tokens: int = option(
        0,
        "With --ablate or --steer: also write this many tokens, with and without the change.",
        group=_CHANGE,
        at_least=0,
    )
    at: str | None = option(
        None,
        "What the SAE reads, such as blocks.8.hook_resid_post, if its file does not say it.",
        group=MODEL_GROUP,
        metavar="NAME",
    )
    input_scale: float | None = option(
        None,
        "What activations are multiplied by first, for an SAE whose files lack that factor.",
        group=MODEL_GROUP,
        above=0,
    )
    centered: Literal["auto", "yes", "no"] = option(
        "auto",
        "Whether the SAE reads the stream without its mean; auto: as its file says.",
        group=MODEL_GROUP,
    )
    window: int = option(
        128, "With --corpus: tokens that are read at once.", group=TEXT_GROUP, at_least=2
    )
    model: str = same_option(ModelOptions, "model")
    device: str = same_option(ModelOptions, "device")
    dtype: str = same_option(ModelOptions, "dtype")
    out: str | None = option(
        None,
        "Write the features of each token into a table: .csv, .tsv, .jsonl or .parquet.",
        group=OUTPUT_GROUP,
        metavar="FILE",
    )
    picture: str | None = option(
        None,
        "With --feature: draw it, too: a .png, .svg or .pdf file.",
        group=OUTPUT_GROUP,
        metavar="FILE",
    )
    color: Literal["auto", "always", "never"] = option(
        "auto", "With --feature: color the text; auto: on a terminal.", group=OUTPUT_GROUP
    )
    json: bool = option(False, "Print one JSON object per line.", group=OUTPUT_GROUP)

    def __post_init__(self) -> None:
        check(self)
        changes = self.changes
        if self.text is None and (changes or self.feature is not None or self.out is not None):
            raise typer.BadParameter("--feature, --ablate, --steer and --out need --text TEXT")
        if self.max_tokens and not changes:
            raise typer.BadParameter("--max_tokens is for --ablate and --steer; add one of them")
        if self.out is not None and (changes or self.feature is not None):
            raise typer.BadParameter("--out is for the features of each token; leave out the rest")
        if self.picture is not None and self.feature is None:
            raise typer.BadParameter("--picture draws one feature; add --feature NUMBER")
        if changes and self.feature is not None:
            raise typer.BadParameter("give --feature, or --ablate and --steer, not both")

    @property
    def changes(self) -> dict[int, float]:
        """The features that are set, and to what; those of --ablate to 0."""
        found = dict.fromkeys(self.ablate, 0.0)
        for typed in self.steer:
            feature, _, value = typed.partition("=")
            try:
                found[int(feature)] = float(value)
                if not math.isfinite(found[int(feature)]):
                    raise ValueError(value)
            except ValueError:
                raise typer.BadParameter(
                    f"--steer is {typed!r}, expected FEATURE=VALUE, as in --steer 123=8"
                ) from None
        return found


@takes(asked=SaeOptions)
def sae(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER|FILE|ID",
            help="A SAELens folder, OpenAI's .pt, an attention SAE's .pt, or one of the Hub that "
            "was downloaded: ORG/NAME/FOLDER.",
        ),
    ],
    *,
    asked: SaeOptions,
) -> None:
    """Show which features of a sparse autoencoder fire in a text, and what they do to the model.

    The text is read after <|endoftext|>, as SAEs are trained, if the vocabulary has it. With
    --ablate and --steer that first position is left alone, and the part that the SAE does not
    explain is kept.
    """
    written = (asked.out, asked.picture)
    files.check_written(*(None if path is None else Path(path) for path in written))
    process.import_torch()
    from gpt2kit.inspection.features import load_sae
    from gpt2kit.tokenizers import require_tokenizer

    centered = {"auto": None, "yes": True, "no": False}[asked.centered]
    found = load_sae(source, at=asked.at, is_centered=centered, input_scale=asked.input_scale)
    if asked.text is None and asked.corpus is None:
        _summarize(source, found, json=asked.json)
        return
    model, vocabulary = options.load(asked.model, asked.device, asked.dtype)
    tokenizer = require_tokenizer(vocabulary, asked.model)
    found = found.for_model(model)
    if asked.text is not None:
        _show_text(found, model, tokenizer, asked)
    if asked.corpus is not None:
        _show_quality(found, model, tokenizer, asked)


def _summarize(source: str, sae: SAE, *, json: bool) -> None:
    about: dict[str, Any] = {
        "reads": sae.hook,
        "kind": sae.kind,
        "width": sae.width,
        "features": sae.n_features,
        "centered": sae.is_centered,
        "normalization": sae.normalization,
    } | ({"k": sae.k} if sae.k else {})
    if json:
        output.print_json({"sae": source, **about})
        return
    rows = [
        (name, "unknown: give --at" if value is None else value) for name, value in about.items()
    ]
    for line in output.table(rows):
        output.result(line)


# --- a text ---------------------------------------------------------------------------------------


def _show_text(sae: SAE, model: GPT2, tokenizer: Tokenizer, asked: SaeOptions) -> None:
    """Show the features of a text, one feature over it, or what changed features do."""
    import torch

    from gpt2kit.errors import ContextLengthError
    from gpt2kit.inspection.features import activations
    from gpt2kit.tokenizers.listed import start_of_text

    assert asked.text is not None
    assert sae.hook is not None
    start = start_of_text(tokenizer)
    ids = start + tokenizer.encode(options.read_text(asked.text))
    if not ids[len(start) :]:
        raise typer.BadParameter("the text is empty")
    if len(ids) > (limit := model.config.n_ctx):
        message = f"the text has {len(ids):,} tokens, and the model reads at most {limit:,}"
        raise ContextLengthError(message, requested=len(ids), limit=limit)
    if asked.feature is not None:
        sae.check_feature(asked.feature)
    batch = torch.tensor([ids], device=model.device)
    if asked.changes:
        _show_changes(sae, model, tokenizer, batch, asked)
        return
    with torch.no_grad():
        features = sae.encode(activations(model, batch, sae.hook))[0]  # (T, N)
    names = [visible(tokenizer.token_bytes(token)) for token in ids]
    if asked.feature is not None:
        from gpt2kit.inspection.splicing import promoted

        n_vocab = min(tokenizer.n_vocab, model.config.n_vocab)
        raised = promoted(model, sae, asked.feature, asked.top, n_vocab=n_vocab)
        values = features[len(start) :, asked.feature].tolist()
        _show_feature(ids[len(start) :], values, raised, tokenizer, len(start), asked)
    else:
        _show_top(features, ids, names, tokenizer, len(start), asked)


def _show_top(
    features: Tensor,
    ids: Sequence[int],
    names: Sequence[str],
    tokenizer: Tokenizer,
    first: int,
    asked: SaeOptions,
) -> None:
    """Show the strongest features of each token from `first` on, or write them into a table."""
    from gpt2kit.inspection.splicing import top_features

    strongest = top_features(features, asked.top)
    if asked.out is not None:
        found = [
            {
                "position": each.position,
                "token": _named(tokenizer, ids[each.position])["text"],
                "id": ids[each.position],
                "feature": each.feature,
                "activation": each.value,
            }
            for active in strongest[first:]
            for each in active
        ]
        columns = ("position", "token", "id", "feature", "activation")
        files.write_rows(Path(asked.out), found, columns)
        return
    rows = []
    for position in range(first, len(ids)):
        active = strongest[position]
        if asked.json:
            listed = [{"feature": each.feature, "activation": each.value} for each in active]
            output.print_json(
                {"position": position, **_named(tokenizer, ids[position]), "features": listed}
            )
        shown = "  ".join(f"{each.feature} {each.value:.2f}" for each in active)
        rows.append((position, names[position], shown))
    if asked.json:
        return
    for line in output.table(rows, right=(0,)):
        output.result(line)
    l0 = float((features[first:] > 0).sum(-1).float().mean())
    output.note(f"{l0:.1f} features fire at a token, on average", dim=True)


def _show_feature(
    ids: Sequence[int],
    values: Sequence[float],
    raised: Sequence[tuple[int, float]],
    tokenizer: Tokenizer,
    first: int,
    asked: SaeOptions,
) -> None:
    """Show one feature: its activation at each token from position `first` on, what it promotes."""
    names = [tokenizer.token_bytes(token) for token in ids]
    promoted = [(tokenizer.token_bytes(token), value) for token, value in raised]
    if asked.picture is not None:
        from gpt2kit import plots

        title = f"Feature {asked.feature}"
        figure = plots.feature(values, names, promoted, title=title, first=first)
        files.save_picture(figure, Path(asked.picture))
    if asked.json:
        for position, (token, value) in enumerate(zip(ids, values, strict=True), first):
            named = _named(tokenizer, token)
            output.print_json({"position": position, **named, "activation": value})
        listed = [{**_named(tokenizer, token), "logit": value} for token, value in raised]
        output.print_json({"feature": asked.feature, "promotes": listed})
        return
    _print_feature(names, values, first, asked)
    shown = "  ".join(f"{visible(name)} {value:+.2f}" for name, value in promoted)
    output.result(
        f"\nit promotes most, in logits for one unit, before the last norm's scale:\n{shown}"
    )


def _print_feature(
    names: Sequence[bytes], values: Sequence[float], first: int, asked: SaeOptions
) -> None:
    """Print the activation of a feature at each token: a colored text, and a bar for each."""
    largest = max(values)
    if color.wanted(asked.color):
        parts = [
            color.paint(
                name.decode("utf-8", errors="replace"), 12 * value / largest if value > 0 else None
            )
            for name, value in zip(names, values, strict=True)
        ]
        output.result(*parts, color=True)
        output.result()
    rows = [
        (
            position,
            visible(name),
            f"{value:.2f}" if value else "",
            "█" * round(_BAR * value / largest) if value > 0 else "",
        )
        for position, (name, value) in enumerate(zip(names, values, strict=True), first)
    ]
    for line in output.table(rows, right=(0, 2)):
        output.result(line)
    if largest <= 0:
        output.note(f"feature {asked.feature} does not fire in this text", dim=True)


# --- changes --------------------------------------------------------------------------------------


def _show_changes(
    sae: SAE, model: GPT2, tokenizer: Tokenizer, ids: Tensor, asked: SaeOptions
) -> None:
    """Show how changed features change the next token, and the text if it is asked for."""
    from gpt2kit.inspection.running import editing, run
    from gpt2kit.inspection.splicing import splice, splice_edit

    changes = asked.changes
    before = run(model, ids).logits[0, -1].float().softmax(-1)  # (V,)
    after = splice(model, ids, sae, changes, skip=1)[0, -1].float().softmax(-1)
    difference = (after - before)[: tokenizer.n_vocab]
    order = difference.abs().argsort(descending=True)[: asked.top].tolist()
    rows = [("before", "after", "next token")]
    for token in order:
        one, two = float(before[token]), float(after[token])
        if asked.json:
            output.print_json({**_named(tokenizer, token), "before": one, "after": two})
        rows.append((f"{one:.2%}", f"{two:.2%}", visible(tokenizer.token_bytes(token))))
    if not asked.json:
        for line in output.table(rows, right=(0, 1)):
            output.result(line)
    if asked.max_tokens:
        plain = _written(model, tokenizer, ids, asked.max_tokens)
        with editing(model, [splice_edit(sae, changes, skip=1)]):
            changed = _written(model, tokenizer, ids, asked.max_tokens)
        if asked.json:
            output.print_json({"text_before": plain, "text_after": changed})
        else:
            output.result(f"\nbefore: {plain}\nafter:  {changed}")


def _written(model: GPT2, tokenizer: Tokenizer, ids: Tensor, max_tokens: int) -> str:
    """Return the likeliest continuation, token by token."""
    from gpt2kit.generation.request import Sampling
    from gpt2kit.generation.text import generate_tokens

    greedy = Sampling(temperature=0)
    steps: Iterator[list[int]] = generate_tokens(
        model, ids, max_tokens=max_tokens, sampling=greedy, stop_id=tokenizer.stop_id
    )
    tokens = [step[0] for step in steps]
    return tokenizer.decode([token for token in tokens if token != tokenizer.stop_id])


# --- quality --------------------------------------------------------------------------------------


def _show_quality(sae: SAE, model: GPT2, tokenizer: Tokenizer, asked: SaeOptions) -> None:
    """Show how well the SAE describes what the model computes for a file."""
    from dataclasses import asdict

    from gpt2kit.data.texts import read_texts
    from gpt2kit.inspection.splicing import quality

    assert asked.corpus is not None
    documents = read_texts(asked.corpus).documents
    found = quality(model, sae, _windows(documents, model, tokenizer, asked.window))
    values: Mapping[str, Any] = {**asdict(found), "loss_recovered": found.loss_recovered}
    if asked.json:
        output.print_json({"sae": sae.hook, **values})
        return
    rows = [
        ("tokens", f"{found.n_tokens:,}"),
        ("explained variance", f"{found.explained_variance:.4f}"),
        ("features that fire at a token", f"{found.l0:.1f}"),
        ("loss of the model", f"{found.loss:.4f}"),
        ("loss with the SAE in it", f"{found.loss_spliced:.4f}"),
        ("loss with zeros there", f"{found.loss_zero:.4f}"),
        ("loss recovered", f"{found.loss_recovered:.4f}"),
    ]
    for line in output.table(rows, right=(1,)):
        output.result(line)


def _windows(
    documents: Sequence[str], model: GPT2, tokenizer: Tokenizer, window: int
) -> Iterator[Tensor]:
    """Yield the documents in windows that each begin with <|endoftext|>, as (1, T) ids."""
    import torch

    from gpt2kit.tokenizers.listed import start_of_text

    start = start_of_text(tokenizer)
    size = min(window, model.config.n_ctx) - len(start)
    for document in documents:
        ids = tokenizer.encode(document)
        for offset in range(0, len(ids), size):
            yield torch.tensor([start + ids[offset : offset + size]], device=model.device)


def _named(tokenizer: Tokenizer, token: int) -> dict[str, Any]:
    """Return a token and its text."""
    text = tokenizer.token_bytes(token).decode("utf-8", errors="replace")
    return {"token": token, "text": text}
