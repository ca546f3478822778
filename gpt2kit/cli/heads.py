"""heads: what kind of head each attention head is, by its attention to random tokens or a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from gpt2kit.cli import files, options, output, process
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
    from gpt2kit.inspection import HeadScores

Column = Literal[
    "head",
    "previous",
    "duplicate",
    "induction",
    "previous_share",
    "duplicate_share",
    "induction_share",
    "copying",
]
Text = Annotated[
    str | None,
    typer.Option(
        "--text",
        metavar="TEXT|-",
        help="Measure the shares on this text, and not on the random tokens; - is standard input.",
        show_default=False,
        rich_help_panel=TEXT_GROUP,
    ),
]
First = Annotated[Literal["bos", "none"], options.first_option("the random tokens and the text")]
Length = Annotated[
    int | None,
    typer.Option(
        "--length",
        min=2,
        help="Random tokens of a sequence, which then come once more. Default: 50, or what fits "
        "twice into the model's window.",
        show_default=False,
        rich_help_panel=TEXT_GROUP,
    ),
]
Sequences = Annotated[
    int,
    typer.Option(
        "--sequences", min=1, help="Sequences of random tokens.", rich_help_panel=TEXT_GROUP
    ),
]
Seed = Annotated[
    int,
    typer.Option("--seed", min=0, help="Of the random tokens.", rich_help_panel=TEXT_GROUP),
]
Sort = Annotated[
    Column,
    typer.Option(
        "--sort", help="List the heads by this, the largest first.", rich_help_panel=OUTPUT_GROUP
    ),
]
Top = Annotated[
    int,
    typer.Option("--top", min=0, help="Heads to list; 0 lists all.", rich_help_panel=OUTPUT_GROUP),
]
Out = Annotated[Path | None, files.out_option("the scores of all heads")]
Picture = Annotated[Path | None, files.picture_option("the scores of all heads")]


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command("heads")(heads)


def heads(
    model: ModelArgument,
    length: Length = None,
    sequences: Sequences = 10,
    seed: Seed = 0,
    text: Text = None,
    first: First = "none",
    special: Special = False,
    unknown: Unknown = "error",
    device: Device = "auto",
    dtype: Dtype = "auto",
    sort: Sort = "head",
    top: Top = 0,
    out: Out = None,
    picture: Picture = None,
    json: Json = False,
) -> None:
    """Show which heads attend to the previous token, to duplicates, or by induction, and copy.

    Random tokens are read twice in a row. previous, duplicate and induction are the mean attention
    weights from there to the token before, to the same token in the first copy, and to the one
    after that. The shares are the parts of all attention that go to such tokens, as
    TransformerLens's detect_head computes them. copying, from -1 to 1, is the sum of the
    eigenvalues of the head's OV circuit over the sum of their absolute values.
    """
    files.check_written(out, picture)
    process.import_torch()
    from gpt2kit.inspection import head_scores, random_tokens
    from gpt2kit.tokenizers import require_tokenizer

    typed = None if text is None else options.read_text(text)
    gpt2, found_tokenizer = options.load(model, device, dtype)
    tokenizer = require_tokenizer(found_tokenizer, model)
    options.set_unknown(tokenizer, unknown)
    tokens = random_tokens(
        gpt2, tokenizer, length=length, sequences=sequences, seed=seed, first=first
    )
    scores = head_scores(
        gpt2,
        tokens,
        text=None if typed is None else [*tokens.first, *tokenizer.encode(typed, special=special)],
    )
    shown = sorted(scores, key=lambda each: _key(each, sort))[: top or None]
    if json:
        for each in shown:
            output.print_json(asdict(each))
    else:
        for line in output.table(_rows(shown), right=range(1, 8)):
            output.result(line)
    output.note(
        f"{output.count(sequences, 'sequence')} of {tokens.length} random tokens and their "
        f"repetition, seed {seed}",
        dim=True,
    )
    if out is not None:
        how = {"length": tokens.length, "sequences": sequences, "seed": seed}
        files.write_rows(out, [asdict(each) | how for each in scores])
    if picture is not None:
        from gpt2kit import plots

        files.save_picture(plots.head_kinds(scores), picture)


def _key(scores: HeadScores, column: Column) -> tuple[float, int, int]:
    """Return what a head is sorted by; one without the score comes last."""
    value = 0.0 if column == "head" else getattr(scores, column)
    return 2.0 if value is None else -value, scores.layer, scores.head


def _rows(scores: Sequence[HeadScores]) -> list[list[str]]:
    """Return the lines of the table, the first with the names of the columns."""
    names = get_args(Column)[1:]
    return [
        ["head", *names],
        *(
            [
                each.name,
                *(
                    "" if (value := getattr(each, name)) is None else f"{value:.3f}"
                    for name in names
                ),
            ]
            for each in scores
        ),
    ]
