"""Which device and dtype a model runs with."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from gpt2kit.checkpoints.stored import FLOAT_DTYPES
from gpt2kit.errors import ConfigError


def resolve_device_and_dtype(
    device: str, dtype: str, quantize: str | None = None
) -> tuple[torch.device, torch.dtype]:
    """Return the device and dtype that the arguments of `load` mean.

    Raises ConfigError for an unknown name, a device that this machine does not have, or a
    combination that int8 weights do not have.
    """
    if quantize is None:
        resolved = resolve_device(device)
        return resolved, resolve_dtype(dtype, resolved)
    if quantize != "int8":
        raise ConfigError(f"quantize is {quantize!r}, expected int8")
    if device not in ("auto", "cpu") or dtype not in ("auto", "float32"):
        found = f"device {device!r} and dtype {dtype!r}"
        raise ConfigError(f"int8 weights run on the CPU in float32; found {found}: leave them out")
    return torch.device("cpu"), torch.float32


def resolve_device(name: str) -> torch.device:
    """Return the device of that name; `auto` is CUDA, else MPS, else the CPU.

    Raises ConfigError for an unknown name, or a device that this machine or this torch does not
    have.
    """
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    here = [kind for kind, is_here in present.items() if is_here]
    if name == "auto":
        return torch.device(here[0])
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device is {name!r}, expected auto, cpu, cuda, cuda:1, mps, …") from None
    is_beyond = device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    if device.type not in here or is_beyond:
        detail = "which this machine or this build of torch does not have"
        raise ConfigError(f"device is {name!r}, {detail}; it has {', '.join(reversed(here))}")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of that name; `auto` is bfloat16 on CUDA, else float32.

    Raises ConfigError for an unknown name.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    known = {str(dtype).removeprefix("torch."): dtype for dtype in FLOAT_DTYPES}
    if name not in known:
        raise ConfigError(f"dtype is {name!r}, expected auto, {', '.join(known)}")
    return known[name]


def described(device: torch.device) -> str:
    """Return a device with its name: `cpu (AMD EPYC, 2 threads)`, `cuda:0 (NVIDIA H200)`."""
    if device.type == "cpu":
        n = torch.get_num_threads()
        return f"cpu ({processor_name()}, {n} thread{'' if n == 1 else 's'})"
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def processor_name() -> str:
    """Return the name of this machine's processor, or of its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), platform.processor() or platform.machine())
