"""The criteria of a text: what each of them is, how its authors read the text, and the options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gpt2kit.errors import ConfigError
from gpt2kit.fields import check, check_names, option

First = Literal["bos", "none"]
PERTURBATION = "perturbation"  # the criterion that is computed from rewritings


@dataclass(frozen=True)
class Criterion:
    """A figure about a text as a whole."""

    about: str
    first: First  # whether its authors let the model read <|endoftext|> before the text
    # Whether texts that were sampled from a model have the higher or the lower figures
    machine: Literal["higher", "lower"] | None = None
    by_two: bool = False  # whether it needs an observer beside the model


CRITERIA = {
    "nll": Criterion("minus the log probability of the text, in nats", "bos"),
    "tokens": Criterion("the tokens of the text", "bos"),
    "perplexity": Criterion("e to the mean surprisal of a token", "bos", "lower"),
    "bits_per_byte": Criterion("surprisal in bits, per UTF-8 byte", "bos", "lower"),
    "top10": Criterion("share of tokens among the 10 most likely ones", "bos", "higher"),
    "top100": Criterion("share of tokens among the 100 most likely ones", "bos", "higher"),
    "top1000": Criterion("share of tokens among the 1,000 most likely ones", "bos", "higher"),
    "fracprob": Criterion(
        "mean of the tokens' probabilities, each over the likeliest one's", "bos", "higher"
    ),
    "rank": Criterion("mean rank of the tokens, from 1", "none", "lower"),
    "log_rank": Criterion("mean natural logarithm of the rank", "none", "lower"),
    "entropy": Criterion("mean entropy of what was expected, in nats", "none", "higher"),
    "lrr": Criterion("sum of the surprisals over the sum of the log ranks", "none", "higher"),
    "curvature": Criterion("Fast-DetectGPT's analytic curvature", "none", "higher"),
    "binoculars": Criterion("perplexity over cross-perplexity, as logs", "none", "lower", True),
    "cross_curvature": Criterion(
        "the curvature where the observer samples", "none", "higher", True
    ),
    PERTURBATION: Criterion(
        "DetectGPT's z-score of the text among its rewritings", "none", "higher"
    ),
}


@dataclass(frozen=True, kw_only=True)
class CriteriaOptions:
    """Which criteria of a text are computed, and how the model reads the text."""

    criteria: str = option(
        "all",
        "The columns to add, with commas between them, or all. Those of two models need "
        "--observer.",
        metavar="NAMES",
    )
    first: Literal["authors", "bos", "none"] = option(
        "authors",
        "Whether the first token of a text is predicted from <|endoftext|> (bos) or left out "
        "(none). authors does what the authors of each criterion do, which may read a text twice.",
    )
    binoculars: Literal["formula", "code"] = option(
        "formula",
        "formula averages both perplexities over the same tokens; code is as the authors' program "
        "has it: the cross-perplexity has one position more, after the text.",
    )
    rewritings: str | None = option(
        None,
        "The column with a list of rewritings of each text, made elsewhere, for the criterion "
        "perturbation. In .csv and .tsv, a list as in JSON.",
        group="Text",
        metavar="COLUMN",
    )
    stride: int | None = option(
        None,
        "A text longer than the model's window is read in windows that begin this many tokens "
        "apart. Default: half of n_ctx.",
        at_least=1,
    )

    def __post_init__(self) -> None:
        check(self)
        if not self.criteria.strip():
            raise ConfigError("criteria is empty, expected names with commas between them, or all")
        if self.criteria != "all":
            check_names(self._named, CRITERIA, what="criteria")

    @property
    def _named(self) -> list[str]:
        return [name.strip() for name in self.criteria.split(",")]

    def names(self, *, observed: bool) -> list[str]:
        """Return the criteria to compute; raises ConfigError for one that lacks its observer."""
        if self.criteria == "all":
            return [
                name
                for name, each in CRITERIA.items()
                if (observed or not each.by_two) and (self.rewritings or name != PERTURBATION)
            ]
        for name in self._named:
            if name == PERTURBATION and self.rewritings is None:
                raise ConfigError(f"{name} needs rewritings of the texts: add --rewritings COLUMN")
            if CRITERIA[name].by_two and not observed:
                raise ConfigError(f"{name} needs two models: add --observer MODEL")
        return list(dict.fromkeys(self._named))

    def first_of(self, name: str) -> First:
        """Return how the text is read for a criterion."""
        return CRITERIA[name].first if self.first == "authors" else self.first


def contexts(options: CriteriaOptions, names: Sequence[str]) -> dict[First, list[str]]:
    """Return the criteria by how the text is read for them; each key is one reading."""
    found: dict[First, list[str]] = {}
    for name in (name for name in names if name != "tokens"):  # which are counted without a model
        found.setdefault(options.first_of(name), []).append(name)
    return found
