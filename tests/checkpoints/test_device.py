"""What a device is called: with the name of the processor, which the system tells."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from gpt2kit.checkpoints.device import described


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs Linux")
def test_the_processor_has_the_name_that_the_system_gives_it() -> None:
    said = described(torch.device("cpu"))
    name = said.removeprefix("cpu (").rpartition(", ")[0]
    told = Path("/proc/cpuinfo").read_text()
    assert f": {name}\n" in told if "model name" in told else name


def test_the_threads_are_counted() -> None:
    before = torch.get_num_threads()
    try:
        for n, expected in ((1, ", 1 thread)"), (2, ", 2 threads)")):
            torch.set_num_threads(n)
            assert described(torch.device("cpu")).endswith(expected)
    finally:
        torch.set_num_threads(before)


def test_a_system_that_tells_no_name_gives_its_architecture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", absent)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert described(torch.device("cpu")).startswith("cpu (arm64, ")


def test_a_gpu_has_its_number_and_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert described(torch.device("cuda:1")) == "cuda:1 (GPU 1)"
    assert described(torch.device("mps")) == "mps"
