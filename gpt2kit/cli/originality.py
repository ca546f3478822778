"""originality: how much of a text is copied from a corpus, and which passages."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from gpt2kit.cli import options, output
from gpt2kit.cli.options import TEXT_GROUP, Encoding, Json

if TYPE_CHECKING:
    from gpt2kit.evaluation.originality import TextPassage

_SHOWN = 10  # passages
_WIDEST = 300  # characters of each


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command("originality")(originality)


def originality(
    context: typer.Context,
    file: Annotated[
        str, typer.Argument(metavar="FILE|-", help="The text to examine; - is standard input.")
    ],
    corpus: Annotated[
        str,
        typer.Option(
            "--corpus",
            metavar="FILE",
            help="The text it may be copied from: a .txt or .jsonl file, a folder or a glob.",
            rich_help_panel=TEXT_GROUP,
        ),
    ],
    min_run: Annotated[
        int,
        typer.Option(
            "--min_run",
            min=1,
            help="Passages of this many equal words or more count as copied.",
            rich_help_panel=TEXT_GROUP,
        ),
    ] = 5,
    as_list: Annotated[
        bool,
        typer.Option(
            "--list",
            help="Compare line by line, for lists such as names: new, or already in the corpus.",
            rich_help_panel=TEXT_GROUP,
        ),
    ] = False,
    encoding: Encoding = "utf-8",
    json: Json = False,
) -> None:
    """Show how much of a text is copied from a corpus, and which passages.

    White space, punctuation and case are ignored. For comparison, the same figures are shown for
    the last tenth of the corpus, compared with the rest of it.
    """
    from gpt2kit.data.texts import read_texts

    if as_list:
        options.refuse(context, ("min_run",), "--list compares whole lines")
    there = read_texts(corpus, encoding=encoding).documents
    if file == "-":
        text = options.read_stdin(encoding)
    else:
        text = "\n".join(read_texts(file, encoding=encoding).documents)
    if as_list:
        _compare_lists(text, there, json)
    else:
        _compare_texts(text, there, min_run, json)


def _compare_texts(text: str, corpus: Sequence[str], min_run: int, json: bool) -> None:
    from gpt2kit.evaluation.originality import baseline, measure_text

    found, usual = measure_text(text, corpus, min_run=min_run), baseline(corpus, min_run=min_run)
    if json:
        held_out = {
            "baseline_copied": usual and usual.copied,
            "baseline_longest": usual and usual.longest,
        }
        output.print_json({"words": found.length, **asdict(found), **held_out})
        return
    share, longest = (f"{usual.copied:.1%}", f"{usual.longest:,}") if usual else ("", "")
    output.result(f"{'words':<16}{found.length:>8,}")
    output.result(
        f"{'copied':<16}{found.copied:>8.1%}  in runs of {min_run} words or more{_beside(share)}"
    )
    output.result(f"{'longest run':<16}{found.longest:>8,}  words{_beside(longest)}")
    for passage in found.passages[:_SHOWN]:
        _print_passage(passage, len(corpus))
    if len(found.passages) > _SHOWN:
        output.note()
        output.note(f"{len(found.passages) - _SHOWN:,} more; --json lists them all")


def _print_passage(passage: TextPassage, n_documents: int) -> None:
    """Print where in the corpus a copied passage stands, and its beginning."""
    document = f" of document {passage.document + 1:,}" if n_documents > 1 else ""
    also = f", {passage.occurrences} times" if passage.occurrences > 1 else ""
    output.result(f"\n{passage.length} words, line {passage.line:,}{document}{also}")
    output.result(f"  {textwrap.shorten(passage.text, _WIDEST, placeholder=' …')}")


def _beside(figure: str) -> str:
    return f" (the end of the corpus, compared with the rest: {figure})" if figure else ""


def _compare_lists(text: str, corpus: Sequence[str], json: bool) -> None:
    from gpt2kit.evaluation.originality import measure_list

    lines = (line for document in corpus for line in document.split("\n"))
    found = measure_list(text.split("\n"), lines)
    if json:
        output.print_json({**asdict(found), "share_new": found.share_new})
        return
    for what, entries in (("new", found.new), ("known", found.known)):
        for entry in entries:
            output.result(f"{what:<7}{entry}")
    output.note(
        f"{found.share_new:.1%} new: {len(found.new):,} new, {len(found.known):,} in the corpus, "
        f"{found.repeated:,} repeated"
    )
