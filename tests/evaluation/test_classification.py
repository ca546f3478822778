"""Classifiers: their probabilities, folders that transformers reads, and how they are judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_model
from safetensors.torch import load_file, save_file

from gpt2kit.checkpoints.classifiers import LabelWords, add_class_head
from gpt2kit.checkpoints.load import load, open_checkpoint, write_checkpoint, write_model
from gpt2kit.config import GPT2Config
from gpt2kit.errors import CheckpointError, CheckpointFormatError
from gpt2kit.evaluation.classification import Classifier, judge
from gpt2kit.tokenizers import BPETokenizer

CONFIG = GPT2Config(n_vocab=512, n_ctx=32, n_embd=16, n_head=2, n_layer=2)
LABELS = ("no", "yes", "perhaps")
TEXTS = ["who", "what is it?", "", "a" * 100, "when did they all go there and why"]


@pytest.fixture
def headed(tmp_path: Path, small_bpe: BPETokenizer) -> Path:
    """Write a model with a head for three labels."""
    model = make_model(CONFIG)
    add_class_head(model, LABELS, weight=torch.randn(3, 16, generator=torch.manual_seed(1)))
    folder = tmp_path / "headed"
    folder.mkdir()
    write_model(folder, model, small_bpe)
    return folder


@pytest.fixture
def worded(tmp_path: Path, small_bpe: BPETokenizer) -> Path:
    """Write a model whose labels are words."""
    folder = tmp_path / "worded"
    folder.mkdir()
    write_model(folder, make_model(CONFIG), small_bpe)
    LabelWords(LABELS, "\n").write(folder)
    return folder


def test_transformers_loads_the_head_and_gives_the_same_probabilities(
    headed: Path, small_bpe: BPETokenizer
) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2ForSequenceClassification.from_pretrained(headed).eval()
    assert theirs.config.id2label == dict(enumerate(LABELS))
    found = [*Classifier.load(str(headed)).probabilities(TEXTS)]
    for text, each in zip(TEXTS, found, strict=True):
        ids = (small_bpe.encode(text) or [511])[-32:]  # an empty text is <|endoftext|> alone
        with torch.no_grad():
            expected = theirs(torch.tensor([ids])).logits.softmax(-1)[0]
        torch.testing.assert_close(torch.tensor(each), expected, rtol=1e-5, atol=1e-6)


def test_a_classifier_that_transformers_saved_is_read(tmp_path: Path, headed: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2ForSequenceClassification.from_pretrained(headed)
    theirs.save_pretrained(tmp_path / "theirs")
    for file in ("vocab.json", "merges.txt", "tokenizer.json"):
        (tmp_path / "theirs" / file).write_bytes((headed / file).read_bytes())
    one, other = (Classifier.load(str(folder)) for folder in (headed, tmp_path / "theirs"))
    assert one.labels == other.labels
    assert [*one.probabilities(TEXTS)] == [*other.probabilities(TEXTS)]


def test_words_have_the_probability_of_their_tokens_and_of_the_end(
    worded: Path, small_bpe: BPETokenizer
) -> None:
    model, _ = load(worded, dtype="float64")
    classifier = Classifier.load(str(worded), dtype="float64")
    (found,) = classifier.probabilities(["who"])
    prompt, logs = small_bpe.encode("who\n"), []
    for label in LABELS:
        completion = [*small_bpe.encode(label), small_bpe.stop_id]
        logits = model(torch.tensor([prompt + completion[:-1]]))[0, len(prompt) - 1 :]
        logs.append(logits.log_softmax(-1)[range(len(completion)), completion].sum())
    torch.testing.assert_close(torch.tensor(found), torch.stack(logs).softmax(-1).detach().float())


@pytest.mark.parametrize("kind", ["headed", "worded"])
def test_a_text_has_the_same_probabilities_in_every_batch(
    kind: str, request: pytest.FixtureRequest
) -> None:
    classifier = Classifier.load(str(request.getfixturevalue(kind)))
    alone = [each for text in TEXTS for each in classifier.probabilities([text])]
    for batch_size in (1, 3, 8):
        together = [*classifier.probabilities(TEXTS, batch_size=batch_size)]
        torch.testing.assert_close(torch.tensor(together), torch.tensor(alone), rtol=0, atol=1e-6)
    assert all(sum(each) == pytest.approx(1) for each in alone)


def test_a_head_is_kept_when_a_folder_is_converted(headed: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(headed)
    (tmp_path / "copy").mkdir()
    write_checkpoint(tmp_path / "copy", checkpoint, torch.float32)
    copied = open_checkpoint(tmp_path / "copy")
    assert copied.class_head is not None
    assert checkpoint.class_head is not None
    assert torch.equal(copied.class_head.read(), checkpoint.class_head.read())


def test_the_language_model_beside_a_head_is_whole(headed: Path) -> None:
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(load(headed)[0](ids), make_model(CONFIG)(ids))


@pytest.mark.parametrize(
    "changes",
    [
        {"id2label": {"0": "a", "1": "b"}},
        {"id2label": {"0": "a", "1": 2, "2": "c"}},
        {"id2label": {"0": "a", "1": "b", "2": "a"}},
        {"id2label": 3},
    ],
)
def test_labels_that_do_not_fit_the_head_are_refused(headed: Path, changes: dict[str, Any]) -> None:
    config = json.loads((headed / "config.json").read_text())
    (headed / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(CheckpointFormatError, match="id2label does not name a different label for"):
        Classifier.load(str(headed))


def test_a_head_with_damaged_numbers_is_refused(headed: Path) -> None:
    # Only the numbers of the language model were checked: every text got the probabilities NaN.
    tensors = load_file(headed / "model.safetensors")
    tensors["score.weight"][1, 3] = float("nan")
    save_file(tensors, headed / "model.safetensors")
    with pytest.raises(CheckpointFormatError, match=r"score.weight holds 1 numbers that are NaN"):
        Classifier.load(str(headed))


def test_a_head_that_gives_one_number_is_no_classifier(headed: Path) -> None:
    # Every text got its only label, with the probability 1.
    tensors = load_file(headed / "model.safetensors")
    tensors["score.weight"] = tensors["score.weight"][:1].clone()
    save_file(tensors, headed / "model.safetensors")
    config = json.loads((headed / "config.json").read_text()) | {"id2label": {"0": "LABEL_0"}}
    (headed / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointFormatError, match="has one row, so it gives a number"):
        Classifier.load(str(headed))


def test_without_names_the_labels_are_called_as_transformers_calls_them(headed: Path) -> None:
    config = json.loads((headed / "config.json").read_text())
    del config["id2label"]
    (headed / "config.json").write_text(json.dumps(config))
    assert Classifier.load(str(headed)).labels == ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.mark.parametrize(
    "content",
    [
        '{"labels": ["a"], "separator": ""}',
        '{"labels": ["a", "a"], "separator": ""}',
        '{"labels": 3}',
        "[]",
    ],
)
def test_a_damaged_list_of_words_is_refused(worded: Path, content: str) -> None:
    (worded / "labels.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"labels\.json"):
        Classifier.load(str(worded))


def test_a_model_without_labels_is_refused(worded: Path) -> None:
    (worded / "labels.json").unlink()
    with pytest.raises(CheckpointError, match="without labels; make one with: gpt2kit finetune"):
        Classifier.load(str(worded))


def test_labels_are_judged_beside_the_most_frequent_one() -> None:
    found = judge(["a", "a", "b", "a"], ["a", "b", "b", "a"], ["a", "b"]).as_record()
    assert found == {
        "items": 4,
        "accuracy": 0.75,
        "accuracy_standard_error": pytest.approx(0.25),
        "baseline": 0.75,
        "most_frequent": "a",
        "confusion": {"a": {"a": 2, "b": 1}, "b": {"a": 0, "b": 1}},
    }
