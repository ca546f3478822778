"""What is inside a checkpoint, and inside a forward pass."""

from __future__ import annotations

from gpt2kit.inspection.attribution import Attribution, Contribution, attribute
from gpt2kit.inspection.checkpoint import (
    TensorSummary,
    count_parameters,
    memory,
    part_of,
    summarize,
)
from gpt2kit.inspection.explanation import (
    Expectation,
    Explanation,
    Lens,
    Wish,
    expectations,
    explain,
    lens,
    lens_logits,
)
from gpt2kit.inspection.forward import LayerTrace, Trace, trace

__all__ = [
    "Attribution",
    "Contribution",
    "Expectation",
    "Explanation",
    "LayerTrace",
    "Lens",
    "TensorSummary",
    "Trace",
    "Wish",
    "attribute",
    "count_parameters",
    "expectations",
    "explain",
    "lens",
    "lens_logits",
    "memory",
    "part_of",
    "summarize",
    "trace",
]
