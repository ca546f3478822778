"""What generate and replay are given: prompts and lines of files, bans and biases, in batches."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gpt2kit.cli import options
from gpt2kit.generation.request import Request

if TYPE_CHECKING:
    from gpt2kit.tokenizers import Tokenizer


def read_prompts(prompt: str | None, prompts_file: Path | None) -> list[str]:
    """Return the prompts: one that was typed, standard input, or the lines of a file."""
    if prompts_file is None:
        return [options.read_stdin() if prompt is None or prompt == "-" else prompt]
    if prompt is not None:
        raise typer.BadParameter("give a prompt or --prompts_file, not both")
    from gpt2kit.errors import Gpt2KitError

    lines = [line for line in _text_of(prompts_file).split("\n") if line.strip()]
    if not lines:
        raise Gpt2KitError(f"{prompts_file}: no prompts; expected one on each line")
    return [line.removesuffix("\r") for line in lines]


def check_standard_input(prompt: str | None, **files: Path | None) -> None:
    """Raise typer.BadParameter if standard input is read for two things: a prompt and `files`."""
    readers = [f"--{name}" for name, file in files.items() if str(file) == "-"]
    if prompt == "-" or (prompt is None and files.get("prompts_file") is None):
        readers.insert(0, "the prompt")
    if len(readers) > 1:
        raise typer.BadParameter(f"standard input is read once, not for {' and '.join(readers)}")


def read_lines(file: Path) -> tuple[str, ...]:
    """Return the lines of a file that are not empty."""
    from gpt2kit.errors import Gpt2KitError

    lines = [line.removesuffix("\r") for line in _text_of(file).split("\n")]
    if not any(lines):
        raise Gpt2KitError(f"{file}: no lines; expected one at least that is not empty")
    return tuple(lines)


def _text_of(file: Path) -> str:
    """Return the text of a UTF-8 file, or of standard input for -."""
    from gpt2kit.errors import Gpt2KitError

    if str(file) == "-":
        return options.read_stdin()
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Gpt2KitError(
            f"{file}: not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}"
        ) from error


def batches(
    prompts: Sequence[str], request: Request, batch_size: int
) -> Iterator[tuple[Sequence[str], Request]]:
    """Split the work so that at most batch_size texts are written at once.

    A batch has whole prompts with all their samples, or some of the samples of one prompt.
    """
    n = request.num_samples
    if n <= batch_size:
        at_once = batch_size // n
        for start in range(0, len(prompts), at_once):
            yield prompts[start : start + at_once], request
        return
    for prompt in prompts:
        for first in range(0, n, batch_size):
            n_here = min(batch_size, n - first)
            yield [prompt], dataclasses.replace(request, first_sample=first, num_samples=n_here)


# --- bias -----------------------------------------------------------------------------------------


def read_bias(typed: Sequence[str], tokenizer: Tokenizer | None) -> list[tuple[int, float]]:
    """Return the pairs of id and value that were typed as ID:VALUE or TEXT:VALUE."""
    from gpt2kit.tokenizers import require_tokenizer

    tokenizer = require_tokenizer(tokenizer, "the model")
    pairs = []
    for each in typed:
        token, _, value = each.rpartition(":")
        try:
            number = float(value)
        except ValueError:
            raise typer.BadParameter(
                f"--bias {each!r} has no number at its end; expected ID:VALUE or TEXT:VALUE, as in "
                "--bias ' the:-5'"
            ) from None
        pairs.append((_one_token(token, tokenizer), number))
    return pairs


def _one_token(typed: str, tokenizer: Tokenizer) -> int:
    """Return the token that was typed as its id or as its text."""
    if typed.isascii() and typed.isdigit():
        return int(typed)
    ids = tokenizer.encode(typed, special=True)
    if len(ids) != 1:
        listed = ", ".join(f"{token} {tokenizer.decode([token])!r}" for token in ids)
        raise typer.BadParameter(
            f"--bias takes one token, and the text {typed!r} has {len(ids)}"
            + (f": {listed}" if ids else "")
            + _with_space(typed, tokenizer)
        )
    return ids[0]


def _with_space(typed: str, tokenizer: Tokenizer) -> str:
    """Return the end of an error: with a space before it, the text may be one token."""
    from gpt2kit.errors import TokenizerError

    with contextlib.suppress(TokenizerError):
        if not typed.startswith(" ") and len(ids := tokenizer.encode(f" {typed}")) == 1:
            return f"; {' ' + typed!r}, the word with the space before it, is one token, {ids[0]}"
    return ""


def read_bans(typed: Sequence[str]) -> tuple[str, ...]:
    """Return the texts that were typed, with the lines of a file in place of @FILE."""
    from gpt2kit.errors import Gpt2KitError

    texts: list[str] = []
    for each in typed:
        if not each.startswith("@") or each == "@":
            texts.append(each)
            continue
        file = Path(each[1:])
        lines = [line.removesuffix("\r") for line in _text_of(file).split("\n")]
        if not any(lines):
            raise Gpt2KitError(f"{file}: no texts to ban; expected one on each line")
        texts += [line for line in lines if line]
    return tuple(texts)
