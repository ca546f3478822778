"""benchmark.py: every kind of work on a tiny model, and what is made of the figures."""

from __future__ import annotations

import json
import math
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmark
import pytest
from benchmark import Contestant, engines_of, medians, with_ratios
from measures import score, train
from measures.serve import llama

from gpt2kit import store
from gpt2kit.checkpoints.load import open_checkpoint
from gpt2kit.config import SIZES, GPT2Config

ROOT = Path(__file__).parents[2]
TINY = GPT2Config(n_vocab=300, n_ctx=96, n_embd=32, n_head=2, n_layer=2)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run engines in this process, with a known bandwidth and 0.01 s per decoded token."""

    def seconds(go: Callable[[int], None], tokens: int) -> float:
        go(tokens)
        return tokens / 100

    monkeypatch.setattr(benchmark, "in_its_own_process", benchmark.in_this_process)
    monkeypatch.setattr(benchmark, "bandwidth", lambda _: 1e9)
    monkeypatch.setattr("measures.decode.seconds", seconds)


def run(work: Path, *words: str) -> dict[str, Any]:
    options = benchmark.parser().parse_args(
        [*words, "--rounds", "1", "--threads", "1", "--work", str(work)]
    )
    return benchmark.compare(benchmark.contestants_of(options), options.rounds)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("decode --tokens 12", {"tokens_per_second", "of_bandwidth"}),
        ("batch --tokens 12 --batch_size 2", {"tokens_per_second", "of_bandwidth"}),
        ("context --tokens 5 --prompt_tokens 60", {"tokens_per_second", "after_long", "cost"}),
        ("prefill --prompt_tokens 60", {"tokens_per_second"}),
        ("prefix --prompt_tokens 60 --batch_size 3", {"seconds", "equal", "shared", "different"}),
        (
            "draft --tokens 12 --engines kit-float32",
            {"tokens_per_second", "without", "gain", "accepted", "per_step", "cost_of_8"},
        ),
        (
            "constrain --tokens 5 --engines kit-float32",
            {"tokens_per_second", "valid_utf8", "all_logits", "free", "added", "tables_s"}
            | {"kept_s", "forbid_30000_s"},
        ),
        ("load", {"seconds"}),
        ("patch", {"seconds", "processor_s"}),
        ("evaluate --tokens 600 --batch_size 2", {"tokens_per_second"}),
        ("score --tokens 200", {"tokens_per_second", "in_pairs"}),
        ("train --tokens 2", {"tokens_per_second"}),
        (
            "serve --tokens 6 --batch_size 3 --prompt_tokens 60 --engines kit-float32",
            {"tokens_per_second", "first_s", "last_first_s", "gap_ms", "stall_ms", "long_first_s"}
            | {"alone_first_s", "warm_first_s", "of_complete", "http_share"},
        ),
    ],
)
def test_every_kind_of_work_gives_its_figures(
    words: str, names: set[str], here: None, tmp_path: Path
) -> None:
    found = run(tmp_path, *words.split(), "--model", "dante")
    assert found["engines"]
    for row in found["engines"].values():
        assert names | {"ratio", "peak_GB"} <= row.keys()
        row.pop("added", 0)  # of a tiny model, it may be anything
        assert all(math.isfinite(value) and value >= 0 for value in row.values()), row


def test_rates_leave_out_the_reading_of_the_prompt_and_count_every_text(
    here: None, tmp_path: Path
) -> None:
    options = ["--model", "dante", "--tokens", "12", "--engines", "kit-float32"]
    weights = 68 * 192 + 12 * 192 * 192 * open_checkpoint(store.find("dante")).config.n_layer
    one = run(tmp_path, "decode", *options)["engines"]["kit-float32"]
    assert one["tokens_per_second"] == pytest.approx(100)
    assert one["of_bandwidth"] == pytest.approx(100 * weights * 4 / 1e9, abs=2e-3)
    three = run(tmp_path, "batch", "--batch_size", "3", *options)["engines"]["kit-float32"]
    assert three["tokens_per_second"] == pytest.approx(300)
    assert three["of_bandwidth"] == one["of_bandwidth"]


def test_scale_makes_models_once_and_compares_the_weights_that_are_read(
    here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIZES, "tiny", TINY)
    monkeypatch.setitem(
        SIZES, "wider", GPT2Config(n_vocab=300, n_ctx=96, n_embd=64, n_head=2, n_layer=2)
    )
    words = [
        "scale",
        "--sizes",
        "tiny,wider",
        "--tokens",
        "12",
        "--engines",
        "kit-float32,kit-bfloat16",
    ]
    rows = run(tmp_path, *words)["engines"]
    assert list(rows) == [
        "kit-float32 tiny",
        "kit-float32 wider",
        "kit-bfloat16 tiny",
        "kit-bfloat16 wider",
    ]
    for engine, width in (("kit-float32", 4), ("kit-bfloat16", 2)):
        first, second = rows[f"{engine} tiny"], rows[f"{engine} wider"]
        read = (300 * 32 + 2 * 12 * 32 * 32) * width  # the head, and the matrices of two layers
        assert first["weights_GBps"] == pytest.approx(
            first["tokens_per_second"] * read / 1e9, rel=0.05, abs=1e-3
        )
        assert first["ratio"] == 1
        assert second["ratio"] == pytest.approx(
            second["weights_GBps"] / first["weights_GBps"], rel=0.05
        )
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("random-*/model.safetensors")}
    run(tmp_path, *words)
    assert len(before) == 2
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_process_of_its_own_prints_a_table_and_json(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "scripts" / "benchmark.py"),
        "load",
        "--engines",
        "kit-float32,ct2-nothing",
    ]
    options = ["--model", "dante", "--rounds", "1", "--work", str(tmp_path)]
    done = subprocess.run(
        [*command, *options],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    table, found = done.stdout.splitlines(), json.loads(done.stdout.splitlines()[-1])
    assert table[0].startswith("load: ")
    assert table[2].split()[0] == "kit-float32"
    assert found["engines"]["kit-float32"]["ratio"] == 1
    assert found["engines"]["ct2-nothing"] == {}  # an engine that fails
    assert "ct2-nothing: AttributeError" in done.stderr


def test_a_process_reports_its_own_memory_and_not_that_of_the_one_that_started_it() -> None:
    program = (
        "from measures.timing import peak_memory; block = bytes(10_000_000); print(peak_memory())"
    )
    block = bytes(300_000_000)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT / "scripts",
        capture_output=True,
        text=True,
        check=True,
    )
    assert 10_000_000 < int(done.stdout) < len(block) / 2


def test_a_server_that_does_not_start_is_an_error_with_what_it_said(tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\necho out of luck >&2; exit 1\n")
    program.chmod(0o755)
    (tmp_path / "gpt2-f32.gguf").touch()
    task = {"model": str(store.find("dante")), "work": str(tmp_path), "threads": 1}
    with pytest.raises(RuntimeError, match="the server did not start: out of luck"):
        llama("f32", {**task, "llama_server": str(program)})
    with pytest.raises(FileNotFoundError, match="the program nowhere was not found"):
        llama("f32", {**task, "llama_server": "nowhere"})


def test_trainings_are_planned_and_measured(
    here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIZES, "distilgpt2", GPT2Config(n_ctx=256, n_embd=32, n_head=2, n_layer=1))
    rows = run(tmp_path, "plan", "--cases", "distilgpt2,distilgpt2 LoRA")["engines"]
    assert list(rows) == ["kit-bfloat16 distilgpt2", "kit-bfloat16 distilgpt2 LoRA"]
    for figures in rows.values():
        assert list(figures) == ["planned_GB", "measured_GB", "error", "peak_GB"]
        assert all(map(math.isfinite, figures.values()))
    with pytest.raises(SystemExit, match="--cases knows distilgpt2, .*, not 2B"):
        run(tmp_path, "plan", "--cases", "2B")


def test_medians_leave_out_rounds_in_which_an_engine_failed() -> None:
    assert medians([{"seconds": 3.0}, {}, {"seconds": 1.0}, {"seconds": 2.0}]) == {"seconds": 2.0}
    assert medians([{}, {}]) == {}


def test_ratios_are_to_the_first_row() -> None:
    contestants = [
        Contestant(engine, {"what": "load"}) for engine in ("hf-float32", "kit-float32", "kit-int8")
    ]
    rows = with_ratios(
        contestants, [{"seconds": 2.0, "peak_GB": 1.0}, {"seconds": 1.0, "peak_GB": 3.0}, {}]
    )
    assert rows == [
        {"seconds": 2.0, "ratio": 1.0, "peak_GB": 1.0},
        {"seconds": 1.0, "ratio": 0.5, "peak_GB": 3.0},
        {},
    ]


def test_only_peers_that_can_do_the_work_take_part() -> None:
    assert engines_of("decode", "hf,llama")[:5] == [
        "hf-float32",
        "hf-bfloat16",
        "llama-f32",
        "llama-bf16",
        "llama-q8_0",
    ]
    assert engines_of("load", "hf,llama") == [
        "hf-float32",
        "hf-bfloat16",
        "kit-float32",
        "kit-bfloat16",
        "kit-int8",
    ]
    assert engines_of("train", "hf") == ["hf-bfloat16", "kit-bfloat16"]
    assert engines_of("train", "nanogpt") == ["nanogpt-bfloat16", "kit-bfloat16"]
    with pytest.raises(SystemExit, match="vllm"):
        engines_of("decode", "vllm")


def test_a_batch_size_is_refused_where_it_would_mean_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        SystemExit, match="for batch, prefix, evaluate, score, serve, not for decode"
    ):
        run(tmp_path, "decode", "--model", "dante", "--batch_size", "4")


def test_every_benchmark_on_the_pages_is_a_command_of_the_script() -> None:
    pages = "".join(
        path.read_text(encoding="utf-8")
        for path in (
            ROOT / "README.md",
            *(ROOT / "docs" / f"{name}.md" for name in ("speed", "finetune", "interventions")),
        )
    )
    commands = re.findall(r"python scripts/benchmark\.py ([a-z][^`\n]*)", pages)
    assert {
        shlex.split(command, comments=True)[0] for command in commands
    } == benchmark.WORKS.keys()
    for command in commands:
        benchmark.parser().parse_args(shlex.split(command, comments=True))


def test_on_a_gpu_those_take_part_that_run_there() -> None:
    compiled = ["kit-float32", "kit-bfloat16", "kit-bfloat16-compiled"]
    assert engines_of("decode", "hf,ct2,llama", "cuda") == ["hf-float32", "hf-bfloat16", *compiled]
    with pytest.raises(
        SystemExit, match="--device is for decode, batch, scale and prefill, not for train"
    ):
        contestants_of("train", "--device", "cuda")
    (contestant,) = contestants_of(
        "decode", "--device", "cuda:1", "--engines", "kit-bfloat16-compiled"
    )
    assert contestant.task["device"] == "cuda:1"


def contestants_of(*words: str) -> list[Contestant]:
    return benchmark.contestants_of(benchmark.parser().parse_args([*words, "--model", "dante"]))


def test_a_gpu_is_measured_against_its_own_memory(
    here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "gpu_bandwidth", lambda device: {"cuda": 5e9}[device])
    monkeypatch.setattr(
        benchmark, "in_its_own_process", lambda engine, task: {"tokens_per_second": 1.0}
    )
    found = run(tmp_path, "decode", "--model", "dante", "--device", "cuda")
    assert found["bandwidth_GBps"] == 5.0
    exact, half = (
        found["engines"][engine]["weights_GBps"]
        for engine in ("kit-float32", "kit-bfloat16-compiled")
    )
    assert exact == pytest.approx(2 * half, abs=0.002)


def test_a_compiled_step_can_be_measured(
    here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[object] = []

    def compile(function: Callable[..., object]) -> Callable[..., object]:
        compiled.append(function)
        return function

    monkeypatch.setenv("GPT2KIT_NATIVE", "0")
    monkeypatch.setattr("torch.compile", compile)
    found = run(
        tmp_path,
        "decode",
        "--model",
        "dante",
        "--tokens",
        "12",
        "--engines",
        "kit-float32,kit-float32-compiled",
    )
    assert found["engines"]["kit-float32-compiled"]["tokens_per_second"] > 0
    assert len(compiled) == 1


def test_an_engine_also_runs_without_a_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environments = []

    def run_engine(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        environments.append(options["env"].get("GPT2KIT_SHORTLIST"))
        figures = json.dumps({"tokens_per_second": 1.0})
        return subprocess.CompletedProcess(command, 0, stdout=figures, stderr="")

    monkeypatch.setattr(benchmark, "bandwidth", lambda _: 1e9)
    monkeypatch.setattr("subprocess.run", run_engine)
    engines = ["--engines", "kit-float32,hf-float32,kit-int8"]
    found = run(tmp_path, "decode", "--model", "dante", "--without", "shortlist", *engines)
    assert list(found["engines"]) == [
        "kit-float32",
        "kit-float32 without shortlist",
        "hf-float32",
        "kit-int8",
        "kit-int8 without shortlist",
    ]
    assert environments == [None, "0", None, None, "0"]
    with pytest.raises(SystemExit, match="--without knows native, shortlist, .*, not speed"):
        run(tmp_path, "decode", "--model", "dante", "--without", "speed")


@pytest.mark.parametrize("name", benchmark.SWITCHES)
def test_every_switch_is_one_of_the_package(name: str) -> None:
    sources = (ROOT / "gpt2kit").rglob("*.py")
    assert any(f'"GPT2KIT_{name.upper()}"' in path.read_text("utf-8") for path in sources)


@pytest.mark.slow
def test_minicons_scores_as_many_tokens_as_the_others_in_batches_and_one_by_one(
    test_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(test_data / "models/shakespeare")
    seen: list[list[str]] = []

    class Scorer:
        def __init__(self, model: object, device: str, tokenizer: object) -> None: ...

        def sequence_score(self, texts: list[str], **options: Any) -> None:
            assert options["bos_token"]
            seen.append(texts)

    fake = types.SimpleNamespace(IncrementalLMScorer=Scorer)
    monkeypatch.setitem(sys.modules, "minicons", types.ModuleType("minicons"))
    monkeypatch.setitem(sys.modules, "minicons.scorer", fake)
    monkeypatch.setattr(score, "load_hf", lambda *_: None)
    monkeypatch.setattr(score, "seconds", lambda go, batch: go(batch) or 1.0)
    task = {"model": str(test_data / "models/shakespeare"), "n_vocab": 50257, "threads": 1}
    task |= {"tokens": 100, "batch": 4}
    scored = [len(ids) - 1 for ids in score.sentences(task)]
    found = score.minicons("float32", task)
    assert found == {"tokens_per_second": sum(scored), "one_by_one": sum(scored)}
    assert [len(batch) for batch in seen[-len(scored) :]] == [1] * len(scored)
    assert max(map(len, seen)) == 4
    assert [len(tokenizer(text).input_ids) for (text,) in seen[-len(scored) :]] == scored


def test_an_engine_may_have_a_python_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pythons = []

    def run_engine(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        pythons.append(command[0])
        return subprocess.CompletedProcess(command, 0, stdout='{"tokens_per_second": 1}', stderr="")

    monkeypatch.setattr("subprocess.run", run_engine)
    engines = ["--engines", "minicons-float32,kit-float32", "--minicons_python", "theirs"]
    run(tmp_path, "score", "--model", "dante", *engines)
    assert pythons == ["theirs", sys.executable]


NANOGPT = """
from dataclasses import dataclass
import torch

@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float

class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        assert config.dropout == 0.25
        self.wte = torch.nn.Embedding(config.vocab_size, config.vocab_size)

    def forward(self, ids, targets):
        logits = self.wte(ids)
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
"""


def test_nanogpt_is_read_from_a_copy_of_its_repository(here: None, tmp_path: Path) -> None:
    task = {"nanogpt": str(tmp_path), "dropout": 0.25, "threads": 1, "tokens": 2}
    task["model"] = str(store.find("dante"))
    with pytest.raises(FileNotFoundError, match="model.py is not there"):
        train.nanogpt("bfloat16", task)
    (tmp_path / "model.py").write_text(NANOGPT)
    assert train.nanogpt("bfloat16", task)["tokens_per_second"] > 0
    assert train.kit("bfloat16", task)["tokens_per_second"] > 0
