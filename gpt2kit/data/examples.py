"""Examples to learn from: a prompt and its completion, or a text and its label, from tables.

Each row of a table is an example: of a .csv, .tsv, .jsonl or .parquet file, or of a .json file that
is a list of objects.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt2kit.data.streams import read_batches
from gpt2kit.data.tables import ABSENT, Table, format_of
from gpt2kit.data.texts import Source, Text, find_files, read_file
from gpt2kit.errors import CorpusError

SEPARATOR = "\n\n"  # between a prompt and its completion
MOST_LABELS = 1000  # more are rather texts than labels

# The template of Stanford Alpaca, in the wording of "Build a Large Language Model (From Scratch)".
_INSTRUCTION = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}"
)
_INPUT = "\n\n### Input:\n{input}"
RESPONSE = "\n\n### Response:\n"  # the separator of this template

_CHATS = ("messages", "conversations")


@dataclass(frozen=True)
class Columns:
    """Which columns hold what; None takes the usual name if the table has it."""

    prompt: str | None = None
    completion: str | None = None
    label: str | None = None  # if it is given, an example is a text and its label
    text: str = "text"
    separator: str | None = None

    @property
    def are_given(self) -> bool:
        """Whether the user says that each row is an example."""
        return (self.prompt, self.completion, self.label) != (None, None, None)


@dataclass(frozen=True)
class Example:
    """A text that is read, the separator at its end included, and what is to follow it."""

    prompt: str
    completion: str  # or the label


@dataclass(frozen=True)
class Examples:
    """Examples in their order, and how they were made of the rows of tables."""

    examples: tuple[Example, ...]
    separator: str
    labels: tuple[str, ...]  # sorted; none if the completions are texts
    files: tuple[Path, ...]
    left_out: int  # rows without a completion or label

    @property
    def text(self) -> Text:
        """Return each example as a document: its prompt and its completion."""
        documents = tuple(each.prompt + each.completion for each in self.examples)
        return Text(documents, self.files, sum(len(each.encode()) for each in documents))

    def split(self, val_fraction: float) -> tuple[list[Example], list[Example]]:
        """Return the examples to train with, and those to validate with, each in random order.

        The order is that of the prompts' hashes: it depends neither on a seed nor on the order of
        the rows nor on the separator. Examples with the same prompt are in the same part. Of each
        label about the same share is held out, at least one text if it has several.
        """
        end = len(self.separator)
        keys = {
            each.prompt: hashlib.sha256(each.prompt[: len(each.prompt) - end].encode()).digest()
            for each in self.examples
        }
        ordered = sorted(self.examples, key=lambda each: (keys[each.prompt], each.completion))
        held_out: set[str] = set()
        for sizes in _by_label(ordered, self.labels) if val_fraction else ():
            held_out |= _held_out(sizes, val_fraction)
        parts: tuple[list[Example], list[Example]] = [], []
        for each in ordered:
            parts[each.prompt in held_out].append(each)
        return parts


def _by_label(ordered: Sequence[Example], labels: Sequence[str]) -> list[dict[str, int]]:
    """Return the prompts of each label in order, with the number of examples that each is in.

    A prompt with several labels counts for the rarest one. Without labels there is one list of all.
    """
    frequency = Counter(each.completion if labels else "" for each in ordered)
    own: dict[str, str] = {}
    for each in ordered:
        label = each.completion if labels else ""
        before = own.setdefault(each.prompt, label)
        own[each.prompt] = min(before, label, key=lambda name: (frequency[name], name))
    groups: dict[str, dict[str, int]] = {}
    for prompt, size in Counter(each.prompt for each in ordered).items():
        groups.setdefault(own[prompt], {})[prompt] = size
    return [*groups.values()]


def _held_out(sizes: Mapping[str, int], share: float) -> set[str]:
    """Return the first prompts that together have about a share of the examples.

    At least one is held out, but never all. A prompt in too many examples is left to train with,
    unless every prompt is.
    """
    wanted = max(1, round(sum(sizes.values()) * share))
    found: set[str] = set()
    held = 0
    for prompt, size in sizes.items():
        if held + size <= wanted and len(found) < len(sizes) - 1:
            found.add(prompt)
            held += size
    if not found and len(sizes) > 1:
        return {min(sizes, key=lambda prompt: sizes[prompt])}
    return found


def read_examples(
    source: Source, columns: Columns | None = None, *, encoding: str = "utf-8"
) -> Examples | None:
    """Return the examples in a table, or in several files; None if they are plain texts.

    Files hold examples if `columns` names columns of theirs, or if they have the columns prompt and
    completion, or instruction, output and perhaps input. A .jsonl file with the column
    `columns.text` is a text unless `columns` says otherwise. Rows without a completion or label are
    left out and counted.

    Raises CorpusError for a file that cannot be read, a column that is missing, a cell that is no
    text, a chat, and if there are no examples; for labels also if there are fewer than two.
    """
    columns = columns or Columns()
    files = find_files(source)
    if not columns.are_given and not _has_examples(files[0], columns, encoding):
        return None
    examples: list[Example] = []
    separator, n_rows = "", 0
    for path in files:
        for table in _tables(path, encoding):
            if not table.columns or not table.rows:
                continue
            found, separator = _examples(table, columns)
            examples += [each for each in found if each.completion]
            n_rows += len(found)
    if not examples:
        what = "label" if columns.label else "completion"
        raise CorpusError(f"{files[0]}: no row with a {what}, expected one at least", path=files[0])
    labels = tuple(sorted({each.completion for each in examples})) if columns.label else ()
    if columns.label and not 2 <= len(labels) <= MOST_LABELS:
        raise CorpusError(
            f"{files[0]}: the column {columns.label!r} has {len(labels):,} different labels, "
            f"expected from 2 to {MOST_LABELS:,}",
            path=files[0],
        )
    return Examples(tuple(examples), separator, labels, tuple(files), n_rows - len(examples))


def alpaca_prompt(instruction: str, input: str = "") -> str:
    """Return the prompt of an instruction in Alpaca's template, with its separator.

    >>> alpaca_prompt("Name a color.").splitlines()[-1]
    '### Response:'
    """
    prompt = _INSTRUCTION.format(instruction=instruction)
    return prompt + (_INPUT.format(input=input) if input else "") + RESPONSE


def _is_list(path: Path) -> bool:
    return path.suffix.lower() == ".json"


def _has_examples(path: Path, columns: Columns, encoding: str) -> bool:
    """Return whether a file is a table whose columns are known to hold examples."""
    format = format_of(path)
    if format in (None, "txt") and not _is_list(path):
        return False
    try:
        first = next(iter(_tables(path, encoding)))
    except CorpusError:
        if format == "parquet":
            raise
        return False  # a text, whose name ends like that of a table
    if _kind(first, columns) is not None:
        return True
    if columns.text not in first.columns:
        _refuse_chats(first)
    if format != "parquet":
        return False
    raise CorpusError(
        f"{path}: a table with the columns {', '.join(map(repr, first.columns))[:200]}; expected "
        "prompt and completion; --prompt_field and --completion_field, or --text_field and "
        "--label_field, name others",
        path=path,
    )


def _tables(path: Path, encoding: str) -> Iterator[Table]:
    """Yield the rows of a file in tables."""
    if _is_list(path):
        return iter([_list_table(path, encoding)])
    return read_batches(path, encoding=encoding)


def _list_table(path: Path, encoding: str) -> Table:
    """Return the objects of a JSON list as a table; raises CorpusError for anything else."""
    try:
        found = json.loads(read_file(path, encoding=encoding))
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{path}: not valid JSON: {error}", path=path) from error
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise CorpusError(f"{path}: expected a list of JSON objects", path=path)
    names = tuple(dict.fromkeys(name for each in found for name in each))
    return Table(names, [[each.get(name, ABSENT) for name in names] for each in found], path)


def _kind(table: Table, columns: Columns) -> str | None:
    """Return what the rows of a table are: label, pair or instruction; None for texts."""
    if columns.label:
        return "label"
    if columns.are_given:
        return "pair"
    if columns.text in table.columns:
        return None
    if {"prompt", "completion"} <= {*table.columns}:
        return "pair"
    return "instruction" if {"instruction", "output"} <= {*table.columns} else None


def _refuse_chats(table: Table) -> None:
    """Raise CorpusError for a table of chats."""
    if chat := [name for name in _CHATS if name in table.columns]:
        raise CorpusError(
            f"{table.path}: chats, in the column {chat[0]!r}, are not read, since GPT-2 has no "
            "markers for who speaks; write each answer to learn as an object with prompt, all that "
            "was said before it as one text, and completion",
            path=table.path,
        )


def _examples(table: Table, columns: Columns) -> tuple[list[Example], str]:
    """Return the examples in the rows of a table, and their separator."""
    kind = _kind(table, columns)
    if kind is None:
        raise CorpusError(
            f"{table.path}: row {table.first:,}: no prompt and completion, as other rows have",
            path=table.path,
        )
    separator = SEPARATOR if columns.separator is None else columns.separator
    if kind == "instruction":
        instructions, outputs = table.texts("instruction"), table.texts("output")
        has_inputs = "input" in table.columns
        inputs = table.texts("input") if has_inputs else [""] * len(instructions)
        separator = RESPONSE if columns.separator is None else columns.separator
        prompts = [
            alpaca_prompt(*each).removesuffix(RESPONSE)
            for each in zip(instructions, inputs, strict=True)
        ]
    elif kind == "label":
        prompts, outputs = table.texts(columns.text), table.texts(columns.label or "")
    else:
        prompts = table.texts(columns.prompt or "prompt")
        outputs = table.texts(columns.completion or "completion")
    pairs = zip(prompts, outputs, strict=True)
    return [Example(prompt + separator, output) for prompt, output in pairs], separator
