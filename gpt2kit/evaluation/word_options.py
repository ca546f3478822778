"""How words are found and measured: the options of `words`, and of tables of words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpt2kit.errors import ConfigError
from gpt2kit.fields import check, option

Boundary = Literal["whitespace", "space"]
Punctuation = Literal["keep", "split", "drop"]
UnitName = Literal["token", "word", "text"]


_WORDS = "Words"


@dataclass(frozen=True, kw_only=True)
class WordOptions:
    """How words are found and measured."""

    base: Literal["2", "e", "10"] = option(
        "2", "Of the logarithms: 2 gives bits, e nats, 10 decimal digits.", group="Output"
    )
    first: Literal["bos", "none"] = option(
        "bos",
        "The first word of a text: bos predicts it after <|endoftext|>, the mark between texts; "
        "none leaves its cells empty.",
        group=_WORDS,
    )
    stride: int | None = option(
        None,
        "A text longer than the model's window is read in windows that begin this many tokens "
        "apart.",
        default="half of the window",
        group=_WORDS,
        at_least=1,
    )
    punctuation: Punctuation = option(
        "keep",
        "At the edges of a word: keep it as a part, split it off as a word, or drop its tokens "
        "from the sums.",
        group=_WORDS,
    )
    boundary: Boundary = option(
        "whitespace",
        "What ends a word in the corrected surprisal: white space and the end of the text, or only "
        "a space, as in minicons.",
        group=_WORDS,
    )
    renyi: float | None = option(
        None,
        "Add the Rényi entropy of this order, such as 0.5.",
        group=_WORDS,
        above=0.0,
        metavar="ORDER",
    )
    top: int = option(
        0,
        "Add columns with this many of the likeliest tokens at the beginning of each unit, and "
        "their probabilities.",
        group="Output",
        at_least=0,
        at_most=1000,
    )

    def __post_init__(self) -> None:
        check(self)
        if self.renyi == 1:
            raise ConfigError("renyi is 1, where it is the plain entropy; expected another order")


_TABLE = "Table"


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Which columns hold what, and in which format the table comes and goes."""

    text: str | None = option(
        None, "The column with a text in each row.", group=_TABLE, metavar="COLUMN"
    )
    words: str | None = option(
        None,
        "The column with a word in each row. Rows that agree in the columns of --by are one text.",
        group=_TABLE,
        metavar="COLUMN",
    )
    by: str | None = option(
        None,
        "The columns that tell one text of --words from another, with commas between them.",
        group=_TABLE,
        metavar="COLUMNS",
    )
    order: str | None = option(
        None,
        "The column with the number of each word in its text.",
        default="the order of the rows",
        group=_TABLE,
        metavar="COLUMN",
    )
    context: str | None = option(
        None,
        "The column with what stands before the --target.",
        group=_TABLE,
        metavar="COLUMN",
    )
    target: str | None = option(
        None,
        "The column with the word or words that are measured after the --context.",
        group=_TABLE,
        metavar="COLUMN",
    )
    sep: str = option(
        " ",
        "What is put between words, and between context and target.",
        default="a space",
        group=_TABLE,
        metavar="TEXT",
    )
    format: Literal["csv", "tsv", "jsonl", "parquet", "txt"] | None = option(
        None,
        "The format of an input whose name does not tell it, such as standard input. Default: csv, "
        "and without --text, --words and --target txt, a text on each line.",
        group=_TABLE,
    )
    on_error: Literal["cell", "stop"] = option(
        "cell",
        "What happens to a row that cannot be read or measured: cell puts the reason into its "
        "column error, and stop ends the command.",
        group=_TABLE,
    )
    unit: Literal["token", "word", "text"] = option(
        "word", "What gets a row of its own.", group="Output"
    )

    def __post_init__(self) -> None:
        check(self)
        if (self.context is None) != (self.target is None):
            raise ConfigError("--context and --target go together; give both columns")
        given = [self.text, self.words, self.target]
        if sum(column is not None for column in given) > 1:
            raise ConfigError("give one of --text, --words and --context with --target")
        if self.words is None and (self.by or self.order):
            raise ConfigError(
                "--by and --order are for --words, the column with a word in each row"
            )
        if self.words is not None and self.by is None:
            raise ConfigError(
                "--words needs --by: the columns that tell one text from another, such as "
                "--by item,condition"
            )
        if "" in self.by_columns:
            raise ConfigError(f"--by is {self.by!r}, expected columns with commas between them")
        if self.unit == "text" and (self.words or self.target):
            raise ConfigError("--unit text is for --text and for plain lines")

    @property
    def is_table(self) -> bool:
        """Whether the input has columns; else it is plain text with a text on each line."""
        return any(column is not None for column in (self.text, self.words, self.target))

    @property
    def by_columns(self) -> tuple[str, ...]:
        """The columns that tell one text of --words from another."""
        return tuple(name.strip() for name in self.by.split(",")) if self.by is not None else ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read; plain text has a column of that name."""
        if not self.is_table:
            return ("text",)
        columns = (self.text, self.words, self.context, self.target, *self.by_columns, self.order)
        return tuple(dict.fromkeys(name for name in columns if name is not None))


def check_together(how: TableOptions, options: WordOptions) -> None:
    """Raise ConfigError for options of a table and of words that exclude each other."""
    if (how.unit == "text" or how.target) and options.punctuation != "keep":
        raise ConfigError(
            "--punctuation is for words; a target and a whole text are measured as they are"
        )
    if how.words and options.punctuation == "split":
        raise ConfigError(
            "--punctuation is split, but a row holds one word; expected keep or drop with --words"
        )
    if options.renyi is not None and how.unit != "word":
        raise ConfigError(f"--renyi is for words; leave it out with --unit {how.unit}")
