"""The public names of this folder, which `gpt2kit.inspection` has too."""

from __future__ import annotations

from gpt2kit.inspection.ablation import (
    Ablation,
    Effect,
    Part,
    Texts,
    every_head,
    every_mlp,
    of_repetition,
    of_windows,
)
from gpt2kit.inspection.attribution import Attribution, Contribution, attribute
from gpt2kit.inspection.checkpoint import (
    TensorSummary,
    count_parameters,
    memory,
    part_of,
    summarize,
)
from gpt2kit.inspection.edits import Edit
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
from gpt2kit.inspection.features import SAE, activations, load_sae
from gpt2kit.inspection.forward import LayerTrace, Trace, trace
from gpt2kit.inspection.gradients import GradientNorms, gradient_norms
from gpt2kit.inspection.heads import (
    HeadScores,
    RandomTokens,
    head_scores,
    ov_copying,
    random_tokens,
)
from gpt2kit.inspection.measures import (
    NormTrace,
    ScoreSpread,
    active_shares,
    mlp_input,
    norms_of,
    score_spreads,
)
from gpt2kit.inspection.modules import ModuleSummary, module_tree
from gpt2kit.inspection.neighbors import Neighbor, Term, combine, find_term, nearest, similarity
from gpt2kit.inspection.patch_options import PatchOptions
from gpt2kit.inspection.patching import Cell, Pair, Patching, mean_patching, patch
from gpt2kit.inspection.paths import PathPatching, mean_paths, path_patch
from gpt2kit.inspection.running import Run, editing, run
from gpt2kit.inspection.splicing import (
    Quality,
    promoted,
    quality,
    splice,
    splice_edit,
    top_features,
)
from gpt2kit.inspection.steering import Steering, steered, steering_of
from gpt2kit.inspection.switching import Switched, switch_heads
from gpt2kit.inspection.vocabulary import VocabularySummary, summarize_vocabulary

__all__ = [
    "SAE",
    "Ablation",
    "Attribution",
    "Cell",
    "Contribution",
    "Edit",
    "Effect",
    "Expectation",
    "ExplainOptions",
    "Explanation",
    "GradientNorms",
    "HeadScores",
    "LayerTrace",
    "Lens",
    "ModuleSummary",
    "Neighbor",
    "NormTrace",
    "Pair",
    "Part",
    "PatchOptions",
    "Patching",
    "PathPatching",
    "Quality",
    "RandomTokens",
    "Run",
    "ScoreSpread",
    "Steering",
    "Switched",
    "TensorSummary",
    "Term",
    "Texts",
    "Trace",
    "VocabularySummary",
    "activations",
    "active_shares",
    "attribute",
    "combine",
    "count_parameters",
    "editing",
    "every_head",
    "every_mlp",
    "expectations",
    "explain",
    "find_term",
    "gradient_norms",
    "head_scores",
    "lens",
    "lens_logits",
    "load_sae",
    "mean_patching",
    "mean_paths",
    "memory",
    "mlp_input",
    "module_tree",
    "nearest",
    "norms_of",
    "of_repetition",
    "of_windows",
    "ov_copying",
    "part_of",
    "patch",
    "path_patch",
    "promoted",
    "quality",
    "random_tokens",
    "run",
    "score_spreads",
    "similarity",
    "splice",
    "splice_edit",
    "steered",
    "steering_of",
    "summarize",
    "summarize_vocabulary",
    "switch_heads",
    "top_features",
    "trace",
]
