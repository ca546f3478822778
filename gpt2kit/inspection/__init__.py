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
    ExplainOptions,
    Explanation,
    Lens,
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
    "ExplainOptions",
    "Explanation",
    "LayerTrace",
    "Lens",
    "TensorSummary",
    "Trace",
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
