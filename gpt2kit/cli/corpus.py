"""corpus: a text as training reads it: its tokens, counted, and windows of input and target."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gpt2kit.cli import options, output
from gpt2kit.cli.color import fit, visible
from gpt2kit.cli.fields import takes
from gpt2kit.cli.options import MODEL_GROUP, OUTPUT_GROUP, TEXT_GROUP, Json
from gpt2kit.cli.plan import corpus_lines
from gpt2kit.errors import ConfigError
from gpt2kit.fields import check, option, same_option
from gpt2kit.training.options import FinetuneOptions, TrainOptions

if TYPE_CHECKING:
    from gpt2kit.data.corpus import Corpus
    from gpt2kit.data.texts import Text
    from gpt2kit.tokenizers import Tokenizer
    from gpt2kit.training.start import Start

_WIDTH = 80  # columns
_LONGEST = 24  # columns of one token
_ROWS = 4  # rows of a window that are shown
_INDENT = len("target  ")

_NEW = ("tokenizer", "n_vocab", "replace", "markers")  # options of a new vocabulary


@dataclass(frozen=True, kw_only=True)
class LookOptions:
    """With which vocabulary a text is read, how training would divide it, and what is shown."""

    tokenizer: Literal["char", "word", "bpe"] | None = same_option(
        TrainOptions, "tokenizer", None, default="char", group=TEXT_GROUP
    )
    n_vocab: int | None = same_option(
        TrainOptions, "n_vocab", None, default="1024", group=TEXT_GROUP
    )
    replace: tuple[str, ...] = same_option(TrainOptions, "replace", group=TEXT_GROUP)
    markers: str = same_option(TrainOptions, "markers", group=TEXT_GROUP)
    model: str | None = option(
        None,
        "Read the text with this model's vocabulary, as finetune does. Default: with a new one, as "
        "train does.",
        group=MODEL_GROUP,
        metavar="MODEL",
    )
    val_fraction: float = same_option(TrainOptions, "val_fraction", group=TEXT_GROUP)
    val: str | None = same_option(TrainOptions, "val", group=TEXT_GROUP)
    encoding: str = same_option(TrainOptions, "encoding", group=TEXT_GROUP)
    text_field: str = same_option(TrainOptions, "text_field", group=TEXT_GROUP)
    block_size: int | None = same_option(TrainOptions, "block_size", group=OUTPUT_GROUP)
    seed: int = same_option(TrainOptions, "seed", group=OUTPUT_GROUP)
    shuffle: bool = same_option(TrainOptions, "shuffle", group=OUTPUT_GROUP)
    stride: int | None = same_option(TrainOptions, "stride", group=OUTPUT_GROUP)
    windows: int = option(
        2, "Windows to show: the first ones of a training.", group=OUTPUT_GROUP, at_least=0
    )
    top: int = option(
        10, "Tokens to list, the most frequent first; 0 lists all.", group=OUTPUT_GROUP, at_least=0
    )

    def __post_init__(self) -> None:
        check(self)
        if self.model is not None and (given := [name for name in _NEW if getattr(self, name)]):
            raise ConfigError(f"{given[0]} and model are both given; leave one out")

    def of_training(self) -> TrainOptions | FinetuneOptions:
        """Return the options of the training that would read the text in this way."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        given = {
            name: value
            for name, value in values.items()
            if value not in (None, (), "") and name not in ("windows", "top")
        }
        training = TrainOptions(**given) if self.model is None else FinetuneOptions(**given)
        for name, why in training.without_effect().items():
            if name in given and name != "val_fraction":
                raise ConfigError(f"--{name} has no effect here: {why}; leave it out")
        return training


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command("corpus")(corpus)


@takes(look=LookOptions)
def corpus(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE|-",
            help="A .txt, .jsonl, folder or glob of them, or a file of ids; - is standard input.",
        ),
    ],
    *,
    look: LookOptions,
    json: Json = False,
) -> None:
    """Show a text as training reads it: its tokens, counted, and windows of input and target.

    Every figure is that of train or, with --model, of finetune with the same options.
    """
    from gpt2kit.data.census import count_lines
    from gpt2kit.data.corpus import Corpus
    from gpt2kit.data.ids import ids_file
    from gpt2kit.data.texts import text_of_bytes
    from gpt2kit.training import start

    source: str | Text = file
    if file == "-":
        source = text_of_bytes(
            sys.stdin.buffer.read(), Path("standard input"), encoding=look.encoding
        )
    if look.model is None and ids_file(file) is not None:
        raise ConfigError(
            f"{file} has token ids; name a model with their vocabulary: --model MODEL"
        )
    training = look.of_training()
    if isinstance(training, TrainOptions):
        begin = start.from_scratch(source, training, options.locate)
    else:
        begin = start.from_weights(source, training, options.locate)
    read = start.read_corpus(source, begin, training)
    if not isinstance(read, Corpus):
        raise ConfigError(f"{file} is a table of examples, not a text; gpt2kit plan shows them")
    windows = _windows(read, begin, look)
    lines = None if begin.text is None else count_lines(begin.text.documents)
    show = _show_json if json else _show
    show(read, begin, look, windows, lines)


def _show(
    read: Corpus, begin: Start, look: LookOptions, windows: list[list[int]], lines: int | None
) -> None:
    """Print everything for people."""
    report = read.report
    what = [output.count(report.documents, "document")]
    if lines is not None:
        what += [output.count(lines, "line"), f"{report.bytes:,} bytes in UTF-8"]
    rows = [*corpus_lines(report), ("", ", ".join(what))]
    if begin.text is not None and look.encoding.lower() not in ("utf-8", "utf8"):
        rows.append(("", f"read as {look.encoding}"))
    for name, text in rows:
        output.result(f"{name:<10}{output.one_line(text)}")  # a file's name may have a newline
    _show_counts(read, begin.tokenizer, look)
    _show_windows(windows, begin.tokenizer)
    _show_passage(read, begin)


def _show_counts(read: Corpus, tokenizer: Tokenizer, look: LookOptions) -> None:
    """Print the most frequent tokens, and how many more there are."""
    from gpt2kit.data.census import count_tokens

    counts = count_tokens(read, tokenizer)
    known = f"of {tokenizer.n_vocab:,} in the vocabulary"
    output.result(f"{'tokens':<10}{len(counts):,} different ones, {known}\n")
    shown = counts[: look.top or None]
    rows = [
        (f"{each.count:,}", f"{each.count / read.report.tokens:.1%}", each.token, _cell(each.piece))
        for each in shown
    ]
    for line in output.table([("count", "share", "id", "token"), *rows], right=(0, 1, 2)):
        output.result(line)
    if rest := counts[len(shown) :]:
        times = sum(each.count for each in rest)
        output.result(f"… and {len(rest):,} more, {times:,} times in all; --top 0 lists them")


# --- windows --------------------------------------------------------------------------------------


def _windows(read: Corpus, begin: Start, look: LookOptions) -> list[list[int]]:
    """Return the first windows that a training with these options reads, as T + 1 ids each."""
    if not look.windows:
        return []
    limit = begin.shape(1).n_ctx if look.model is not None else None
    block_size = look.block_size
    if block_size is None:
        block_size = read.fit_block_size(min(TrainOptions.BLOCK_SIZE, limit or 2**31))
    elif limit is not None and block_size > limit:
        raise ConfigError(f"block_size is {block_size}, but the model reads at most {limit} tokens")
    windows = read.batch(
        "train",
        0,
        block_size=block_size,
        batch_size=look.windows,
        seed=look.seed,
        shuffle=look.shuffle,
        stride=look.stride,
    )  # (B, T + 1)
    ids: list[list[int]] = windows.tolist()
    return ids


def _show_windows(windows: Sequence[Sequence[int]], tokenizer: Tokenizer) -> None:
    """Print windows: under each token of the input the one to predict after it."""
    for number, ids in enumerate(windows, 1):
        cells = [_cell(tokenizer.token_bytes(token)) for token in ids]
        rows = _aligned(cells[:-1], cells[1:])
        output.result(f"\nwindow {number}, {output.count(len(ids) - 1, 'token')}")
        for inputs, targets in rows[:_ROWS]:
            output.result(f"input   {'  '.join(inputs).rstrip()}")
            output.result(f"target  {'  '.join(targets).rstrip()}")
        if hidden := sum(len(inputs) for inputs, _ in rows[_ROWS:]):
            output.result(f"… {output.count(hidden, 'more token')}; --json has them all")


def _aligned(inputs: Sequence[str], targets: Sequence[str]) -> list[tuple[list[str], list[str]]]:
    """Return pairs of rows that fit a terminal, with the cells of each pair of equal width."""
    from rich.cells import cell_len

    rows: list[tuple[list[str], list[str]]] = [([], [])]
    used = _INDENT
    for above, below in zip(inputs, targets, strict=True):
        width = max(cell_len(above), cell_len(below))
        if used + width > _WIDTH:
            rows.append(([], []))
            used = _INDENT
        rows[-1][0].append(fit(above, width))
        rows[-1][1].append(fit(below, width))
        used += width + 2
    return rows


def _cell(piece: bytes) -> str:
    """Return a token as it is shown: visible, and cut if it is very long."""
    from rich.cells import cell_len

    shown = visible(piece)
    return fit(shown, _LONGEST) if cell_len(shown) > _LONGEST else shown


# --- one passage in several vocabularies ----------------------------------------------------------


def _passage(read: Corpus, begin: Start) -> tuple[str, dict[str, list[bytes] | None]]:
    """Return a passage, and its pieces as letters, words, GPT-2's tokens and this vocabulary's."""
    from gpt2kit.checkpoints.vocabularies import gpt2_vocabulary
    from gpt2kit.data.census import passage
    from gpt2kit.tokenizers import BPETokenizer, CharTokenizer, WordTokenizer
    from gpt2kit.training.published import N_VOCAB

    tokenizer = begin.tokenizer
    text = passage(
        begin.text.documents[0]
        if begin.text is not None
        else tokenizer.decode(read.train_ids[:100].tolist())
    )

    def pieces(of: Tokenizer) -> list[bytes]:
        return [of.token_bytes(token) for token in of.encode(text)]

    cuts: dict[str, Callable[[str], list[str]]] = {
        "letters": CharTokenizer.cut,
        "words": tokenizer.pieces if isinstance(tokenizer, WordTokenizer) else WordTokenizer.cut,
    }
    shown: dict[str, list[bytes] | None] = {
        name: [piece.encode() for piece in cut(text)] for name, cut in cuts.items()
    }
    gpt2 = gpt2_vocabulary()
    shown["GPT-2"] = None if gpt2 is None else pieces(gpt2)
    if isinstance(tokenizer, BPETokenizer) and tokenizer.n_vocab != N_VOCAB:
        shown["this one"] = pieces(tokenizer)
    return text, shown


def _show_passage(read: Corpus, begin: Start) -> None:
    """Print the beginning of the text as letters, words and pieces."""
    from rich.cells import cell_len

    _, shown = _passage(read, begin)
    output.result("\nthe same passage in several vocabularies, with the number of tokens")
    for name, pieces in shown.items():
        if pieces is None:
            output.result(f"{name:<10}not on this machine; run: gpt2kit download 124M")
            continue
        lines = [f"{name:<10}{len(pieces):>3} "]
        for cell in map(_cell, pieces):
            if cell_len(lines[-1]) + 1 + cell_len(cell) > _WIDTH:
                lines.append(" " * 14)
            lines[-1] += f" {cell}"
        output.result("\n".join(lines))


# --- JSON -----------------------------------------------------------------------------------------


def _show_json(
    read: Corpus, begin: Start, look: LookOptions, windows: list[list[int]], lines: int | None
) -> None:
    """Print a JSON object for the text, each token, each window, and the passage."""
    from gpt2kit.data.census import count_tokens

    tokenizer = begin.tokenizer
    counts = count_tokens(read, tokenizer)
    vocabulary = {"n_vocab": tokenizer.n_vocab, "different_tokens": len(counts)}
    about: dict[str, Any] = {
        **asdict(read.report),
        "tokens": read.report.tokens,
        "characters_per_token": read.report.characters_per_token,
        "lines": lines,
        "encoding": None if begin.text is None else look.encoding,
        "vocabulary": vocabulary,
    }
    output.print_json(about)
    for each in counts[: look.top or None]:
        output.print_json({"id": each.token, "token": _text(each.piece), "count": each.count})
    for ids in windows:
        text = tokenizer.decode(ids)
        output.print_json({"input": ids[:-1], "target": ids[1:], "text": text})
    passage, shown = _passage(read, begin)
    as_text = {
        name: None if pieces is None else [_text(piece) for piece in pieces]
        for name, pieces in shown.items()
    }
    output.print_json({"passage": passage, **as_text})


def _text(piece: bytes) -> str:
    return piece.decode("utf-8", errors="replace")
