"""plan: what a training would need, without weights, without a network, without a file written."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_builders import VERSES
from typer.testing import CliRunner, Result

from gpt2kit import store
from gpt2kit.checkpoints.load import write_model
from gpt2kit.cli import app
from gpt2kit.config import SIZES, GPT2Config
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import Tokenizer
from gpt2kit.tokenizers.learn import learn_bpe
from gpt2kit.training import plan
from gpt2kit.training.rehearsal import Memory
from gpt2kit.training.setup import set_up


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(VERSES * 3, encoding="utf-8")
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A small GPT-2 with a vocabulary of its own."""
    tokenizer = learn_bpe([VERSES], 300)
    folder = tmp_path / "base"
    folder.mkdir()
    write_small_model(folder, tokenizer)
    return folder


@pytest.fixture
def wide_base(tmp_path: Path) -> Path:
    """A model of which adapters are a small part."""
    folder = tmp_path / "wide"
    folder.mkdir()
    write_small_model(folder, learn_bpe([VERSES], 300), n_embd=128, n_layer=2)
    return folder


def write_small_model(
    folder: Path, tokenizer: Tokenizer, n_embd: int = 16, n_layer: int = 2
) -> None:
    shape = GPT2Config(
        n_vocab=tokenizer.n_vocab, n_ctx=32, n_embd=n_embd, n_head=2, n_layer=n_layer
    )
    write_model(folder, GPT2(shape), tokenizer)


@pytest.fixture
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the published models be small, with GPT-2's vocabulary."""
    for index, name in enumerate(SIZES, 1):
        small = GPT2Config(n_ctx=32, n_embd=8 * index, n_head=2, n_layer=1)
        monkeypatch.setitem(SIZES, name, small)


def run(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["plan", *map(str, words)])
    assert result.exit_code == code, result.output
    return result


def run_json(*words: object) -> dict[str, Any]:
    (line,) = run(*words, "--json").stdout.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def test_a_plan_says_what_would_be_needed_and_writes_nothing(book: Path, base: Path) -> None:
    found = run_json(book, "--model", base)
    assert found["parameters_trained"] == found["parameters"]
    assert found["memory_needed"] == sum(found["memory"].values())
    assert found["memory"]["weights"] == 4 * found["parameters"]
    assert found["training"]["max_steps"] > 0
    assert found["seconds_per_step"] > 0
    assert not found["tokens_are_estimated"]
    assert not list(store.weights_dir().iterdir())


@pytest.mark.usefixtures("small_sizes")
def test_a_plan_of_examples_counts_what_is_predicted(tmp_path: Path, base: Path) -> None:
    # It was that of a text: logits of every token, and attention without a mask.
    table = tmp_path / "pairs.jsonl"
    lines = [json.dumps({"prompt": each, "completion": "via"}) for each in VERSES.splitlines()]
    table.write_text("\n".join(lines * 3), encoding="utf-8")
    setup = set_up("finetune", str(table), {"model": str(base)}, with_weights=False)
    assert setup.outline.predicted == setup.corpus.predicted_in_row(setup.config.block_size)
    text = replace(setup.outline, predicted=None)
    assert setup.memory_needed() != plan.memory(text, setup.config, setup.device)
    assert run_json(table, "--model", base)["memory"] == vars(setup.memory_needed())


def test_adapters_need_less(book: Path, base: Path) -> None:
    whole, adapters = (run_json(book, "--model", base, *more) for more in ([], ["--lora_rank", 1]))
    assert adapters["parameters_trained"] < whole["parameters_trained"] / 4
    assert adapters["memory"]["optimizer"] < whole["memory"]["optimizer"] / 4


def test_the_lines_name_memory_by_part_and_the_time(book: Path, base: Path) -> None:
    said = run(book, "--model", base).stderr
    assert re.search(r"memory +[\d.]+ MB at the peak, of [\d.]+ GB that are free\n", said)
    assert re.search(r"program 380.0 MB, weights [\d.]+ kB, optimizer [\d.]+ kB", said)
    assert "a step, validations not included" in said


def test_a_plan_of_a_recipe_or_a_shape_is_that_of_training_from_scratch(
    book: Path, base: Path
) -> None:
    recipe = [book, "--recipe", "names", "--block_size", 16]
    expected = set_up("train", str(book), {"recipe": "names", "block_size": 16})
    found = run_json(*recipe)
    assert found["parameters"] == expected.model.config.n_params
    assert found["training"]["max_steps"] == expected.config.max_steps
    assert "model     names" in run(*recipe).stderr
    shape = run_json(book, "--n_layer", 1, "--n_head", 1, "--n_embd", 8)
    assert shape["parameters"] < found["parameters"]
    refused = run(*recipe, "--model", base, code=1).stderr
    assert "--model is for fine-tuning a model" in refused


# --- without weights ---


def test_a_published_model_is_planned_without_being_here(book: Path, small_sizes: None) -> None:
    # It was downloaded first: 6.4 GB for 1558M. Tests have no network.
    found = run_json(book, "--model", "1558M")
    assert found["parameters"] == SIZES["1558M"].n_params
    assert found["tokens_are_estimated"]
    assert found["corpus"]["train_tokens"] == pytest.approx(len(VERSES) * 3 * 0.9 / 4.4, rel=0.1)
    assert not list(store.weights_dir().iterdir())


def test_an_estimate_of_tokens_is_called_one(book: Path, small_sizes: None) -> None:
    said = run(book, "--model", "gpt2").stderr
    assert re.search(r"about \d+ tokens, estimated: 4.4 characters per token, as in English", said)
    assert re.search(r"about \d+ tokens to train with, about \d+ to validate with", said)


def test_a_vocabulary_that_is_here_is_used(
    book: Path, small_sizes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = learn_bpe([VERSES], 300)
    store.vocabulary_dir().mkdir(parents=True)
    tokenizer.save(store.vocabulary_dir())  # in place of GPT-2's
    monkeypatch.setattr("gpt2kit.training.published.N_VOCAB", tokenizer.n_vocab)
    found = run_json(book, "--model", "124M")
    assert not found["tokens_are_estimated"]
    assert found["corpus"]["train_tokens"] > 10


def test_a_corpus_of_ids_needs_no_vocabulary(tmp_path: Path, small_sizes: None) -> None:
    import numpy as np

    ids = tmp_path / "ids.npy"
    np.save(ids, np.zeros(1000, np.uint16))
    assert run_json(ids, "--model", "124M")["corpus"]["train_tokens"] == 900


def test_an_unknown_model_is_still_an_error(book: Path) -> None:
    assert "no-such-model" in run(book, "--model", "no-such-model", code=1).stderr


# --- what fits ---


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 400 MB be free, of which Python and torch take most."""
    monkeypatch.setattr(plan, "free_memory", lambda _: 400_000_000)


def test_what_does_not_fit_is_warned_of_with_what_needs_less(
    book: Path, wide_base: Path, little_memory: None
) -> None:
    said = run(book, "--model", wide_base).stderr
    assert "warning: this will not fit. These need less: --lora_rank 8 (" in said
    assert "not measured, since it does not fit" in said
    assert run_json(book, "--model", wide_base)["seconds_per_step"] is None


def test_all_sizes_are_compared_in_a_table(book: Path, small_sizes: None) -> None:
    lines = run(book, "--all").stdout.splitlines()
    assert lines[0].split() == ["model", "parameters", "full", "checkpointing", "LoRA"]
    assert [line.split()[0] for line in lines[1:]] == list(SIZES)
    assert all(line.endswith("fits") for line in lines[1:])
    assert f"{SIZES['355M'].n_params:,}" in lines[3]


def test_all_sizes_are_compared_as_json(
    book: Path, small_sizes: None, little_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_up(outline: Any, *_: object) -> Memory:
        return Memory(
            0, outline.config.n_params * (200 if outline.lora_rank else 500), 0, 0, 0, 0, 0
        )

    monkeypatch.setattr(plan, "memory", made_up)
    lines = run(book, "--all", "--json").stdout.splitlines()
    found = {size["model"]: size for size in map(json.loads, lines)}
    assert found["124M"]["memory_free"] == 400_000_000
    assert found["124M"]["verdict"] == "fits with LoRA"
    assert found["124M"]["full"]["weights"] > found["124M"]["lora"]["weights"]


def test_all_sizes_and_one_model_exclude_each_other(book: Path, base: Path) -> None:
    for words in (["--model", base], ["--recipe", "names"], ["--lora_rank", 8]):
        assert "leave out what is about one model" in run(book, "--all", *words, code=1).stderr


# --- running out of memory ---


def test_a_training_that_runs_out_of_memory_says_what_it_needed(
    book: Path, wide_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The advice named options of generation, and no figures.
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 20 GB")

    monkeypatch.setattr("gpt2kit.training.trainer.Trainer.losses", fail)
    words = ["finetune", str(book), "--model", str(wide_base), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    said = " ".join(result.stderr.split("error: ")[1].split())
    assert re.search(r"not enough memory; this training needs about [\d.]+ GB", said)
    assert re.search(r"[\d.]+ GB are free: program 0.4 GB, weights [\d.]+ [kM]B, optimizer", said)
    options = re.findall(r"(--\w+(?: 8)?) \(", said)
    assert sorted(options) == ["--accumulate 8", "--checkpointing", "--lora_rank 8"]
    assert said.endswith("a smaller --batch_size or --block_size, a smaller --model")
