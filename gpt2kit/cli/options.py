"""Options that several commands share, each with its one help text, and what they mean."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gpt2kit.checkpoints.unsaid import Unsaid
from gpt2kit.cli import output, process

# Until every file of this folder takes these from `output`:
from gpt2kit.cli.output import as_typed_here as as_typed_here
from gpt2kit.cli.output import human_size as human_size
from gpt2kit.cli.output import print_json as print_json
from gpt2kit.errors import ConfigError
from gpt2kit.fields import check, option, same_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpt2kit.checkpoints.load import Checkpoint
    from gpt2kit.data.texts import Text
    from gpt2kit.model import GPT2
    from gpt2kit.tokenizers import Tokenizer

# The headings under which the help lists the options; "Options" has what fits under none of them.
MODEL_GROUP, TEXT_GROUP, SPEED_GROUP, OUTPUT_GROUP = "Model", "Text", "Speed", "Output"

MODEL_HELP = "A size (124M, 355M, 774M, 1558M, distilgpt2), a folder, a checkpoint, or a Hub id."
_DEVICE_HELP = "auto, cpu, cuda, cuda:1, mps, …"
_DTYPE_HELP = "float32, bfloat16, float16, float64, or auto: bfloat16 on CUDA, else float32."
_QUANTIZE_HELP = "Hold matrices in eight bits: smaller, and faster on a CPU."
_NO_VERIFY_HELP = "Do not compare downloaded files with their recorded hashes."
_NO_CACHE_HELP = "Write nothing for later starts: no int8 weights, no record of verified files."
VOCABULARY_HELP = (
    "Take the vocabulary from this model or file: vocab.json, nanoGPT's meta.pkl, or the text that "
    "a model of characters was trained on."
)
_UNKNOWN_HELP = "What to do with a character or word that the model's vocabulary does not have."
_ENCODING_HELP = "The encoding of the text, such as utf-8, cp1252 or utf-16."

Model = Annotated[
    str, typer.Option("--model", metavar="MODEL", help=MODEL_HELP, rich_help_panel=MODEL_GROUP)
]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Device = Annotated[
    str, typer.Option("--device", help=_DEVICE_HELP, rich_help_panel=MODEL_GROUP, metavar="DEVICE")
]
Dtype = Annotated[
    str, typer.Option("--dtype", help=_DTYPE_HELP, rich_help_panel=MODEL_GROUP, metavar="DTYPE")
]
Quantize = Annotated[
    str | None,
    typer.Option(
        "--quantize",
        metavar="int8",
        help=_QUANTIZE_HELP,
        show_default=False,
        rich_help_panel=MODEL_GROUP,
    ),
]
NoVerify = Annotated[
    bool,
    typer.Option(
        "--no_verify",
        help=_NO_VERIFY_HELP,
        rich_help_panel=MODEL_GROUP,
    ),
]
NoCache = Annotated[
    bool,
    typer.Option(
        "--no_cache",
        help=_NO_CACHE_HELP,
        rich_help_panel=MODEL_GROUP,
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object per line.", rich_help_panel=OUTPUT_GROUP),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Replace an existing folder, once the new one is complete.",
        rich_help_panel=OUTPUT_GROUP,
    ),
]
Special = Annotated[
    bool,
    typer.Option(
        "--special",
        help="Read <|endoftext|> in the text as the end marker, not as plain characters.",
        rich_help_panel=TEXT_GROUP,
    ),
]
Unknown = Annotated[
    Literal["error", "skip"],
    typer.Option("--unknown", help=_UNKNOWN_HELP, rich_help_panel=TEXT_GROUP),
]
Corpus = Annotated[
    str | None,
    typer.Option(
        "--corpus",
        metavar="FILE",
        help="A .txt or .jsonl file, a folder or glob of them, or token ids (.npy, .bin).",
        show_default=False,
        rich_help_panel=TEXT_GROUP,
    ),
]
Encoding = Annotated[
    str,
    typer.Option("--encoding", metavar="NAME", help=_ENCODING_HELP, rich_help_panel=TEXT_GROUP),
]
BatchSize = Annotated[
    int,
    typer.Option(
        "--batch_size",
        min=1,
        help="Texts or windows in a batch; short ones share larger batches.",
        rich_help_panel=SPEED_GROUP,
    ),
]


def first_option(what: str) -> Any:
    """Return the option --first of a command that reads `what`."""
    return typer.Option(
        "--first",
        help=f"What stands before {what}: bos is <|endoftext|>, which TransformerLens puts there.",
        rich_help_panel=TEXT_GROUP,
    )


@dataclass(frozen=True, kw_only=True)
class CorpusOptions:
    """How the text of --corpus is read, and how models read it."""

    encoding: str = option("utf-8", _ENCODING_HELP, group=TEXT_GROUP, metavar="NAME")
    text_field: str = option(
        "text",
        "The key of the text in each object of a .jsonl file.",
        group=TEXT_GROUP,
        metavar="KEY",
    )
    unknown: Literal["error", "skip"] = option("error", _UNKNOWN_HELP, group=TEXT_GROUP)
    stride: int | None = option(
        None,
        "The text is read in windows of n_ctx tokens that start this many tokens apart; each "
        "scores the tokens that no earlier one has scored. Default: half of n_ctx. n_ctx itself "
        "is faster and gives a higher perplexity.",
        group=TEXT_GROUP,
        at_least=1,
    )
    device: str = option("auto", _DEVICE_HELP, group=MODEL_GROUP, metavar="DEVICE")
    dtype: str = option("auto", _DTYPE_HELP, group=MODEL_GROUP, metavar="DTYPE")
    batch_size: int = option(
        8, "Windows in a batch; short ones share larger batches.", group=SPEED_GROUP, at_least=1
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model to load, and how."""

    model: str = option("124M", MODEL_HELP, group=MODEL_GROUP, metavar="MODEL")
    device: str = option("auto", _DEVICE_HELP, group=MODEL_GROUP, metavar="DEVICE")
    dtype: str = option("auto", _DTYPE_HELP, group=MODEL_GROUP, metavar="DTYPE")
    quantize: str | None = option(None, _QUANTIZE_HELP, group=MODEL_GROUP, metavar="int8")
    vocabulary: str | None = option(None, VOCABULARY_HELP, group=MODEL_GROUP, metavar="FILE|MODEL")
    n_head: int | None = same_option(Unsaid, "n_head")
    adapter: str | None = option(
        None,
        "Write with the LoRA adapters of this run, or of this folder of PEFT, over the model that "
        "they were trained on, which --model may name.",
        group=MODEL_GROUP,
        metavar="RUN",
    )
    steer: tuple[str, ...] = option(
        (),
        "Add a vector to what the model computes: 'Love - Hate @6 *5' adds 5 times the difference "
        "of two prompts before layer 6, 'file:A - file:B @6 *4' that of two files' texts, "
        "'sae:FOLDER#123 *8' a feature of a sparse autoencoder. May be given several times.",
        group=MODEL_GROUP,
        metavar="WHAT",
    )
    unknown: Literal["error", "skip"] = option("error", _UNKNOWN_HELP, group=TEXT_GROUP)
    no_verify: bool = option(False, _NO_VERIFY_HELP, group=MODEL_GROUP)
    no_cache: bool = option(False, _NO_CACHE_HELP, group=MODEL_GROUP)

    def __post_init__(self) -> None:
        check(self)
        object.__setattr__(self, "steer", tuple(self.steer))  # a receipt has a list

    def load(self) -> tuple[GPT2, Tokenizer | None]:
        """Load the model, after downloading it if needed, and its tokenizer."""
        from gpt2kit.training.adapted import find_peft

        peft = find_peft(self.adapter) if self.adapter else None
        if self.adapter and not peft:
            return self._load_adapted(self.adapter)
        model, tokenizer = load(
            str(peft or self.model),
            self.device,
            self.dtype,
            self.quantize,
            verify=not self.no_verify,
            write_cache=not self.no_cache,
            vocabulary=self.vocabulary,
            n_head=self.n_head,
            base=self.model if peft else None,
        )
        set_unknown(tokenizer, self.unknown)
        return model, tokenizer

    def _load_adapted(self, adapter: str) -> tuple[GPT2, Tokenizer | None]:
        """Load the model, which is below the adapters, and merge them into it."""
        from gpt2kit.checkpoints.load import resolve_device_and_dtype
        from gpt2kit.training.adapted import find_stack, merge_all, require_adapters

        if self.quantize is not None:
            raise ConfigError("--adapter and --quantize are both given; gpt2kit merge RUN first")
        device, dtype = resolve_device_and_dtype(self.device, self.dtype, None)
        folders = find_stack(str(require_adapters(adapter))).folders
        model, tokenizer = replace(self, adapter=None, device="cpu", dtype="float32").load()
        merge_all(model, folders)
        return model.to(device=device, dtype=dtype), tokenizer


def is_typed(context: typer.Context, name: str) -> bool:
    """Whether an option was typed, be it with its default value."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse(context: typer.Context, names: Sequence[str], because: str) -> None:
    """Raise a usage error if one of these options was typed, because it would have no effect."""
    # A parameter ends in an underscore if its option is a word of Python's, such as --as.
    typed = [f"--{name.rstrip('_')}" for name in names if is_typed(context, name)]
    if typed:
        raise typer.BadParameter(
            f"{', '.join(typed)} {'has' if len(typed) == 1 else 'have'} no effect here: {because}"
        )


def under_adapters(context: typer.Context, source: ModelOptions) -> ModelOptions:
    """Return a source whose model is the one that its adapters, if any, name, unless one is typed.

    Adapters were trained on certain weights, and are refused over others.
    """
    from gpt2kit.checkpoints.peft.reading import base_of
    from gpt2kit.training.adapted import find_peft, find_stack, require_adapters

    if source.adapter is None or is_typed(context, "model"):
        return source
    if peft := find_peft(source.adapter):
        return replace(source, model=base_of(peft))
    return replace(source, model=find_stack(str(require_adapters(source.adapter))).base)


def read_corpus(corpus: str, how: CorpusOptions) -> Text | Path:
    """Return the texts that --corpus names, or the path of a file of token ids."""
    from gpt2kit.data.ids import ids_file
    from gpt2kit.data.texts import read_texts

    if (path := ids_file(corpus)) is not None:
        return path
    return read_texts(corpus, encoding=how.encoding, text_field=how.text_field)


def load(
    model: str,
    device: str,
    dtype: str,
    quantize: str | None = None,
    *,
    verify: bool = True,
    write_cache: bool = True,
    vocabulary: str | None = None,
    n_head: int | None = None,
    base: str | None = None,
) -> tuple[GPT2, Tokenizer | None]:
    """Load a model, after downloading it if needed; int8 weights that were written are noted.

    `base` is the model below PEFT's adapters, in place of the one that they name. A wrong device or
    dtype is refused before the download.
    """
    process.import_torch()
    from gpt2kit.checkpoints.load import load, resolve_device_and_dtype

    resolve_device_and_dtype(device, dtype, quantize)
    return load(
        locate(model),
        device=device,
        dtype=dtype,
        quantize=quantize,
        verify=verify,
        write_cache=write_cache,
        on_write=_note_written,
        vocabulary=vocabulary,
        n_head=n_head,
        fetch_vocabulary=fetch_vocabulary,
        base=locate(base) if base is not None else None,
    )


def fetch_vocabulary() -> Path:
    """Download GPT-2's vocabulary alone, with a note, and return its folder."""
    from gpt2kit.cli.progress import download_with_bars

    output.note("GPT-2's vocabulary is not on this machine yet: downloading it")
    return download_with_bars(None)


def _note_written(path: Path) -> None:
    """Say which file was written for later starts."""
    size = output.human_size(path.stat().st_size)
    output.note(
        f"int8 weights were written for later starts: {output.as_typed_here(path)} ({size})"
    )


def locate(model: str) -> Path:
    """Return the path of a model; a missing published one is downloaded first, with a note."""
    from gpt2kit import store
    from gpt2kit.errors import CheckpointNotFoundError
    from gpt2kit.store.catalogue import canonical_size

    try:
        return store.find(model)
    except CheckpointNotFoundError:
        if canonical_size(model) is None:
            raise
        from gpt2kit.cli.progress import download_with_bars

        output.note(f"{model} is not on this machine yet: downloading it")
        return download_with_bars(model)


def open_model(model: str, *, verify: bool = True, unsaid: Unsaid | None = None) -> Checkpoint:
    """Open the checkpoint of a model that must be on this machine."""
    from gpt2kit import store
    from gpt2kit.checkpoints.load import open_checkpoint

    return open_checkpoint(store.find(model), verify=verify, unsaid=unsaid)


def set_unknown(tokenizer: Tokenizer | None, unknown: Literal["error", "skip"]) -> None:
    """Apply --unknown to a tokenizer of characters or words; the others can encode every text."""
    from gpt2kit.tokenizers.listed import ListedTokenizer

    if isinstance(tokenizer, ListedTokenizer):
        tokenizer.unknown = unknown


def read_text(typed: str) -> str:
    """Return the text of a TEXT|- argument: what was typed, or standard input."""
    return read_stdin() if typed == "-" else as_typed(typed) or ""


def read_stdin(encoding: str | None = None) -> str:
    """Return standard input as text, without the newline that `echo` ends it with.

    With an `encoding`, a byte that is not valid in it is a CorpusError, as in a file; without one
    it becomes U+FFFD, as on a terminal.
    """
    from gpt2kit.data.encodings import decode

    data = sys.stdin.buffer.read()
    if encoding:
        text = decode(data, Path("standard input"), encoding)
    else:
        text = data.decode("utf-8", errors="replace")
    return text.removeprefix("\ufeff").removesuffix("\n").removesuffix("\r")


def as_typed(text: str | None) -> str | None:
    """Return an argument decoded as UTF-8, which terminals send whatever the locale is called."""
    if text is None or not _has_undecoded_bytes(text):
        return text
    return os.fsencode(text).decode("utf-8", errors="replace")


def _has_undecoded_bytes(text: str) -> bool:
    """Whether an argument has bytes that Python could not decode, which it holds as surrogates."""
    return any("\udc80" <= character <= "\udcff" for character in text)
