"""cloze: the likeliest next words of a text, of one token or several, with their probabilities."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from gpt2kit.cli import options, output
from gpt2kit.cli.options import OUTPUT_GROUP, SPEED_GROUP, Device, Dtype, Json, Model, NoCache


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command("cloze")(cloze)


def cloze(
    text: Annotated[
        str, typer.Argument(metavar="TEXT|-", help="What stands before; - is standard input.")
    ],
    model: Model = "124M",
    device: Device = "auto",
    dtype: Dtype = "auto",
    no_cache: NoCache = False,
    top: Annotated[
        int, typer.Option("--top", min=1, help="Words to show.", rich_help_panel=OUTPUT_GROUP)
    ] = 20,
    most: Annotated[
        int,
        typer.Option(
            "--most",
            min=1,
            help="Beginnings of words that are read at most. More find longer words.",
            rich_help_panel=SPEED_GROUP,
        ),
    ] = 256,
    keep_punctuation: Annotated[
        bool,
        typer.Option(
            "--keep_punctuation",
            help="Words end at white space alone, so that 'tree.' is another word than 'tree'.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Show the likeliest next words of a text, of one token or several, with their probabilities.

    The probability of a word includes that it ends: "mat" is not the beginning of "matter".
    """
    typed = options.read_text(text)
    gpt2, tokenizer = options.load(model, device, dtype, write_cache=not no_cache)
    from gpt2kit.evaluation.cloze import cloze as search

    found = search(gpt2, tokenizer, typed, top=top, most=most, keep_punctuation=keep_punctuation)
    if json:
        output.print_json(asdict(found))
        return
    lines = [["probability", "cumulative", "tokens", "word"]]
    for word in found.words:
        probability, cumulative = f"{word.probability:.4f}", f"{word.cumulative:.4f}"
        shown = output.one_line(word.text)
        lines.append([probability, cumulative, str(word.n_tokens), shown])
    output.result("\n".join(output.table(lines, right=range(3))))
    output.note(
        f"entropy over words: {found.entropy_at_least:.2f} bits or more, at most "
        f"{found.entropy_at_most:.2f} if no word has more than {found.longest} tokens"
    )
    if not found.complete:
        output.warn("other words may be as likely as the last ones; a higher --most finds them")
