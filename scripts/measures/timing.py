"""Time, memory and bandwidth, the type of a task, and models to measure."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt2kit.model import GPT2
    from gpt2kit.tokenizers import Tokenizer

Task = dict[str, Any]  # what to measure, passed to the engine's process as JSON
Figures = dict[str, float]

SEED_TOKEN = 1000  # prompts are this id and the ids after it
SHORT = 16  # tokens of a prompt, unless the work is to read a long one


def seconds(function: Callable[..., object], *arguments: object) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def bandwidth(threads: int) -> float:
    """Return the bytes per second read from memory: the best of five sums over 512 MiB."""
    import torch

    torch.set_num_threads(threads)
    block = torch.ones(128 * 1024 * 1024)
    return max(block.nbytes / seconds(block.sum) for _ in range(5))


def gpu_bandwidth(device: str) -> float:
    """Return the bytes per second that a GPU reads from its memory.

    It is the best of five times twenty sums over 512 MiB.
    """
    import torch

    block = torch.ones(128 * 1024 * 1024, device=device)

    def read() -> None:
        sums = [block.sum() for _ in range(20)]
        sums[-1].item()  # waits for the GPU

    return max(20 * block.nbytes / seconds(read) for _ in range(5))


def peak_memory(process: int | str = "self") -> int:
    """Return the peak memory of a process in bytes; only of this one where there is no /proc."""
    status = Path(f"/proc/{process}/status")
    if status.exists():  # getrusage also counts the parent before the exec
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def load_kit(
    kind: str, model: str, threads: int, device: str = "cpu"
) -> tuple[GPT2, Tokenizer | None]:
    """Load a model with gpt2kit in float32, bfloat16 or int8, and set the number of threads."""
    import torch

    import gpt2kit

    torch.set_num_threads(threads)
    options: dict[str, Any] = {"quantize": kind} if kind == "int8" else {"dtype": kind}
    return gpt2kit.load(Path(model), device=device, **options)


def load_hf(kind: str, model: str, threads: int, device: str = "cpu") -> Any:
    """Load a model with transformers, and set the number of threads."""
    import torch
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(threads)
    loaded: Any = GPT2LMHeadModel.from_pretrained(model, dtype=getattr(torch, kind))
    return loaded.to(device).eval()


def prompt(task: Task, length: int | None = None) -> list[int]:
    """Return a prompt of the length of the task, in the model's vocabulary."""
    return [
        (SEED_TOKEN + position) % task["n_vocab"]
        for position in range(length or task["prompt_tokens"])
    ]
