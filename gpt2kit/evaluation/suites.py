"""SyntaxGym's test suites: are some regions of a sentence as surprising as grammar predicts?

An item of a suite is a sentence in several conditions, each cut into regions; a prediction is a
formula over the surprisals of the regions (Gauthier et al. 2020).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from gpt2kit.errors import CorpusError, TokenizerError
from gpt2kit.evaluation.beginnings import text_surprisals
from gpt2kit.evaluation.formulas import Formula, parse
from gpt2kit.evaluation.pairs import sentence_ids
from gpt2kit.evaluation.passages import Passage, Unit, spans, token_pieces
from gpt2kit.evaluation.surprisal import BATCH_SIZE, Progress, ignore
from gpt2kit.files import read_json
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import Tokenizer, require_tokenizer
from gpt2kit.tokenizers.listed import start_of_text

_LARGEST = 100_000_000  # bytes of a file


@dataclass(frozen=True)
class Sentence:
    """An item in one condition: its regions, which are joined by one space."""

    condition: str
    regions: dict[int, str]  # by their numbers; a region may be empty
    source: str  # the file and item, for messages

    @property
    def text(self) -> str:
        """The whole sentence."""
        return " ".join(region for region in self.regions.values() if region)


@dataclass(frozen=True)
class Suite:
    """Items, and what is predicted of each of them."""

    name: str
    formulas: tuple[Formula, ...]
    items: dict[str, tuple[Sentence, ...]]  # by their numbers


@dataclass(frozen=True)
class ScoredItem:
    """An item, and whether a prediction is true of it."""

    suite: str
    prediction: int  # from 1
    formula: str
    item: str
    correct: bool
    surprisals: dict[str, dict[int, float]]  # in bits, by condition and region
    # by condition, the regions of which a token also belongs to another one
    straddled: dict[str, list[int]]


def read_suites(path: Path) -> list[Suite]:
    """Read the .json files of a folder, in the order of their names, or a single one.

    Raises CorpusError for a folder without such files, a file that is no suite, a formula that
    cannot be understood, and one that names a region or condition that an item does not have.
    """
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise CorpusError(
            f"{path}: no .json file in this folder; expected SyntaxGym's test suites", path=path
        )
    return [_suite(file) for file in files]


def score_suites(
    model: GPT2,
    tokenizer: Tokenizer | None,
    suites: Sequence[Suite],
    *,
    batch_size: int = BATCH_SIZE,
    progress: Progress = ignore,
) -> list[ScoredItem]:
    """Return, for each prediction and item of each suite, whether the prediction is true.

    A sentence is read after the marker that starts a text; a vocabulary without one leaves its
    first token out. `progress` counts sentences. Raises CorpusError, TokenizerError or
    ContextLengthError, with the file and item, for a sentence that cannot be scored.
    """
    tokenizer = require_tokenizer(tokenizer, "the model")
    sentences = [each for suite in suites for item in suite.items.values() for each in item]
    texts = [sentence_ids(model, tokenizer, each.text, each.source) for each in sentences]
    found = text_surprisals(model, texts, batch_size=batch_size, progress=progress)
    n_start = len(start_of_text(tokenizer))
    rows = iter(zip(sentences, texts, found, strict=True))
    scored = []
    for suite in suites:
        for number, item in suite.items.items():
            surprisals, straddled = {}, {}
            for sentence, ids, nats in (next(rows) for _ in item):
                bits = [0.0] * (n_start == 0) + (nats[max(n_start, 1) - 1 :] / math.log(2)).tolist()
                surprisals[sentence.condition], shared = region_surprisals(
                    sentence, ids[n_start:], bits, tokenizer
                )
                if shared:
                    straddled[sentence.condition] = shared
            scored += _predictions(suite, number, surprisals, straddled)
    return sorted(scored, key=lambda each: (each.suite, each.prediction))


def region_surprisals(
    sentence: Sentence, ids: Sequence[int], surprisals: Sequence[float], tokenizer: Tokenizer
) -> tuple[dict[int, float], list[int]]:
    """Return the sum of the tokens' surprisals for each region, and the regions that share a token.

    A space belongs to the region after it, and a token to the region in which it ends; an empty
    region has 0. Raises TokenizerError if the tokens are not exactly the sentence, as when
    characters were left out.
    """
    try:
        pieces = token_pieces(tokenizer, sentence.text, ids)
    except TokenizerError as error:
        raise TokenizerError(f"{sentence.source}: {error}") from error
    numbers = [number for number, region in sentence.regions.items() if region]
    ends = accumulate(1 + len(sentence.regions[number]) for number in numbers)
    cuts = [0, *(end - 1 for end in ends)]  # no space stands before the first region
    units = tuple(Unit(start, end) for start, end in pairwise(cuts))
    sums = dict.fromkeys(sentence.regions, 0.0)
    shared = []
    for number, span in zip(numbers, spans(Passage(sentence.text, units), pieces), strict=True):
        sums[number] = sum(surprisals[span.first : span.end])
        if span.straddles:
            shared.append(number)
    return sums, shared


def _predictions(
    suite: Suite,
    item: str,
    surprisals: dict[str, dict[int, float]],
    straddled: dict[str, list[int]],
) -> list[ScoredItem]:
    found = {
        (condition, number): value
        for condition, regions in surprisals.items()
        for number, value in regions.items()
    }
    return [
        ScoredItem(
            suite.name, number, formula.text, item, formula.holds(found), surprisals, straddled
        )
        for number, formula in enumerate(suite.formulas, 1)
    ]


# --- files ----------------------------------------------------------------------------------------


def _suite(path: Path) -> Suite:
    value = read_json(path, largest=_LARGEST, error=CorpusError)
    meta = value.get("meta")
    metric = meta.get("metric", "sum") if isinstance(meta, dict) else "sum"
    if metric != "sum":
        raise CorpusError(f"{path}: metric is {metric!r}, expected 'sum'", path=path)
    formulas = tuple(
        _formula(path, prediction) for prediction in _list(path, value, "predictions", "the suite")
    )
    items: dict[str, tuple[Sentence, ...]] = {}
    for item in _list(path, value, "items", "the suite"):
        number = str(_field(path, item, "item_number", (int, str), "an item"))
        where = f"item {number}"
        if number in items:
            raise CorpusError(f"{path}: there are two with the number of {where}", path=path)
        conditions = _list(path, item, "conditions", where)
        items[number] = tuple(_sentence(path, each, where) for each in conditions)
        names = [sentence.condition for sentence in items[number]]
        if twice := [name for name in names if names.count(name) > 1]:
            raise CorpusError(f"{path}: {where}: two conditions are called {twice[0]!r}", path=path)
        for formula in formulas:
            _check_regions(path, where, formula, items[number])
    name = meta.get("name") if isinstance(meta, dict) else None
    return Suite(name if isinstance(name, str) and name else path.stem, formulas, items)


def _formula(path: Path, prediction: Any) -> Formula:
    text = _field(path, prediction, "formula", str, "a prediction")
    try:
        return parse(text)
    except CorpusError as error:
        raise CorpusError(f"{path}: {error}", path=path) from None


def _sentence(path: Path, value: Any, where: str) -> Sentence:
    condition = _field(path, value, "condition_name", str, f"a condition of {where}")
    where = f"{where}, condition {condition!r}"
    regions = {}
    for region in _list(path, value, "regions", where):
        number = _field(path, region, "region_number", int, where)
        if number in regions:
            raise CorpusError(f"{path}: {where}: two regions have the number {number}", path=path)
        regions[number] = _field(path, region, "content", str, where).strip()
    sentence = Sentence(condition, regions, f"{path}: {where}")
    if not sentence.text:
        raise CorpusError(f"{path}: {where}: all regions are empty", path=path)
    return sentence


def _check_regions(path: Path, where: str, formula: Formula, item: Sequence[Sentence]) -> None:
    """Refuse a formula that names what an item does not have."""
    regions = {sentence.condition: sentence.regions for sentence in item}
    for condition, number in formula.regions:
        if condition not in regions:
            problem = f"no condition {condition!r}; it has {', '.join(regions)[:80]}"
        elif number is not None and number not in regions[condition]:
            problem = f"no region {number} in condition {condition!r}"
        else:
            continue
        raise CorpusError(
            f"{path}: {where} has {problem}, but a formula names it: {formula.text}", path=path
        )


def _list(path: Path, value: Any, key: str, where: str) -> list[Any]:
    found: list[Any] = _field(path, value, key, list, where)
    if not found:
        raise CorpusError(f"{path}: {where}: the list {key!r} is empty", path=path)
    return found


def _field(path: Path, value: Any, key: str, kind: Any, where: str) -> Any:
    """Return an object's value under a key, if it has the right type."""
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, kind) or isinstance(found, bool):
        expected = {int: "a whole number", str: "a text", list: "a list"}.get(kind, "a number")
        raise CorpusError(
            f"{path}: {where}: expected {expected} under {key!r}, found {str(found)[:40]!r}; "
            "is this a SyntaxGym suite?",
            path=path,
        )
    return found
