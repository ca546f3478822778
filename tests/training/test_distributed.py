"""Several processes train as one: the same losses and weights with the same batch.

Two processes over gloo do all of the scenarios below, one after the other, with a whole model each
(DDP) or a model divided between them (FSDP2). The tests then look at the files that they left.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import spawn
from training_builders import (
    TOKENIZER,
    VERSES,
    small_config,
    small_corpus,
    small_model,
    small_settings,
    weights,
)

from gpt2kit.checkpoints.adapters import load_adapters, save_adapters
from gpt2kit.checkpoints.load import load, write_model
from gpt2kit.cli import main
from gpt2kit.errors import ConfigError
from gpt2kit.generation.text import generate
from gpt2kit.lora import add_adapters
from gpt2kit.model import GPT2
from gpt2kit.training.distributed import Ranks, gathered, is_divided, join, leave
from gpt2kit.training.loop import train
from gpt2kit.training.optim import freeze
from gpt2kit.training.records import StepReport, read_metrics
from gpt2kit.training.run import Run
from gpt2kit.training.sharding import whole
from gpt2kit.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
FEW_STEPS = {"max_steps": 6, "eval_every": 3, "save_every": 2, "eval_train": True}
NO_DROPOUT = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
SMALL = (
    "--n_layer=1 --n_head=2 --n_embd=16 --block_size=16 --batch_size=4 "
    "--max_steps=4 --warmup=1 --eval_every=2 --sample_tokens=5"
)

# Only rounding may differ: sums have another order, and Muon computes in bfloat16.
LOSSES: dict[str, Any] = {"abs": 1e-4}
WEIGHTS: dict[str, Any] = {"atol": 2e-3, "rtol": 1e-2}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


# --- what every process does -------------------------------------------------------------------


def go(
    ranks: Ranks,
    folder: Path,
    *,
    resume: bool = False,
    stop_after: int | None = None,
    dropout: bool = False,
    tied: bool = True,
    adapters: bool = False,
    frozen: str = "",
    in_pieces: bool = False,
    **settings: Any,
) -> GPT2:
    """Train a small model as one of several processes, or alone."""
    model = small_model(**({} if dropout else NO_DROPOUT), tie_word_embeddings=tied)
    write: Callable[[Path, GPT2], None] = write_model
    if adapters:
        add_adapters(model, 2)
        write = lambda folder, model: save_adapters(folder, model, base="base", base_sha256="")  # noqa: E731
    freeze(model, frozen)
    vars(sys.modules["gpt2kit.training.loss"]).update(
        FEW_LOGITS=200 if in_pieces else 2**22, LOGITS_AT_ONCE=200 if in_pieces else 2**26
    )
    run = Run(folder, small_settings(), resume=resume, ranks=ranks, write=write)
    reports: list[StepReport] = []
    config = small_config(**(FEW_STEPS | settings))
    stream = train(
        model, small_corpus(), config, run=run, ranks=ranks, stop=lambda: len(reports) == stop_after
    )
    for report in stream:
        reports.append(report)
    run.close()
    return model


# Whole runs: by one process, by two with DDP, and by two with FSDP2.
KINDS: dict[str, dict[str, Any]] = {
    "muon": {},
    "adamw": {"optimizer": "adamw", "tied": False, "checkpointing": True, "accumulate": 2},
    "pieces": {"optimizer": "adamw", "in_pieces": True, "frozen": "blocks:0"},
    "in-order": {"shuffle": False, "stride": 5, "accumulate": 2},
    "adapters": {"adapters": True, "optimizer": "adamw", "lr": 1e-2},
}
_CUT: dict[str, Any] = {"stop_after": 3}


def scenarios(rank: int, port: int, root: Path) -> None:
    """Do what the tests look at, as one of two processes."""
    faulthandler.enable()  # a crash in torch says where it was
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE="2",
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    ddp, fsdp = join(), join(shard=True)
    for name, kind in KINDS.items():
        if name in ("muon", "adamw", "in-order"):
            go(ddp, root / f"ddp-{name}", **kind)
        if name != "in-order":  # which windows a process has does not depend on its part
            go(fsdp, root / f"fsdp-{name}", **kind)
    go(ddp, root / "ddp-then-one", **_CUT)
    go(fsdp, root / "fsdp-then-one", **_CUT)
    go(fsdp, root / "fsdp-then-ddp", **_CUT)
    go(ddp, root / "fsdp-then-ddp", resume=True)
    go(fsdp, root / "one-then-fsdp", resume=True)
    go(fsdp, root / "fsdp-dropped", dropout=True)
    go(fsdp, root / "fsdp-then-fsdp", dropout=True, **_CUT)
    go(fsdp, root / "fsdp-then-fsdp", dropout=True, resume=True)
    (root / f"facts-{rank}.json").write_text(json.dumps(shard_facts(fsdp)))
    command_line(root, rank)


def command_line(root: Path, rank: int) -> None:
    """Train by the command line, which ends this process."""
    with (root / f"printed-{rank}.jsonl").open("w") as printed:
        os.dup2(printed.fileno(), sys.stdout.fileno())
    sys.argv = [
        "gpt2kit",
        "train",
        str(root / "book.txt"),
        *SMALL.split(),
        "--out",
        str(root / "command"),
        "--json",
        "--shard",
    ]
    main()


def whole_models_alone(rank: int, port: int, root: Path) -> None:
    """Train once with a whole model in each process, and tell which threads are left."""
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE="2",
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    go(join(), root / "run", max_steps=3)
    leave()
    (root / f"threads-{rank}.json").write_text(
        json.dumps([path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")])
    )


def shard_facts(ranks: Ranks) -> dict[str, Any]:
    """Return what this process holds of a divided model, and what is refused."""
    config = small_config(optimizer="adamw")
    model = small_model(n_embd=32)
    trainer = Trainer(model, small_corpus(), config, ranks)
    for loss in trainer.losses(0):
        loss.backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    (adamw,) = trainer.optimizers
    adamw.step()
    moments = [
        moment for state in adamw.state.values() for name, moment in state.items() if name != "step"
    ]
    complete = whole(model, ranks)
    facts: dict[str, Any] = {
        "n_params": model.config.n_params,
        "parameters": _numbers_here(list(model.parameters())),
        "gradients": _numbers_here(gradients),
        "moments": _numbers_here(moments),
        "writes": complete and generate(complete, TOKENIZER, "selva", max_tokens=5, seed=1),
        "refused": [],
    }
    for changes, frozen in (
        ({"compile": True}, ""),
        ({"batch_size": 3}, ""),
        ({}, "embeddings,norms,attention,mlp"),
    ):
        refused = small_model(tie_word_embeddings=False)
        freeze(refused, frozen)
        try:
            Trainer(refused, small_corpus(), small_config(**changes), ranks)
        except ConfigError as error:
            facts["refused"].append(str(error))
    return facts


def _numbers_here(tensors: list[Any]) -> int:
    assert all(map(is_divided, tensors))
    return sum(tensor.to_local().numel() for tensor in tensors)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the scenarios of two processes, and those of one to compare them with."""
    root = tmp_path_factory.mktemp("distributed")
    (root / "book.txt").write_text(VERSES * 3, encoding="utf-8")
    for name, kind in KINDS.items():
        go(Ranks(), root / f"one-{name}", **kind)
    go(Ranks(), root / "one-then-fsdp", **_CUT)
    spawn(scenarios, args=(free_port(), root), nprocs=2)  # type: ignore[no-untyped-call]
    for name in ("ddp-then-one", "fsdp-then-one"):
        go(Ranks(), root / name, resume=True)
    return root


def losses(folder: Path) -> list[float]:
    return [
        line[name]
        for line in read_metrics(folder)
        for name in ("train_loss", "val_loss", "eval_train_loss")
        if name in line
    ]


def norms(folder: Path) -> list[dict[str, float]]:
    """Return the gradients' norms by part of every step."""
    return [line["gradient_norms"] for line in read_metrics(folder) if "gradient_norms" in line]


def assert_alike(folder: Path, other: Path) -> None:
    """Assert that two runs have the same losses and last weights, up to rounding."""
    assert [line["step"] for line in read_metrics(folder)] == list(range(7))
    assert losses(folder) == pytest.approx(losses(other), **LOSSES)
    for found, expected in zip(norms(folder), norms(other), strict=True):
        assert found == pytest.approx(expected, rel=1e-2, abs=1e-3)
    (first, _), (second, _) = (load(path, device="cpu") for path in (folder, other))
    for name, parameter in weights(second).items():
        torch.testing.assert_close(weights(first)[name], parameter, **WEIGHTS)


# --- the tests ---------------------------------------------------------------------------------


def test_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Ranks() == join()
    assert Ranks().is_main
    assert Ranks().mean(2.5) == 2.5
    assert Ranks().any(True)
    model = small_model()
    assert whole(model, Ranks()) is model
    assert gathered(model.wte.weight) is model.wte.weight


def test_shard_is_refused_for_one_process_with_what_to_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(
        ConfigError,
        match=r"this one is alone; start several: torchrun --nproc-per-node 2 -m gpt2kit",
    ):
        join(shard=True)


@pytest.mark.parametrize("name", ["muon", "adamw", "in-order"])
def test_two_processes_train_as_one(root: Path, name: str) -> None:
    assert_alike(root / f"ddp-{name}", root / f"one-{name}")


@pytest.mark.parametrize("name", ["muon", "adamw", "pieces"])
def test_two_processes_with_a_divided_model_train_as_one(root: Path, name: str) -> None:
    assert_alike(root / f"fsdp-{name}", root / f"one-{name}")


def test_adapters_are_trained_beside_divided_weights(root: Path) -> None:
    assert losses(root / "fsdp-adapters") == pytest.approx(losses(root / "one-adapters"), **LOSSES)
    assert norms(root / "fsdp-adapters")[0].keys() == {"h.0", "h.1"}  # the rest is not trained
    found = []
    for kind in ("one", "fsdp"):
        add_adapters(model := small_model(), 2)
        load_adapters(root / f"{kind}-adapters", model)
        found.append(weights(model)["h.1.mlp.c_fc.lora_b"])
    assert found[0].abs().max() > 1e-3
    torch.testing.assert_close(found[1], found[0], **WEIGHTS)


@pytest.mark.parametrize(
    "name", ["ddp-then-one", "fsdp-then-one", "fsdp-then-ddp", "one-then-fsdp"]
)
def test_a_run_is_resumed_by_another_number_of_processes(root: Path, name: str) -> None:
    assert_alike(root / name, root / "one-muon")


def test_a_divided_run_is_resumed_bit_for_bit_by_as_many_processes(root: Path) -> None:
    last = "states/step-00000006"
    for file in (
        f"{last}/weights.safetensors",
        f"{last}/optimizer.safetensors",
        "model.safetensors",
    ):
        assert (root / "fsdp-then-fsdp" / file).read_bytes() == (
            root / "fsdp-dropped" / file
        ).read_bytes(), file
    assert losses(root / "fsdp-dropped") != pytest.approx(
        losses(root / "one-muon"), **LOSSES
    )  # what is dropped depends on the process


def test_each_of_two_processes_holds_half_of_parameters_gradients_and_optimizer(root: Path) -> None:
    facts = [json.loads((root / f"facts-{rank}.json").read_text()) for rank in (0, 1)]
    n = facts[0]["n_params"]
    for part, expected in (("parameters", n), ("gradients", n), ("moments", 2 * n)):
        assert sum(fact[part] for fact in facts) == expected
        assert all(math.isclose(fact[part], expected / 2, rel_tol=0.01) for fact in facts)


def test_only_the_main_process_gets_the_model_whole(root: Path) -> None:
    main, other = (
        json.loads((root / f"facts-{rank}.json").read_text())["writes"] for rank in (0, 1)
    )
    assert len(main) == 5
    assert other is None


def test_what_a_divided_model_cannot_do_is_refused_in_one_line(root: Path) -> None:
    compiled, uneven, head = json.loads((root / "facts-1.json").read_text())["refused"]
    assert "leave out --compile or --shard" in compiled
    assert "batch_size is 3, expected a multiple of the 2 processes" in uneven
    assert "only the head is trained" in head


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's list of threads")
def test_no_thread_of_the_group_outlives_it(tmp_path: Path) -> None:
    # They lived until the interpreter ended: defaults of torch's own functions held the group.
    spawn(whole_models_alone, args=(free_port(), tmp_path), nprocs=2)  # type: ignore[no-untyped-call]
    for rank in (0, 1):
        threads = json.loads((tmp_path / f"threads-{rank}.json").read_text())
        assert threads
        assert not [name for name in threads if "gloo" in name or "tcpstore" in name]


def test_of_two_processes_one_prints_and_writes(root: Path) -> None:
    printed, nothing = ((root / f"printed-{rank}.jsonl").read_text() for rank in (0, 1))
    assert not nothing
    assert_trained_once(printed, root / "command")


@pytest.mark.slow
def test_torchrun_prints_and_writes_once(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(VERSES * 3, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    arguments = [
        "-m",
        "gpt2kit",
        "train",
        str(tmp_path / "book.txt"),
        *SMALL.split(),
        "--out",
        str(tmp_path / "run"),
        "--json",
        "--shard",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command + arguments, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert_trained_once(done.stdout, tmp_path / "run")


def assert_trained_once(printed: str, folder: Path) -> None:
    lines = [json.loads(line) for line in printed.splitlines()]
    assert [line["step"] for line in lines[:-1]] == list(range(5))
    assert lines[-1]["finish_reason"] == "steps"
    assert [line["step"] for line in read_metrics(folder)] == list(range(5))
    assert len((folder / "samples.jsonl").read_text().splitlines()) == 2
