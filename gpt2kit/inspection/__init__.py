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
from gpt2kit.inspection.modules import ModuleSummary, module_tree
from gpt2kit.inspection.neighbors import Neighbor, Term, combine, find_term, nearest, similarity
from gpt2kit.inspection.vocabulary import VocabularySummary, summarize_vocabulary

__all__ = [
    "Attribution",
    "Contribution",
    "Expectation",
    "ExplainOptions",
    "Explanation",
    "LayerTrace",
    "Lens",
    "ModuleSummary",
    "Neighbor",
    "TensorSummary",
    "Term",
    "Trace",
    "VocabularySummary",
    "attribute",
    "combine",
    "count_parameters",
    "expectations",
    "explain",
    "find_term",
    "lens",
    "lens_logits",
    "memory",
    "module_tree",
    "nearest",
    "part_of",
    "similarity",
    "summarize",
    "summarize_vocabulary",
    "trace",
]
