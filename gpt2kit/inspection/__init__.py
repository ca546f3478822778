"""What is inside a checkpoint, and inside a forward pass."""

from __future__ import annotations

from gpt2kit.inspection.checkpoint import TensorSummary, count_parameters, memory, summarize
from gpt2kit.inspection.forward import LayerTrace, Trace, trace

__all__ = ["LayerTrace", "TensorSummary", "Trace", "count_parameters", "memory", "summarize", "trace"]
