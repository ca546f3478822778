"""Minimal pairs: is the acceptable sentence of two more likely than the unacceptable one?

BLiMP (Warstadt et al. 2020) has 67 files, its paradigms, of 1,000 such pairs. The two sentences of
a pair are compared by the probability of the whole sentence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpt2kit.data.streams import read_batches
from gpt2kit.data.tables import ABSENT, format_of
from gpt2kit.errors import ContextLengthError, CorpusError, Gpt2KitError, TokenizerError
from gpt2kit.evaluation.beginnings import text_surprisals
from gpt2kit.evaluation.surprisal import BATCH_SIZE, Progress, ignore
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import Tokenizer, require_tokenizer
from gpt2kit.tokenizers.listed import start_of_text

# How a sentence is scored: after <|endoftext|>, as in the paper's code; or with a space between
# the two, as lm-evaluation-harness does. For the harness, equally likely sentences are right; there
# are some, for seven of BLiMP's pairs are the same sentence twice.
Protocol = Literal["paper", "harness"]

# The columns of a file of pairs, each under our name and BLiMP's.
_COLUMNS = {
    "good": "sentence_good",
    "bad": "sentence_bad",
    "phenomenon": "linguistics_term",
    "paradigm": "UID",
    "item": "pairID",
}
# Beside the pairs in copies of BLiMP: the paper's accuracies.
_NOT_PAIRS = "models_summary.jsonl"


@dataclass(frozen=True)
class Pair:
    """Two sentences that differ in little, and where they come from."""

    phenomenon: str  # a group of paradigms
    paradigm: str
    item: str
    good: str
    bad: str
    source: str  # the file and row, for messages
    error: str | None = None  # why the row is no pair


@dataclass(frozen=True)
class ScoredPair:
    """How likely a model holds the two sentences of a pair; None if they cannot be scored."""

    pair: Pair
    logprob_good: float | None = None  # of the whole sentence, in nats
    logprob_bad: float | None = None
    tokens_good: int | None = None  # scored
    tokens_bad: int | None = None
    correct: bool | None = None  # whether the good sentence is the more likely one
    error: str | None = None  # why they cannot be scored


def read_blimp(path: Path) -> list[Pair]:
    """Read the .jsonl files of a folder, in the order of their names, or a single one.

    Raises CorpusError for a folder without such files and a file without a pair.
    """
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.glob("*.jsonl") if file.name != _NOT_PAIRS)
        if not files:
            raise CorpusError(
                f"{path}: no .jsonl file in this folder; expected BLiMP's, as in the folder "
                "data of github.com/alexwarstadt/blimp",
                path=path,
            )
    return [pair for file in files for pair in read_pairs(file)]


def read_pairs(path: Path) -> list[Pair]:
    """Read pairs from a .csv, .tsv, .jsonl or .parquet file with the columns good and bad.

    The columns phenomenon, paradigm and item are optional; BLiMP's own names are understood, too. A
    row that is no pair has an `error`. Raises CorpusError if no row is one.
    """
    pairs = [_pair(path, *row) for row in _rows(path)]
    if not pairs:
        raise CorpusError(f"{path}: empty; expected a pair of sentences on each line", path=path)
    if all(pair.error for pair in pairs):
        raise CorpusError(f"{pairs[0].source}: {pairs[0].error}", path=path)
    return pairs


def score_pairs(
    model: GPT2,
    tokenizer: Tokenizer | None,
    pairs: Sequence[Pair],
    *,
    protocol: Protocol = "paper",
    batch_size: int = BATCH_SIZE,
    progress: Progress = ignore,
) -> list[ScoredPair]:
    """Return how likely a model holds the sentences of each pair; what they share is read once.

    A vocabulary without a marker for the start of a text leaves the first token unscored.
    `progress` counts sentences. A pair with a sentence that cannot be scored has an `error`. If no
    pair can be scored, this raises the CorpusError, TokenizerError or ContextLengthError of the
    first one, with its file and row.
    """
    tokenizer = require_tokenizer(tokenizer, "the model")
    space = " " if protocol == "harness" else ""
    texts, errors = list[list[int]](), dict[int, Gpt2KitError]()
    for index, pair in enumerate(pairs):
        try:
            texts += _ids_of_pair(model, tokenizer, space, pair)
        except (CorpusError, TokenizerError, ContextLengthError) as error:
            errors[index] = error
    if pairs and len(errors) == len(pairs):
        raise errors[0]
    found = text_surprisals(model, texts, batch_size=batch_size, progress=progress)
    unscored = max(len(start_of_text(tokenizer)), 1) - 1
    scored = iter([nats[unscored:] for nats in found])
    results = []
    for index, pair in enumerate(pairs):
        if index in errors:
            results.append(ScoredPair(pair, error=str(errors[index])))
            continue
        good, bad = next(scored), next(scored)
        sums = 0.0 - float(good.sum()), 0.0 - float(bad.sum())
        correct = sums[0] > sums[1] or (protocol == "harness" and sums[0] == sums[1])
        results.append(ScoredPair(pair, *sums, len(good), len(bad), correct))
    return results


def _ids_of_pair(model: GPT2, tokenizer: Tokenizer, space: str, pair: Pair) -> list[list[int]]:
    """Return the ids of the two sentences; raises the errors of `sentence_ids`."""
    if pair.error is not None:
        raise CorpusError(f"{pair.source}: {pair.error}")
    sentences = (pair.good, pair.bad)
    return [sentence_ids(model, tokenizer, space + each, pair.source) for each in sentences]


def sentence_ids(model: GPT2, tokenizer: Tokenizer, sentence: str, source: str) -> list[int]:
    """Return the ids of a sentence with the start of a text before it.

    Raises CorpusError if none of them can be scored, TokenizerError, or ContextLengthError for too
    many; the messages begin with `source`.
    """
    try:
        ids = [*start_of_text(tokenizer), *tokenizer.encode(sentence)]
    except TokenizerError as error:
        raise TokenizerError(f"{source}: {error}") from error
    if len(ids) < 2:
        raise CorpusError(f"{source}: the model has no token to score in {sentence!r}")
    limit = model.config.n_ctx
    if len(ids) > limit + 1:
        message = f"{source}: {len(ids) - 1:,} tokens, but the model reads at most {limit:,}"
        raise ContextLengthError(message, requested=len(ids) - 1, limit=limit)
    return ids


# --- rows of a file -------------------------------------------------------------------------------


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any], str | None]]:
    """Yield the number and the cells of each row of a table, and why it cannot be read."""
    format = format_of(path)
    if format in (None, "txt"):
        raise CorpusError(f"{path}: expected a .csv, .tsv, .jsonl or .parquet file", path=path)
    for table in read_batches(path, strict=False):
        for name in ("good", "bad"):
            if format != "jsonl" and _COLUMNS[name] not in table.columns:
                table.column(name)  # else each object has its own keys
        for index, row in enumerate(table.rows):
            cells = zip(table.columns, row, strict=True)
            known = {name: cell for name, cell in cells if cell is not ABSENT}
            yield table.first + index, known, table.errors.get(index)


def _pair(path: Path, number: int, row: Mapping[str, Any], error: str | None) -> Pair:
    source = f"{path}: row {number:,}"
    cells = {name: row.get(name, row.get(other)) for name, other in _COLUMNS.items()}
    for name in ("good", "bad"):
        if not isinstance(cells[name], str) or not cells[name].strip():
            error = error or f"expected a sentence under {name!r}, found {cells[name]!r}"
            cells[name] = ""
    paradigm = str(cells["paradigm"] or path.stem)
    item = number if cells["item"] in (None, "") else cells["item"]
    phenomenon = str(cells["phenomenon"] or paradigm)
    return Pair(phenomenon, paradigm, str(item), cells["good"], cells["bad"], source, error)
