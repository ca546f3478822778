"""DetectGPT's criterion, from rewritings that come with the texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import make_model

from gpt2kit.config import GPT2Config
from gpt2kit.errors import ConfigError, CorpusError
from gpt2kit.evaluation.criteria import measure
from gpt2kit.evaluation.criteria_options import CriteriaOptions
from gpt2kit.evaluation.rewritings import parse_rewritings
from gpt2kit.tokenizers import BPETokenizer

TEXTS = ["the cat sat on a mat", "dogs bark at night", "rain"]
REWRITINGS = [["a cat sat on the mat", "the cat at night"], ["rain at night"] * 2, ["a", "the"]]


def test_the_criterion_is_the_z_score_of_the_mean_log_probability(small_bpe: BPETokenizer) -> None:
    """As in DetectGPT's program: minus the loss without a start token, and NumPy's std."""
    model = make_model(GPT2Config(n_vocab=512, n_ctx=32, n_embd=16, n_head=2, n_layer=1))
    options = CriteriaOptions(criteria="perturbation,nll", rewritings="r")
    found = list(measure(model, small_bpe, TEXTS, options, rewritings=REWRITINGS))

    def likelihood(text: str) -> float:
        plain = CriteriaOptions(criteria="nll", first="none")
        (figures,) = measure(model, small_bpe, [text], plain)
        return float(-figures["nll"]) / (len(small_bpe.encode(text)) - 1)

    others = [likelihood(text) for text in REWRITINGS[0]]
    expected = (likelihood(TEXTS[0]) - np.mean(others)) / np.std(others)
    assert found[0]["perturbation"] == pytest.approx(expected, rel=1e-4)
    assert found[1]["perturbation"] is None  # both rewritings are one
    assert all(each["error"] is None for each in found)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("no list", "no list of texts"),
        ("[" * 100_000, "no list of texts"),  # ended in a RecursionError
        (["a", 1], "no list of texts"),
        (None, "no list of texts"),
        (["a"], "at least two"),
    ],
)
def test_what_is_no_list_of_rewritings_is_refused(cell: Any, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        parse_rewritings(cell)


def test_rewritings_may_be_json_in_a_cell_and_are_needed_for_the_criterion() -> None:
    assert parse_rewritings('["a", "b"]') == ["a", "b"]
    with pytest.raises(ConfigError, match="add --rewritings COLUMN"):
        CriteriaOptions(criteria="perturbation").names(observed=False)
    assert "perturbation" not in CriteriaOptions().names(observed=False)
    assert "perturbation" in CriteriaOptions(rewritings="r").names(observed=False)
