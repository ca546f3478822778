"""originality."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from gpt2kit.cli import options
from gpt2kit.cli.options import Json

if TYPE_CHECKING:
    from collections.abc import Sequence

_SHOWN = 10  # passages
_WIDEST = 300  # characters of each


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command("originality")(originality)


def originality(
    context: typer.Context,
    file: Annotated[
        str, typer.Argument(metavar="FILE|-", help="The text to look at; - is standard input.")
    ],
    corpus: Annotated[
        str,
        typer.Option(
            "--corpus",
            metavar="FILE",
            help="What it may be copied from: a .txt, .jsonl, folder or glob.",
        ),
    ],
    min_run: Annotated[
        int, typer.Option("--min_run", min=1, help="Words in a row that count as copied.")
    ] = 5,
    as_list: Annotated[
        bool,
        typer.Option(
            "--list", help="Compare line by line, for lists such as names: new or already there."
        ),
    ] = False,
    encoding: Annotated[str, typer.Option("--encoding", help="Of both texts.")] = "utf-8",
    json: Json = False,
) -> None:
    """Show how much of a text is copied from a corpus: the passages in both, whatever the white space, punctuation and case.

    For comparison, the same for the last tenth of the corpus beside the rest of it.
    """
    from gpt2kit.data.texts import read_texts

    if as_list:
        options.refuse(context, ("min_run",), "--list compares whole lines")
    there = read_texts(corpus, encoding=encoding).documents
    text = (
        options.read_stdin(encoding)
        if file == "-"
        else "\n".join(read_texts(file, encoding=encoding).documents)
    )
    if as_list:
        _compare_lists(text, there, json)
    else:
        _compare_texts(text, there, min_run, json)


def _compare_texts(text: str, corpus: Sequence[str], min_run: int, json: bool) -> None:
    from dataclasses import asdict

    from gpt2kit.evaluation.originality import baseline, measure_text

    found, usual = measure_text(text, corpus, min_run=min_run), baseline(corpus, min_run=min_run)
    if json:
        held_out = {
            "baseline_copied": usual and usual.copied,
            "baseline_longest": usual and usual.longest,
        }
        options.print_json({"words": found.length, **asdict(found), **held_out})
        return
    share, longest = (f"{usual.copied:.1%}", f"{usual.longest:,}") if usual else ("", "")
    typer.echo(f"{'words':<16}{found.length:>8,}")
    typer.echo(
        f"{'copied':<16}{found.copied:>8.1%}  in runs of {min_run} words or more{_beside(share)}"
    )
    typer.echo(f"{'longest run':<16}{found.longest:>8,}  words{_beside(longest)}")
    for passage in found.passages[:_SHOWN]:
        place = f"line {passage.line:,}" + (
            f" of document {passage.document + 1:,}" if len(corpus) > 1 else ""
        )
        also = f", {passage.occurrences} times" if passage.occurrences > 1 else ""
        typer.echo(
            f"\n{passage.length} words, {place}{also}\n  {textwrap.shorten(passage.text, _WIDEST, placeholder=' …')}"
        )
    if len(found.passages) > _SHOWN:
        typer.echo(f"\n{len(found.passages) - _SHOWN:,} more; --json lists them all", err=True)


def _beside(figure: str) -> str:
    return f" (the end of the corpus, beside the rest of it: {figure})" if figure else ""


def _compare_lists(text: str, corpus: Sequence[str], json: bool) -> None:
    from dataclasses import asdict

    from gpt2kit.evaluation.originality import measure_list

    found = measure_list(
        text.split("\n"), (line for document in corpus for line in document.split("\n"))
    )
    if json:
        options.print_json({**asdict(found), "share_new": found.share_new})
        return
    for what, entries in (("new", found.new), ("there", found.known)):
        for entry in entries:
            typer.echo(f"{what:<7}{entry}")
    typer.secho(
        f"{found.share_new:.1%} new: {len(found.new):,} new, {len(found.known):,} already there, {found.repeated:,} repeated",
        err=True,
    )
