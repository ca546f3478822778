"""synthetic: texts made by a rule, for small models whose insides can be understood."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from gpt2kit.cli import output
from gpt2kit.cli.options import OUTPUT_GROUP


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command("synthetic")(synthetic)


def synthetic(
    kind: Annotated[
        Literal["repeats", "brackets"],
        typer.Argument(
            help="repeats: lines of random letters that come twice, for --recipe induction. "
            "brackets: lines of brackets, each closed by its own kind, for --recipe brackets.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="FILE", help="The file to write.", rich_help_panel=OUTPUT_GROUP
        ),
    ],
    characters: Annotated[
        int,
        typer.Option("--characters", min=1, help="Its length, up to the end of the last line."),
    ] = 2_000_000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the random choices.")] = 0,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace a file that is there.", rich_help_panel=OUTPUT_GROUP),
    ] = False,
) -> None:
    """Write a text made by a rule, to train a small model whose insides can be understood."""
    from gpt2kit.data.synthetic import synthetic as lines
    from gpt2kit.errors import ConfigError
    from gpt2kit.files import write_whole

    if out.exists() and not force:
        raise ConfigError(f"{out} is there already; name another file, or give --force")
    text = "".join(lines(kind, characters, seed))
    write_whole(out, text)
    output.note(f"wrote {output.count(text.count(chr(10)), 'line')}, seed {seed}, to ", out)
