"""Detectors: they tell sampled texts from held-out ones, and refuse figures made otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import gpt2kit
from gpt2kit.errors import ConfigError
from gpt2kit.evaluation.calibration import auroc
from gpt2kit.evaluation.criteria import measure
from gpt2kit.evaluation.criteria_options import CriteriaOptions
from gpt2kit.evaluation.detection import Detector

MADE_WITH = {
    "model": {
        "name": "124M",
        "weights_sha256": "a" * 64,
        "vocabulary_sha256": "b" * 64,
        "dtype": "float32",
        "quantized": False,
        "device": "cpu",
        "n_ctx": 1024,
        "stride": 512,
        "first": "authors",
    },
    "observer": None,
    "binoculars": "formula",
}


def figures(curvature: float | None, tokens: int = 50) -> dict[str, Any]:
    error = "the text is empty" if curvature is None else None
    return {"curvature": curvature, "tokens": tokens, "error": error}


@pytest.fixture
def detector() -> Detector:
    human = [figures(number / 100, tokens=30 + number % 7) for number in range(200)]
    machine = [figures(2 + number / 100, tokens=40) for number in range(50)]
    return Detector.calibrated(MADE_WITH, [*human, figures(None)], machine, seed=1)


def test_a_verdict_is_about_the_threshold_and_never_says_human(detector: Detector) -> None:
    threshold = detector.criteria["curvature"].threshold
    assert threshold == pytest.approx(1.97)
    verdicts = [detector.verdict(figures(value), "curvature") for value in (3.0, 1.97, -1.0)]
    assert [each["verdict"] for each in verdicts] == [
        "machine-like",
        "not told apart",
        "not told apart",
    ]
    assert verdicts[0]["human_share"] == pytest.approx(1 / 201)
    assert verdicts[2]["human_share"] == 1.0


def test_a_text_shorter_than_any_of_the_calibration_gets_no_verdict(detector: Detector) -> None:
    short = detector.verdict(figures(3.0, tokens=29), "curvature")
    assert short == {"verdict": "too short", "human_share": None}
    assert detector.verdict(figures(None), "curvature")["verdict"] is None
    assert detector.human["left_out"] == 1


def test_a_detector_is_the_same_after_it_was_saved_and_read(
    detector: Detector, tmp_path: Path
) -> None:
    path = tmp_path / "calibration.json"
    detector.save(path)
    assert Detector.read(path) == detector
    assert "no evidence against a person" in json.loads(path.read_text())["limits"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "is no calibration"),
        ('{"format": 1, "criteria": {"curvature": {}}}', "damaged calibration|has no 'made_with'"),
        ('{"format": 1, "criteria": 3, "made_with": {}, "human": {}, "machine": {}, "seed": 1}',
         "damaged calibration"),
    ],
)  # fmt: skip
def test_another_file_is_no_detector(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        Detector.read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights_sha256": "c" * 64}, "weights_sha256 of the model is aaaaaaaaaaaa there, and c"),
        ({"vocabulary_sha256": "c" * 64}, "vocabulary_sha256"),
        ({"dtype": "bfloat16"}, "dtype of the model is float32 there, and bfloat16 here"),
        ({"first": "bos"}, "first of the model is authors there, and bos here"),
        ({"stride": 1024}, "stride"),
    ],
)
def test_figures_of_another_model_or_other_options_are_refused(
    detector: Detector, change: dict[str, Any], message: str
) -> None:
    detector.check(MADE_WITH, Path("c.json"))
    other = {**MADE_WITH, "model": {**MADE_WITH["model"], **change}}  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match=message):
        detector.check(other, Path("c.json"))


def test_a_renamed_model_on_another_device_is_the_same(detector: Detector) -> None:
    model = {**MADE_WITH["model"], "name": "gpt2", "device": "cuda"}  # type: ignore[dict-item]
    detector.check({**MADE_WITH, "model": model}, Path("c.json"))


def test_an_observer_more_or_less_and_another_definition_are_refused(detector: Detector) -> None:
    with pytest.raises(ConfigError, match="was made with no --observer"):
        detector.check({**MADE_WITH, "observer": MADE_WITH["model"]}, Path("c.json"))
    with pytest.raises(ConfigError, match="another --binoculars"):
        detector.check({**MADE_WITH, "binoculars": "code"}, Path("c.json"))
    with pytest.raises(ConfigError, match="has no entropy; it has curvature"):
        detector.verdict(figures(1.0), "entropy")


@pytest.mark.slow
def test_texts_that_a_model_sampled_are_told_from_text_that_it_never_read(
    test_data: Path,
) -> None:
    """The order that the authors report: curvature before likelihood before entropy."""
    model, tokenizer = gpt2kit.load(str(test_data / "models" / "shakespeare"), dtype="float32")
    text = (test_data / "corpora" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    assert tokenizer is not None
    ids = tokenizer.encode(text[int(0.9 * len(text)) :])
    starts = range(0, 60 * 250, 250)
    prompts = [ids[start : start + 20] for start in starts]
    sampling = gpt2kit.Sampling(temperature=1.0, top_k=0)
    steps = gpt2kit.generate_tokens(model, prompts, sampling=sampling, max_tokens=180, seed=1)
    machine = [
        tokenizer.decode([*prompt, *tokens])
        for prompt, tokens in zip(prompts, zip(*steps, strict=True), strict=True)
    ]
    human = [tokenizer.decode(ids[start : start + 200]) for start in starts]
    options = CriteriaOptions(first="none")
    kinds = [list(measure(model, tokenizer, kind, options)) for kind in (human, machine)]
    found = {
        name: auroc(*([sign * each[name] for each in kind] for kind in kinds))
        for name, sign in (("curvature", 1), ("perplexity", -1), ("entropy", 1), ("lrr", 1))
    }
    print(found)
    assert found["curvature"] > found["perplexity"] > found["entropy"]
    assert found["curvature"] > 0.75
