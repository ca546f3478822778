"""Options that several commands share, each with its one help text, and what they mean."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

# Until every file of this folder takes these from `output`:
from gpt2kit.cli.output import as_typed_here as as_typed_here
from gpt2kit.cli.output import human_size as human_size
from gpt2kit.cli.output import print_json as print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpt2kit.checkpoints.load import Checkpoint
    from gpt2kit.data.texts import Text
    from gpt2kit.model import GPT2
    from gpt2kit.tokenizers import Tokenizer

MODEL_HELP = "A size (124M, 355M, 774M, 1558M, distilgpt2), a folder, a checkpoint, or a Hub id."

Model = Annotated[str, typer.Option("--model", metavar="MODEL", help=MODEL_HELP)]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps, …")]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype", help="float32, bfloat16, float16, float64, or auto: float32, on CUDA bfloat16."
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        "--quantize",
        help="int8: matrices in eight bits, smaller and faster on a CPU.",
        show_default=False,
    ),
]
NoVerify = Annotated[
    bool,
    typer.Option("--no_verify", help="Do not compare downloaded files with their recorded hashes."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
Force = Annotated[
    bool, typer.Option("--force", help="Replace what is there, once the new one is whole.")
]
Special = Annotated[
    bool,
    typer.Option(
        "--special", help="Read <|endoftext|> in the text as the marker instead of as plain text."
    ),
]
Unknown = Annotated[
    Literal["error", "skip"],
    typer.Option(
        "--unknown", help="What a model of characters or words does with those it does not know."
    ),
]
Corpus = Annotated[
    str | None,
    typer.Option(
        "--corpus",
        metavar="FILE",
        help="A .txt or .jsonl file, a folder or glob, or ids (.npy, .bin).",
        show_default=False,
    ),
]
Encoding = Annotated[str, typer.Option("--encoding", help="Of the text.")]
TextField = Annotated[
    str, typer.Option("--text_field", help="Where in each object of a .jsonl file the text is.")
]
Stride = Annotated[
    int | None,
    typer.Option(
        "--stride",
        min=1,
        help="Windows of n_ctx tokens begin so many tokens apart, and each scores what is new in it: half of n_ctx unless given; "
        "n_ctx gives the classic figure.",
        show_default=False,
    ),
]
WindowsAtOnce = Annotated[
    int, typer.Option("--batch_size", min=1, help="Texts or windows to read at once.")
]


def refuse(context: typer.Context, names: Sequence[str], because: str) -> None:
    """Raise for those of these options that were given, also with their default value: here they would have no effect."""
    given = [
        f"--{name}"
        for name in names
        if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"
    ]
    if given:
        raise typer.BadParameter(
            f"{', '.join(given)} {'has' if len(given) == 1 else 'have'} no effect here: {because}"
        )


def read_corpus(corpus: str, encoding: str, text_field: str) -> Text | Path:
    """Return the texts that --corpus names, or the path of a file of ids."""
    from gpt2kit.data.texts import read_texts

    path = Path(corpus)
    return (
        path
        if path.suffix in (".npy", ".bin")
        else read_texts(corpus, encoding=encoding, text_field=text_field)
    )


def load(
    model: str, device: str, dtype: str, quantize: str | None = None, *, verify: bool = True
) -> tuple[GPT2, Tokenizer | None]:
    """Load a model, which is downloaded first if need be and can be; a wrong device or dtype is refused before that."""
    from gpt2kit import memory
    from gpt2kit.checkpoints.load import load, pick_numbers

    pick_numbers(device, dtype, quantize)
    loaded = load(locate(model), device=device, dtype=dtype, quantize=quantize, verify=verify)
    memory.release()
    return loaded


def locate(model: str) -> Path:
    """Return where a model is; one that can be downloaded and is not here yet is downloaded first, saying so."""
    from gpt2kit import store
    from gpt2kit.errors import CheckpointNotFoundError
    from gpt2kit.store.catalogue import canonical_size

    try:
        return store.find(model)
    except CheckpointNotFoundError:
        if canonical_size(model) is None:
            raise
        from gpt2kit.cli.progress import download_with_bars

        typer.secho(f"{model} is not on this machine yet: downloading it", err=True)
        return download_with_bars(model)


def open_model(model: str, *, verify: bool = True) -> Checkpoint:
    """Open the checkpoint of a model that must be on this machine."""
    from gpt2kit import store
    from gpt2kit.checkpoints.load import open_checkpoint

    return open_checkpoint(store.find(model), verify=verify)


def set_unknown(tokenizer: Tokenizer | None, unknown: Literal["error", "skip"]) -> None:
    """Let a tokenizer with a closed vocabulary do with unknown pieces what --unknown says; the others know every text."""
    from gpt2kit.tokenizers.listed import ListedTokenizer

    if isinstance(tokenizer, ListedTokenizer):
        tokenizer.unknown = unknown


def read_stdin(encoding: str | None = None) -> str:
    """Return standard input as text, without the newline that `echo` ends it with.

    With an `encoding` a byte that is not of it is a CorpusError, as in a file; without one it is U+FFFD, as a terminal would show it.
    """
    from gpt2kit.data.texts import decode

    data = sys.stdin.buffer.read()
    text = (
        decode(data, Path("standard input"), encoding)
        if encoding
        else data.decode("utf-8", errors="replace")
    )
    return text.removeprefix("\ufeff").removesuffix("\n").removesuffix("\r")


def as_typed(text: str | None) -> str | None:
    """Return an argument as UTF-8, which it is on every terminal of today whatever the locale claims."""
    return (
        None
        if text is None
        else os.fsencode(text).decode("utf-8", errors="replace")
        if _has_escapes(text)
        else text
    )


def _has_escapes(text: str) -> bool:
    return any(
        "\udc80" <= character <= "\udcff" for character in text
    )  # how Python hands on bytes that the locale cannot read
