"""What a training starts from: the text, the vocabulary, and the model before the first step."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gpt2kit.checkpoints.classifiers import LabelWords, labels_of_head, read_class_head
from gpt2kit.checkpoints.load import load_vocabulary, open_checkpoint
from gpt2kit.checkpoints.stored import Checkpoint
from gpt2kit.checkpoints.vocabularies import gpt2_vocabulary, where_to_look
from gpt2kit.config import SIZES, GPT2Config
from gpt2kit.data.batches import Batches
from gpt2kit.data.corpus import load_corpus
from gpt2kit.data.example_rows import load_examples
from gpt2kit.data.examples import Columns, Example, Examples, read_examples
from gpt2kit.data.ids import ids_file
from gpt2kit.data.texts import Text, read_texts, split_documents
from gpt2kit.errors import (
    CheckpointNotFoundError,
    ConfigError,
    Gpt2KitWarning,
    TokenizerError,
)
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import (
    CharTokenizer,
    Tokenizer,
    WordTokenizer,
    load_tokenizer,
    require_tokenizer,
)
from gpt2kit.tokenizers.learn import learn_bpe
from gpt2kit.tokenizers.listed import ListedTokenizer
from gpt2kit.tokenizers.word import parse_markers
from gpt2kit.tokenizers.word_replacements import parse
from gpt2kit.training.adapted import build_merged, find_stack
from gpt2kit.training.options import FinetuneOptions, TrainingOptions, TrainOptions
from gpt2kit.training.published import RoughTokenizer, published_config

Locate = Callable[[str], Path]  # finds a model by its name


@dataclass(frozen=True)
class Purpose:
    """Examples to learn, in place of a text."""

    examples: Examples
    val: Examples | None  # to validate with; None holds some of the others out
    with_head: bool  # whether labels are learned with a head, and not as words
    head: Tensor | None = None  # the weight of a head for the same labels that the model has

    @property
    def words(self) -> LabelWords | None:
        """The labels, if they are learned as words."""
        if self.with_head or not self.examples.labels:
            return None
        return LabelWords(self.examples.labels, self.examples.separator)

    def parts(self, val_fraction: float) -> tuple[list[Example], list[Example]]:
        """Return the examples to train with and to validate with."""
        if self.val is None:
            return self.examples.split(val_fraction)
        return self.examples.split(0.0)[0], self.val.split(0.0)[0]


@dataclass(frozen=True)
class Start:
    """A text and its vocabulary, and functions that make the model for a block size."""

    text: Text | None  # None if the corpus is a file of ids
    tokenizer: Tokenizer
    shape: Callable[[int], GPT2Config]
    build: Callable[[int], GPT2]  # with the weights before the first step
    path: Path | None = None  # of the model that it starts from
    merged_peft: bool = False  # whether that is a folder of PEFT, whose adapters are merged
    below: tuple[Path, ...] = ()  # the folders of adapters that are merged into it
    adapters: Path | None = None  # the folder of those over it, to train further
    purpose: Purpose | None = None  # None for a text

    def outline(self, block_size: int) -> GPT2:
        """Return the model without weights, on the meta device."""
        with torch.device("meta"):
            return GPT2(self.shape(block_size))


def from_scratch(source: str | Text, options: TrainOptions, locate: Locate) -> Start:
    """Return the start of a new model: its vocabulary is learned or taken from another model."""
    text = read_source(source, options)
    tokenizer = _new_tokenizer(text, options, locate)

    def shape(block_size: int) -> GPT2Config:
        return GPT2Config(n_ctx=block_size, **options.shape(tokenizer.n_vocab))

    def build(block_size: int) -> GPT2:
        model = GPT2(shape(block_size))
        model.init_weights(torch.Generator().manual_seed(options.seed))
        return model

    return Start(text, tokenizer, shape, build)


def from_weights(source: str | Text, options: FinetuneOptions, locate: Locate) -> Start:
    """Return the start of a model that exists."""
    # First, since the model may have to be downloaded:
    purpose = _read_purpose(source, options)
    text = purpose.examples.text if purpose else read_source(source, options)
    stack = find_stack(options.model)
    base = locate(stack.base)
    checkpoint, below, top = open_checkpoint(base), stack.folders, None
    if options.stack and not below:
        found = "those of PEFT are merged without it" if checkpoint.base else "it has none"
        raise ConfigError(
            f"--stack is for a run of adapters as the model, and {options.model} is another: "
            f"{found}; leave it out"
        )
    if below and not options.stack:
        *rest, top = below
        below = tuple(rest)
    tokenizer = require_tokenizer(
        load_vocabulary(checkpoint), options.model, where_to_look(checkpoint)
    )
    if text is not None and isinstance(tokenizer, ListedTokenizer):
        _check_known(options.model, tokenizer, text)
    config = _with_dropout(checkpoint.config, options)
    changed = replace(checkpoint, config=config)
    if purpose and purpose.with_head:
        purpose = replace(purpose, head=_head_for(purpose.examples.labels, checkpoint))
    return Start(
        text,
        tokenizer,
        lambda _: config,
        lambda _: build_merged(changed, below),
        path=None if options.stack else top or base,
        merged_peft=checkpoint.base is not None,
        below=below,
        adapters=top,
        purpose=purpose,
    )


def _head_for(labels: Sequence[str], checkpoint: Checkpoint) -> Tensor | None:
    """Return the weight of a checkpoint's head in the order of these labels, None if it has none.

    A head for other labels is named in a warning and left out.
    """
    own = labels_of_head(checkpoint)
    different = sorted({*own} ^ {*labels})
    if own and different:
        message = (
            f"{checkpoint.path}: its head is replaced by a new one, since it is for other labels: "
            f"{different[0]!r} is only in the model or only in the table"
        )
        warnings.warn(message, Gpt2KitWarning, stacklevel=2)
    return read_class_head(checkpoint, labels) if not different else None


def from_catalogue(source: str, options: FinetuneOptions) -> Start:
    """Return the start of a published model that is not here, to plan and not to train."""
    config = published_config(options.model)
    if config is None:
        raise ConfigError(f"model is {options.model!r}, expected one of {', '.join(SIZES)}")
    config = _with_dropout(config, options)
    tokenizer = gpt2_vocabulary() or RoughTokenizer()

    def build(_: int) -> GPT2:
        raise CheckpointNotFoundError(f"{options.model} is not on this machine")

    purpose = _read_purpose(source, options)
    text = purpose.examples.text if purpose else read_source(source, options)
    return Start(text, tokenizer, lambda _: config, build, purpose=purpose)


def _with_dropout(config: GPT2Config, options: FinetuneOptions) -> GPT2Config:
    """Return a model's configuration with the dropout of the options, if they have one."""
    p = options.dropout
    return config if p is None else replace(config, embd_pdrop=p, attn_pdrop=p, resid_pdrop=p)


def _read_purpose(source: str | Text, options: FinetuneOptions) -> Purpose | None:
    """Return the examples of a corpus, or None if it is a text.

    Raises ConfigError for an option that has no effect on the one or the other.
    """
    columns = Columns(
        prompt=options.prompt_field,
        completion=options.completion_field,
        label=options.label_field,
        text=options.text_field,
        separator="" if options.label_head else options.separator,
    )
    examples = None
    if not isinstance(source, Text) and ids_file(source) is None:
        examples = read_examples(source, columns, encoding=options.encoding)
    if examples is None:
        if options.separator is not None or columns.are_given:
            raise ConfigError(f"{source} is a text, and --separator is for tables of examples")
        if isinstance(source, str) and Path(source).suffix.lower() in (".csv", ".tsv"):
            message = (
                f"{source} is read as a text, its commas included; to learn its rows as examples, "
                "name its columns with --prompt_field and --completion_field, or --label_field"
            )
            warnings.warn(message, Gpt2KitWarning, stacklevel=2)
        return None
    if options.stride is not None:
        raise ConfigError("--stride has no effect here: examples are not cut; leave it out")
    val = None
    if options.val is not None:
        val = read_examples(options.val, columns, encoding=options.encoding)
        if val is None:
            raise ConfigError(f"val is {options.val}, expected a table of examples, as the corpus")
    return Purpose(examples, val, options.label_head)


def read_source(source: str | Text, options: TrainingOptions) -> Text | None:
    """Return the text of a corpus, which may have been read, or None if it is a file of ids."""
    if isinstance(source, Text):
        return source
    if ids_file(source) is not None:
        return None
    return read_texts(source, encoding=options.encoding, text_field=options.text_field)


def read_corpus(source: str | Text, start: Start, options: TrainingOptions) -> Batches:
    """Return the ids of a corpus, split in training and validation."""
    if (purpose := start.purpose) is not None:
        return load_examples(
            purpose.examples,
            start.tokenizer,
            purpose.parts(options.val_fraction),
            val=purpose.val,
            with_head=purpose.with_head,
        )
    return load_corpus(
        start.text or source,
        start.tokenizer,
        val=None if options.val is None else Path(options.val),
        val_fraction=options.val_fraction,
        encoding=options.encoding,
        text_field=options.text_field,
    )


def train_documents(text: Text | None, options: TrainingOptions) -> list[str]:
    """Return the documents to train on: without those that are held out for validation."""
    if text is None:
        return []
    held_out = options.val_fraction if options.val is None else 0.0
    return split_documents(text.documents, held_out)[0]


def corpus_name(source: str) -> str:
    """Return the name of a corpus, for its runs: that of the file or folder without its suffix.

    A glob is named after the folder that its files are in.
    """
    path = Path(source)
    if glob.has_magic(source) and not path.exists():
        whole = next(i for i, part in enumerate(path.parts) if glob.has_magic(part))
        path = Path(*path.parts[:whole]).resolve()
    name = path.name if path.is_dir() else path.stem
    return name or path.resolve().name or "corpus"


def can_write(tokenizer: Tokenizer, text: str) -> bool:
    """Return whether a vocabulary has tokens for a text."""
    try:
        tokenizer.encode(text)
    except TokenizerError:
        return False
    return True


def _new_tokenizer(text: Text | None, options: TrainOptions, locate: Locate) -> Tokenizer:
    """Return the vocabulary of a new model, made from its text."""
    if options.tokenizer == "bpe" and options.vocabulary is not None:
        return _vocabulary_of(options.vocabulary, locate)
    if text is None:
        raise TokenizerError(
            "a corpus of ids needs the vocabulary that it was made with: "
            "--tokenizer bpe --vocabulary MODEL"
        )
    if options.tokenizer == "bpe":
        return learn_bpe(train_documents(text, options), options.n_vocab)
    held_out = None if options.val is None else read_source(options.val, options)
    if options.tokenizer == "word":
        return _words(text, held_out, options)
    return CharTokenizer.from_text(text.joined + ("" if held_out is None else held_out.joined))


def _words(text: Text, held_out: Text | None, options: TrainOptions) -> WordTokenizer:
    """Return a vocabulary of words.

    It is learned from the documents as training divides them, since a word may be cut there, and a
    replacement may find more in a whole text than in its two parts. It is learned from the whole
    documents, too, since training does not hold out a part that is too short to predict anything.
    """
    train, val = split_documents(text.documents, 0.0 if held_out else options.val_fraction)
    others = () if held_out is None else held_out.documents
    return WordTokenizer.from_documents(
        [*dict.fromkeys([*text.documents, *train, *val, *others])],
        separated=len(text.documents) > 1 or len(others) > 1,
        replace=[*map(parse, options.replace)],
        markers=parse_markers(options.markers),
    )


def _vocabulary_of(model: str, locate: Locate) -> Tokenizer:
    return require_tokenizer(load_tokenizer(locate(model)), model)


def _check_known(model: str, tokenizer: ListedTokenizer, text: Text) -> None:
    """Raise TokenizerError if a text has characters or words that a model has no tokens for."""
    if tokenizer.unknown_id is not None:
        return
    pieces = dict.fromkeys(
        piece for document in text.documents for piece in tokenizer.pieces(document)
    )
    if unknown := [piece for piece in pieces if tokenizer.id_of(piece) is None]:
        raise TokenizerError(
            f"{model} knows {tokenizer.n_vocab:,} {tokenizer.what}s, and not {len(unknown):,} of "
            f"the text's, such as {', '.join(map(repr, unknown[:3]))}; take a model that knows "
            "every text, such as 124M, or a new one: gpt2kit train"
        )
