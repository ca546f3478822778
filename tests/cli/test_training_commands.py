"""train, finetune, recipes and merge: what they print and leave, and each option's effect."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_builders import VERSES
from typer.testing import CliRunner

from gpt2kit.checkpoints.device import described
from gpt2kit.checkpoints.load import load
from gpt2kit.cli import app
from gpt2kit.cli.training_summary import loss_figures
from gpt2kit.errors import ConfigError
from gpt2kit.fields import rules
from gpt2kit.generation.text import Completion, complete
from gpt2kit.training import recipes
from gpt2kit.training.options import FinetuneOptions, TrainOptions
from gpt2kit.training.records import read_metrics
from gpt2kit.training.settings import Command, Settings
from gpt2kit.training.setup import set_up

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
SMALL_OPTIONS = [
    *("--n_layer=1", "--n_head=2", "--n_embd=16", "--block_size=16", "--batch_size=4"),
    *("--max_steps=6", "--warmup=1", "--eval_every=3", "--sample_tokens=5"),
]


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(VERSES * 3, encoding="utf-8")
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A small GPT-2 with a vocabulary of its own."""
    from gpt2kit.checkpoints.load import write_model
    from gpt2kit.config import GPT2Config
    from gpt2kit.model import GPT2
    from gpt2kit.tokenizers.learn import learn_bpe

    tokenizer = learn_bpe([VERSES], 300)
    model = GPT2(GPT2Config(n_vocab=tokenizer.n_vocab, n_ctx=32, n_embd=16, n_head=2, n_layer=2))
    model.init_weights(torch.Generator().manual_seed(0))
    folder = tmp_path / "base"
    folder.mkdir()
    write_model(folder, model, tokenizer)
    return folder


def run(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def facts(kind: Command, source: Path, *arguments: object, **given: Any) -> dict[str, Any]:
    """Return the settings that options lead to, without training."""
    return asdict(set_up(kind, str(source), given).settings)


# --- train --------------------------------------------------------------------------------------


def test_training_from_scratch_leaves_a_model_a_record_and_says_how_it_went(
    book: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    result = run("train", book, *SMALL_OPTIONS, "--out", out)
    assert result.stdout == ""
    for piece in (
        "characters per token",
        "of them trained",
        "6 steps of 4 windows of 16 tokens",
        "weights",
        "a step, validations not included",
    ):
        assert piece in result.stderr
    for piece in (
        "validation loss",
        "bits per byte",
        "copied in runs of 5 words",
        "--- before",
        "--- after",
        "gpt2kit generate",
    ):
        assert piece in result.stderr
    assert [line["step"] for line in read_metrics(out)] == list(range(7))
    summary = json.loads((out / "report.json").read_text())
    assert summary["after"]["val_loss"] < summary["before"]["val_loss"]
    model, tokenizer = load(out, device="cpu")
    assert model.config.n_embd == 16
    assert tokenizer is not None
    assert len((out / "samples.jsonl").read_text().splitlines()) == 2
    said = run("generate", "Nel mezzo", "--model", out, "--max_tokens", 3, "--no_prompt").stdout
    assert len(said.rstrip("\n")) <= 3


def test_what_to_type_next_has_the_shortest_path(
    book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It was absolute, whatever was given.
    monkeypatch.chdir(tmp_path)
    said = run("train", book, *SMALL_OPTIONS, "--out", tmp_path / "runs" / "first").stderr
    assert f"saved in  {Path('runs/first')}\n" in said
    assert said.endswith(f" --model {Path('runs/first')}\n")


def test_with_json_stdout_has_one_object_a_line(book: Path, tmp_path: Path) -> None:
    lines = [
        json.loads(line)
        for line in run(
            "train", book, *SMALL_OPTIONS, "--out", tmp_path / "run", "--json"
        ).stdout.splitlines()
    ]
    assert [line["step"] for line in lines[:-1]] == list(range(7))
    assert "val_loss" in lines[3]
    assert lines[3]["tokens_per_second"] > 0
    assert lines[-1]["finish_reason"] == "steps"


def test_a_run_is_resumed_with_its_own_options(book: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run("train", book, *SMALL_OPTIONS, "--out", whole)
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "states" / "step-00000006")
    assert "1 steps" not in run("train", book, "--out", cut, "--resume").stderr
    last = "states/step-00000006/weights.safetensors"
    assert (cut / last).read_bytes() == (whole / last).read_bytes()
    assert "has ended already" in run("train", book, "--out", cut, "--resume").stderr


def test_a_run_that_was_killed_before_its_report_gets_it_when_it_is_resumed(
    book: Path, tmp_path: Path
) -> None:
    # "has ended already" was all that was said: report.json and loss.png were never written.
    folder = tmp_path / "run"
    run("train", book, *SMALL_OPTIONS, "--out", folder)
    expected = json.loads((folder / "report.json").read_text())
    for name in ("report.json", "loss.png"):
        (folder / name).unlink()
    run("train", book, "--out", folder, "--resume")
    found = json.loads((folder / "report.json").read_text())
    assert found | {"seconds": 0} == expected | {"seconds": 0}
    assert (folder / "loss.png").exists()


@pytest.mark.parametrize(
    ("name", "command"), [("train", "train"), ("recipe", "train"), ("adapters", "finetune")]
)
def test_a_run_of_an_earlier_version_is_resumed_bit_for_bit(
    book: Path, tmp_path: Path, name: str, command: Command
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = json.loads((GOLDEN / "runs" / f"{name}.json").read_text())
    if command == "train":  # first weights are drawn, and not the same on every processor
        settings["start"] = set_up(command, str(book), settings["options"]).settings.start
    whole.mkdir()
    (whole / "run.json").write_text(json.dumps(settings))
    run(command, book, "--resume", "--keep_states", "--out", whole)
    shutil.copytree(whole, cut)
    states = sorted(path.name for path in (cut / "states").iterdir())
    for state in states[len(states) // 2 :]:
        shutil.rmtree(cut / "states" / state)
    run(command, book, "--resume", "--out", cut)
    for file in ("weights.safetensors", "optimizer.safetensors"):
        ends = [folder / "states" / states[-1] / file for folder in (whole, cut)]
        assert ends[0].read_bytes() == ends[1].read_bytes()
    assert json.loads((cut / "run.json").read_text()) == settings


def test_a_run_json_of_other_fields_is_refused_in_one_line(book: Path, tmp_path: Path) -> None:
    # It was a traceback.
    run("train", book, *SMALL_OPTIONS, "--out", tmp_path / "run")
    settings = json.loads((tmp_path / "run" / "run.json").read_text())
    for section, name, value in (
        ("training", "weigit_decay", 0.1),
        ("options", "n_layers", 3),
        ("options", "max_steps", "many"),
    ):
        changed = {**settings, section: {**settings[section], name: value}}
        (tmp_path / "run" / "run.json").write_text(json.dumps(changed))
        said = run("train", book, "--resume", "--out", tmp_path / "run", code=1).stderr
        assert name in said
        assert said.count("\n") == 1


def test_a_finished_run_keeps_one_state_or_all_if_asked_and_can_go_on(
    book: Path, tmp_path: Path
) -> None:
    # Two whole states were kept: with the best weights seven times the model.
    def states(name: str) -> list[str]:
        return sorted(path.name for path in (tmp_path / name / "states").iterdir())

    run("train", book, *SMALL_OPTIONS, "--out", tmp_path / "one")
    assert states("one") == ["step-00000006"]
    run("train", book, *SMALL_OPTIONS, "--keep_states", "--out", tmp_path / "all")
    assert states("all") == ["step-00000000", "step-00000003", "step-00000006"]
    run("train", book, "--resume", "--max_steps", 9, "--out", tmp_path / "one")
    assert states("one") == ["step-00000009"]
    assert [line["step"] for line in read_metrics(tmp_path / "one")] == list(range(10))


def test_an_extended_run_says_in_a_line_what_is_exact_and_what_is_a_new_phase(
    book: Path, tmp_path: Path
) -> None:
    for name, how, said in (
        ("exact", ["--schedule=constant"], "exact: from step 6 on, bit for bit as if there had"),
        ("phase", ["--schedule=constant", "--warmdown=2"], "new phase: after step 6 the learning"),
    ):
        run("train", book, *SMALL_OPTIONS, *how, "--out", tmp_path / name)
        shown = run("train", book, "--resume", "--max_steps", 9, "--out", tmp_path / name).stderr
        assert shown.count(said) == 1
        assert Settings.read(tmp_path / name).training.warmdown == len(how[1:]) * 2


def test_resuming_with_another_option_or_text_is_refused_with_the_difference(
    book: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run("train", book, *SMALL_OPTIONS, "--out", out)
    assert (
        "training.lr was 0.003 and is now 0.01"
        in run("train", book, "--out", out, "--resume", "--lr", "0.01", code=1).stderr
    )
    book.write_text(VERSES * 4, encoding="utf-8")
    assert "corpus was" in run("train", book, "--out", out, "--resume", code=1).stderr
    assert "already exists" in run("train", book, *SMALL_OPTIONS, "--out", out, code=1).stderr
    run("train", book, *SMALL_OPTIONS, "--out", out, "--force")


def test_the_default_folder_is_named_after_corpus_and_model(
    book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPT2KIT_WEIGHTS", str(tmp_path / "w"))
    run("train", book, *SMALL_OPTIONS, "--sample_every", 0)
    assert (tmp_path / "w" / "book-gpt" / "model.safetensors").exists()
    assert not (tmp_path / "w" / "book-gpt" / "samples.jsonl").exists()


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("books/*.txt", "books"),
        ("books/**/*.txt", "books"),
        ("books/first/c?nto.txt", "first"),
        ("books", "books"),
        ("books/first/canto.txt", "canto"),
        ("*/first/canto.txt", "here"),
        (".", "here"),
    ],
)
def test_a_run_is_named_after_its_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, name: str
) -> None:
    # A glob named it "*-gpt", and the folder of now "-gpt".
    folder = tmp_path / "here" / "books" / "first"
    folder.mkdir(parents=True)
    for path in (folder / "canto.txt", folder.parent / "all.txt"):
        path.write_text(VERSES, encoding="utf-8")
    monkeypatch.chdir(tmp_path / "here")
    assert set_up("train", source, {"n_layer": 0}).folder.name == f"{name}-gpt"


@pytest.mark.parametrize(
    "wrong",
    [
        "--lr 0", "--lr nan", "--max_steps 0", "--n_head 3", "--freeze all", "--val_fraction 1",
        "--dropout 1", "--max_steps 3 --epochs 1", "--device tpu", "--recipe nothing",
        "--epochs 0", "--resume --force",
    ],
)  # fmt: skip
def test_wrong_options_are_one_line_and_leave_nothing(
    book: Path, tmp_path: Path, wrong: str
) -> None:
    kept = [word for word in SMALL_OPTIONS if not word.startswith("--max_steps")]
    result = run("train", book, *kept, *wrong.split(), "--out", tmp_path / "run", code=1)
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "wrong",
    ["--tokenizer morse", "--optimizer sgd", "--dtype float16", "--norm x", "--lr high"],
)
def test_values_of_the_wrong_kind_are_wrong_usage(book: Path, tmp_path: Path, wrong: str) -> None:
    run("train", book, *SMALL_OPTIONS, *wrong.split(), "--out", tmp_path / "run", code=2)
    assert not (tmp_path / "run").exists()


# Each option, and where its effect is seen: a path in the settings of a run and the value there.
SEEN: dict[str, tuple[Any, str, Any]] = {
    "block_size": (12, "training.block_size", 12),
    "batch_size": (3, "training.batch_size", 3),
    "accumulate": (4, "training.accumulate", 4),
    "max_steps": (77, "training.max_steps", 77),
    "epochs": (2.0, "training.max_steps", 2),
    "optimizer": ("adamw", "training.optimizer", "adamw"),
    "lr": (1e-2, "training.lr", 1e-2),
    "schedule": ("cosine", "training.schedule", "cosine"),
    "warmup": (7, "training.warmup", 7),
    "weight_decay": (0.2, "training.weight_decay", 0.2),
    "beta1": (0.8, "training.beta1", 0.8),
    "beta2": (0.9, "training.beta2", 0.9),
    "clip": (0.5, "training.clip", 0.5),
    "dropout": (0.25, "model.attn_pdrop", 0.25),
    "embd_pdrop": (0.3, "model.embd_pdrop", 0.3),
    "attn_pdrop": (0.3, "model.attn_pdrop", 0.3),
    "resid_pdrop": (0.3, "model.resid_pdrop", 0.3),
    "dtype": ("bfloat16", "training.dtype", "bfloat16"),
    "checkpointing": (True, "training.checkpointing", True),
    "compile": (True, "training.compile", True),
    "eval_every": (9, "training.eval_every", 9),
    "eval_tokens": (50, "training.eval_tokens", 50),
    "shuffle": (False, "training.shuffle", False),
    "stride": (5, "training.stride", 5),
    "eval_train": (False, "training.eval_train", False),
    "save_every": (8, "training.save_every", 8),
    "patience": (2, "training.patience", 2),
    "seed": (5, "training.seed", 5),
    "n_layer": (2, "model.n_layer", 2),
    "n_head": (2, "model.n_head", 2),
    "n_embd": (48, "model.n_embd", 48),
    "n_inner": (24, "model.n_inner", 24),
    "activation_function": ("relu", "model.activation_function", "relu"),
    "norm": ("rmsnorm", "model.norm", "rmsnorm"),
    "norm_first": (False, "model.norm_first", False),
    "mlp": ("swiglu", "model.mlp", "swiglu"),
    "residual": (False, "model.residual", False),
    "positions": ("sinusoidal", "model.positions", "sinusoidal"),
    "bias": (False, "model.bias", False),
    "qkv_bias": (False, "model.qkv_bias", False),
    "tie_word_embeddings": (False, "model.tie_word_embeddings", False),
    "head_bias": (True, "model.head_bias", True),
    "recipe": ("names", "model.mlp", "swiglu"),
}
SEEN_ELSEWHERE = {  # by the tests below
    "freeze", "val_fraction", "val", "encoding", "text_field", "sample_every", "sample_tokens",
    "sample_count", "sample_temperature", "sample_top_k", "sample_top_p",
    "prompt", "stop_when_copied", "device", "tokenizer", "vocabulary", "n_vocab", "model",
    "lora_rank", "lora_alpha", "head",
    "replace", "markers",  # by tests/cli/test_word_options.py
    "warmdown", "fresh_optimizer", "stack",
    # by tests/training/test_readings.py and tests/data/test_examples.py
    "prompt_field", "completion_field", "separator", "label_field", "label_head",
}  # fmt: skip


def test_every_option_has_a_test() -> None:
    options = rules(TrainOptions).keys() | rules(FinetuneOptions).keys()
    assert options == SEEN.keys() | SEEN_ELSEWHERE


@pytest.mark.parametrize("option", SEEN)
def test_each_option_reaches_what_it_is_for(book: Path, option: str) -> None:
    value, path, expected = SEEN[option]
    found: dict[str, Any] = {}
    for given in ({}, {option: value}):
        part: Any = facts("train", book, **{"n_layer": 1, "n_embd": 24, "block_size": 64} | given)
        for name in path.split("."):
            part = part[name]
        found[str(len(found))] = part
    assert found["1"] == expected
    assert found["0"] != expected


def test_the_tokenizer_can_be_chosen(book: Path, base: Path) -> None:
    def tokens(**given: Any) -> tuple[int, int]:
        setup = set_up("train", str(book), {"n_layer": 0, **given})
        return setup.tokenizer.n_vocab, setup.corpus.report.train_tokens

    characters, words = tokens(), tokens(tokenizer="word")
    assert characters[1] > 4 * words[1]
    assert tokens(tokenizer="bpe", n_vocab=280)[0] == 280
    assert tokens(tokenizer="bpe", n_vocab=290)[0] == 290
    assert tokens(tokenizer="bpe", vocabulary=str(base))[0] == 300


def test_without_a_head_the_width_is_the_size_of_the_vocabulary(book: Path) -> None:
    shape = facts("train", book, head="none", n_layer=0, n_head=1)["model"]
    assert shape["n_embd"] == shape["n_vocab"]
    with pytest.raises(ConfigError, match="n_embd is 24 and n_vocab .*: without a head"):
        facts("train", book, head="none", n_layer=0, n_head=1, n_embd=24)


def test_the_validation_text_can_be_chosen(book: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(VERSES[:100], encoding="utf-8")
    assert set_up("train", str(book), {"val": str(other)}).corpus.report.val_tokens == 100
    half = set_up("train", str(book), {"val_fraction": 0.5}).corpus.report
    assert half.val_tokens == pytest.approx(half.train_tokens, rel=0.1)


def test_the_encoding_and_the_field_of_the_text_can_be_chosen(tmp_path: Path) -> None:
    latin, lines = tmp_path / "latin.txt", tmp_path / "lines.jsonl"
    latin.write_bytes((VERSES * 2).encode("cp1252"))
    lines.write_text(json.dumps({"verse": VERSES}) + "\n")
    assert "è" in set_up("train", str(latin), {"encoding": "cp1252"}).start.text.joined  # type: ignore[union-attr]
    assert set_up("train", str(lines), {"text_field": "verse"}).start.text.joined == VERSES  # type: ignore[union-attr]


def test_samples_continue_the_prompt_as_long_and_as_often_as_asked(
    book: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run(
        "train",
        book,
        *SMALL_OPTIONS,
        "--out",
        out,
        "--sample_every",
        2,
        "--prompt",
        "selva",
        "--sample_tokens",
        7,
    )
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [0, 2, 4]
    assert all(
        sample["text"].startswith("selva") and len(sample["text"]) == 12 for sample in samples
    )


def test_samples_are_drawn_as_asked_and_as_many(book: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"temperature": 0.7, "top_k": 5, "top_p": 0.8}
    arguments = [f"--sample_{name}={value}" for name, value in how.items()]
    out = tmp_path / "run"
    said = run(
        "train", book, *SMALL_OPTIONS, *arguments, "--sample_count=3", "--prompt=Nel", "--out", out
    ).stderr
    found = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [(sample["step"], sample["sample"]) for sample in found] == [
        (step, number) for step in (0, 3) for number in range(3)
    ]
    assert len({sample["text"] for sample in found}) > 2
    setup = set_up("train", str(book), Settings.read(out).options)  # the model before step 1
    for number, sample in enumerate(found[:3]):
        alone = complete(
            setup.model.eval(),
            setup.tokenizer,
            "Nel",
            max_tokens=5,
            seed=1,
            first_sample=number,
            **how,
        )
        assert sample["text"] == "Nel" + alone[0].text
        assert sample["text"].rstrip() in said


def test_the_device_may_change_when_a_run_is_resumed(book: Path, tmp_path: Path) -> None:
    run("train", book, *SMALL_OPTIONS, "--out", tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "device": "cuda:0 (another)"}))
    run("train", book, "--resume", "--max_steps", 8, "--out", tmp_path / "run")
    assert json.loads(path.read_text())["device"] == described(torch.device("cpu"))


def test_a_validation_shows_both_losses_measured_alike_and_the_tokens_seen(
    book: Path, tmp_path: Path
) -> None:
    said = run("train", book, *SMALL_OPTIONS, "--out", tmp_path / "run").stderr
    lines = read_metrics(tmp_path / "run")
    assert [line["tokens_seen"] for line in lines] == [step * 4 * 16 for step in range(7)]
    for line in (lines[0], lines[3], lines[6]):
        losses = f"train {line['eval_train_loss']:.4f}  val {line['val_loss']:.4f} *"
        seen = f"  {line['tokens_seen']} tokens seen, " if line["step"] else "\n"
        assert f"step {line['step']:>6}  {losses}{seen}" in said
    assert f"training loss{lines[0]['eval_train_loss']:>19.3f}" in said
    off = run("train", book, *SMALL_OPTIONS, "--no_eval_train", "--out", tmp_path / "off").stderr
    last = read_metrics(tmp_path / "off")[-1]
    assert "eval_train_loss" not in last
    assert f"step      6  batch {last['train_loss']:.4f}  val {last['val_loss']:.4f}" in off


def test_the_sample_of_the_step_at_which_one_stopped_is_in_the_record(
    book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It was left out there, and a resumed run does not come back to that step.
    def stop_at(step: int) -> None:
        steps = iter(range(1, step + 1))
        monkeypatch.setattr(
            "gpt2kit.cli.training._Stop.__call__", lambda _: next(steps, step) == step
        )

    small = [*SMALL_OPTIONS, "--sample_every=2"]
    run("train", book, *small, "--out", tmp_path / "whole")
    with monkeypatch.context():
        stop_at(4)
        run("train", book, *small, "--out", tmp_path / "cut", code=128)
    monkeypatch.undo()
    run("train", book, "--resume", "--out", tmp_path / "cut")
    records = [(tmp_path / name / "samples.jsonl").read_bytes() for name in ("whole", "cut")]
    assert records[0] == records[1]
    assert records[0].count(b"\n") == 3


def test_training_stops_when_too_much_is_copied(
    book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "gpt2kit.cli.training_report.complete",
        lambda *_, **__: [
            Completion("Ne", text, [], "max_tokens", seed=1, sample=0)
            for text in ("w x y z", "l mezzo del cammin di nostra vita mi ritrovai")
        ],
    )
    stopped = run(
        "train",
        book,
        *SMALL_OPTIONS,
        "--out",
        tmp_path / "a",
        "--prompt",
        "Ne",
        "--stop_when_copied",
        0.5,
    )
    assert stopped.stderr.count("copied from the corpus: stopping") == 1
    assert read_metrics(tmp_path / "a")[-1]["step"] == 1
    run("train", book, *SMALL_OPTIONS, "--out", tmp_path / "b", "--prompt", "Ne")
    assert read_metrics(tmp_path / "b")[-1]["step"] == 6


def test_a_frozen_part_is_not_trained(book: Path, tmp_path: Path) -> None:
    run("train", book, *SMALL_OPTIONS, "--out", tmp_path / "run", "--freeze", "embeddings")
    start = set_up("train", str(book), Settings.read(tmp_path / "run").options).model
    trained, _ = load(tmp_path / "run", device="cpu")
    assert torch.equal(trained.wte.weight, start.wte.weight)
    assert not torch.equal(trained.ln_f.weight, start.ln_f.weight)  # type: ignore[arg-type]


def test_the_device_can_be_chosen(book: Path, tmp_path: Path) -> None:
    assert set_up("train", str(book), {"device": "cpu"}).model.device.type == "cpu"
    assert (
        "device is 'cuda:9'"
        in run(
            "train", book, *SMALL_OPTIONS, "--device", "cuda:9", "--out", tmp_path / "run", code=1
        ).stderr
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_exit_code_tells_which(
    book: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out, most = tmp_path / "run", 100_000
    ended = threading.Event()

    def send() -> None:
        while not ended.wait(0.02):
            if (out / "metrics.jsonl").exists() and len(read_metrics(out)) > 3:
                os.kill(os.getpid(), number)
                return

    sender = threading.Thread(target=send)
    sender.start()
    options = ("--max_steps", most, "--save_every", most, "--out", out)
    try:
        said = run("train", book, *SMALL_OPTIONS, *options, code=128 + number).stderr
    finally:
        ended.set()
        sender.join()
    assert "with --resume continues after step" in said
    last = read_metrics(out)[-1]["step"]
    assert last < most
    assert (out / "states" / f"step-{last:08d}").is_dir()


# --- what reaches the terminal ------------------------------------------------------------------


def test_no_control_character_of_a_text_reaches_the_terminal(book: Path, tmp_path: Path) -> None:
    # Samples, the summary and the command to type next had them raw.
    escape = "\x1b]0;owned\x07"
    book.write_text(f"{escape} selva {escape} oscura\n" * 60, encoding="utf-8")
    said = run("train", book, *SMALL_OPTIONS, "--prompt", escape, "--out", tmp_path / f"r{escape}")
    assert "\x1b" not in said.stderr
    assert "\x07" not in said.stderr
    assert r"\x1b]0;owned\x07" in said.stderr
    sample = json.loads((tmp_path / f"r{escape}" / "samples.jsonl").read_text().splitlines()[0])
    assert sample["text"].startswith(escape)


def test_the_command_to_type_next_has_a_prompt_that_a_shell_reads_as_it_was(
    book: Path, tmp_path: Path
) -> None:
    # A line end was shown in plain quotes, as '\n', which a shell reads as a backslash and an n.
    prompt = "d'oro\n"
    said = run("train", book, *SMALL_OPTIONS, "--prompt", prompt, "--out", tmp_path / "r").stderr
    word = said.split("now try: gpt2kit generate ")[1].split(" --model ")[0]
    read = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True)
    assert read.stdout.decode() == prompt


def test_a_folder_whose_name_is_not_utf8_is_trained_in(book: Path, tmp_path: Path) -> None:
    # The picture's title was an error, after everything was saved: a traceback and no summary.
    out = os.fsdecode(os.fsencode(tmp_path) + b"/r\xff")
    said = run("train", book, *SMALL_OPTIONS, "--out", out).stderr
    assert "validation loss" in said
    assert "now try" in said
    assert (Path(out) / "report.json").exists()
    assert (Path(out) / "loss.png").exists()


def test_a_picture_that_cannot_be_drawn_is_a_warning(
    book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("no fonts")

    monkeypatch.setattr("gpt2kit.cli.training_summary.save", broken)
    said = run("train", book, *SMALL_OPTIONS, "--out", tmp_path / "run").stderr
    assert "warning: the picture of the losses could not be drawn: no fonts" in said
    assert "now try" in said


def test_without_matplotlib_what_to_install_is_said_once(
    book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # loss.png was missing without a word.
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    said = run("train", book, *SMALL_OPTIONS, "--out", tmp_path / "run").stderr
    assert said.count("pip install 'gpt2kit[plots]'") == 1
    assert not (tmp_path / "run" / "loss.png").exists()


def test_a_training_says_its_device_and_one_step_is_one_step(book: Path, tmp_path: Path) -> None:
    options = [word for word in SMALL_OPTIONS if "steps" not in word and "warmup" not in word]
    said = run("train", book, *options, "--max_steps", 1, "--out", tmp_path / "run").stderr
    device = described(torch.device("cpu"))
    assert f"device    {device}, float32\n" in said
    assert json.loads((tmp_path / "run" / "run.json").read_text())["device"] == device
    assert "1 step of 4 windows" in said
    assert "1 step in " in said
    assert "mean of the last 1 step\n" in said  # it said 100, however few there were
    assert "1 steps" not in said


def test_running_out_of_memory_says_how_much_is_needed_and_what_needs_less(
    book: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The message named options of `generate`, and no figures.
    def exhausted(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("gpt2kit.training.trainer.Trainer.losses", exhausted)
    said = run(
        "finetune", book, "--model", base, *FINE, "--out", tmp_path / "run", code=1
    ).stderr.splitlines()[-1]
    assert said.startswith("error: not enough memory; this training needs about 0.4 GB")
    # Of a model this small, the other options need no less.
    assert (
        "These need less: --accumulate 4 (0.4 GB), a smaller --batch_size or --block_size" in said
    )


# --- finetune, merge ---------------------------------------------------------------------------

FINE = [
    "--block_size=16",
    "--batch_size=4",
    "--max_steps=6",
    "--lr=0.01",
    "--sample_tokens=5",
    "--eval_every=3",
]


def test_fine_tuning_starts_from_a_model_and_leaves_one_of_the_same_shape(
    book: Path, base: Path, tmp_path: Path
) -> None:
    result = run("finetune", book, "--model", base, *FINE, "--out", tmp_path / "run")
    assert "--- after" in result.stderr
    before, _ = load(base, device="cpu")
    after, _ = load(tmp_path / "run", device="cpu")
    assert after.config.n_ctx == before.config.n_ctx
    assert not torch.equal(after.wte.weight, before.wte.weight)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["model_type"] == "gpt2"


def test_a_run_as_the_model_continues_with_its_optimizer_and_says_so(
    book: Path, base: Path, tmp_path: Path
) -> None:
    how = [*FINE, "--schedule=constant", "--warmup=0", "--dtype=float32"]
    run("finetune", book, "--model", base, *how, "--out", tmp_path / "first")
    stored = load_file(tmp_path / "first" / "states" / "step-00000006" / "optimizer.safetensors")
    ended = {}
    for name, more in (
        ("on", []),
        ("fresh", ["--fresh_optimizer"]),
        ("muon", ["--optimizer=muon"]),
    ):
        out = tmp_path / name
        said = run(
            *("finetune", book, "--model", tmp_path / "first", *how, *more, "--keep_states"),
            *("--out", out),
        ).stderr
        assert said.count("optimizer: continues with its averages of step 6") == (name == "on")
        assert said.count("optimizer: starts anew, since the state of step 6") == (name == "muon")
        if name == "on":
            begun = load_file(out / "states" / "step-00000000" / "optimizer.safetensors")
            assert begun.keys() == stored.keys()
            assert all(torch.equal(begun[key], stored[key]) for key in stored)
            assert "optimizer:" not in run("finetune", book, "--resume", "--out", out).stderr
        ended[name] = load(out, device="cpu")[0].wte.weight
    assert not torch.equal(ended["on"], ended["fresh"])


def test_transformers_loads_what_was_fine_tuned(book: Path, base: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    run("finetune", book, "--model", base, *FINE, "--out", tmp_path / "run")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "run").eval()
    ours, _ = load(tmp_path / "run", device="cpu")
    ids = torch.arange(10)[None]
    torch.testing.assert_close(theirs(ids).logits, ours(ids), atol=2e-5, rtol=1e-4)


def test_adapters_are_saved_apart_and_merged_into_a_model(
    book: Path, base: Path, tmp_path: Path
) -> None:
    lora, merged = tmp_path / "lora", tmp_path / "merged"
    result = run(
        "finetune", book, "--model", base, *FINE, "--lora_rank", 2, "--lora_alpha", 6, "--out", lora
    )
    assert "gpt2kit merge" in result.stderr
    assert not (lora / "model.safetensors").exists()
    assert json.loads((lora / "adapter.json").read_text())["alpha"] == 6.0
    assert run("merge", lora, "--out", merged).stdout.strip() == str(merged)
    before, _ = load(base, device="cpu")
    after, tokenizer = load(merged, device="cpu")
    assert tokenizer is not None
    assert torch.equal(after.wte.weight, before.wte.weight)
    assert not torch.equal(
        after.state_dict()["h.0.attn.c_attn.weight"], before.state_dict()["h.0.attn.c_attn.weight"]
    )
    assert "already exists" in run("merge", lora, "--out", merged, code=1).stderr
    assert "no adapters" in run("merge", base, "--out", tmp_path / "x", code=1).stderr


def test_adapters_are_trained_further_stacked_and_switched(
    book: Path, base: Path, tmp_path: Path
) -> None:
    how = [*FINE, "--dtype=float32"]
    first, on, over = tmp_path / "first", tmp_path / "on", tmp_path / "over"
    run("finetune", book, "--model", base, *how, "--lora_rank=2", "--out", first)
    said = run("finetune", book, "--model", first, *how, "--keep_states", "--out", on).stderr
    assert said.count("optimizer: continues with its averages of step 6") == 1
    a, b = (json.loads((folder / "adapter.json").read_text()) for folder in (first, on))
    assert a == b  # the rank, alpha and base are the same
    begun = load_file(on / "states" / "step-00000000" / "weights.safetensors")
    kept = load_file(first / "adapter.safetensors")
    assert all(torch.equal(begun[name], kept[name]) for name in kept)
    said = run("finetune", book, "--model", first, *how, "--lora_rank=4", code=1).stderr
    assert "lora_rank is 4, but that of the adapters in" in said
    assert "--stack" in said

    stacked = ["--stack", "--lora_rank=2", "--out", over]
    said = run("finetune", book, "--model", first, *how, *stacked).stderr
    assert "optimizer:" not in said
    assert json.loads((over / "adapter.json").read_text())["base"] == str(first)
    run("finetune", book, "--resume", "--out", over)
    texts = set()
    for number, folder in enumerate((first, on, over)):
        merged = tmp_path / f"merged-{number}"
        run("merge", folder, "--out", merged)
        asked = ["Nel", "--max_tokens=12", "--seed=1", "--dtype=float32", "--device=cpu"]
        text = run("generate", *asked, "--adapter", folder).stdout
        assert text == run("generate", *asked, "--model", merged).stdout
        texts.add(text)
    assert len(texts) > 1
    asked = ["Nel", "--adapter", str(first), "--max_tokens=4", "--seed=1"]
    assert run("generate", *asked, "--model", base).stdout == run("generate", *asked).stdout
    said = run("generate", "Nel", "--adapter", first, "--model", "dante", code=1).stderr
    assert "trained on other weights" in said
    assert "no adapters" in run("generate", "Nel", "--adapter", base, code=1).stderr


def test_adapters_are_not_merged_into_other_weights(book: Path, base: Path, tmp_path: Path) -> None:
    run("finetune", book, "--model", base, *FINE, "--lora_rank", 2, "--out", tmp_path / "lora")
    run("finetune", book, "--model", base, *FINE, "--out", tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", base / "model.safetensors")
    assert (
        "trained on other weights"
        in run("merge", tmp_path / "lora", "--out", tmp_path / "x", code=1).stderr
    )


def test_a_run_is_not_resumed_by_the_other_command(book: Path, tmp_path: Path) -> None:
    run("train", book, *SMALL_OPTIONS, "--out", tmp_path / "run")
    assert (
        "was started with train, not with finetune"
        in run("finetune", book, "--out", tmp_path / "run", "--resume", code=1).stderr
    )


def test_a_model_that_learns_its_text_by_heart_is_said_to_overfit(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("abc " * 100)
    (tmp_path / "other.txt").write_text("acb " * 20)
    options = [*SMALL_OPTIONS, "--max_steps=40", "--eval_every=2", "--patience=0", "--lr=0.01"]
    given = ["--val", tmp_path / "other.txt", *options, "--out", tmp_path / "run"]
    said = run("train", tmp_path / "text.txt", *given).stderr
    assert "overfitting: after step" in said
    found = json.loads((tmp_path / "run" / "report.json").read_text())["overfitting"]
    assert found["best"]["step"] < found["end"]["step"] == 40
    assert found["best"]["val_loss"] < found["end"]["val_loss"]
    assert found["best"]["eval_train_loss"] > found["end"]["eval_train_loss"]
    same = ["--val", tmp_path / "text.txt", *options, "--out", tmp_path / "same"]
    assert "overfitting" not in run("train", tmp_path / "text.txt", *same).stderr


# --- recipes ------------------------------------------------------------------------------------


def test_recipes_are_listed_with_what_they_are_and_shown_by_name() -> None:
    listed = run("recipes").stdout.splitlines()
    assert [line.split()[0] for line in listed] == recipes.names()
    known = {"toy", "names", "verdict", "verdict-small", "dante-basic", "dante", "dante-bpe"}
    assert known | {"bigram", "shakespeare-cpu", "shakespeare"} <= set(recipes.names())
    assert "swiglu" in run("recipes", "names").stdout
    assert json.loads(run("recipes", "toy", "--json").stdout)["options"]["n_layer"] == 3
    assert "there is no recipe 'dant'; did you mean dante?" in run("recipes", "dant", code=1).stderr


@pytest.mark.parametrize("name", [name for name in recipes.names() if not recipes.read(name).steps])
def test_each_recipe_is_made_of_options_and_leads_to_a_training(
    book: Path, base: Path, name: str
) -> None:
    options = recipes.read(name).options
    small = {"n_layer": min(1, options["n_layer"]), "n_head": 1, "block_size": 8}
    if options.get("head") != "none":  # otherwise the vocabulary decides how wide it is
        small["n_embd"] = 8
    if options.get("mlp") != "none":
        small["n_inner"] = 8
    given = {
        "recipe": name,
        **small,
        **({"vocabulary": str(base)} if "vocabulary" in options else {}),
    }
    assert (
        facts("train", book, **given)["training"]["max_steps"]
        == set_up("train", str(book), given).config.max_steps
    )


def test_an_option_wins_over_what_the_recipe_says_about_the_same(book: Path) -> None:
    small = {"n_layer": 1, "n_embd": 8, "n_head": 1}
    settings = facts("train", book, recipe="demo", epochs=1.0, dropout=0.4, **small)
    assert settings["model"]["resid_pdrop"] == settings["model"]["attn_pdrop"] == 0.4
    assert settings["training"]["max_steps"] < 10
    assert facts("train", book, recipe="demo", **small)["model"]["attn_pdrop"] == 0.0


def test_a_prompt_that_the_text_cannot_write_is_refused_and_a_recipe_s_left_out(
    book: Path, tmp_path: Path
) -> None:
    refused = run(
        "train", book, *SMALL_OPTIONS, "--prompt", "Zürich", "--out", tmp_path / "run", code=1
    )  # it used to fail at the end
    assert "prompt is 'Zürich', which the text's vocabulary cannot write" in refused.stderr
    assert not (tmp_path / "run").exists()
    run("train", book, "--recipe", "toy", *SMALL_OPTIONS, "--out", tmp_path / "run")
    first = json.loads((tmp_path / "run" / "samples.jsonl").read_text().splitlines()[0])
    assert not first["text"].startswith("The dog")


def test_the_toy_learns_its_sentences(tmp_path: Path) -> None:
    book = tmp_path / "toy.txt"
    book.write_text(
        "The dog ate my homework. The cat drank milk. The bird flew high. "
        "The fish swam deep. The sun shone bright.\n" * 4
    )
    run(
        "train",
        book,
        "--recipe",
        "toy",
        "--out",
        tmp_path / "run",
        "--max_steps",
        200,
        "--dropout",
        0.0,
        "--sample_every",
        0,
    )
    said = run(
        "generate",
        "The dog ate my ",
        "--model",
        tmp_path / "run",
        "--max_tokens",
        8,
        "--temperature",
        0,
        "--no_prompt",
    )
    assert said.stdout.startswith("homework")


# --- words --------------------------------------------------------------------------------------


def test_a_loss_is_given_in_all_its_units() -> None:
    figures = loss_figures(2.0, tokens=100, n_bytes=400, characters=380)
    assert figures["perplexity"] == pytest.approx(7.389, abs=1e-3)
    assert figures["bits_per_byte"] == pytest.approx(2.0 / 0.693147 * 100 / 400, abs=1e-4)
    assert figures["bits_per_character"] > figures["bits_per_byte"]
