"""push, as a user types it: what goes to the Hub, what does not, and how it is loaded again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import add_vocabulary, write_hub
from conftest import GOLDEN, make_model
from servers import FakeHub, take_uploads
from training_builders import VERSES
from typer.testing import CliRunner

from gpt2kit.checkpoints.adapters import save_adapters
from gpt2kit.checkpoints.classifiers import LabelWords, add_class_head
from gpt2kit.checkpoints.load import load, write_model
from gpt2kit.cli import app
from gpt2kit.config import GPT2Config
from gpt2kit.lora import add_adapters
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import identity
from gpt2kit.training.adapted import digest_of

TRAINING = [
    *("--block_size=16", "--batch_size=4", "--max_steps=2", "--warmup=1", "--eval_every=1"),
    *("--sample_tokens=40", "--dtype=float32"),
]


def run(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    hub = FakeHub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    take_uploads(hub, monkeypatch)
    yield hub
    hub.close()


@pytest.fixture
def book(weights: Path) -> Path:
    """A text whose training makes the run `weights/run`."""
    book = weights.parent / "book.txt"
    book.write_text(VERSES * 3, encoding="utf-8")
    shape = ("--n_layer=1", "--n_head=2", "--n_embd=16")
    run("train", book, *shape, *TRAINING, "--out", weights / "run")
    return book


def test_a_run_is_pushed_downloaded_and_loaded_and_takes_no_text_along(
    book: Path, weights: Path, hub: FakeHub
) -> None:
    said = run("push", "run", "me/verses", "--license", "mit", "--language", "it").stdout
    assert said.splitlines() == [
        f"{hub.url}/me/verses",
        "gpt2kit download me/verses",
        'gpt2kit generate "…" --model me/verses',
        'transformers.GPT2LMHeadModel.from_pretrained("me/verses")',
    ]
    pushed = hub.repositories["me/verses"]
    assert hub.private["me/verses"]
    assert pushed.keys() == {
        *("README.md", "config.json", "generation_config.json", "gpt2kit_tokenizer.json"),
        "model.safetensors",
    }
    pieces = [line[at : at + 12] for line in VERSES.splitlines() for at in range(0, 20, 6)]
    secrets = [*pieces, "book", str(weights.parent)]
    for name, content in pushed.items():
        for secret in secrets:
            assert secret.encode() not in content, (name, secret)
            assert json.dumps(secret)[1:-1].encode() not in content, (name, secret)
    run_record = json.loads((weights / "run" / "report.json").read_text())
    card = pushed["README.md"].decode()
    assert f"| validation loss | {run_record['before']['val_loss']:.3f} | " in card
    assert f"| characters | {len(VERSES * 3):,} |" in card
    assert "## Originality" in card
    run("download", "me/verses")
    ours, theirs = (load(name, device="cpu") for name in ("run", "me/verses"))
    assert ours[1] is not None
    assert theirs[1] is not None
    for name, tensor in ours[0].state_dict().items():
        assert torch.equal(tensor, theirs[0].state_dict()[name])
    assert ours[1].encode("vita") == theirs[1].encode("vita")


def test_a_dry_run_writes_what_would_be_pushed_and_needs_no_token(
    weights: Path, tiny_model: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(weights / "no token"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    add_vocabulary(write_hub(weights / "mine", tiny_model))
    said = run("push", "mine", "me/mine", "--dry_run", "out").stdout
    assert said.splitlines()[0] == "out"
    assert said.splitlines()[-1].startswith('transformers.pipeline("text-generation"')
    assert "tags:" in Path("out/README.md").read_text()
    assert torch.equal(load("./out", device="cpu")[0].wte.weight, tiny_model.wte.weight)
    assert "already exists" in run("push", "mine", "me/mine", "--dry_run", "out", code=1).stderr
    run("push", "mine", "me/mine", "--dry_run", "out", "--force")
    said = run("push", "mine", "me/mine", code=1).stderr
    assert "set HF_TOKEN, or run: hf auth login" in said
    assert "expected USER/NAME" in run("push", "mine", "mine", code=1).stderr


def test_a_model_that_labels_texts_is_called_that(weights: Path, tiny_model: GPT2) -> None:
    """The card and the lines to type were those of a model that writes."""
    add_class_head(tiny_model, ("ham", "spam"))
    (weights / "mine").mkdir()
    write_model(weights / "mine", tiny_model)
    said = run("push", "mine", "me/mine", "--dry_run", "out").stdout
    assert "gpt2kit classify me/mine texts.csv" in said
    assert "transformers.GPT2ForSequenceClassification.from_pretrained(" in said
    assert 'pipeline_tag: "text-classification"' in Path("out/README.md").read_text()
    assert json.loads(Path("out/config.json").read_text())["id2label"] == {"0": "ham", "1": "spam"}


def test_words_for_labels_go_to_the_hub_and_come_back(
    weights: Path, tiny_model: GPT2, hub: FakeHub
) -> None:
    """Neither push nor download took labels.json along, so that nothing could classify any more."""
    add_vocabulary(write_hub(weights / "mine", tiny_model))
    LabelWords(("ham", "spam"), "\n").write(weights / "mine")
    said = run("push", "mine", "me/mine").stdout
    assert "gpt2kit classify me/mine texts.csv" in said
    assert 'transformers.pipeline("text-generation"' in said
    Path("texts.csv").write_text("text\nwho\n")
    before = run("classify", "mine", "texts.csv").stdout
    run("download", "me/mine")
    assert run("classify", "me/mine", "texts.csv").stdout == before


def test_a_vocabulary_of_sentencepiece_goes_to_the_hub_and_comes_back(
    weights: Path, hub: FakeHub
) -> None:
    """A download left spiece.model out, and the card said that transformers does not read it."""
    model = make_model(GPT2Config(n_vocab=200, n_ctx=8, n_embd=8, n_head=1, n_layer=1))
    write_hub(weights / "mine", model)
    shutil.copy(GOLDEN / "sentencepiece" / "bpe.model", weights / "mine" / "spiece.model")
    assert 'transformers.pipeline("text-gen' in run("push", "mine", "me/mine").stdout
    pushed = hub.repositories["me/mine"]
    assert json.loads(pushed["tokenizer_config.json"])["eos_token"] == "</s>"
    run("download", "me/mine")
    (before, after) = (load(name, device="cpu")[1] for name in ("mine", "me/mine"))
    assert before is not None
    assert after is not None
    assert identity(before) == identity(after)


def test_a_card_that_is_there_stays_without_force(
    weights: Path, tiny_model: GPT2, hub: FakeHub
) -> None:
    write_hub(weights / "mine", tiny_model)
    hub.add("me/mine", {"README.md": b"mine"})
    hub.private["me/mine"] = False
    assert "add --public" in run("push", "mine", "me/mine", code=1).stderr
    said = run("push", "mine", "me/mine", "--public").stderr
    assert "README.md was left as it is; --force replaces it" in said
    assert hub.repositories["me/mine"]["README.md"] == b"mine"
    run("push", "mine", "me/mine", "--public", "--force")
    assert b"tags:" in hub.repositories["me/mine"]["README.md"]


def test_adapters_are_pushed_for_peft_if_the_hub_has_their_model(
    weights: Path, tiny_model: GPT2, hub: FakeHub
) -> None:
    add_vocabulary(write_hub(weights / "124M", tiny_model))
    book = weights.parent / "book.txt"
    book.write_text(VERSES, encoding="utf-8")
    run("finetune", book, "--lora_rank=2", *TRAINING, "--out", weights / "over")
    said = run("push", "over", "me/lora").stdout
    assert said.endswith('peft.AutoPeftModelForCausalLM.from_pretrained("me/lora")\n')
    pushed = hub.repositories["me/lora"]
    assert pushed.keys() == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert b'base_model: "openai-community/gpt2"' in pushed["README.md"]
    assert b"LoRA adapters for a GPT-2, fine-tuned" in pushed["README.md"]
    run("push", "over", "me/lora", "--dry_run", "out")
    assert {path.name for path in Path("out").iterdir()} == pushed.keys()

    (weights / "124M").rename(weights / "base")
    about = weights / "over" / "adapter.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "base": "base"}))
    said = run("push", "over", "me/lora", code=1).stderr
    assert "gpt2kit merge" in said
    assert "not on the Hub" in said


def test_adapters_that_label_by_words_are_called_that(
    weights: Path, tiny_model: GPT2, hub: FakeHub
) -> None:
    """Their card and the lines to type said how to write with them, and not how to classify."""
    add_vocabulary(write_hub(weights / "124M", tiny_model))
    sha256 = digest_of(tiny_model, ())
    add_adapters(tiny_model, 2)
    (weights / "over").mkdir()
    save_adapters(weights / "over", tiny_model, base="124M", base_sha256=sha256)
    LabelWords(("ham", "spam"), "\n").write(weights / "over")
    said = run("push", "over", "me/lora").stdout
    assert "gpt2kit classify me/lora texts.csv" in said
    assert b"gpt2kit classify me/lora texts.csv" in hub.repositories["me/lora"]["README.md"]
    run("download", "me/lora")
    Path("texts.csv").write_text("text\nwho\n")
    assert "p_ham" in run("classify", "me/lora", "texts.csv").stdout
