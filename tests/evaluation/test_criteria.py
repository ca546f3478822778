"""Criteria of texts: equal to their formulas in NumPy, and to what their authors found."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_model

import gpt2kit
from gpt2kit import reference
from gpt2kit.config import GPT2Config
from gpt2kit.errors import ConfigError
from gpt2kit.evaluation.criteria import Seen, check_observer, look, measure
from gpt2kit.evaluation.criteria_options import CRITERIA, PERTURBATION, CriteriaOptions
from gpt2kit.evaluation.perplexity import score
from gpt2kit.evaluation.surprisal import measured, windows
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import BPETokenizer, CharTokenizer

TEXTS = ["The cat didn't sit on thé mat.", "So", "One two three, four.\nFive! " * 2]
CONFIG = GPT2Config(n_vocab=512, n_ctx=128, n_embd=16, n_head=2, n_layer=2)


@pytest.fixture(scope="module")
def model() -> GPT2:
    return make_model(CONFIG)


@pytest.fixture(scope="module")
def observer() -> GPT2:
    return make_model(GPT2Config(n_vocab=512, n_ctx=128, n_embd=8, n_head=1, n_layer=1), seed=1)


def criteria(
    model: GPT2, tokenizer: Any, texts: list[str], observer: GPT2 | None = None, **options: Any
) -> list[dict[str, Any]]:
    return list(measure(model, tokenizer, texts, CriteriaOptions(**options), observer=observer))


def numpy_logs(model: GPT2, ids: list[int]) -> Any:
    """Return the log probabilities after each id, by the reference model in float64: (T, V)."""
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    logits = reference.logits(model.config, weights, ids)
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def by_hand(logs: Any, theirs: Any, ids: list[int], n_bytes: int, *, code: bool) -> dict[str, Any]:
    """Return all criteria of a text, from log probabilities (n + 1, V) that predict its n ids."""
    last = logs[-1:], theirs[-1:]  # after the text
    logs, theirs = logs[:-1], theirs[:-1]
    chosen = logs[np.arange(len(ids)), ids]
    ranks = (logs > chosen[:, None]).sum(axis=-1) + 1
    p, q = np.exp(logs), np.exp(theirs)

    def curvature(weights: Any) -> float:
        mean = (weights * logs).sum(axis=-1)
        variance = (weights * logs**2).sum(axis=-1) - mean**2
        return float((chosen.sum() - mean.sum()) / math.sqrt(variance.sum()))

    cross = -(q * logs).sum(axis=-1)
    if code:
        cross = np.append(cross, -(np.exp(last[1]) * last[0]).sum(axis=-1))
    return {
        "nll": -chosen.sum(),
        "perplexity": math.exp(-chosen.mean()),
        "bits_per_byte": -chosen.sum() / math.log(2) / n_bytes,
        "top10": (ranks <= 10).mean(),
        "top100": (ranks <= 100).mean(),
        "top1000": 1.0,
        "fracprob": np.exp(chosen - logs.max(axis=-1)).mean(),
        "rank": ranks.mean(),
        "log_rank": np.log(ranks).mean(),
        "entropy": -(p * logs).sum(axis=-1).mean(),
        "lrr": -chosen.sum() / np.log(ranks).sum(),
        "curvature": curvature(p),
        "binoculars": -chosen.mean() / cross.mean(),
        "cross_curvature": curvature(q),
    }


@pytest.mark.parametrize("first", ["bos", "none"])
@pytest.mark.parametrize("binoculars", ["formula", "code"])
def test_every_criterion_is_its_formula_in_float64(
    model: GPT2, observer: GPT2, small_bpe: BPETokenizer, first: str, binoculars: str
) -> None:
    options = {"first": first, "binoculars": binoculars}
    found = criteria(model, small_bpe, TEXTS, observer, **options)
    for text, figures in zip(TEXTS, found, strict=True):
        ids = small_bpe.encode(text)
        read = [511, *ids] if first == "bos" else ids
        predicted = ids if first == "bos" else ids[1:]
        n_bytes = sum(len(small_bpe.token_bytes(token)) for token in predicted)
        expected = by_hand(
            numpy_logs(model, read),
            numpy_logs(observer, read),
            predicted,
            n_bytes,
            code=binoculars == "code",
        )
        assert figures.pop("error") is None
        assert figures.pop("tokens") == len(ids)
        assert figures == pytest.approx(expected, rel=2e-5)


def test_each_criterion_reads_the_text_as_its_authors_do(
    model: GPT2, observer: GPT2, small_bpe: BPETokenizer
) -> None:
    found = criteria(model, small_bpe, TEXTS, observer)
    read = {
        first: criteria(model, small_bpe, TEXTS, observer, first=first) for first in ("bos", "none")
    }
    names = [name for name in CRITERIA if name != PERTURBATION]  # which needs rewritings
    assert list(found[0]) == [*names, "error"]
    for number, figures in enumerate(found):
        for name in names:
            assert figures[name] == read[CRITERIA[name].first][number][name]
    assert read["bos"][0]["curvature"] != read["none"][0]["curvature"]


def test_a_criterion_is_the_same_whichever_others_are_computed(
    model: GPT2, observer: GPT2, small_bpe: BPETokenizer
) -> None:
    every = criteria(model, small_bpe, TEXTS, observer)
    for names in ("perplexity,nll,bits_per_byte", "perplexity,rank", "top10", "cross_curvature"):
        found = criteria(model, small_bpe, TEXTS, observer, criteria=names)
        for figures, others in zip(found, every, strict=True):
            assert figures.pop("error") is None
            expected = {name: others[name] for name in figures}
            assert figures == pytest.approx(expected, rel=1e-6)


def test_a_model_observing_itself_has_the_same_curvature_and_its_own_entropy(
    model: GPT2, small_bpe: BPETokenizer
) -> None:
    (figures,) = criteria(model, small_bpe, TEXTS[:1], model, first="bos")
    assert figures["cross_curvature"] == pytest.approx(figures["curvature"], rel=1e-5)
    mean = figures["nll"] / figures["tokens"]
    assert figures["binoculars"] == pytest.approx(mean / figures["entropy"], rel=1e-6)
    assert figures["lrr"] == pytest.approx(mean / figures["log_rank"], rel=1e-6)


def test_company_order_and_batches_change_no_figure(
    model: GPT2, observer: GPT2, small_bpe: BPETokenizer
) -> None:
    together = criteria(model, small_bpe, TEXTS, observer)
    alone = [criteria(model, small_bpe, [text], observer)[0] for text in reversed(TEXTS)]
    for one, other in zip(together, reversed(alone), strict=True):
        assert one.pop("error") is other.pop("error") is None
        assert one == pytest.approx(other, rel=1e-5)


def test_long_texts_are_read_in_windows_as_score_has_them(
    model: GPT2, observer: GPT2, small_bpe: BPETokenizer
) -> None:
    text = "The cat sat on the mat. " * 60
    n = len(small_bpe.encode(text))
    assert n > 3 * CONFIG.n_ctx
    (figures,) = criteria(model, small_bpe, [text], observer, first="bos")
    (line,) = score(model, small_bpe, [text])
    assert figures["tokens"] == n
    assert figures["nll"] == pytest.approx(-line.logprob, rel=1e-6)
    (shorter,) = criteria(model, small_bpe, [text], observer, first="bos", stride=CONFIG.n_ctx)
    assert shorter["nll"] != pytest.approx(figures["nll"], rel=1e-4)


def test_a_text_that_cannot_be_measured_has_an_error_and_stops_no_other() -> None:
    tokenizer = CharTokenizer(sorted(set("abc ")))
    model = make_model(GPT2Config(n_vocab=4, n_ctx=16, n_embd=8, n_head=1, n_layer=1))
    found = criteria(model, tokenizer, ["abc", "", "a?c", "b", "cab"])
    assert [figures["error"] is None for figures in found] == [True, False, False, False, True]
    assert found[1]["error"] == "the text is empty"
    assert "'?'" in found[2]["error"]
    assert found[3]["error"] == "the text has one token, and nothing before it"
    assert found[3]["nll"] is found[1]["curvature"] is None
    # Without a mark that ends texts nothing comes before the first token.
    assert found[0]["nll"] == pytest.approx(2 * math.log(found[0]["perplexity"]), rel=1e-6)


def test_one_token_after_the_mark_has_a_perplexity_and_no_curvature(
    model: GPT2, small_bpe: BPETokenizer
) -> None:
    (figures,) = criteria(model, small_bpe, ["a"])
    assert figures["perplexity"] > 1
    assert figures["curvature"] is None
    assert figures["error"] is None


def test_only_a_text_of_one_token_is_called_one(model: GPT2, small_bpe: BPETokenizer) -> None:
    # A text without a z-score, since its rewritings are all alike, was said to have one token; and
    # one of one token had no error if a single criterion was wanted.
    options = CriteriaOptions(criteria="perturbation,tokens", rewritings="r")
    (figures,) = measure(model, small_bpe, ["the cat"], options, rewritings=[["a b", "a b"]])
    assert (figures["perturbation"], figures["error"]) == (None, None)
    (figures,) = criteria(model, small_bpe, ["a"], criteria="curvature")
    assert figures["error"] == "the text has one token, and nothing before it"


def test_what_the_options_refuse(model: GPT2, small_bpe: BPETokenizer) -> None:
    with pytest.raises(ConfigError, match="did you mean perplexity"):
        CriteriaOptions(criteria="perplexty")
    with pytest.raises(ConfigError, match="binoculars needs two models: add --observer"):
        criteria(model, small_bpe, TEXTS, criteria="binoculars")
    only = criteria(model, small_bpe, TEXTS, criteria="lrr, tokens")
    assert list(only[0]) == ["lrr", "tokens", "error"]


def test_an_observer_of_another_vocabulary_is_refused(
    model: GPT2, observer: GPT2, small_bpe: BPETokenizer
) -> None:
    check_observer(model, small_bpe, observer, small_bpe)
    with pytest.raises(ConfigError, match="another vocabulary"):
        check_observer(model, small_bpe, observer, CharTokenizer(["a"]))
    wider = make_model(GPT2Config(n_vocab=520, n_ctx=8, n_embd=8, n_head=1, n_layer=1))
    with pytest.raises(ConfigError, match="another vocabulary"):
        check_observer(model, small_bpe, wider, small_bpe)


# --- what other people's programs found with the real weights -------------------------------------


@pytest.mark.weights
def test_gltrs_ranks_and_probabilities(test_data: Path) -> None:
    """2,136 tokens of six texts, by GLTR's own server."""
    model, tokenizer = gpt2kit.load("124M", dtype="float32")
    assert isinstance(tokenizer, BPETokenizer)
    total = 0
    for path in sorted((test_data / "known" / "gltr").glob("*.json")):
        file = json.loads(path.read_text())
        ids = [50256, *tokenizer.encode(file["request"]["text"])]
        known = file["result"]["real_topk"]
        (seen,) = measured(model, windows(ids, n_ctx=1024, stride=1024), look)
        assert len(known) == len(ids) - 1
        p = torch.exp(-Seen(*seen).nats)
        assert p.tolist() == pytest.approx([each[1] for each in known], abs=6e-6)
        different = [
            rank
            for (rank, _), found in zip(known, Seen(*seen).rank.tolist(), strict=True)
            if abs(rank + 1 - found) > max(1, 0.002 * rank)  # near ties, by other arithmetic
        ]
        assert not different
        total += len(known)
    assert total == 2136


@pytest.mark.weights
def test_fast_detectgpts_criteria_of_three_hundred_texts(test_data: Path) -> None:
    """150 human and 150 sampled texts, by Fast-DetectGPT's programs with GPT-2 XL in float32."""
    model, tokenizer = gpt2kit.load("1558M", dtype="float32")
    lines = (test_data / "known" / "fast-detect" / "xsum_gpt2-xl.jsonl").read_text().splitlines()
    known = [json.loads(line) for line in lines]
    found = criteria(model, tokenizer, [each["text"] for each in known], first="none")
    for each, figures in zip(known, found, strict=True):
        assert -math.log(figures["perplexity"]) == pytest.approx(each["likelihood"], abs=1e-4)
        assert -figures["rank"] == pytest.approx(each["rank"], rel=2e-3)
        assert -figures["log_rank"] == pytest.approx(each["logrank"], abs=1e-3)
        assert figures["entropy"] == pytest.approx(each["entropy"], abs=1e-4)
