"""Model cards: what they take from the record of a run, and what they never have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from store_builders import MANIFEST
from training_builders import VERSES, go, small_model, small_settings

from gpt2kit.errors import ConfigError
from gpt2kit.training.card import CardOptions, Subject, model_card

REPORT = {
    "sample": VERSES,
    "copied": 0.125,
    "longest_copied_words": 7,
    "copied_held_out": 0.0625,
    "corpus": {"documents": 3, "bytes": 4567, "characters": 4321, "train_tokens": VERSES},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run with a report."""
    folder = tmp_path_factory.mktemp("card") / "run"
    go(folder)
    (folder / "report.json").write_text(json.dumps(REPORT))
    return folder


def card(source: Path, options: CardOptions | None = None, **fields: Any) -> str:
    about: dict[str, Any] = {
        "repository": "me/novel",
        "source": source,
        "config": small_model().config,
    }
    return model_card(Subject(**(about | fields)), options or CardOptions())


def metadata(text: str) -> dict[str, Any]:
    """Return what huggingface_hub reads of a card."""
    return vars(ModelCard(text).data)


def test_a_run_gives_its_counts_losses_and_originality(run: Path) -> None:
    said = card(run)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [record["val_loss"] for record in records if "val_loss" in record]
    for line in (
        "| documents | 3 |",
        "| characters | 4,321 |",
        "| max_steps | 12 |",
        f"| validation loss | {losses[0]:.3f} | {min(losses):.3f} |",
        "| longest run of copied words | 7 |",
        "| the end of the corpus, copied likewise | 6% |",
        '$ gpt2kit generate "…" --model me/novel',
    ):
        assert line in said
    assert "trained from the beginning" in said


def test_no_text_of_the_record_gets_into_a_card(run: Path) -> None:
    """The report has a sample, and here a text in place of a count."""
    said = card(run)
    assert "tokens to train on" not in said
    assert not any(line in said for line in VERSES.splitlines())


def test_bits_of_an_outdated_report_are_left_out(run: Path) -> None:
    report = run / "report.json"
    best = min(
        record["val_loss"]
        for record in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        if "val_loss" in record
    )
    for loss, is_shown in ((best, True), (best + 1, False)):
        after = {"val_loss": loss, "bits_per_byte": 2.5}
        report.write_text(json.dumps({**REPORT, "before": after, "after": after}))
        assert ("| bits per byte | 2.500 | 2.500 |" in card(run)) is is_shown
    report.write_text(json.dumps(REPORT))


def test_a_model_without_a_run_says_what_its_files_say(tmp_path: Path) -> None:
    said = card(tmp_path)
    assert "| layers | 2 |" in said
    assert not any(f"## {part}" in said for part in ("The training", "The corpus", "Losses"))
    MANIFEST.write(tmp_path)
    assert "made from [openai-community/gpt2]" in card(tmp_path)


def test_a_damaged_record_is_left_out(tmp_path: Path) -> None:
    for name in ("run.json", "report.json", "metrics.jsonl"):
        (tmp_path / name).write_text('{"sample": ')
    assert "| layers | 2 |" in card(tmp_path)
    small_settings().write(tmp_path)
    assert "## The training" in card(tmp_path)


def test_the_hub_reads_the_metadata(run: Path) -> None:
    """Norwegian is `no`, which plain YAML takes for false."""
    found = metadata(card(run, CardOptions(license="cc-by-4.0", language="no")))
    assert found["license"] == "cc-by-4.0"
    assert found["language"] == ["no"]
    assert found["tags"] == ["gpt2kit", "gpt2", "text-generation"]
    assert found["library_name"] == "transformers"
    below = metadata(card(run, base="openai-community/gpt2"))
    assert below["base_model"] == "openai-community/gpt2"
    assert below["library_name"] == "peft"


def test_the_model_below_a_finetuning_is_named_only_if_the_hub_has_it(
    tmp_path: Path, weights: Path
) -> None:
    for model, repository in (("124M", "openai-community/gpt2"), ("secret", None)):
        (weights / model).mkdir()
        (weights / model / "config.json").write_text("{}")
        small_settings(command="finetune", options={"model": model}).write(tmp_path)
        said = card(tmp_path)
        assert model not in said
        assert (f'base_model: "{repository}"' in said) is (repository is not None)


def test_the_python_line_is_one_that_works(tmp_path: Path) -> None:
    assert "transformers.pipeline(" in card(tmp_path)
    assert "GPT2LMHeadModel" in card(tmp_path, reads_text=False)
    assert 'transformers.pipeline("text-classification"' in card(tmp_path, labels_texts=True)
    variant = small_model(norm="rmsnorm").config
    assert "transformers does not have this variant" in card(tmp_path, config=variant)


@pytest.mark.parametrize("name", ["license", "language"])
def test_a_code_is_a_code(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is .* expected a short code"):
        CardOptions(**{name: "x\nbase_model: y"})
