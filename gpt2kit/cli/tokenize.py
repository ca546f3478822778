"""tokenize: the tokens of a text, as ids and pieces."""

from __future__ import annotations

from typing import Annotated

import typer

from gpt2kit.cli import options, output
from gpt2kit.cli.options import Json, Model, Special, Unknown


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command("tokenize")(tokenize)


def tokenize(
    text: Annotated[str, typer.Argument(metavar="TEXT|-", help="The text; - is standard input.")],
    model: Model = "124M",
    special: Special = False,
    unknown: Unknown = "error",
    json: Json = False,
) -> None:
    """Show the tokens of a text: ids and pieces."""
    from gpt2kit.tokenizers import load_tokenizer, require_tokenizer

    text = options.read_text(text)
    path = options.locate(model)
    tokenizer = load_tokenizer(path if path.is_dir() else path.parent)
    if tokenizer is None:  # weights alone, whose program has a vocabulary elsewhere
        from gpt2kit.checkpoints.load import load_vocabulary

        tokenizer = load_vocabulary(options.open_model(model), fetch=options.fetch_vocabulary)
    tokenizer = require_tokenizer(tokenizer, model)
    options.set_unknown(tokenizer, unknown)
    ids = tokenizer.encode(text, special=special)
    pieces = {token: tokenizer.token_bytes(token) for token in set(ids)}
    if json:
        shown = [pieces[token].decode("utf-8", errors="replace") for token in ids]
        output.print_json({"text": text, "ids": ids, "pieces": shown})
        return
    lines = {token: f"{token:>7}  {_readable(piece)}\n" for token, piece in pieces.items()}
    output.result("".join(lines[token] for token in ids), end="")
    per_token = f", {len(text) / len(ids):.2f} characters per token" if ids else ""
    output.note(f"{len(ids):,} tokens, {len(text):,} characters{per_token}", dim=True)


def _readable(piece: bytes) -> str:
    """Return a token as quoted text, or its bytes if it is not a whole number of characters."""
    try:
        return repr(piece.decode("utf-8"))
    except UnicodeDecodeError:
        return repr(piece)
