"""Counters, gauges and histograms, in the text format that Prometheus reads."""

from __future__ import annotations

import bisect
import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Labels = tuple[tuple[str, str], ...]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metric:
    """What all kinds have in common: a name, a help text, and how its lines are written."""

    kind = "untyped"

    def __init__(self, name: str, help: str) -> None:
        self.name = name
        self.help = help
        self._lock = threading.Lock()

    def lines(self) -> list[str]:
        """Return the lines of the exposition."""
        head = [f"# HELP {self.name} {self.help}", f"# TYPE {self.name} {self.kind}"]
        with self._lock:
            return [*head, *self._samples()]

    def _samples(self) -> list[str]:
        raise NotImplementedError


class Counter(Metric):
    """A number that only grows, one for each combination of labels."""

    kind = "counter"

    def __init__(self, name: str, help: str, *labels: str) -> None:
        super().__init__(name, help)
        self._values: dict[Labels, float] = {} if labels else {(): 0}

    def add(self, amount: float = 1, **labels: str) -> None:
        """Add to the number with these labels."""
        key = tuple(labels.items())
        with self._lock:
            self._values[key] = self._values.get(key, 0) + amount

    def value(self, **labels: str) -> float:
        """Return the number with these labels."""
        return self._values.get(tuple(labels.items()), 0)

    def _samples(self) -> list[str]:
        return [f"{self.name}{_written(key)} {_number(v)}" for key, v in self._values.items()]


class Gauge(Metric):
    """Numbers that are looked up when they are asked for."""

    kind = "gauge"

    def __init__(
        self, name: str, help: str, read: Callable[[], Mapping[Labels, float]], kind: str = "gauge"
    ) -> None:
        super().__init__(name, help)
        self._read = read
        self.kind = kind

    def _samples(self) -> list[str]:
        return [f"{self.name}{_written(key)} {_number(v)}" for key, v in self._read().items()]


class Histogram(Metric):
    """How many observations were at most as large as each of some bounds, and their sum."""

    kind = "histogram"

    def __init__(self, name: str, help: str, bounds: Sequence[float] = _SECONDS) -> None:
        super().__init__(name, help)
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, perhaps several times."""
        with self._lock:
            self._counts[bisect.bisect_left(self._bounds, value)] += times
            self._sum += value * times

    @property
    def mean(self) -> float:
        """The mean of the observations, 0 without any."""
        return self._sum / (sum(self._counts) or 1)

    def _samples(self) -> list[str]:
        total, lines = 0, []
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            lines.append(f'{self.name}_bucket{{le="{bound}"}} {total}')
        return [*lines, f"{self.name}_sum {_number(self._sum)}", f"{self.name}_count {total}"]


class Metrics:
    """Everything that a server counts."""

    def __init__(self) -> None:
        self.requests = Counter(
            "gpt2kit_requests_total", "Answers by route and status.", "route", "code"
        )
        self.cancelled = Counter(
            "gpt2kit_requests_cancelled_total", "Requests whose client went away."
        )
        self.refused = Counter(
            "gpt2kit_requests_refused_total", "Requests that were not worked on.", "reason"
        )
        self.prompt_tokens = Counter(
            "gpt2kit_prompt_tokens_total", "Tokens of prompts, read or found in the cache.", "from"
        )
        self.generated = Counter("gpt2kit_generated_tokens_total", "Tokens that were chosen.")
        self.scored = Counter(
            "gpt2kit_scored_tokens_total", "Tokens of prompts whose probability was asked for."
        )
        self.queue = Histogram("gpt2kit_queue_seconds", "From acceptance to the start.")
        self.first_token = Histogram(
            "gpt2kit_first_token_seconds", "From acceptance to the first token."
        )
        self.token = Histogram("gpt2kit_token_seconds", "Between two tokens of a text.")
        self.request = Histogram("gpt2kit_request_seconds", "From acceptance to the last token.")
        self.step = Histogram("gpt2kit_step_seconds", "Of one step of the engine.")
        self.step_rows = Histogram(
            "gpt2kit_step_rows", "Texts that a step gave new tokens.", bounds=_ROWS
        )
        self._gauges = [
            Gauge(
                "process_resident_memory_bytes",
                "Memory of this process.",
                lambda: {(): _resident_bytes()},
            ),
            Gauge(
                "process_cpu_seconds_total",
                "Processor time of this process.",
                lambda: {(): time.process_time()},
                kind="counter",
            ),
        ]

    def gauge(self, name: str, help: str, read: Callable[[], Mapping[Labels, float]]) -> None:
        """Add a gauge, whose numbers are looked up by calling `read`."""
        self._gauges.append(Gauge(name, help, read))

    def text(self) -> str:
        """Return all of them in Prometheus' text format."""
        own = [metric for metric in vars(self).values() if isinstance(metric, Metric)]
        return "".join(f"{line}\n" for metric in (*own, *self._gauges) for line in metric.lines())


def _written(labels: Labels) -> str:
    if not labels:
        return ""
    pairs = (f'{name}="{_escaped(value)}"' for name, value in labels)
    return f"{{{','.join(pairs)}}}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


def _resident_bytes() -> int:
    """Return the memory of this process; 0 on systems without /proc."""
    with contextlib.suppress(OSError), open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
