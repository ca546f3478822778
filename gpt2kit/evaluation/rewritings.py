"""DetectGPT's criterion: how much likelier a text is than rewritings of it, made elsewhere.

    z = (l(x) - mean of l(x')) / standard deviation of l(x')

l is the log probability per token. The authors (Mitchell et al. 2023) take 100 rewritings x' by
T5-3B, in each of which it filled gaps in the text anew, and the deviation of them as a population.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from gpt2kit.data.texts import json_value
from gpt2kit.errors import CorpusError


def parse_rewritings(cell: Any) -> list[str]:
    """Return the rewritings in a cell: a list of texts, or a text that is one in JSON.

    Raises CorpusError for anything else, and for fewer than two.
    """
    if isinstance(cell, str):
        try:
            cell = json_value(cell)
        except ValueError:
            cell = None
    if not isinstance(cell, list) or not all(isinstance(each, str) for each in cell):
        raise CorpusError("the rewritings are no list of texts")
    if len(cell) < 2:
        raise CorpusError("expected at least two rewritings")
    return cell


def z_scores(perplexities: Sequence[float | None], counts: Sequence[int]) -> Iterator[float | None]:
    """Yield the criterion of each text, given the perplexity of it and then of its rewritings.

    `counts` are the numbers of rewritings. A text that has no perplexity has no z-score, nor has
    one whose rewritings are all alike; a rewriting without a perplexity is left out.
    """
    at = 0
    for count in counts:
        own, *others = perplexities[at : at + 1 + count]
        at += 1 + count
        found = [-math.log(each) for each in others if each is not None]
        spread = statistics.pstdev(found) if len(found) > 1 else 0.0
        yield (-math.log(own) - statistics.fmean(found)) / spread if own and spread else None
