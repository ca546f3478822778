"""What a run records, one JSON object a line: reports in metrics.jsonl, texts in samples.jsonl.

Records are for readers and plots; training never depends on them. So a damaged line is skipped,
whatever is wrong with it, and never keeps a run from being resumed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from gpt2kit.files import write_whole

METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"

FinishReason = Literal["steps", "patience", "stopped"]


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one step did; the first report of a run, step 0, only measures."""

    step: int  # steps done so far
    train_loss: float | None = None  # of this step's batch, in nats per token
    val_loss: float | None = None  # in nats per token; None at steps without a validation
    eval_train_loss: float | None = None  # of the training text, measured as val_loss is
    lr: float = 0.0
    gradient_norm: float | None = None  # before clipping
    tokens_seen: int = 0  # trained on since the start of the run, in all processes
    epoch: float = 0.0  # the same as passes over the training text
    tokens_per_second: float | None = None  # of all processes together
    gradient_norms: dict[str, float] | None = None  # before clipping, by part: wte, h.0, ln_f …
    is_best: bool = False  # no earlier validation was better
    finish_reason: FinishReason | None = None  # in the last report: why training ended

    def as_record(self) -> dict[str, Any]:
        """Return what metrics.jsonl says of this step: the fields that have a value."""
        return {name: value for name, value in asdict(self).items() if value is not None}


_NUMBERS = {
    name
    for name in StepReport.__annotations__
    if name not in ("step", "gradient_norms", "is_best", "finish_reason")
}
_OLD_NAMES = {"tokens": "tokens_seen"}  # of figures in earlier versions


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the reports of a run, given its folder or its metrics.jsonl, without damaged lines."""
    return [
        {_OLD_NAMES.get(name, name): value for name, value in record.items()}
        for _, record in _read(path / METRICS if path.is_dir() else path)
    ]


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add a line to a file of records."""
    with path.open("ab") as file:
        file.write(_line(record))


def rewind(path: Path, step: int) -> None:
    """Remove damaged lines and those after a step, since these steps will be done again.

    A run that is resumed did not end at this step, so no line says that it was stopped there.
    """
    if not path.exists():
        return
    kept = b""
    for line, record in _read(path):
        if record["step"] <= step:
            stopped = record.pop("finish_reason", None) is not None
            kept += _line(record) if stopped else line
    if kept != path.read_bytes():
        write_whole(path, kept)


def _line(record: Mapping[str, Any]) -> bytes:
    # A lone surrogate, which UTF-8 cannot hold, becomes the JSON escape \udxxx.
    text = json.dumps(dict(record), ensure_ascii=False) + "\n"
    return text.encode("utf-8", errors="backslashreplace")


def _read(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Return each whole line and the record in it."""
    lines = (line + b"\n" for line in path.read_bytes().split(b"\n"))
    parsed = ((line, _parse(line)) for line in lines)
    return [(line, record) for line, record in parsed if record is not None]


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return the record in a line, or None if it is damaged."""
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    norms = record.get("gradient_norms", {})
    if not isinstance(norms, dict):
        return None
    numbers = [record[name] for name in _NUMBERS if name in record] + list(norms.values())
    return record if all(type(number) in (int, float) for number in numbers) else None
