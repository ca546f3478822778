"""What all tests share: tiny models, golden answers, and a network that ends at this machine."""

from __future__ import annotations

import functools
import ipaddress
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main

from gpt2kit.config import GPT2Config
from gpt2kit.engine import native
from gpt2kit.errors import ConfigError
from gpt2kit.generation.continuation import Continuation
from gpt2kit.generation.row import Row
from gpt2kit.model import GPT2
from gpt2kit.tokenizers import BPETokenizer

# Tiny models are not faster with two threads, and much slower on a busy machine: neither here nor
# in the processes that tests start.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Typer makes all commands anew for each call; in a program's process there is only one call.
typer.main.get_command = functools.cache(typer.main.get_command)

# A shell without job control lets what it runs in the background ignore Ctrl-C: tests, and the
# processes that they start, which then do not do what they do for a user.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

GOLDEN = Path(__file__).parent / "golden"
MOST_WORKERS = 8  # each imports torch and collects every test before it runs its share


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return in how many processes to run: one for each core, or 0 to run all tests in this one.

    Only the whole suite is worth the start of workers. Tests that were chosen by name, by marker or
    by their last failure run in this process, and so do those whose output is wanted as it comes.
    """
    chosen = ("keyword", "lf", "failedfirst", "newfirst", "stepwise")
    if (
        config.args_source is pytest.Config.ArgsSource.ARGS
        or config.getoption("markexpr") not in config.getini("addopts")
        or config.getoption("capture") == "no"
        or any(map(config.getoption, chosen))
    ):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, MOST_WORKERS)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection that leaves this machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if (
            isinstance(address, tuple)
            and address[0] != "localhost"
            and not ipaddress.ip_address(address[0]).is_loopback
        ):
            raise AssertionError(f"a test tried to reach {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def _homes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("homes")


@pytest.fixture(autouse=True)
def _own_weights_folder(monkeypatch: pytest.MonkeyPatch, _homes: Path) -> None:
    """Give every test empty folders of weights, caches and data, whatever is on this machine.

    A test gets those of the test before it if they are still empty, as they mostly are.
    """
    variables = ("GPT2KIT_DATA", "GPT2KIT_WEIGHTS", "XDG_CACHE_HOME")
    last = len(os.listdir(_homes))
    if not last or any(os.listdir(_homes / str(last) / name) for name in variables):
        last += 1
        for name in variables:
            (_homes / str(last) / name).mkdir(parents=True)
    for name in variables:
        monkeypatch.setenv(name, str(_homes / str(last) / name))
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip os.fsync in this process: no test could see a difference, and some call it often."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder of models, tmp_path/weights; the working directory is tmp_path."""
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setenv("GPT2KIT_WEIGHTS", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def tiny_config() -> GPT2Config:
    return GPT2Config(n_vocab=512, n_ctx=32, n_embd=16, n_head=2, n_layer=2)


@pytest.fixture
def tiny_model(tiny_config: GPT2Config) -> GPT2:
    return make_model(tiny_config)


def make_model(config: GPT2Config, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> GPT2:
    """Return a model whose weights are large enough that its tokens differ from each other."""
    model = GPT2(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype),
                alpha=0.2,
            )
    return model


def begun(model: GPT2, rows: Sequence[Row], **options: Any) -> Continuation:
    """Return the continuation of some rows, with a slot for each unless `options` say otherwise."""
    drafter = options.get("drafter")
    capacity = max(row.longest for row in rows) + (drafter.most if drafter else 0)
    state = Continuation(model, **{"slots": len(rows), "capacity": capacity, **options})
    for row in rows:
        state.add(row)
    return state


@pytest.fixture(scope="session")
def small_bpe() -> BPETokenizer:
    """A byte-level BPE of 512 tokens: GPT-2's bytes and first merges."""
    tokenizer = BPETokenizer.from_folder(GOLDEN / "bpe" / "small")
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of larger fixtures: corpora, GPT-2's vocabulary, a trained small model."""
    folder = os.environ.get("GPT2KIT_TEST_DATA")
    if not folder:
        pytest.skip("set GPT2KIT_TEST_DATA to the folder of larger fixtures to run this test")
    return Path(folder)


# --- the native step ------------------------------------------------------------------------------

compiled = pytest.mark.skipif(
    native.level() is None,
    reason="the native step is not compiled here: python setup.py build_ext --inplace",
)


def available_levels() -> list[str]:
    def runs(level: str) -> bool:
        os.environ[native.VARIABLE] = level
        try:
            return native.level() is not None
        except ConfigError:
            return False
        finally:
            del os.environ[native.VARIABLE]

    return [level for level in native.LEVELS if runs(level)]


@pytest.fixture(params=available_levels() or ["none"])
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(native.VARIABLE, request.param)
    return str(request.param)
