"""sae, as a user types it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import add_vocabulary, write_hub
from features_builders import AT, SAES, write_sae
from typer.testing import CliRunner, Result

from gpt2kit.cli import app
from gpt2kit.inspection.features import activations, load_sae
from gpt2kit.inspection.splicing import promoted, splice
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import BPETokenizer

TEXT = "The cat sat"


@pytest.fixture
def folder(weights: Path, tiny_model: GPT2) -> str:
    """A model in the weights folder, and an SAE for it in the working directory."""
    add_vocabulary(write_hub(weights / "tiny", tiny_model))
    return str(write_sae(Path("sae")))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["sae", *arguments])


def objects(*arguments: str) -> list[dict[str, Any]]:
    result = run(*arguments, "--model", "tiny", "--json")
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def ids_of(tokenizer: BPETokenizer) -> torch.Tensor:
    return torch.tensor([[tokenizer.stop_id or 0, *tokenizer.encode(TEXT)]])


def test_an_sae_says_what_it_is(folder: str) -> None:
    result = run(folder)
    assert result.exit_code == 0
    assert "blocks.1.hook_resid_pre" in result.stdout
    (about,) = objects(str(SAES / "topk"))
    assert (about["kind"], about["k"], about["features"]) == ("topk", 3, 12)
    assert "unknown: give --at" in run(str(SAES / "openai-topk.pt")).stdout
    assert AT in run(str(SAES / "openai-topk.pt"), "--at", AT).stdout


def test_the_strongest_features_of_each_token_are_those_of_the_library(
    folder: str, tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    ids = ids_of(small_bpe)
    features = load_sae(folder).encode(activations(tiny_model, ids, "blocks.1.hook_resid_pre"))[0]
    found = objects(folder, "--text", TEXT, "--top", "3")
    assert [line["token"] for line in found] == ids[0, 1:].tolist()
    for line in found:
        values, indices = features[line["position"]].topk(3)
        assert [each["feature"] for each in line["features"]] == indices.tolist()
        shown = [each["activation"] for each in line["features"]]
        assert shown == pytest.approx(values.tolist(), rel=1e-4)
    table = run(folder, "--model", "tiny", "--text", TEXT, "--top", "3")
    assert len(table.stdout.splitlines()) == len(found)
    assert "features fire at a token" in table.stderr


def test_a_table_of_the_features_is_written(folder: str) -> None:
    result = run(folder, "--model", "tiny", "--text", TEXT, "--top", "2", "--out", "f.csv")
    assert result.exit_code == 0, result.stderr
    with Path("f.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = objects(folder, "--text", TEXT, "--top", "2")
    assert [(int(row["position"]), int(row["feature"])) for row in rows] == [
        (line["position"], each["feature"]) for line in expected for each in line["features"]
    ]


def test_one_feature_is_shown_over_the_text(folder: str) -> None:
    found = objects(folder, "--text", TEXT, "--top", "24")
    strongest = max(
        (each["activation"], each["feature"]) for line in found for each in line["features"]
    )
    feature = str(strongest[1])
    *values, _ = objects(folder, "--text", TEXT, "--feature", feature)
    assert max(line["activation"] for line in values) == pytest.approx(strongest[0])
    shown = run(folder, "--model", "tiny", "--text", TEXT, "--feature", feature)
    assert shown.stdout.count("█" * 30) == 1
    colored = run(
        folder, "--model", "tiny", "--text", TEXT, "--feature", feature, "--color", "always"
    )
    assert "\x1b[48;5;" in colored.stdout


def test_a_feature_is_drawn_with_the_tokens_that_it_promotes(
    folder: str, tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    asked = ["--text", TEXT, "--feature", "3", "--top", "2"]
    result = run(folder, "--model", "tiny", *asked, "--picture", "feature.png")
    assert result.exit_code == 0, result.stderr
    assert Path("feature.png").read_bytes().startswith(b"\x89PNG")
    *_, found = objects(folder, *asked)
    raised = promoted(tiny_model, load_sae(folder), 3, 2, n_vocab=small_bpe.n_vocab)
    assert [each["token"] for each in found["promotes"]] == [token for token, _ in raised]
    assert f"{raised[0][1]:+.2f}" in result.stdout.splitlines()[-1]


def test_changed_features_change_the_next_token_and_the_text(
    folder: str, tiny_model: GPT2, small_bpe: BPETokenizer
) -> None:
    ids = ids_of(small_bpe)
    changes = ["--steer", "5=40", "--ablate", "3", "--max_tokens", "4"]
    *found, texts = objects(folder, "--text", TEXT, *changes, "--top", "4")
    before = tiny_model(ids)[0, -1].softmax(-1)
    sae = load_sae(folder)
    after = splice(tiny_model, ids, sae, {5: 40.0, 3: 0.0}, skip=1)[0, -1].softmax(-1)
    for line in found:
        assert line["before"] == pytest.approx(float(before[line["token"]]), rel=1e-3)
        assert line["after"] == pytest.approx(float(after[line["token"]]), rel=1e-3)
    largest = (after - before).abs().argsort(descending=True)[:4].tolist()
    assert [line["token"] for line in found] == largest
    assert texts["text_before"] != texts["text_after"]
    # torch warned of a number that could still be differentiated.
    assert run(folder, "--model", "tiny", "--text", TEXT, "--ablate", "3").stderr == ""


def test_the_quality_on_a_file_is_shown(folder: str) -> None:
    Path("book.txt").write_text("The cat sat on the mat. " * 4)
    (found,) = objects(folder, "--corpus", "book.txt", "--window", "16")
    assert found["l0"] > 0
    assert found["explained_variance"] < 1
    assert found["loss_recovered"] == pytest.approx(
        (found["loss_zero"] - found["loss_spliced"]) / (found["loss_zero"] - found["loss"])
    )
    assert "explained variance" in run(folder, "--model", "tiny", "--corpus", "book.txt").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["--feature", "3"], 2, "need --text TEXT"),
        (["--text", TEXT, "--max_tokens", "3"], 2, "--max_tokens is for --ablate and --steer"),
        (["--text", TEXT, "--picture", "f.png"], 2, "add --feature NUMBER"),
        (["--text", TEXT, "--steer", "3:8"], 2, "expected FEATURE=VALUE"),
        (["--text", TEXT, "--steer", "3=nan"], 2, "expected FEATURE=VALUE"),
        (["--text", TEXT, "--feature", "3", "--ablate", "4"], 2, "not both"),
        (["--text", TEXT, "--feature", "24"], 1, "there is no feature 24"),
        (["--text", TEXT, "--ablate", "24"], 1, "there is no feature 24"),
        (["--text", TEXT, "--out", "f.txt"], 2, "expected a name in .csv"),
        (["--text", ""], 2, "the text is empty"),
        (["--text", "word " * 50], 1, "the model reads at most 32"),
        (["--at", AT], 1, "leave out --at"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    folder: str, arguments: list[str], code: int, expected: str
) -> None:
    result = run(folder, "--model", "tiny", *arguments)
    assert (result.exit_code, expected in result.stderr) == (code, True), result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_missing_sae_is_one_line(folder: str) -> None:
    result = run("nowhere")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: nowhere: no such file")
