"""explain: what a model expected at each token of a text, and which parts decided it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gpt2kit.cli import color, options, output, process
from gpt2kit.cli.color import Color, visible
from gpt2kit.cli.options import (
    OUTPUT_GROUP,
    TEXT_GROUP,
    Device,
    Dtype,
    Json,
    ModelArgument,
    Special,
    Unknown,
)

if TYPE_CHECKING:
    from gpt2kit.cli.explain_words import Placed
    from gpt2kit.inspection import Explanation
    from gpt2kit.inspection.switching import Switched
    from gpt2kit.model import GPT2
    from gpt2kit.tokenizers import Tokenizer

_ANALYSIS = "What to show"  # the heading of these options in the help


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command("explain")(explain)


Text = Annotated[
    str, typer.Argument(metavar="TEXT|-", help="The text to explain; - is standard input.")
]
Top = Annotated[
    int,
    typer.Option(
        "--top",
        min=1,
        max=1000,
        help="Show this many of the most likely tokens at each position.",
        rich_help_panel=_ANALYSIS,
    ),
]
ShowLens = Annotated[
    bool,
    typer.Option(
        "--lens",
        help="The logit lens: which token each layer would predict, at every position.",
        rich_help_panel=_ANALYSIS,
    ),
]
Head = Annotated[
    str | None,
    typer.Option(
        "--attention",
        metavar="LAYER.HEAD",
        help="Which tokens each token attends to in this head; both count from 0.",
        show_default=False,
        rich_help_panel=_ANALYSIS,
    ),
]
Attribute = Annotated[
    bool,
    typer.Option(
        "--attribution",
        help="How much each layer and head adds to the next token's logit, compared with the "
        "second most likely token.",
        rich_help_panel=_ANALYSIS,
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="TOKEN",
        help="With --attribution: explain the logit of this token instead of the most likely one.",
        show_default=False,
        rich_help_panel=_ANALYSIS,
    ),
]
Against = Annotated[
    str | None,
    typer.Option(
        "--against",
        metavar="TOKEN",
        help="With --attribution: compare with this token instead of the second most likely one.",
        show_default=False,
        rich_help_panel=_ANALYSIS,
    ),
]
Html = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="FILE",
        help="Write a single interactive web page, and print nothing.",
        show_default=False,
        rich_help_panel=OUTPUT_GROUP,
    ),
]
SwitchHeads = Annotated[
    bool,
    typer.Option(
        "--switch_heads",
        help="With --html: let the reader switch off one head at a time (it then gives its mean "
        "over the text), and see how surprising each token becomes. As many runs as heads.",
        rich_help_panel=OUTPUT_GROUP,
    ),
]
Overflow = Annotated[
    Literal["slide", "stop", "error"],
    typer.Option(
        "--overflow",
        help="If the text is longer than the model's window: slide reads it in windows that "
        "overlap by half, stop leaves out the rest, error refuses it.",
        rich_help_panel=TEXT_GROUP,
    ),
]


def explain(
    model: ModelArgument,
    text: Text,
    top: Top = 5,
    lens: ShowLens = False,
    attention: Head = None,
    attribution: Attribute = False,
    target: Target = None,
    against: Against = None,
    special: Special = False,
    unknown: Unknown = "error",
    overflow: Overflow = "slide",
    device: Device = "auto",
    dtype: Dtype = "auto",
    html: Html = None,
    switch_heads: SwitchHeads = False,
    colors: Color = "auto",
    json: Json = False,
) -> None:
    """Show what a model makes of a text: how surprising each token is, what it expected, and why.

    The first token has nothing before it, so it has no surprisal; with --special the text can start
    with <|endoftext|>.
    """
    if (target is not None or against is not None) and not attribution:
        raise typer.BadParameter("--target and --against belong to --attribution; add that")
    if switch_heads and html is None:
        raise typer.BadParameter("--switch_heads makes a part of a page; give --html FILE, too")
    _check_output(json, html, colors)
    process.import_torch()
    from gpt2kit.cli.explain_report import Report
    from gpt2kit.cli.explain_words import placed_words
    from gpt2kit.inspection import ExplainOptions
    from gpt2kit.inspection import explain as find_out
    from gpt2kit.inspection.page import entries_to_keep
    from gpt2kit.tokenizers import require_tokenizer

    head = _head(attention)
    text = options.read_text(text)
    gpt2, found_tokenizer = options.load(model, device, dtype)
    tokenizer = require_tokenizer(found_tokenizer, model)
    options.set_unknown(tokenizer, unknown)
    ids = tokenizer.encode(text, special=special)
    chosen = ExplainOptions(
        top=top,
        lens=lens,
        head=head,
        strongest=entries_to_keep(gpt2, len(ids)) if html else 0,
        attribution=attribution,
        target=single_token(tokenizer, target),
        against=single_token(tokenizer, against),
    )
    n_vocab = min(tokenizer.n_vocab, gpt2.config.n_vocab)
    found = find_out(gpt2, ids, chosen, overflow=overflow, n_vocab=n_vocab, progress=_show_progress)
    words = placed_words(gpt2, tokenizer, text, found.ids)
    if json:
        for each in _objects(found, tokenizer, head, words):
            output.print_json(each)
    elif html:
        switched = _switched(gpt2, found, top, n_vocab) if switch_heads else None
        _write_page(html, found, tokenizer, model, head, words, switched)
    else:
        colored = color.wanted(colors)
        for line in Report(found, tokenizer, colored, words).lines(head):
            output.result(*line, color=colored)


def _check_output(json: bool, html: Path | None, colors: color.Choice) -> None:
    """Refuse forms of output that exclude each other, and a page that cannot be written."""
    if json and html:
        raise typer.BadParameter("give --json or --html, not both")
    if (json or html) and colors == "always":
        raise typer.BadParameter("--color always is for text; leave it out, or --json and --html")
    if html and html.is_dir():
        raise typer.BadParameter(f"--html is {html}, which is a folder; name a file in it")
    if html and not html.parent.is_dir():
        raise typer.BadParameter(f"--html is {html}, but there is no folder {html.parent}")


def _show_progress(done: int, n: int) -> None:
    """Show on a terminal how much of a long text has been read."""
    output.status(f"{done:,} of {n:,} tokens" if done < n else "")


def _switched(gpt2: GPT2, found: Explanation, top: int, n_vocab: int) -> Switched:
    """Return what each token becomes without each head."""
    from gpt2kit.inspection.switching import switch_heads

    def show(done: int, n: int) -> None:
        output.status(f"{done:,} of {n:,} layers" if done < n else "")

    return switch_heads(gpt2, found.ids, top, n_vocab=n_vocab, progress=show)


def _head(name: str | None) -> tuple[int, int] | None:
    """Read 3.7 as layer 3, head 7."""
    if name is None:
        return None
    layer, dot, head = name.partition(".")
    if not (dot and layer.isdecimal() and head.isdecimal()):
        raise typer.BadParameter(
            f"--attention is {name!r}, expected a layer and a head such as 0.1"
        )
    return int(layer), int(head)


def single_token(tokenizer: Tokenizer, text: str | None) -> int | None:
    """Return the id of a text that is a single token."""
    from gpt2kit.errors import TokenizerError

    if text is None:
        return None
    ids = tokenizer.encode(options.as_typed(text) or "")
    if len(ids) != 1:
        pieces = " ".join(visible(tokenizer.token_bytes(token)) for token in ids) or "nothing"
        raise TokenizerError(
            f"{text!r} is not one token but {len(ids)}: {pieces}; "
            "most words begin with a space, as in ' the'"
        )
    return ids[0]


def _write_page(
    file: Path,
    found: Explanation,
    tokenizer: Tokenizer,
    model: str,
    head: tuple[int, int] | None,
    words: Sequence[Placed],
    switched: Switched | None,
) -> None:
    from gpt2kit.files import write_whole
    from gpt2kit.inspection.page import write_page

    name = output.one_line(Path(model).name)  # in UTF-8, which the name need not be
    own = [word.as_json() for word in words]
    page = write_page(
        found, tokenizer.token_bytes, model=name, head=head, words=own, switched=switched
    )
    write_whole(file, page)
    output.note(f"{file}: {output.human_size(len(page.encode()))}; open it in a browser")


# --- as JSON -------------------------------------------------------------------------------------


def _objects(
    found: Explanation,
    tokenizer: Tokenizer,
    head: tuple[int, int] | None,
    words: Sequence[Placed],
) -> Iterator[dict[str, Any]]:
    """Yield one object for each position, the next token's too, then one for the attribution.

    A word is in the object of its first token.
    """
    n = len(found.ids)
    beginning = {placed.first: placed for placed in words if placed.first < placed.end}
    for position, expected in enumerate(found.expectations):
        line = {
            "position": position,
            **_named(tokenizer, expected.token),
            "surprisal": expected.surprisal,
            "probability": expected.probability,
            "rank": expected.rank,
            "alternatives": [
                {**_named(tokenizer, each.token), "probability": each.probability}
                for each in expected.alternatives
            ],
        }
        if position in beginning:
            line["word"] = beginning[position].as_json()
        if found.lens and position:  # a token is predicted at the position before it
            tokens = found.lens.tokens[:, position - 1].tolist()
            shares = found.lens.probabilities[:, position - 1].tolist()
            line["lens"] = [
                {**_named(tokenizer, token), "probability": share}
                for token, share in zip(tokens, shares, strict=True)
            ]
        if found.attention and head and position < n:
            line["attention"] = {
                "layer": head[0],
                "head": head[1],
                "from": found.starts[position],
                "weights": found.attention[position],
            }
        yield line
    if found.attribution:
        yield {
            "attribution": {
                "target": _named(tokenizer, found.attribution.token),
                "against": _named(tokenizer, found.attribution.against),
                "total": found.attribution.total,
                "contributions": [
                    {"part": each.part, "layer": each.layer, "head": each.head, "value": each.value}
                    for each in found.attribution.contributions
                ],
            }
        }


def _named(tokenizer: Tokenizer, token: int | None) -> dict[str, Any]:
    """Return a token and its text."""
    if token is None:
        return {"token": None, "text": None}
    return {
        "token": token,
        "text": tokenizer.token_bytes(token).decode("utf-8", errors="replace"),
    }
