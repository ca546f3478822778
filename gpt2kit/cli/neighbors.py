"""neighbors: the tokens whose embeddings are most similar to that of a word or a sum of words."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from gpt2kit.cli import options, output
from gpt2kit.cli.color import visible
from gpt2kit.cli.options import OUTPUT_GROUP, TEXT_GROUP, Json, Model, NoVerify

if TYPE_CHECKING:
    from torch import Tensor

    from gpt2kit.inspection.neighbors import Term
    from gpt2kit.tokenizers import Tokenizer

_WORD = "\0"  # before an argument that is no option; the system's arguments never have this


class _SignedWords(TyperCommand):
    """A command in whose arguments -man is a word to subtract, and no option."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Mark the words that begin with a dash, then parse as ever."""
        marked, previous = [], ""
        for index, argument in enumerate(args):
            if argument == "--":
                marked += args[index:]
                break
            is_value = previous in self._options_with_value(ctx)
            is_word = argument.startswith("-") and argument[1:2] != "-" and argument != "-h"
            marked.append(f"{_WORD}{argument}" if is_word and not is_value else argument)
            previous = "" if is_value else self._as_declared(ctx, argument)
        return super().parse_args(ctx, marked)

    def _as_declared(self, ctx: Any, argument: str) -> str:
        """Return an option's name as it is declared: --no-verify is --no_verify."""
        name = argument.removeprefix("--")
        return f"--{ctx.token_normalize_func(name) if ctx.token_normalize_func else name}"

    def _options_with_value(self, ctx: Any) -> set[str]:
        """Return the options that take the next argument."""
        parameters: list[Any] = [*self.get_params(ctx)]
        return {
            name
            for parameter in parameters
            if parameter.param_type_name == "option" and not parameter.is_flag
            for name in parameter.opts
        }


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command("neighbors", cls=_SignedWords)(neighbors)


def neighbors(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="WORD",
            help="A word; words to add or subtract: king -man +woman; or several to compare: king "
            "queen. After -- a word may be -h.",
        ),
    ],
    model: Model = "124M",
    space: Annotated[
        bool | None,
        typer.Option(
            "--space/--no_space",
            help="Take the words as they are after a space, or without one. Default: the form with "
            "fewer tokens; of two equal ones, after a space.",
            show_default=False,
            rich_help_panel=TEXT_GROUP,
        ),
    ] = None,
    top: Annotated[
        int,
        typer.Option("--top", min=1, help="Neighbors to show.", rich_help_panel=OUTPUT_GROUP),
    ] = 10,
    no_verify: NoVerify = False,
    json: Json = False,
) -> None:
    """Show the tokens whose embeddings are most similar to a word's.

    Similarity is the cosine of the angle between two embeddings, from -1 to 1. A word of several
    tokens is the average of their embeddings. With + and - words are added and subtracted, each at
    length 1, and the nearest tokens to the sum are shown. The words themselves are left out.
    Several words without signs are compared instead: the similarity of each pair is shown.
    """
    from gpt2kit.checkpoints.load import load_vocabulary, open_checkpoint, read_checked
    from gpt2kit.inspection.neighbors import find_term
    from gpt2kit.tokenizers import require_tokenizer

    signed = [_signed(options.as_typed(word) or "") for word in words]
    checkpoint = open_checkpoint(options.locate(model), verify=not no_verify)
    tokenizer = require_tokenizer(load_vocabulary(checkpoint), model)
    terms = [find_term(word, tokenizer, space=space, sign=sign or 1) for word, sign in signed]
    embeddings = read_checked(checkpoint, "wte.weight")[: tokenizer.n_vocab]  # (V, C), no padding
    if not json:
        _note_terms(terms, tokenizer)
    if len(terms) > 1 and not any(sign for _, sign in signed):
        _show_pairs(terms, embeddings, json=json)
    else:
        _show_nearest(terms, embeddings, tokenizer, top, json=json)


def _signed(argument: str) -> tuple[str, int | None]:
    """Return the word of an argument, and 1 or -1 if it has a sign; a sign alone is a word."""
    text = argument.removeprefix(_WORD)
    if len(text) > 1 and text[0] in "+-":
        return text[1:], 1 if text[0] == "+" else -1
    return text, None


def _note_terms(terms: Sequence[Term], tokenizer: Tokenizer) -> None:
    """Say which tokens were taken for the words."""
    for term in terms:
        pieces = " ".join(visible(tokenizer.token_bytes(token)) for token in term.ids)
        taken = f"token {term.ids[0]}"
        if len(term.ids) > 1:
            taken = f"the average of {len(term.ids)} tokens: {pieces}"
        sign = "minus " if term.sign < 0 else ""
        output.note(f"{sign}{visible(term.text.encode())}: {taken}", dim=True)


def _show_pairs(terms: Sequence[Term], embeddings: Tensor, *, json: bool) -> None:
    from gpt2kit.inspection.neighbors import embedding_of, similarity

    rows = []
    for first, second in itertools.combinations(terms, 2):
        found = similarity(embedding_of(first, embeddings), embedding_of(second, embeddings))
        if json:
            output.print_json({"first": first.text, "second": second.text, "similarity": found})
        rows.append((f"{found:.4f}", visible(first.text.encode()), visible(second.text.encode())))
    if not json:
        for line in output.table(rows, right=(0,)):
            output.result(line)


def _show_nearest(
    terms: Sequence[Term], embeddings: Tensor, tokenizer: Tokenizer, top: int, *, json: bool
) -> None:
    from gpt2kit.inspection.neighbors import combine, nearest, own_tokens

    found = nearest(
        combine(terms, embeddings),
        embeddings,
        top=top,
        without=own_tokens(terms, tokenizer),
    )
    if json:
        output.print_json(
            {"words": [{"text": term.text, "sign": term.sign, "ids": term.ids} for term in terms]}
        )
        for each in found:
            piece = tokenizer.token_bytes(each.token).decode("utf-8", errors="replace")
            output.print_json({"id": each.token, "token": piece, "similarity": each.similarity})
        return
    rows = [
        (f"{each.similarity:.4f}", each.token, visible(tokenizer.token_bytes(each.token)))
        for each in found
    ]
    for line in output.table(rows, right=(0, 1)):
        output.result(line)
