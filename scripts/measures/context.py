"""context: tokens per second of generating after a short prompt and after a long one.

Both are measured in one process, in turns.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator

from measures.timing import SHORT, Figures, Task, load_hf, load_kit, prompt

TURNS = 3


def compare(task: Task, times: Callable[[list[int]], Iterator[float]]) -> Figures:
    """Return the rates of a function that continues a prompt and yields the time of each token."""
    taken: dict[int, list[float]] = {SHORT: [], task["prompt_tokens"]: []}
    for _ in range(TURNS):
        for length, found in taken.items():
            found += [
                later - earlier
                for earlier, later in itertools.pairwise(times(prompt(task, length)))
            ]
    short, long = (statistics.median(found) for found in taken.values())
    return {"tokens_per_second": 1 / short, "after_long": 1 / long, "cost": long / short}


def kit(kind: str, task: Task) -> Figures:
    import gpt2kit

    model, _ = load_kit(kind, task["model"], task["threads"])

    def times(ids: list[int]) -> Iterator[float]:
        for _ in gpt2kit.generate_tokens(
            model, [ids], max_tokens=task["tokens"], sampling=gpt2kit.Sampling(temperature=0)
        ):
            yield time.perf_counter()

    return compare(task, times)


def hf(kind: str, task: Task) -> Figures:
    import torch

    model = load_hf(kind, task["model"], task["threads"])

    class Clock:
        """A streamer of transformers, which gets the prompt and then every new token."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, _: torch.Tensor) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None: ...

    def times(ids: list[int]) -> Iterator[float]:
        clock, n = Clock(), task["tokens"]
        with torch.inference_mode():
            model.generate(
                torch.tensor([ids]),
                max_new_tokens=n,
                min_new_tokens=n,
                do_sample=False,
                pad_token_id=0,
                streamer=clock,
            )
        return iter(clock.times[1:])  # the first is that of the prompt

    return compare(task, times)
